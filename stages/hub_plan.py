"""hub_plan, no stage but a command: what the cloud would be asked for, and how much uploaded, without a token.

python -m stages.hub_plan
"""

import sys

from promptseg.hubs.aihub.plan import plan
from promptseg.hubs.host import GraphInputs
from promptseg.params import read_params, read_paths
from stages import CACHE, ROOT, run_stage


def hub_plan() -> None:
    """See the module."""
    config, paths = read_params(ROOT).hub, read_paths(ROOT)
    inputs = GraphInputs(paths["images"], paths["samples"], paths["tokens"], config.split, config.samples)
    sys.stdout.writelines(f"{line}\n" for line in plan(config, CACHE, paths["graph"], inputs))


if __name__ == "__main__":
    run_stage(hub_plan, __doc__)
