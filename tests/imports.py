"""Which of this project's files a module reaches through its imports, read from the source text."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "src" / "promptseg"
SHARED_BY_STAGES = ROOT / "stages" / "__init__.py"


def library_files() -> list[Path]:
    """Return every Python file of the library, sorted."""
    return sorted(LIBRARY.rglob("*.py"))


def stage_scripts() -> list[Path]:
    """Return the script of every stage, sorted; what they share and commands beside them are none."""
    others = ("__init__",)
    return sorted(path for path in (ROOT / "stages").glob("*.py") if path.stem not in others)


def file_of(module: str) -> Path | None:
    """Return the file of a dotted module name of this project, or None."""
    for base in (ROOT / "src", ROOT):  # as stages/__init__.py has it
        path = base.joinpath(*module.split("."))
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


@cache
def syntax(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(path: Path) -> set[str]:
    """Return dotted names that the file imports anywhere; `from a import b` gives both a and a.b."""
    names: set[str] = set()
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports are not used here"
            assert node.module is not None
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def reached_files(path: Path) -> set[Path]:
    """Return every file of the project that running `path` imports, `path` included, packages' own files too.

    What stages/__init__.py imports is left out: it refuses to run or not, and changes no artefact. So is the library's
    own __init__.py: it imports the API when that is first asked for, and no stage asks.
    """
    reached: set[Path] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current in reached or current == LIBRARY / "__init__.py":
            continue
        reached.add(current)
        if current == SHARED_BY_STAGES:
            continue
        for module in imported_modules(current):
            parts = module.split(".")
            prefixes = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
            waiting += [file for prefix in prefixes if (file := file_of(prefix))]
    return reached


def has_code(path: Path) -> bool:
    """Whether a file holds more than a docstring."""
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in syntax(path).body)
