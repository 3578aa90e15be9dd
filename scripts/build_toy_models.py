"""Trains the embedded models from scratch: python scripts/build_toy_models.py [PART ...] [--install].

Parts, each resumable and skipped when finished: vae, clips, generator (one core, in this order), judge, audit.
Without a part, two processes of one thread each train everything: the judge on one core while the other makes the
generator and then the audit judge. `--install` copies the finished models into the packages' assets. Results stand in
build/toy; seeds are fixed.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

WORK = Path("build/toy")
VAE, PIPELINE, CLIPS = WORK / "vae", WORK / "wan", WORK / "generator_like.safetensors"
PARTS = ("vae", "clips", "generator", "judge", "audit")
NUM_CLIPS = 6000
MAX_RENOISE = 0.3
"""Largest noise level from which a known clip is denoised again and still carries its label."""


def build_vae() -> None:
    """Train the generator's VAE."""
    from generator_loop.pretrain import train_vae

    train_vae(VAE, seed=0)


def build_generator() -> None:
    """Pre-train the text-to-video generator on a mixture of clean and defective clips."""
    from generator_loop.pretrain import pretrain_generator

    pretrain_generator(VAE, PIPELINE, seed=0)


def build_clips() -> None:
    """Pass labelled clips through the VAE, so that the judge meets the generator's look with known labels."""
    from generator_loop.pretrain import round_trip, wait_for_vae
    from reward_model.datasets import moving_shapes
    from reward_model.training.sources import store_clips

    vae = wait_for_vae(VAE)
    clips = moving_shapes.sample_rated(NUM_CLIPS, seed=1)
    store_clips(CLIPS, round_trip(vae, clips))


def build_judge() -> None:
    """Train the toy judge; its adapters wait for the generator-like clips."""
    from reward_model.config import load_config
    from reward_model.training.recipe import RecipeConfig
    from reward_model.training.stages import run_recipe

    config = load_config(RecipeConfig, "configs/judge/toy.yaml")
    run_recipe(config, num_stages=1)
    while not CLIPS.exists():
        time.sleep(5)
    run_recipe(config)


def build_audit() -> None:
    """Train the audit judge."""
    from reward_model.config import load_config
    from reward_model.training.recipe import RecipeConfig
    from reward_model.training.stages import run_recipe

    run_recipe(load_config(RecipeConfig, "configs/judge/toy_audit.yaml"))


def main(argv: Sequence[str]) -> int:
    """Build the named parts here, or all of them in two processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    arguments = parser.parse_args(argv)
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {sorted(unknown)[0]!r}; expected one of {', '.join(PARTS)}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    if not arguments.parts:
        lanes = (["vae", "clips", "generator", "audit"], ["judge"])
        started = [subprocess.Popen([sys.executable, __file__, *lane]) for lane in lanes]
        return max(process.wait() for process in started)
    import torch

    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts:
        {
            "vae": build_vae,
            "clips": build_clips,
            "generator": build_generator,
            "judge": build_judge,
            "audit": build_audit,
        }[part]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
