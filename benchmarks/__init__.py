"""Ratios and rates measured side by side, run as `python -m benchmarks.<name>` from the project's root; no tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
