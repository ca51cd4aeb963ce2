"""`python -m promptseg doctor`: what there is, what is missing, and with what remedy."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from promptseg.__main__ import main
from promptseg.commands import doctor
from promptseg.hubs.local import session
from tests.imports import ROOT


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No project, no browser, no token: a machine of somebody else's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(tmp_path / "none.ini"))
    monkeypatch.delenv("QAIHUB_API_TOKEN", raising=False)
    return tmp_path


def test_every_finding_is_a_line_and_every_lack_has_a_remedy(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line[8:].split("  ")[0] for line in told if not line.lstrip().startswith("->")] == [
        *("machine", "python", "project", "packages", "compiler", "GPU", "AI Hub", "remotes", "browser")
    ]
    for line, after in zip(told, [*told[1:], "end"], strict=True):
        if not line.startswith(" "):
            assert line.startswith("ok ") == (not after.startswith(" " * 20 + "-> ")), line
    assert f"none in {nowhere} or above it" in "\n".join(told)
    assert "apt-get install chromium chromium-driver" in "\n".join(told)


def test_what_the_default_run_needs_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(doctor, "CHECKS", (doctor.machine,))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 10**9))  # type: ignore[attr-defined]
    assert main(["doctor"]) == 1
    assert "MISSING machine" in capsys.readouterr().out


def test_packages_are_held_to_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requirements.txt").write_text(
        "-e .\nnumpy==1.0\nno-such-package==1.2\nwinonly==3 ; sys_platform == 'win32' and sys_platform == 'linux'\n"
    )
    found = doctor.packages()
    assert found.needed
    assert found.what.startswith("1 of 2 locked packages, 1 in other versions: numpy ")
    assert found.what.endswith("missing: no-such-package")
    assert not doctor._differs("2.15.0+cpu", "2.15.0")


@pytest.mark.parametrize(
    ("system", "machine", "remedy"),
    [
        ("Linux", "x86_64", "pip install onnxruntime-qnn (glibc 2.35 or later is needed; here is 2.31)"),
        ("Darwin", "arm64", "-S hub.backend=aihub"),
    ],
)
def test_without_a_compiler_it_says_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, remedy: str
) -> None:
    monkeypatch.setattr(session, "onnxruntime_qnn", None)
    for name, value in (("system", system), ("machine", machine), ("libc_ver", ("glibc", "2.31"))):
        monkeypatch.setattr(doctor.platform, name, lambda value=value: value)
    assert remedy in doctor.compiler().remedy


@pytest.mark.usefixtures("nowhere")
def test_a_token_is_known_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "qai-hub configure" in doctor.cloud().remedy
    monkeypatch.setenv("QAIHUB_API_TOKEN", "secret-token")
    found: Any = doctor.cloud()
    assert found.remedy == ""
    assert "secret" not in repr(found)
