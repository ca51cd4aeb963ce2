"""doctor: what this machine can do (compiler, GPU, cloud, remotes, browser), and what to install for more.

Sends nothing, and shows no token. The exit status is 1 where the default run would fail.
"""

import argparse
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from promptseg.commands import say
from promptseg.params import find_project

FREE_GB = 2.0  # what a default run writes, twice over
_PIN = re.compile(r"^([\w.-]+)==([\w.+]+)(?: *; *(.*))?$")


@dataclass(frozen=True)
class Finding:
    """One thing that this machine can do or lacks: `what` there is, and the `remedy`, empty where none is needed.

    `needed`: without it the default run fails.
    """

    name: str
    what: str
    remedy: str = ""
    needed: bool = False


def add_arguments(_: argparse.ArgumentParser) -> None:
    """Describe the command line: it takes no options."""


def run(_: argparse.Namespace) -> int:
    """Print a line for each finding; 1 where something is missing that the default run needs."""
    findings = [check() for check in CHECKS]
    for finding in findings:
        mark = "ok" if not finding.remedy else "MISSING" if finding.needed else "-"
        say(f"{mark:<8}{finding.name:<12}{finding.what}")
        if finding.remedy:
            say(f"{'':<20}-> {finding.remedy}")
    return 1 if any(finding.needed and finding.remedy for finding in findings) else 0


def machine() -> Finding:
    """Processor, memory, and room on the disk of the working directory."""
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {free_gb:.0f} GB free here"
    remedy = "" if free_gb >= FREE_GB else f"make room: a default run writes about {FREE_GB / 2:.0f} GB"
    return Finding("machine", system, remedy, needed=True)


def python() -> Finding:
    """The interpreter."""
    remedy = "" if sys.version_info >= (3, 11) else "install Python 3.11 or later"
    return Finding("python", f"{platform.python_version()} at {sys.executable}", remedy, needed=True)


def project() -> Finding:
    """A clone with git and DVC around the working directory."""
    root = find_project(Path.cwd())
    if root is None:
        remedy = "change to a clone of promptseg to run the pipeline; answering pictures needs none"
        return Finding("project", f"none in {Path.cwd()} or above it", remedy)
    lacks = [name for name in (".git", ".dvc") if not (root / name).exists()]
    if lacks or not shutil.which("git"):
        remedy = "install git, and clone with it: DVC keeps experiments there"
        return Finding("project", f"{root}, without {', '.join(lacks) or 'the program git'}", remedy, needed=True)
    return Finding("project", str(root))


def packages() -> Finding:
    """The installed packages, held to the project's locked versions."""
    root = find_project(Path.cwd())
    if root is None or not (root / "requirements.txt").is_file():
        return Finding("packages", f"promptseg {version('promptseg')}")
    wanted = dict(_pins(root / "requirements.txt"))
    installed = {name: _version(name) for name in wanted}
    missing = sorted(name for name, found in installed.items() if found is None)
    changed = [name for name, found in installed.items() if _differs(found, wanted[name])]
    other = sorted(f"{name} {installed[name]} (locked: {wanted[name]})" for name in changed)
    what = f"{len(wanted) - len(missing)} of {len(wanted)} locked packages"
    if other:
        what += f", {len(other)} in other versions: {', '.join(other[:3])}{' ...' if other[3:] else ''}"
    if missing:
        return Finding("packages", f"{what}; missing: {', '.join(missing)}", _INSTALL, needed=True)
    return Finding("packages", what, _INSTALL if other else "")


def compiler() -> Finding:
    """Qualcomm's compiler, simulator and emulator."""
    from promptseg.hubs.local.session import qnn_available, tool_versions

    if qnn_available():
        versions = tool_versions()
        return Finding("compiler", f"onnxruntime-qnn {versions['onnxruntime_qnn']}, QNN SDK {versions['qnn_sdk']}")
    library, number = platform.libc_ver()
    if platform.system() == "Linux" and platform.machine() == "x86_64":
        old = f" (glibc 2.35 or later is needed; here is {number})" if library == "glibc" else ""
        remedy = f"python -m pip install onnxruntime-qnn{old}"
    else:
        remedy = "compile on Linux (x86-64) or Windows, or in the cloud: -S hub.backend=aihub"
    return Finding("compiler", "none: the chain runs, and measures the host only", remedy)


def gpu() -> Finding:
    """What trains: torch's CUDA devices, else the processor."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Finding("GPU", f"{', '.join(names)}; torch {torch.__version__}")
    if shutil.which("nvidia-smi"):
        remedy = "update the driver; `nvidia-smi` tells which CUDA it takes"
        return Finding("GPU", f"none that torch {torch.__version__} can use", remedy)
    return Finding("GPU", f"none: training runs on {torch.get_num_threads()} threads; torch {torch.__version__}")


def cloud() -> Finding:
    """A token for Qualcomm AI Hub; whether it is valid is for the service to say."""
    from promptseg.hubs.aihub.service import public_address, read_configuration

    try:
        configuration = read_configuration()
    except (ValueError, OSError) as error:
        return Finding("AI Hub", str(error), "qai-hub configure --api_token TOKEN")
    if configuration.api_token:
        return Finding("AI Hub", f"a token for {public_address(configuration.api_url)}")
    return Finding("AI Hub", "no token: no device in the cloud", "qai-hub configure --api_token TOKEN")


def remotes() -> Finding:
    """Where DVC pushes to, and whether S3 can be among it."""
    s3 = importlib.util.find_spec("dvc_s3") is not None
    root = find_project(Path.cwd())
    listed = ""
    if root is not None:
        command = [sys.executable, "-m", "dvc", "remote", "list"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        listed = ", ".join(" at ".join(line.split()[:2]) for line in done.stdout.splitlines())
    what = f"{listed or 'none set up'}; S3 {'can be used' if s3 else 'cannot be used'}"
    if not s3:
        return Finding("remotes", what, "python -m pip install dvc-s3, for a bucket (docs/team.md)")
    return Finding("remotes", what, "" if listed else "share data and experiments through a bucket: docs/team.md")


def browser() -> Finding:
    """What the tests of pages drive; the demo and the report open in any browser."""
    lacks = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    if lacks:
        remedy = "for the tests of pages only; Debian: apt-get install chromium chromium-driver"
        return Finding("browser", f"no {' and no '.join(lacks)}", remedy)
    return Finding("browser", str(shutil.which("chromium")))


CHECKS: tuple[Callable[[], Finding], ...] = (
    *(machine, python, project, packages, compiler),
    *(gpu, cloud, remotes, browser),
)
_INSTALL = "python -m pip install -r requirements.txt"


def _pins(path: Path) -> list[tuple[str, str]]:
    """Return the names and versions of a requirements file that are for this system."""
    from packaging.markers import Marker

    found = (_PIN.match(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [(each[1], each[2]) for each in found if each and (each[3] is None or Marker(each[3]).evaluate())]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _differs(found: str | None, wanted: str) -> bool:
    """Whether a version is another one; the builds of one version (2.15.0+cpu) are the same."""
    return found is not None and found.partition("+")[0] != wanted.partition("+")[0]
