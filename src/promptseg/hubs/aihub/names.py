"""A job's name is the hash of what goes in: the same work has the same name on every run, in every experiment."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from promptseg.hubs.base import HubInput
from promptseg.hubs.contract import OUTPUTS

PREFIX = "promptseg"
_DIGITS = 20  # 80 bits of the hash: no two jobs of one account will ever meet


@dataclass(frozen=True)
class Work:
    """A graph to compile for a device, from which the names and options of all its jobs follow."""

    graph_sha256: str
    device: str
    qairt_version: str

    @property
    def compile_options(self) -> str:
        """The compiler's options: runtime, precision and output names are stated, never left to a default."""
        names = ",".join(spec.name for spec in OUTPUTS)
        return (
            f"--target_runtime qnn_context_binary --qairt_version {self.qairt_version} --output_names {names} "
            "--qnn_options default_graph_htp_precision=FLOAT16"
        )

    @property
    def run_options(self) -> str:
        """Options of every job that runs the binary: a device's default version may be too old to load it."""
        return f"--qairt_version {self.qairt_version}"

    def profile_options(self, iterations: int) -> str:
        """Options of the job that measures over `iterations` runs."""
        return f"{self.run_options} --max_profiler_iterations {iterations}"

    @property
    def compile_name(self) -> str:
        """Name of the compile job."""
        content = {"graph": self.graph_sha256, "device": self.device, "options": self.compile_options}
        return job_name("compile", content)

    def profile_name(self, iterations: int) -> str:
        """Name of the profile job."""
        return job_name("profile", {"binary": self.compile_name, "options": self.profile_options(iterations)})

    def infer_name(self, chunk_sha256: str) -> str:
        """Name of the inference job on one chunk of samples."""
        content = {"binary": self.compile_name, "options": self.run_options, "samples": chunk_sha256}
        return job_name("infer", content)


def job_name(step: str, content: Mapping[str, str]) -> str:
    """Name a job of `step` after the hash of `content`."""
    text = json.dumps({"step": step, **content}, sort_keys=True)
    return f"{PREFIX}-{step}-{hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]}"


class SampleHasher:
    """Hashes of samples' tensors; the phrases of one picture share its array, which is then read once."""

    def __init__(self) -> None:
        self._image: object = None
        self._image_hash = b""

    def digest(self, sample: HubInput) -> str:
        """SHA-256, in hex, of a sample's two tensors; names and order of samples play no part."""
        if sample.image_input is not self._image:
            self._image = sample.image_input  # held, so that its place in memory is not taken by another
            self._image_hash = hashlib.sha256(sample.image_input.tobytes()).digest()
        return hashlib.sha256(self._image_hash + sample.text_input.tobytes()).hexdigest()
