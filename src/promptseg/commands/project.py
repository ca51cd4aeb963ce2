"""The project that a command line works on: its folder, its artefacts' paths, the model to ask by default."""

from pathlib import Path
from typing import cast

from promptseg.params import Params, load_yaml

ROOT = Path(__file__).resolve().parents[3]


def artefact_paths() -> dict[str, Path]:
    """Return the paths of dvc.yaml by name, absolute: they are typed there and nowhere else."""
    graph = cast(dict[str, list[dict[str, dict[str, str]]]], load_yaml(ROOT / "dvc.yaml"))
    return {name: ROOT / path for name, path in graph["vars"][0]["path"].items()}


def default_model(params: Params) -> Path:
    """Return the exported graph, else the fine-tuned checkpoint, else the weights that training starts from.

    Raises ValueError, with the remedy, where a fresh clone has none of them.
    """
    paths = artefact_paths()
    candidates = [paths["graph"], paths["checkpoint"]]
    if params.finetune.init is not None:
        candidates.append(ROOT / params.finetune.init)
    for path in candidates:
        if path.is_file():
            return path
    raise ValueError(f"got no model ({', '.join(map(str, candidates))}); run `dvc repro export`, or name one (--model)")
