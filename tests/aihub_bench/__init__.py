"""A loopback AI Hub: the service's REST and protobuf protocol, ONNX Runtime for a device, and faults on demand."""

from tests.aihub_bench.bench import Bench
from tests.aihub_bench.faults import Fault

__all__ = ["Bench", "Fault"]
