"""demo: a page on this machine to drop a picture in and type a phrase."""

import argparse

from promptseg.commands import say
from promptseg.commands.predict import add_model_arguments, chosen_model
from promptseg.demo.server import DemoServer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    add_model_arguments(parser)
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Serve until interrupted; only this machine reaches the page."""
    if not 0 <= options.port <= 65535:
        raise ValueError(f"--port: got {options.port}, wanted a number from 0 (a free one) to 65535")
    model = chosen_model(options)
    try:
        server = DemoServer(model, options.port)
    except OSError as error:
        raise ValueError(
            f"--port: got {options.port}, which cannot be had ({error}); --port 0 takes a free one"
        ) from error
    with server:
        say(f"model: {model.name}")
        say(f"open {server.address} (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("ended")
    return 0
