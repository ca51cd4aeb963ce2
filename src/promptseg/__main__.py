"""promptseg: what a person asks for beside the pipeline. `promptseg <command> --help` tells of each."""

import argparse
import importlib
import logging
import signal
import sys
from collections.abc import Sequence

# A command is a module of promptseg.commands with `add_arguments` and `run`; only the one that is called is imported,
# so that none pays for what another needs.
COMMANDS = {
    "predict": "find what phrases speak of in your own pictures",
    "doctor": "say what this machine can do, and what to install for more",
    "blend": "average the weights of checkpoints of one architecture",
    "quality": "score weights on photographs, by names, objects and saying no",
    "report": "copy the report, with the git commit in it, to hand on",
    "grid": "queue an experiment for each combination of values",
    "recommend": "show the experiments that none beats, and the one to take",
    "sweep-plot": "draw a sweep over res: mIoU, latency, and one against the other",
    "sensitivity": "measure what 8 bits cost and save, layer by layer, and choose what `mixed` keeps",
    "devices": "estimate the latency of the exported graph, or of any ONNX file, on every device",
    "release": "make a folder that answers phrases on a device or a CPU without this project",
    "demo": "serve a page on this machine to try phrases on pictures",
    "settings": "print a recipe as arguments of `dvc exp run`",
    "hub-plan": "say what a run in the cloud would submit and upload, without sending anything",
    "check-data": "list what is wrong with a data set",
}


INTERRUPTED = 128 + signal.SIGINT  # what a shell says of a program that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the process's exit status: 1 after a mistake that the message explains, 130 after Ctrl-C.

    `arguments` are the process's own where none are given.
    """
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    logging.getLogger("promptseg").setLevel(logging.INFO)
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except ValueError as error:
        logging.error("error: %s", error)
        return 1
    except OSError as error:
        logging.error("error: %s", f"{error.filename}: {error.strerror}" if error.filename else error)
        return 1
    except KeyboardInterrupt:
        logging.error("interrupted")
        return INTERRUPTED


def _run(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="promptseg", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    called = next((argument for argument in arguments if argument in COMMANDS), None)
    for name, purpose in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=purpose)
        if name == called:
            module = importlib.import_module(f"promptseg.commands.{name.replace('-', '_')}")
            command.description = module.__doc__
            module.add_arguments(command)
    options = parser.parse_args(arguments)
    status: int = module.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
