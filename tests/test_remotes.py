"""DVC's remotes on S3, against a real server of that kind on this machine: what was pushed is not made again.

The project is one small pipeline; DVC treats the real one in the same way, and takes minutes for it.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.projects import ROOT, dvc_environment, git

moto = pytest.importorskip("moto.server", reason="moto is not installed (requirements-dev.txt)")
pytest.importorskip("dvc_s3", reason="dvc-s3 is not installed (requirements-dev.txt)")

pytestmark = pytest.mark.slow
BUCKET = "team"
TRAIN = """
import json, pathlib, yaml
res = yaml.safe_load(open("params.yaml"))["res"]
pathlib.Path("model").mkdir(exist_ok=True)
for part in range(4):
    pathlib.Path(f"model/{part}.bin").write_bytes(bytes([res, part]) * 500_000)
json.dump({"score": 1 / res}, open("score.json", "w"))
open("runs.log", "a").write(f"{res}\\n")
"""
PIPELINE = """
stages:
  train:
    cmd: python train.py
    deps: [train.py]
    params: [res]
    outs: [model]
    metrics: [{score.json: {cache: false}}]
"""


class Gate:
    """Passes bytes on to a server, until so many have gone by: then every connection is cut, as a network fails."""

    def __init__(self, port: int) -> None:
        self._target, self._left = port, 10**12
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, count: int) -> None:
        self._left = count

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._left <= 0:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._target))
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while self._left > 0 and (content := source.recv(65536)):
                self._left -= len(content)
                sink.sendall(content)
        except OSError:  # the other side's thread has cut it
            return
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """The port of an S3 server with one bucket."""
    served = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    served.start()
    port = served.get_host_and_port()[1]
    _client(port).create_bucket(Bucket=BUCKET)
    yield port
    served.stop()


def _client(port: int) -> Any:
    import boto3

    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys)


def environment_of(project: Path) -> dict[str, str]:
    environment = {**dvc_environment(), "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    environment |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "2", "AWS_EC2_METADATA_DISABLED": "true"}
    return environment | {"HOME": str(project.parent)}


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(
        command, cwd=project, env=environment_of(project), capture_output=True, text=True, check=False
    )


def dvc(project: Path, *arguments: str) -> str:
    done = run(project, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def share(project: Path, name: str) -> subprocess.CompletedProcess[str]:
    """Push the experiment that is in the workspace as docs/team.md has it: what it made first, and then its name."""
    done = run(project, "push")
    return done if done.returncode else run(project, "exp", "push", "--no-cache", "origin", name)


def configure(project: Path, port: int, prefix: str) -> None:
    for key, value in (("url", f"s3://{BUCKET}/{prefix}"), ("endpointurl", f"http://127.0.0.1:{port}")):
        if key == "url":
            dvc(project, "remote", "add", "--force", "--default", "team", value)
        else:
            dvc(project, "remote", "modify", "team", key, value)


@pytest.fixture
def team(tmp_path: Path, server: int, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A first member's project, run and committed, and the git remote that the team shares."""
    project, hub = tmp_path / "first", tmp_path / "hub.git"
    project.mkdir()
    (project / "train.py").write_text(TRAIN)
    (project / "dvc.yaml").write_text(PIPELINE)
    (project / "params.yaml").write_text("res: 2\n")
    (project / ".gitignore").write_text("runs.log\n")
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(hub)], check=True)
    git(project, "init", "-q", "-b", "main")
    for key, value in (("user.name", "first"), ("user.email", "first@localhost")):
        git(project, "config", key, value)
    dvc(project, "init", "-q")
    dvc(project, "config", "core.analytics", "false")
    configure(project, server, request.node.name)
    dvc(project, "repro")
    git(project, "add", "--all")
    git(project, "commit", "-m", "first run")
    git(project, "remote", "add", "origin", str(hub))
    git(project, "push", "-q", "--set-upstream", "origin", "main")
    return project, hub


def clone(hub: Path, name: str) -> Path:
    project = hub.parent / name
    subprocess.run(["git", "clone", "-q", str(hub), str(project)], check=True)
    for key, value in (("user.name", name), ("user.email", f"{name}@localhost")):
        git(project, "config", key, value)
    return project


def shown(project: Path) -> list[tuple[str, float]]:
    """Names and scores of the experiments that DVC lists."""
    import dvc.api

    rows = dvc.api.exp_show(repo=str(project))
    return sorted((row["Experiment"], row["score"]) for row in rows if row["Experiment"])


