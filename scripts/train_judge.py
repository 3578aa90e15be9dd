"""Trains a judge from a recipe: accelerate launch scripts/train_judge.py CONFIG.yaml [key=value ...]."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Load the recipe, train its stages, print where the judge is; 2 where the configuration is refused."""
    import torch

    from reward_model.config import load_config, save_config
    from reward_model.training.recipe import RecipeConfig
    from reward_model.training.stages import run_recipe

    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(f"{__doc__}\n")
        return 0 if argv else 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    try:
        config = load_config(RecipeConfig, argv[0], argv[1:])
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    torch.set_num_threads(1)
    os.makedirs(config.output, exist_ok=True)
    save_config(config, os.path.join(config.output, "config.yaml"))
    sys.stdout.write(f"judge: {run_recipe(config)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
