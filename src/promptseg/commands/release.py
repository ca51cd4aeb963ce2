"""release: a folder, and a zip of it, that answers phrases on a device or a CPU without this project."""

import argparse
from pathlib import Path

from promptseg.commands import say
from promptseg.commands.project import git_commit, project_root
from promptseg.params import PARAMS_FILE, load_yaml, read_params, read_paths
from promptseg.release.build import Choice, Experiment, release
from promptseg.release.run import check


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("out", type=Path, help="folder to write, and beside it the zip; an earlier release is replaced")
    parser.add_argument("--check", action="store_true", help="verify a release that is there, and write nothing")
    parser.add_argument(
        "--device", action="append", default=[], help="whose binary to put in, again for more; default: hub.device"
    )
    parser.add_argument("--compile", action="store_true", help="compile here for devices that have no binary yet")
    parser.add_argument("--cpu-only", action="store_true", help="put no binary in: for ONNX Runtime on any CPU")
    parser.add_argument(
        "--force", action="store_true", help="release although binary and score differ; the release says so"
    )


def run(options: argparse.Namespace) -> int:
    """Make the release, or verify one, and say what is in it."""
    if options.check:
        say(f"{options.out}: {check(options.out)} files are as manifest.json has them")
        return 0
    root = project_root()
    experiment = Experiment(
        root=root,
        paths=read_paths(root),
        settings=load_yaml(root / PARAMS_FILE),
        hub=read_params(root).hub,
        commit=git_commit(root),
        cache=root / ".cache",
    )
    manifest = release(
        options.out, experiment, Choice(options.device, options.compile, options.cpu_only, options.force)
    )
    if manifest["warning"]:
        say(f"warning: {manifest['warning']}")
    megabytes = sum(each["bytes"] for each in manifest["files"].values()) / 1e6
    held = ", ".join(each["device"] for each in manifest["binaries"]) or "any CPU"
    say(f"{options.out}: {manifest['name']} for {held}: {len(manifest['files'])} files, {megabytes:.1f} MB")
    say(f'{options.out}.zip: the same, packed; `python {options.out}/run.py picture.jpg "the red cup"` answers')
    return 0
