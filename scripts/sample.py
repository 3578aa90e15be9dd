"""Samples clips from a trained run, or from its base, for prompts of a file.

    python scripts/sample.py RUN --prompts prompts.txt --output clips
    python scripts/sample.py RUN --prompts prompts.csv --column prompt --names vbench --num 5 --output clips

RUN is the folder that joint_train.py wrote; its config says model, size and steps, and `section.key=value` overrides it.
Clips are named PLACE-SAMPLE.mp4, or as VBench expects, PROMPT-SAMPLE.mp4. Noise is keyed by the prompt's place and the
sample, so `--base` samples the base from the same noise. Finished clips are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from generator_loop.adapters.base import POLICY
from generator_loop.records import Draw, Prompt
from generator_loop.run.build import open_generator, read_config
from generator_loop.sampling.prompts import read_prompts
from generator_loop.sampling.rollout import PromptEncoder, rollout
from reward_model import write_video
from reward_model.terminal import visible

MAX_NAME = 240
"""Bytes of a file name that file systems allow, with a margin."""


def name_of(prompt: Prompt, sample: int, style: str) -> str:
    """Return the file name of a clip; ValueError where the prompt cannot be a file name."""
    if style == "numbered":
        return f"{prompt.prompt_id:05d}-{sample}.mp4"
    if "/" in prompt.text or len(prompt.text.encode()) > MAX_NAME:
        raise ValueError(f"prompt {prompt.prompt_id} cannot be a file name, use --names numbered: {prompt.text[:80]!r}")
    return f"{prompt.text}-{sample}.mp4"


def main(argv: Sequence[str]) -> int:
    """Sample the missing clips; 2 where the arguments are wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--prompts", type=Path, required=True, help=".txt, .csv or .jsonl")
    parser.add_argument("--column", default="", help="column of the prompts (default: prompt)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the clips")
    parser.add_argument("--num", type=int, default=1, help="samples of each prompt (VBench: 5)")
    parser.add_argument("--names", choices=("numbered", "vbench"), default="numbered", help="file names")
    parser.add_argument("--base", action="store_true", help="leave the trained LoRA out")
    options, overrides = parser.parse_known_args(argv)
    try:
        prompts = read_prompts(options.prompts, column=options.column)
        names = {p: [name_of(p, sample, options.names) for sample in range(options.num)] for p in prompts}
        config = read_config(options.run / "config.yaml", overrides)
        summary = json.loads((options.run / "summary.json").read_text(encoding="utf-8"))
    except (ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"{visible(str(error))}\n")
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() and config.run.device != "cpu" else "cpu")
    if config.run.num_threads:
        torch.set_num_threads(config.run.num_threads)
    generator = open_generator(config, device)
    if not options.base:
        generator.load(options.run / summary["generator_checkpoint"])
    encoder, draw = PromptEncoder(generator), Draw(seed=config.run.seed, step=0).fork("samples")
    for done, prompt in enumerate(prompts, start=1):
        paths = [options.output / name for name in names[prompt]]
        if not all(path.exists() for path in paths):
            samples = rollout(
                generator,
                [prompt],
                encoder=encoder,
                draw=draw,
                group_size=options.num,
                num_steps=config.sampling.num_steps,
                batch_size=config.sampling.batch_size,
                policy=POLICY,
            )
            for path, frames in zip(paths, samples.frames, strict=True):
                write_video(path, frames, config.generator.fps)
        sys.stderr.write(f"\r{done} of {len(prompts)} prompts")
    sys.stderr.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
