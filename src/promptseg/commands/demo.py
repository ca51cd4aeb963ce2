"""demo: a page on this machine to drop a picture in and type a phrase."""

import argparse
from pathlib import Path

from promptseg.commands.console import say
from promptseg.commands.project import model_and_res
from promptseg.demo.server import DemoServer
from promptseg.inference.ask import open_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--model", type=Path, help="a .onnx or a .safetensors file; by default the pipeline's own")
    parser.add_argument(
        "--res", type=int, help="side in px at which a checkpoint works; by default that of params.yaml"
    )
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Serve until interrupted; only this machine reaches the page."""
    model = open_model(*model_and_res(options.model, options.res))
    with DemoServer(model, options.port) as server:
        say(f"model: {model.name}")
        say(f"open {server.address} (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("ended")
    return 0
