"""What the bench's service holds: models, data sets, jobs, and who may see them."""

import itertools
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qai_hub import public_api_pb2 as pb

from tests.aihub_bench import device

TOKEN = "secret-token-0123456789"
EMAIL = "user@example.org"
COLLEAGUES_TOKEN = "secret-token-of-a-colleague"
ACCOUNTS = {TOKEN: (7, EMAIL), COLLEAGUES_TOKEN: (8, "colleague@example.org")}  # of one organisation: id, e-mail
# Attributes as the service lists them: the NPU's generation, whether it computes in float16, who runs what.
_NPU = ("framework:onnx", "framework:qnn", "framework:tflite", "htp-supports-weight-sharing:true", "vendor:qualcomm")
DEVICES = {
    "Snapdragon X Elite CRD": (*_NPU, "hexagon:v73", "htp-supports-fp16:true", "soc-model:60"),
    "Snapdragon 8 Gen 3 QRD": (*_NPU, "hexagon:v75", "htp-supports-fp16:true", "soc-model:57"),
    "Samsung Galaxy S24": (*_NPU, "hexagon:v75", "htp-supports-fp16:true", "soc-model:57"),
    "QCS8550 (Proxy)": (*_NPU, "hexagon:v73", "htp-supports-fp16:true", "soc-model:66"),
    "RB3 Gen 2 (Proxy)": (*_NPU, "hexagon:v68", "soc-model:35"),  # integers alone
    "Google Pixel 4": ("framework:tflite", "vendor:google"),  # no NPU of Qualcomm's at all
    "Tomorrow's Device": (),
}
DAY_S = 24 * 3600
PATIENCE_S = 10  # how long a look at a running job may take: quick jobs end within the first
COMPILE_STATES = (pb.JOB_STATE_CREATED, pb.JOB_STATE_OPTIMIZING_MODEL)
RUN_STATES = (pb.JOB_STATE_CREATED, pb.JOB_STATE_PROVISIONING_DEVICE, pb.JOB_STATE_RUNNING_INFERENCE)


@dataclass
class Asset:
    """A model or a data set: its message, and its file once it is uploaded."""

    message: Any
    file: Path


@dataclass
class JobEntry:
    """A job as it was submitted, and how many looks it has had; it ends after `looks_needed`."""

    job_id: str
    kind: str  # compile, profile or infer
    content: Any  # the CompileJob or InferenceJob that was submitted
    created_at: float
    creator: str  # e-mail address
    looks: int = 0
    state: int = pb.JOB_STATE_CREATED
    reason: str = ""
    output_id: str = ""
    worker: threading.Thread | None = None
    shared_with: set[str] = field(default_factory=set)


