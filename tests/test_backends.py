import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from promptseg.hubs.aihub.hub import AiHub
from promptseg.hubs.backends import check_hub, open_hub
from promptseg.hubs.local.hub import LocalHub
from tests.aihub_helpers import DEVICE, hub_config
from tests.imports import ROOT

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


def test_a_check_refuses_the_device_with_the_nearest_names_and_writes_nothing(tmp_path: Path) -> None:
    check_hub(LOCAL, tmp_path)
    with pytest.raises(
        ValueError, match=r"hub\.device: got 'Snapdragon X Elite', .*did you mean .*'Snapdragon X Elite CRD'"
    ):
        check_hub(replace(LOCAL, device="Snapdragon X Elite"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_check_of_the_local_compiler_loads_no_library_of_deep_learning() -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from promptseg.hubs.backends import check_hub\n"
        "from promptseg.params import read_params\n"
        f"check_hub(read_params(Path({str(ROOT)!r})).hub, Path('nowhere'))\n"
        "print(*({'torch', 'onnxruntime', 'qai_hub', 'h5py'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT / "src", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
