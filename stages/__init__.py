"""One thin script per stage of dvc.yaml, run as `python -m stages.<name>`.

Queued experiments run in a copy of the project: the library beside this file must win over any other on the path.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Snapshots and downloads outlive an experiment's copy of the project: DVC names the project itself.
CACHE = Path(os.environ.get("DVC_ROOT", ROOT)) / ".cache"
sys.path.insert(0, str(ROOT / "src"))
