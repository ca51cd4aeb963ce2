"""settings: a recipe of configs/recipes as arguments of DVC, to be put in its place by the shell.

    dvc exp run $(python -m promptseg settings configs/recipes/published.yaml)

Nothing is changed or run by this command itself, and further `-S` behind it overrule the recipe.
"""

import argparse
import re
from pathlib import Path

from promptseg.commands import say
from promptseg.commands.project import project_root
from promptseg.params.recipes import read_recipe

# What the shell splits or fills in even in a command's output, and what DVC's settings (Hydra) would fill in or need
# escaped. The brackets of lists are no danger: a shell finds no file of such a name and leaves them.
UNFIT = re.compile(r"[\s*?\[\]'\"\\$`]")
PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")  # needs no quotes in Hydra's grammar
REFUSED = "--recipe-refused"  # no option of DVC's
WORDS = ("null", "true", "false", "nan", "inf")  # which Hydra reads as something else than text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("recipe", type=Path, help="a file of configs/recipes")


def run(options: argparse.Namespace) -> int:
    """Check the recipe against params.yaml and print `-S key=value`, one a line.

    A shell goes on when a command within its line fails, and DVC would run without the recipe: REFUSED stops it.
    """
    try:
        arguments = arguments_of(read_recipe(project_root(), options.recipe))
    except ValueError:
        say(REFUSED)
        raise
    for argument in arguments:
        say(f"-S {argument}")
    return 0


def arguments_of(settings: dict[str, object]) -> list[str]:
    """Return "key=value" for each setting, without blanks, as DVC reads it. Raises ValueError where that cannot be."""
    return [f"{key}={_spelled(key, value)}" for key, value in settings.items()]


def _spelled(key: str, value: object) -> str:
    if isinstance(value, list):
        return f"[{','.join(_spelled(key, item) for item in value)}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if not isinstance(value, str):
        return repr(value)
    if not value or UNFIT.search(value):
        raise ValueError(
            f"{key}: got {value!r}, wanted text without blanks and without signs that a shell reads; leave it out of "
            f"the recipe, and give it by hand: -S '{key}=...'"
        )
    return value if PLAIN.fullmatch(value) and value.lower() not in WORDS else f"'{value}'"
