"""Trains the embedded models from scratch: python scripts/build_toy_models.py [PART ...] [--install].

Parts, each skipped when finished: vae, clips, generator, audit (one core, in this order) and judge (another core).
Without a part, two processes of one thread each train everything. `--install` copies finished models, rounded to
16 bits, into the packages' assets with its provenance. Working files stand in build/toy; all seeds are fixed.
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
NUM_CLIPS, CLIPS_SEED = 8000, 1_000_003
ASSETS = {
    "generator": (PIPELINE, Path("generator_loop/assets/toy_wan")),
    "judge": (WORK / "judge/judge", Path("reward_model/assets/toy_judge")),
    "audit": (WORK / "audit_judge/judge", Path("reward_model/assets/toy_audit")),
}


def build_vae() -> None:
    """Train the generator's VAE."""
    from generator_loop.pretrain import train_vae

    if not VAE.exists():
        train_vae(VAE, seed=0)


def build_generator() -> None:
    """Pre-train the text-to-video generator on a mixture of clean and defective clips."""
    from generator_loop.pretrain import pretrain_generator

    if not (PIPELINE / "metrics.json").exists():
        write_json(PIPELINE / "metrics.json", pretrain_generator(VAE, PIPELINE, seed=0))


def build_clips() -> None:
    """Pass labelled clips through the VAE: the judge then meets the generator's look with known labels."""
    from generator_loop.pretrain import round_trip, wait_for_vae
    from reward_model.datasets.readers import DataConfig, open_source
    from reward_model.datasets.stored import store_clips
    from reward_model.files import write_beside

    if CLIPS.exists():
        return
    known = open_source(DataConfig(kind="moving_shapes"))(CLIPS_SEED, NUM_CLIPS)
    clips = round_trip(wait_for_vae(VAE), known)
    write_beside(CLIPS, lambda beside: store_clips(beside, clips))


def build_judge() -> None:
    """Train the toy judge; its adapters wait for the generator-like clips."""
    from reward_model.config import load_config
    from reward_model.training.recipe import RecipeConfig
    from reward_model.training.stages import run_recipe

    config = load_config(RecipeConfig, "configs/judge/toy.yaml")
    needs_clips = [any(data.kind == "stored" for data in stage.data) for stage in config.stages.values()]
    run_recipe(config, num_stages=needs_clips.index(True))
    while not CLIPS.exists():
        time.sleep(5)
    run_recipe(config)


def build_audit() -> None:
    """Train the audit judge."""
    from reward_model.config import load_config
    from reward_model.training.recipe import RecipeConfig
    from reward_model.training.stages import run_recipe

    run_recipe(load_config(RecipeConfig, "configs/judge/toy_audit.yaml"))


def install(part: str) -> None:
    """Copy a finished model into its package, in 16 bits, with its provenance."""
    source, target = ASSETS[part]
    if not source.exists():
        raise FileNotFoundError(f"{source} is not there; build it first: python scripts/build_toy_models.py {part}")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    made: dict[str, object] = {"command": f"python scripts/build_toy_models.py {part}", "commit": commit}
    shutil.rmtree(target, ignore_errors=True)
    if part == "generator":
        from diffusers import WanPipeline

        from generator_loop.pretrain import save_toy_wan

        made["metrics"] = {"vae": read_json(VAE / "metrics.json"), "generator": read_json(source / "metrics.json")}
        save_toy_wan(WanPipeline.from_pretrained(source, trust_remote_code=False), target, provenance=made)
        return
    import torch

    from reward_model.judge.model import VideoJudge
    from reward_model.toy_world.moving_shapes import world_hash

    judge = VideoJudge.from_pretrained(source)
    judge.to(torch.float16)
    judge.save_pretrained(target)
    stages = sorted((source.parent / "stages").glob("[0-9]*"))
    made["stages"] = {stage.name: read_json(stage / "done.json") for stage in stages}
    write_json(target / "provenance.json", made | {"fingerprints": {"world": world_hash()}})


def read_json(path: Path) -> object:
    """Return the content of a JSON file."""
    return json.loads(path.read_text())


def write_json(path: Path, content: object) -> None:
    """Write indented JSON."""
    path.write_text(json.dumps(content, indent=1) + "\n")


def main(argv: Sequence[str]) -> int:
    """Build the named parts here, or all of them in two processes; install them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--install", action="store_true", help="copy finished models into the packages; trains nothing")
    arguments = parser.parse_args(argv)
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {sorted(unknown)[0]!r}; expected one of {', '.join(PARTS)}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    if arguments.install:
        finished = [part for part, (source, _) in ASSETS.items() if source.exists()]
        for part in arguments.parts or finished:
            if part not in ASSETS:
                parser.error(f"{part} is no embedded model; expected one of {', '.join(ASSETS)}")
            install(part)
        return 0
    if not arguments.parts:
        lanes = (["vae", "clips", "generator", "audit"], ["judge"])
        started = [subprocess.Popen([sys.executable, __file__, *lane]) for lane in lanes]
        return max(process.wait() for process in started)
    import torch

    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts:
        BUILDERS[part]()
    return 0


BUILDERS = {
    "vae": build_vae,
    "clips": build_clips,
    "generator": build_generator,
    "judge": build_judge,
    "audit": build_audit,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
