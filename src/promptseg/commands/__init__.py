"""What a person asks for beside the pipeline: one module per command of `python -m promptseg`.

Each has `add_arguments` and `run`, which returns the exit status; a ValueError or an OSError ends as one line on
standard error (`promptseg.__main__`). Only the module that is called is imported. Commands may import everything but
`stages`; nothing imports a command. All of them print through `say`, and find the project through `project`.
"""


def say(line: str = "") -> None:
    """Print one line to standard output: the one place of the library that prints."""
    print(line, flush=True)