class ServiceState:
    """An organisation. `looks_needed` slows the queue, kinds in `failing` fail, `empty_profiles` are empty."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.lock = threading.RLock()
        self.models: dict[str, Asset] = {}
        self.datasets: dict[str, Asset] = {}
        self.jobs: dict[str, JobEntry] = {}
        self.looks_needed = 0
        self.failing: dict[str, str] = {}
        self.hidden_jobs: set[str] = set()  # in the list only after a while
        self.empty_profiles = 0
        self.devices = dict(DEVICES)
        self.expire_after_s: float = 30 * DAY_S
        self.output_expires_after_s: float | None = None  # as long as a data set, unless set
        self.ignores_sharing = False
        self.keep_files = True
        self.hands_out_credentials = False  # for objects of a bucket, in place of signed addresses
        self.logs = True
        self.layers = [
            ("conv_0", "NPU", 900, 120_000),
            ("softmax_7", "NPU", 100, 9_000),
            ("argmax_9", "NPU", 250, 30_000),
        ]
        self.inference_times_us = [6_000, 5_000, 7_000, 40_000]
        self._numbers = itertools.count(1)

    def successor(self, folder: Path, keeping: "ServiceState | None") -> "ServiceState":
        """Return an account with the models and jobs of `keeping`, or none, and its new files in `folder`.

        Ids go on, so that nothing that either state does reaches what the other holds.
        """
        state = ServiceState(folder)
        state._numbers = self._numbers
        if keeping is not None:
            state.models, state.jobs = dict(keeping.models), dict(keeping.jobs)
        return state

    def come_to_rest(self) -> None:
        """Return when no job is at work any more."""
        for entry in list(self.jobs.values()):
            if entry.worker is not None:
                entry.worker.join()

    def new_id(self, letter: str) -> str:
        return f"{letter}{next(self._numbers):05d}"

    def names(self, kind: str) -> list[str]:
        """Names of all jobs of a kind, in the order of their submission."""
        return [job.content.name for job in self.jobs.values() if job.kind == kind]

    def add_model(self, message: Any) -> str:
        model_id = self.new_id("m")
        message.model_id = model_id
        message.creation_time.GetCurrentTime()
        self.models[model_id] = Asset(message, self.folder / f"{model_id}.model")
        return model_id

    def add_dataset(self, message: Any, expire_after_s: float | None = None) -> str:
        dataset_id = self.new_id("d")
        message.dataset_id = dataset_id
        message.creation_time.GetCurrentTime()
        expires = time.time() + (self.expire_after_s if expire_after_s is None else expire_after_s)
        message.expiration_time.FromSeconds(int(expires))
        self.datasets[dataset_id] = Asset(message, self.folder / f"{dataset_id}.h5")
        return dataset_id

    def add_job(self, job: Any, creator: str) -> str:
        if job.WhichOneof("job") == "compile_job":
            kind, content = "compile", job.compile_job
            target = pb.Model(name=content.name, model_type=pb.MODEL_TYPE_QNN_CONTEXT_BINARY)
            self.add_model(target)
        else:
            content, target = job.inference_job, None
            kind = "infer" if content.dataset.dataset_id else "profile"
        job_id = self.new_id("j")
        if target is not None:
            target.producer_id = job_id
            content.target_model.CopyFrom(target)
        self.jobs[job_id] = JobEntry(job_id, kind, content, time.time(), creator)
        return job_id

    def look(self, job_id: str) -> JobEntry:
        """Return a job after one more look; after `looks_needed` of them its work begins, in a thread."""
        with self.lock:
            entry = self.jobs[job_id]
            entry.looks += 1
            if entry.looks <= self.looks_needed:
                states = COMPILE_STATES if entry.kind == "compile" else RUN_STATES
                entry.state = states[min(entry.looks, len(states)) - 1]
                return entry
            if entry.worker is None:
                entry.worker = threading.Thread(target=self._finish, args=(entry,), daemon=True)
                entry.worker.start()
        entry.worker.join(PATIENCE_S)
        return entry

    def _finish(self, entry: JobEntry) -> None:
        try:
            self._work(entry)
        except Exception as error:  # noqa: BLE001 - whatever it is, a job ends
            entry.state, entry.reason = pb.JOB_STATE_FAILED, f"no input: {error}"

    def _work(self, entry: JobEntry) -> None:
        if entry.kind in self.failing:
            entry.state, entry.reason = pb.JOB_STATE_FAILED, self.failing[entry.kind]
            return
        model = self.models[entry.content.model.model_id]
        if entry.kind == "compile":
            target = self.models[entry.content.target_model.model_id]
            target.message.metadata.entries[pb.MODEL_METADATA_KEY_QAIRT_SDK_VERSION] = "2.45.0.260326"
            device.compile_graph(model.file, target.file)
        elif entry.kind == "infer":
            dataset = self.datasets[entry.content.dataset.dataset_id]
            with self.lock:
                outputs = pb.Dataset(name=f"{entry.content.name} outputs")
                entry.output_id = self.add_dataset(outputs, self.output_expires_after_s)
            device.run(model.file, dataset.file, self.datasets[entry.output_id].file)
            if not self.keep_files:
                dataset.file.unlink()
        entry.state = pb.JOB_STATE_DONE

    def profile(self) -> Any:
        """The profile of a job that has ended, in the service's units."""
        times = self.inference_times_us
        detail = pb.ProfileDetail(
            execution_time=min(times), cold_load_time=310_000, warm_load_time=52_000, major_version=1, minor_version=2,
            after_execution_peak_memory=150_000_000, all_execution_times=times,
        )  # fmt: skip
        detail.execution_memory.peak.lower, detail.execution_memory.peak.upper = 90_000_000, 160_000_000
        for name, unit, time_us, cycles in self.layers:
            detail.layer_details.add(
                name=name, layer_type_name=name.split("_")[0], execution_time=time_us,
                compute_unit=pb.ComputeUnit.Value(f"COMPUTE_UNIT_{unit}"), execution_cycles=cycles,
            )  # fmt: skip
        return detail
