from dataclasses import replace
from pathlib import Path

import pytest

from promptseg.hubs.aihub.hub import AiHub
from promptseg.hubs.backends import open_hub
from promptseg.hubs.local.hub import LocalHub
from tests.aihub_helpers import DEVICE, hub_config

LOCAL = hub_config(backend="local")


def test_local_is_this_machine(tmp_path: Path) -> None:
    assert isinstance(open_hub(LOCAL, tmp_path), LocalHub)


def test_aihub_is_the_cloud_and_opening_it_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(tmp_path / "none.ini"))
    assert isinstance(open_hub(hub_config(device=DEVICE), tmp_path), AiHub)
    assert not list(tmp_path.iterdir())


def test_the_local_backend_refuses_a_device_that_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"hub\.device"):
        open_hub(replace(LOCAL, device="Pixel 9"), tmp_path)
