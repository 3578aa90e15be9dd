"""Draws held-out prompts before and after a run.

python scripts/experiments/contact_sheet.py OUTPUT PICTURE.png

Each line is one prompt; on the left the frames of round 0, on the right those of the last round, drawn from the same
noise. Needs matplotlib.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from reward_model import read_video

SHOWN = 5
"""Frames of each clip, evenly spread."""


def strip(path: Path) -> Tensor:
    """Return some frames of a clip side by side, [H, W, 3] in [0, 1]."""
    video, _ = read_video(path)
    places = torch.linspace(0, len(video.frames) - 1, SHOWN).round().long()
    return torch.cat(list(video.frames[places]), dim=2).permute(1, 2, 0)


def main(argv: Sequence[str]) -> int:
    """Draw the sheet; 2 where the arguments are not a finished run and a file to write."""
    if len(argv) != 2 or not (Path(argv[0]) / "summary.json").exists():
        sys.stderr.write(f"{__doc__}\n")
        return 2
    from matplotlib import pyplot

    rounds = sorted((Path(argv[0]) / "samples").glob("round-*"))
    first, last = rounds[0], rounds[-1]
    samples = json.loads((last / "samples.json").read_text())
    figure, axes = pyplot.subplots(len(samples), 2, figsize=(11, 1.45 * len(samples)), squeeze=False)
    for pair, sample in zip(axes, samples, strict=True):
        for axis, folder in zip(pair, (first, last), strict=True):
            axis.imshow(strip(folder / sample["file"]).numpy(), interpolation="nearest")
            axis.set_axis_off()
        pair[0].set_title(sample["prompt"], loc="left", fontsize=9)
        pair[1].set_title(f"the same after {len(rounds) - 1} rounds", loc="left", fontsize=9)
    figure.tight_layout()
    figure.savefig(argv[1], dpi=80)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
