"""What the tests of the cloud backend share: its configuration, samples, and retries that do not sleep."""

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import backoff._sync
import botocore.endpoint
import botocore.session
import pytest
import urllib3
from botocore.retries.bucket import TokenBucket
from qai_hub.client import Job
from qai_hub.util import session

from promptseg.hubs.aihub import jobs, service
from promptseg.hubs.aihub.hub import AiHub
from promptseg.params import AiHubConfig, HubConfig
from tests.aihub_bench import Bench
from tests.aihub_bench.state import TOKEN

DEVICE = "Snapdragon X Elite CRD"
ONE_SAMPLE_MB = 13


def hub_config(**changes: Any) -> HubConfig:
    """The section `hub` for the cloud; changes to its sub-section by their own names."""
    cloud = {
        "qairt_version": "2.45",
        "max_profiler_iterations": 100,
        "share_with": (),
        "chunk_mb": ONE_SAMPLE_MB,
        "jobs_in_flight": 2,
        "wait_hours": 1.0,
    }
    section = {
        "backend": "aihub",
        "device": DEVICE,
        "split": "val",
        "samples": None,
        "emulator_samples": 2,
        "min_fidelity_mean": 0.95,
        "min_fidelity_worst": 0.8,
        "cpu_latency_runs": 1,
    }
    for name, value in changes.items():
        (cloud if name in cloud else section)[name] = value
    return HubConfig(**section, aihub=AiHubConfig(**cloud))


def open_bench_hub(
    bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch, token: str = TOKEN, **changes: Any
) -> AiHub:
    """A hub that is configured for `bench`, through the client's own file, and remembers below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.delenv("QAIHUB_API_TOKEN", raising=False)
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(bench.write_configuration(folder / "client.ini", token)))
    return AiHub(hub_config(**changes), folder / "cache")


def give_up_early(set_attribute: Callable[[object, str, object], None], seconds: float) -> None:
    """Shorten how long the client waits for an answer: 28 s of the service, 4 s of storage, 8 s of the first probe."""
    set_attribute(session.create_session, "__defaults__", (True, seconds, "library"))
    set_attribute(session, "EXTERNAL_RESPONSE_TIMEOUT_SECONDS", seconds)
    set_attribute(service, "SIGN_IN_TIMEOUT_S", (service.SIGN_IN_TIMEOUT_S[0], seconds))


class FakeTime:
    """The time that our own waiting goes by: sleeping moves it on, and takes none."""

    def __init__(self) -> None:
        self.slept_s = 0.0

    def sleep(self, seconds: float) -> None:
        self.slept_s += seconds

    def monotonic(self) -> float:
        return time.monotonic() + self.slept_s

    def time(self) -> float:
        return time.time() + self.slept_s


def forget_sleep(set_attribute: Callable[[object, str, object], None]) -> None:
    """Shorten the client's polls and every retry's sleep, the client's and ours, and nothing else."""
    set_attribute(Job, "_polling_interval", 0)
    set_attribute(session, "BACKOFF_FACTOR", 0.001)
    set_attribute(session, "MAX_WAIT", 0.01)
    # Transfers to and from storage are wrapped when the client is imported, with the waits as they were then.
    set_attribute(backoff._sync, "time", SimpleNamespace(sleep=lambda _: None))
    # A bucket's client waits before a retry, and before each request once it was told to slow down; it also reads
    # megabytes of its own tables, for each file anew.
    set_attribute(botocore.endpoint, "time", SimpleNamespace(sleep=lambda _: None))
    set_attribute(TokenBucket, "acquire", lambda *_, **__: True)
    set_attribute(botocore.session, "get_session", cache(botocore.session.get_session))
    set_attribute(urllib3.util.Retry, "DEFAULT_BACKOFF_MAX", 0.01)
    set_attribute(jobs, "time", FakeTime())
