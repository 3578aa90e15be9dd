"""Proves the oracle against the renderer's truth.

python scripts/experiments/oracle_report.py [--vae FOLDER] [--num 500]

Writes docs/oracle.md and docs/oracle.json: attributes read from clean clips and after the toy autoencoder, the table of
defects and dimensions, agreement of a clip's scores with its reconstruction's and with its labels, and the scores of cheats.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from generator_loop.pretrain.vae import reconstruct, to_wan
from reward_model import moving_shapes as world
from reward_model import oracle, srcc
from reward_model.media.distortions import DEFECTS, SEVERITIES, distort
from reward_model.records import DIMENSIONS
from reward_model.toy_world import shapes

VAE = Path("generator_loop/assets/toy_wan/vae")
NUM_PER_CELL = 32
SEEN = 0.03
"""Quality that the worst severity must cost for a cell of the table to count as seen."""

RoundTrip = Callable[[Tensor], Tensor]


def attribute_accuracy(grammar: world.Grammar, num: int, *, size: int, through: RoundTrip | None) -> dict[str, float]:
    """Return attribute -> share of clean clips whose value the oracle reads right."""
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    scenes = [rng.choice(grammar.scenes()) for _ in range(num)]
    clips = torch.stack([world.render(scene, generator=generator, size=size) for scene in scenes])
    clips = clips if through is None else through(clips)
    read = [oracle.read_attributes(clip, grammar) for clip in clips]
    names = [name for name in world.ATTRIBUTES if len(grammar.values(name)) > 1]
    return {
        name: sum(getattr(a, name) == getattr(b, name) for a, b in zip(read, scenes, strict=True)) / num
        for name in names
    }


def defect_table(num: int) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return defect -> dimension -> oracle's means and labels at severities 0 to 4, over the same clean clips."""
    rng, generator = random.Random(1), torch.Generator().manual_seed(1)
    scenes = [rng.choice(world.CORE.scenes()) for _ in range(num)]
    clean = [world.render(scene, generator=generator) for scene in scenes]
    table = {}
    for name in DEFECTS:
        means: dict[str, list[float]] = {dimension: [] for dimension in DIMENSIONS}
        known: dict[str, list[float]] = {dimension: [] for dimension in DIMENSIONS}
        for severity in range(len(SEVERITIES)):
            clips = [distort(clip, name, severity, generator=generator, fps=world.FPS) for clip in clean]
            scores = mean_scores(clips, [world.caption(scene) for scene in scenes])
            label = world.label({name: severity}, scenes[0], scenes[0])
            for dimension in DIMENSIONS:
                means[dimension].append(scores[dimension])
                known[dimension].append(label[dimension])
        table[name] = {d: {"oracle": means[d], "label": known[d], "seen": is_seen(means[d])} for d in DIMENSIONS}
    return table


def is_seen(means: Sequence[float]) -> bool:
    """Return whether a dimension falls at each severity, and in all by more than a trace."""
    falls = all(low < high for high, low in zip(means, means[1:], strict=False))
    return falls and means[0] - means[-1] > SEEN


def mean_scores(clips: Sequence[Tensor], captions: Sequence[str]) -> dict[str, float]:
    """Return dimension -> mean score of clips for their captions."""
    scores = [oracle.score(clip, text) for clip, text in zip(clips, captions, strict=True)]
    return {name: sum(score[name] for score in scores) / len(scores) for name in DIMENSIONS}


def agreement(num: int, through: RoundTrip) -> dict[str, dict[str, float]]:
    """Return SRCC by dimension of scores with those of the reconstruction, and of labels with scores, on mixed clips."""
    rated = world.sample_rated(num, seed=2)
    clips = torch.stack([clip.video.frames for clip in rated])
    captions = [clip.prompt or "" for clip in rated]
    scores = [oracle.score(clip, text) for clip, text in zip(clips, captions, strict=True)]
    again = [oracle.score(clip, text) for clip, text in zip(through(clips), captions, strict=True)]
    return {
        "clip_and_reconstruction": {d: srcc([s[d] for s in scores], [s[d] for s in again]) for d in DIMENSIONS},
        "label_and_oracle": {d: srcc([clip.quality[d] for clip in rated], [s[d] for s in scores]) for d in DIMENSIONS},
    }


def cheats(num: int) -> dict[str, dict[str, float]]:
    """Return cheat -> mean scores; "clean" is the honest clip beside them."""
    rng, generator = random.Random(3), torch.Generator().manual_seed(3)
    scenes = [rng.choice(world.CORE.scenes()) for _ in range(num)]
    clean = [world.render(scene, generator=generator) for scene in scenes]
    captions = [world.caption(scene) for scene in scenes]
    made = {
        "clean": clean,
        "static": [clip[4:5].expand_as(clip) for clip in clean],
        "one clip for every prompt": [clean[0]] * num,
        "jump between two positions": [clip[[0] * 4 + [8] * 5] for clip in clean],
        "half the shape in another colour": [
            half_recoloured(clip, scene) for clip, scene in zip(clean, scenes, strict=True)
        ],
        "reversed in time": [clip.flip(0) for clip in clean],
        "ground without a shape": [clip[:, :, :1, :1].expand_as(clip) for clip in clean],
        "noise": [torch.rand(clip.shape, generator=generator) for clip in clean],
    }
    return {name: mean_scores(clips, captions) for name, clips in made.items()}


