"""fetch: make or download the pictures, samples and objects of the data set that `data` names."""

from pathlib import Path

from promptseg.params import read_data_config, read_params
from promptseg.sources.build import build_dataset
from stages import CACHE, ROOT, run_stage


def fetch(images: Path, samples: Path, objects: Path) -> None:
    """See the module."""
    params = read_params(ROOT)
    config = read_data_config(ROOT, params.data)
    build_dataset(config, params.mirror, params.watch, CACHE / "downloads", images, samples, objects)


if __name__ == "__main__":
    run_stage(fetch, __doc__, "images", "samples", "objects")