def test_a_second_clone_makes_nothing_again_and_shows_the_same_experiments(team: tuple[Path, Path]) -> None:
    first, hub = team
    dvc(first, "push")
    for res in (3, 5):
        dvc(first, "exp", "run", "--name", f"res{res}", "-S", f"res={res}")
        assert share(first, f"res{res}").returncode == 0
    git(first, "checkout", "--force", "main")
    second = clone(hub, "second")
    dvc(second, "pull")
    assert "Data and pipelines are up to date" in dvc(second, "status")
    assert "Running stage" not in dvc(second, "repro")
    dvc(second, "exp", "pull", "origin", "res3", "res5")
    assert shown(second) == shown(first) == [("res3", pytest.approx(1 / 3)), ("res5", pytest.approx(1 / 5))]
    dvc(second, "exp", "apply", "res5")
    assert (second / "model/0.bin").read_bytes()[:1] == bytes([5])
    assert "Running stage" not in dvc(second, "repro")
    assert not (second / "runs.log").exists()


def share_out(project: Path, number: int, machines: int, values: list[int]) -> None:
    """Run the documented script as the machine of that number."""
    environment = environment_of(project) | {"MACHINE": str(number), "MACHINES": str(machines)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = ["bash", str(ROOT / "docs" / "examples" / "share_out.sh"), *map(str, values)]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_clones_share_a_list_of_settings_out(team: tuple[Path, Path]) -> None:
    """Each takes what its number says, pushes its results, and both see all of them; again, and nothing is made."""
    first, hub = team
    clones = {"first": first, "second": clone(hub, "second")}
    every = [3, 4, 5, 6]
    for number, project in [*enumerate(clones.values()), (0, first)]:
        share_out(project, number, len(clones), every)
    for project in clones.values():
        dvc(project, "exp", "pull", "origin", *(f"res{res}" for res in every))
        assert [name for name, _ in shown(project)] == [f"res{res}" for res in every]
    assert [(clones[name] / "runs.log").read_text().split() for name in clones] == [["2", "3", "5"], ["4", "6"]]


def objects(server: int, prefix: str) -> dict[str, int]:
    listed = _client(server).list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return {entry["Key"]: entry["Size"] for entry in listed}


def rights(server: int, free_actions: int) -> None:
    """Let so many requests through, and hold every later one to the rights of its key: this key has none."""
    import requests

    requests.post(f"http://127.0.0.1:{server}/moto-api/reset-auth", data=str(free_actions), timeout=60)


def test_a_remote_without_rights_is_told_and_nothing_is_made(team: tuple[Path, Path], server: int) -> None:
    first, hub = team
    dvc(first, "push")
    second = clone(hub, "second")
    dvc(second, "exp", "run", "--name", "res3", "-S", "res=3", "--force")
    held = objects(server, "")
    rights(server, 0)
    try:
        refused = [share(second, "res3")]
        third = clone(hub, "third")
        refused.append(run(third, "pull"))
    finally:
        rights(server, 10**9)
    for done in refused:
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert "Access Key Id" in done.stderr or "Forbidden" in done.stderr or "denied" in done.stderr.lower()
    assert objects(server, "") == held
    assert not (third / "model").exists()
    assert subprocess.check_output(["git", "ls-remote", str(hub), "refs/exps/*"], text=True) == ""


def test_a_bucket_that_is_not_there_is_told(team: tuple[Path, Path]) -> None:
    first, _ = team
    dvc(first, "remote", "modify", "team", "url", "s3://nobodys/things")
    done = run(first, "push")
    assert done.returncode != 0
    assert "bucket does not exist" in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_s3_cut_off_in_the_middle_leaves_nothing_half_made_and_goes_on(
    team: tuple[Path, Path], server: int, request: pytest.FixtureRequest
) -> None:
    first, hub = team
    prefix = request.node.name
    gate = Gate(server)
    configure(first, gate.port, prefix)
    gate.cut_after(1_500_000)
    done = run(first, "push")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    half = objects(server, prefix)
    assert all(size in (1_000_000, *range(2000)) for size in half.values())
    configure(first, server, prefix)
    dvc(first, "push")
    second = clone(hub, "second")
    gate = Gate(server)
    configure(second, gate.port, prefix)
    gate.cut_after(1_500_000)
    done = run(second, "pull")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert not (second / "model").exists() or all(path.stat().st_size == 10**6 for path in (second / "model").iterdir())
    configure(second, server, prefix)
    dvc(second, "pull")
    assert sorted(path.name for path in (second / "model").iterdir()) == ["0.bin", "1.bin", "2.bin", "3.bin"]
