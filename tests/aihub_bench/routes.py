"""The protocol's steps: which request each is, and what the service answers."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qai_hub import public_api_pb2 as pb

from tests.aihub_bench.state import JobEntry

if TYPE_CHECKING:
    from tests.aihub_bench.bench import Bench

PART_BYTES = 5_000_000  # of an upload in parts
BUCKET = "bucket"
S3_SECRET = "secret-key-9876543210"


@dataclass(frozen=True)
class Ask:
    """One request, past its address."""

    bench: "Bench"
    user: tuple[int, str]  # id and e-mail address of the token's account
    query: dict[str, list[str]]
    body: bytes


class NoSuchThing(Exception):  # noqa: N818 - a status, not an error
    """Answered with 404."""


def _user(ask: Ask) -> Any:
    return pb.User(id=ask.user[0], email=ask.user[1], token="a token that nobody asked for")


def _devices(ask: Ask) -> Any:
    wanted = ask.query.get("name", [""])[0]
    known = ask.bench.state.devices.items()
    devices = [pb.Device(name=name, os="11", attributes=has) for name, has in known if wanted in ("", name)]
    return pb.DeviceList(devices=devices, total_query_count=len(devices))


def _frameworks(_ask: Ask) -> Any:
    tags = {"2.45": ["default"], "2.46": ["latest"]}
    return pb.FrameworkList(
        frameworks=[
            pb.Framework(name="QAIRT", api_version=v, api_tags=t, full_version=f"{v}.0") for v, t in tags.items()
        ]
    )


def _new_model(ask: Ask) -> Any:
    return _created(ask.bench.state.add_model(pb.Model.FromString(ask.body)))


def _model(ask: Ask, model_id: str) -> Any:
    return _asset(ask.bench.state.models, model_id).message


def _model_parts(ask: Ask, model_id: str) -> Any:
    _asset(ask.bench.state.models, model_id).file.unlink(missing_ok=True)
    if ask.bench.state.hands_out_credentials:
        return pb.FileUploadResponse(credentials=_credentials("model", model_id))
    parts = -(-int(ask.query["file_size"][0]) // PART_BYTES)
    urls = [f"{ask.bench.storage_address}/part/{model_id}/{part}" for part in range(parts)]
    return pb.FileUploadResponse(
        multipart_url=pb.FileMultipartUploadURL(urls=urls, upload_id=model_id, max_part_size=PART_BYTES)
    )


def _model_complete(ask: Ask, model_id: str) -> Any:
    etags = pb.FileMultipartUploadComplete.FromString(ask.body).etags
    parts = [ask.bench.state.folder / etag for etag in etags]
    asset = _asset(ask.bench.state.models, model_id)
    asset.file.write_bytes(b"".join(part.read_bytes() for part in parts))
    return _created(model_id)


def _model_confirmed(ask: Ask, model_id: str) -> Any:
    _asset(ask.bench.state.models, model_id)
    return _created(model_id)


def _model_download(ask: Ask, model_id: str) -> Any:
    _asset(ask.bench.state.models, model_id)
    if ask.bench.state.hands_out_credentials:
        return pb.FileDownloadResponse(credentials=_credentials("model", model_id, f"{model_id}.bin"))
    url = f"{ask.bench.storage_address}/model/{model_id}"
    return pb.FileDownloadResponse(url=pb.FileDownloadURL(url=url, filename=f"{model_id}.bin"))


def _new_dataset(ask: Ask) -> Any:
    dataset_id = ask.bench.state.add_dataset(pb.Dataset.FromString(ask.body))
    answer = _created(dataset_id)
    answer.expiration_time.CopyFrom(ask.bench.state.datasets[dataset_id].message.expiration_time)
    return answer


def _dataset_upload(ask: Ask, dataset_id: str) -> Any:
    if ask.bench.state.hands_out_credentials:
        return pb.FileUploadResponse(credentials=_credentials("dataset", dataset_id))
    url = f"{ask.bench.storage_address}/dataset/{dataset_id}"
    return pb.FileUploadResponse(url=pb.FileUploadURL(url=url, file_field_name="file", fields={"key": dataset_id}))


def _dataset_complete(ask: Ask, dataset_id: str) -> Any:
    _asset(ask.bench.state.datasets, dataset_id).message.file_upload_complete = True
    return _created(dataset_id)


def _dataset(ask: Ask, dataset_id: str) -> Any:
    return _asset(ask.bench.state.datasets, dataset_id).message


def _dataset_download(ask: Ask, dataset_id: str) -> Any:
    _asset(ask.bench.state.datasets, dataset_id)
    if ask.bench.state.hands_out_credentials:
        return pb.FileDownloadResponse(credentials=_credentials("dataset", dataset_id, f"{dataset_id}.h5"))
    url = f"{ask.bench.storage_address}/dataset/{dataset_id}"
    return pb.FileDownloadResponse(url=pb.FileDownloadURL(url=url, filename=f"{dataset_id}.h5"))


def _new_job(ask: Ask) -> Any:
    with ask.bench.state.lock:
        return _created(ask.bench.state.add_job(pb.Job.FromString(ask.body), ask.user[1]))


def _job(ask: Ask, job_id: str) -> Any:
    if job_id not in ask.bench.state.jobs:
        raise NoSuchThing
    entry = ask.bench.state.look(job_id)
    answer = pb.Job(
        hub_version="bench", available_artifacts=[pb.JOB_ARTIFACT_TYPE_HUB_LOG] if ask.bench.state.logs else []
    )
    content = answer.compile_job if entry.kind == "compile" else answer.inference_job
    content.CopyFrom(entry.content)
    content.job_state = entry.state
    content.failure_reason = entry.reason
    content.creation_time.FromSeconds(int(entry.created_at))
    if entry.kind == "compile":
        content.compile_job_id = job_id
        content.device.CopyFrom(content.devices.devices[0])
    else:
        content.inference_job_id = job_id
    return answer


def _result(ask: Ask, job_id: str) -> Any:
    entry = ask.bench.state.jobs[job_id]
    result = pb.JobResult(inference_job_result=pb.InferenceJobResult(inference_job_id=job_id))
    result.inference_job_result.output_dataset_id = entry.output_id
    if entry.kind == "profile":
        if ask.bench.state.empty_profiles > 0:
            ask.bench.state.empty_profiles -= 1
        else:
            result.inference_job_result.detail.CopyFrom(ask.bench.state.profile())
    return result


def _summaries(ask: Ask) -> Any:
    offset, limit = int(ask.query.get("offset", ["0"])[0]), int(ask.query["limit"][0])
    newest = [job for job in reversed(ask.bench.state.jobs.values()) if job.job_id not in ask.bench.state.hidden_jobs]
    answer = pb.JobSummaryList(total_query_count=len(newest))
    for entry in newest[offset : offset + limit]:
        summary = answer.job_summaries.add()
        line = summary.compile_job_summary if entry.kind == "compile" else summary.inference_job_summary
        line.job_id, line.name, line.job_state = entry.job_id, entry.content.name, entry.state
        line.creation_time.FromSeconds(int(entry.created_at))
        line.user.email = entry.creator
    return answer


def _logs(ask: Ask, job_id: str, _kind: str) -> Any:
    url = f"{ask.bench.storage_address}/log/{job_id}"
    return pb.NamedArtifactDownloadURLList(artifacts=[pb.NamedArtifactDownloadURL(url=url, filename=f"{job_id}.log")])


def _shared(ask: Ask, job_id: str) -> Any:
    return pb.SharedAccess(email=sorted(_entry(ask.bench, job_id).shared_with))


def _share(ask: Ask, job_id: str) -> Any:
    change = pb.SharedAccessChange.FromString(ask.body)
    if not ask.bench.state.ignores_sharing:
        _entry(ask.bench, job_id).shared_with |= set(change.add_email)
    return _created(job_id)


def _credentials(kind: str, asset_id: str, filename: str = "") -> Any:
    return pb.S3Credentials(
        access_key_id="bench", secret_access_key=S3_SECRET, session_token="bench", region="us-west-2",
        bucket=BUCKET, key=f"{kind}/{asset_id}", filename=filename,
    )  # fmt: skip


def _created(asset_id: str) -> Any:
    answer = pb.CreateUpdateResponse(id=asset_id)
    answer.creation_time.GetCurrentTime()
    return answer


def _asset(assets: dict[str, Any], asset_id: str) -> Any:
    if asset_id not in assets:
        raise NoSuchThing
    return assets[asset_id]


def _entry(bench: "Bench", job_id: str) -> JobEntry:
    if job_id not in bench.state.jobs:
        raise NoSuchThing
    return bench.state.jobs[job_id]


ID = r"(\w+)"
# step -> method, path below /api/v1/, what answers; the first that matches counts
ROUTES: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "user": ("GET", "users/auth/user/", _user),
    "devices": ("GET", "devices/", _devices),
    "frameworks": ("GET", "frameworks/", _frameworks),
    "new model": ("POST", "models/", _new_model),
    "model": ("GET", f"models/{ID}/", _model),
    "model parts": ("GET", f"models/{ID}/multipart_upload/", _model_parts),
    "model complete": ("POST", f"models/{ID}/multipart_upload/", _model_complete),
    "model confirmed": ("POST", f"models/{ID}/upload_complete/", _model_confirmed),
    "model address": ("GET", f"models/{ID}/download/", _model_download),
    "new dataset": ("POST", "datasets/", _new_dataset),
    "dataset address": ("GET", f"datasets/{ID}/upload_url/", _dataset_upload),
    "dataset complete": ("PATCH", f"datasets/{ID}/", _dataset_complete),
    "dataset confirmed": ("POST", f"datasets/{ID}/upload_complete/", _dataset_complete),
    "dataset": ("GET", f"datasets/{ID}/", _dataset),
    "outputs address": ("GET", f"datasets/{ID}/download_data/", _dataset_download),
    "submit": ("POST", "jobs/", _new_job),
    "job": ("GET", f"jobs/{ID}/", _job),
    "result": ("GET", f"jobs/{ID}/result/", _result),
    "list": ("GET", "job_summaries/", _summaries),
    "logs": ("GET", f"jobs/{ID}/device_runs/latest/artifact_list/{ID}/", _logs),
    "shared": ("GET", f"jobs/{ID}/shared_access/", _shared),
    "share": ("PATCH", f"jobs/{ID}/shared_access/", _share),
}
# step -> method and path on the storage's own address
STORAGE: dict[str, tuple[str, str]] = {
    "put part": ("PUT", "/part/"),
    "post dataset": ("POST", "/dataset/"),
    "get model": ("GET", "/model/"),
    "get outputs": ("GET", "/dataset/"),
    "get log": ("GET", "/log/"),
    "put object": ("PUT", f"/{BUCKET}/"),
    "head object": ("HEAD", f"/{BUCKET}/"),
    "get object": ("GET", f"/{BUCKET}/"),
}


def api_step(method: str, path: str) -> tuple[str, Callable[..., Any], tuple[str, ...]] | None:
    """Find the step of a request, what answers it, and the ids in its path."""
    for step, (wanted, pattern, answer) in ROUTES.items():
        match = re.fullmatch(f"/api/v1/{pattern}", path)
        if method == wanted and match:
            return step, answer, match.groups()
    return None


def storage_step(method: str, path: str) -> str | None:
    """Find the step of a request to the storage."""
    return next(
        (step for step, (wanted, start) in STORAGE.items() if method == wanted and path.startswith(start)), None
    )