def half_recoloured(clip: Tensor, scene: world.Scene) -> Tensor:
    """Return the clip with the upper half of the shape in another colour (red, or green where red was asked for)."""
    other = torch.tensor(world.COLOURS["green" if scene.colour == "red" else "red"]).view(3, 1, 1)
    colourful = (clip - clip.mean(1, keepdim=True)).abs().amax(1, keepdim=True) > 0.15  # [T, 1, S, S]
    heights = torch.arange(clip.shape[-2]).view(1, 1, -1, 1)
    centre = (colourful * heights).sum((2, 3), keepdim=True) / colourful.sum((2, 3), keepdim=True).clamp_min(1)
    return torch.where(colourful & (heights < centre), other, clip)


def failures(report: dict) -> list[str]:
    """Return a sentence for each requirement of the oracle that is not met."""
    shortfalls = []
    for kind, least in (("clean", 0.95), ("reconstructed", 0.9)):
        for name, share in report["attributes"][kind].items():
            if share < least:
                shortfalls.append(f"{name} is read right in {share:.3f} of {kind} clips, below {least}")
    for name, cells in report["defects"].items():
        if not any(cell["seen"] for cell in cells.values()):
            shortfalls.append(f"no dimension sees {name}")
        for dimension in DIMENSIONS:
            if is_seen(cells[dimension]["label"]) and not cells[dimension]["seen"]:
                shortfalls.append(f"{dimension} does not fall at each severity of {name}")
    for dimension, value in report["srcc"]["clip_and_reconstruction"].items():
        if value < 0.6:
            shortfalls.append(f"SRCC of {dimension} through the autoencoder is {value:.2f}, below 0.6")
    honest = report["cheats"]["clean"]["overall"]
    for name, scores in report["cheats"].items():
        if name != "clean" and scores["overall"] >= honest / 2:
            shortfalls.append(f"{name} earns {scores['overall']:.2f}, half of a clean clip or more")
    return shortfalls


def markdown(report: dict) -> str:
    """Return the report as a page."""
    lines = ["# The oracle against the renderer's truth", "", "Written by `scripts/experiments/oracle_report.py`.", ""]
    lines += ["## Attributes read right", ""]
    lines += [f"On {report['num']} clean clips each: the toy models' grammar at 32 pixels, after the toy autoencoder,"]
    lines += ["and the whole grammar at 64 pixels.", ""]
    lines += ["| attribute | clean | reconstructed | whole grammar |", "|---|---|---|---|"]
    kinds = ("clean", "reconstructed", "full")
    for name in report["attributes"]["full"]:
        cells = [report["attributes"][kind].get(name) for kind in kinds]
        lines.append(f"| {name} | " + " | ".join("-" if c is None else f"{c:.3f}" for c in cells) + " |")
    lines += ["", "## Defects that each dimension sees", ""]
    lines += [
        f"Mean over {NUM_PER_CELL} clips at severities 0 to 4, and the label's in brackets. Bold cells fall at each"
    ]
    lines += ["severity; the others are not read as signs of that defect.", ""]
    lines += ["| defect | " + " | ".join(DIMENSIONS) + " |", "|---" * (len(DIMENSIONS) + 1) + "|"]
    for name, by_dimension in report["defects"].items():
        lines.append(f"| {name} | " + " | ".join(_cell(by_dimension[d]) for d in DIMENSIONS) + " |")
    lines += ["", "## Agreement", "", f"SRCC over {report['num']} clips with mixed defects and mismatches.", ""]
    lines += ["| | " + " | ".join(DIMENSIONS) + " |", "|---" * (len(DIMENSIONS) + 1) + "|"]
    for name, by_dimension in report["srcc"].items():
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(f"{by_dimension[d]:.3f}" for d in DIMENSIONS) + " |")
    lines += ["", "## Cheats", "", "Mean scores; each cheat must earn less than half of the clean clip's score.", ""]
    lines += ["| clip | " + " | ".join(DIMENSIONS) + " |", "|---" * (len(DIMENSIONS) + 1) + "|"]
    for name, by_dimension in report["cheats"].items():
        lines.append(f"| {name} | " + " | ".join(f"{by_dimension[d]:.3f}" for d in DIMENSIONS) + " |")
    return "\n".join(lines) + "\n"


def _cell(cell: dict) -> str:
    means = " ".join(f"{value:.2f}" for value in cell["oracle"])
    label = " ".join(f"{value:.2f}" for value in cell["label"])
    return f"**{means}** ({label})" if cell["seen"] else f"{means[:4]} .. {means[-4:]}"


def main(argv: Sequence[str]) -> int:
    """Measure, write both files, and print the requirements that are not met."""
    from diffusers import AutoencoderKLWan

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, default=VAE)
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args(argv)
    vae = AutoencoderKLWan.from_pretrained(arguments.vae, torch_dtype=torch.float32, trust_remote_code=False)
    vae = vae.eval().requires_grad_(False)

    def through(clips: Tensor) -> Tensor:
        """Return clips as they come back from the VAE."""
        return reconstruct(vae, to_wan(clips)).transpose(1, 2) / 2 + 0.5

    core, num = world.CORE, arguments.num
    report = {
        "num": num,
        "attributes": {
            "clean": attribute_accuracy(core, num, size=shapes.SIDE, through=None),
            "reconstructed": attribute_accuracy(core, num, size=shapes.SIDE, through=through),
            "full": attribute_accuracy(world.FULL, num, size=64, through=None),
        },
        "defects": defect_table(NUM_PER_CELL),
        "srcc": agreement(num, through),
        "cheats": cheats(64),
    }
    report["failures"] = failures(report)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "oracle.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "oracle.md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))
    print("\n".join(report["failures"]) or "All that the oracle must show holds.")
    return int(bool(report["failures"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
