"""The three kinds of latency a run may have. Which counts is decided here; no two kinds are ever compared."""

from collections.abc import Mapping
from typing import Any

DEVICE, ESTIMATED, CPU = "device", "estimated", "cpu"
# kind -> its name in a flat latency.json; the first that a run has is the one it is known by
NAMES = {DEVICE: "latency_ms_device", ESTIMATED: "latency_ms_estimated", CPU: "host.latency_ms_cpu"}
SPELLED = {DEVICE: "NPU, measured", ESTIMATED: "NPU, estimated", CPU: "this host's CPU"}


def latency_known_by(latency: Mapping[str, Any]) -> tuple[str | None, float | None]:
    """Return the kind and the milliseconds that a run is known by, from the contents of its latency.json.

    A device's clock counts before an estimate, an estimate before the host's CPU; (None, None) where there is none.
    """
    host = latency.get("host") or {}
    for kind, name in NAMES.items():
        value = host.get("latency_ms_cpu") if kind == CPU else latency.get(name)
        if value is not None:
            return kind, value
    return None, None
