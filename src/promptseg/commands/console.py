"""The one place of the library that prints: what a command was asked to tell goes to standard output."""


def say(line: str = "") -> None:
    """Print one line."""
    print(line, flush=True)
