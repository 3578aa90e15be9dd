"""The embedded world as the loop uses it: prompts, the oracle's measures, clean clips and how varied they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from generator_loop.evaluation.columns import OPEN, ORACLE, Measure
from generator_loop.records import Draw, Prompt
from reward_model import moving_shapes, oracle


def measures() -> dict[str, Measure]:
    """Return the world's measures of any clip: the oracle's dimensions, and the features that prompts leave open."""
    return {ORACLE: oracle.score, OPEN: _open_features}


def quality(frames: Tensor, prompt: str) -> float:
    """Return the oracle's overall score in [0, 1] of a clip [T, 3, H, W]."""
    return float(oracle.score(frames, prompt)["overall"])


def clean_clips(
    prompts: Sequence[Prompt], draw: Draw, *, sample: int, num_frames: int, size: tuple[int, int]
) -> Tensor:
    """Render one clean clip [N, T, 3, H, W] for each prompt.

    Args:
        prompts: captions of the world.
        draw: random streams.
        sample: number of the clip among those of its prompt.
        num_frames: T.
        size: height and width, which must be equal.

    Returns:
        Float32 RGB in [0, 1].

    Raises:
        ValueError: the frames are not square or a prompt is no caption.
    """
    if size[0] != size[1]:
        raise ValueError(f"moving shapes are square: generator.height and generator.width must be equal, got {size}")
    clips = []
    for prompt in prompts:
        scene = moving_shapes.parse_caption(prompt.text)
        if scene is None:
            raise ValueError(f"prompt {prompt.text!r} is no caption of moving shapes")
        generator = draw.generator(prompt.prompt_id, sample)
        clips.append(moving_shapes.render(scene, generator=generator, num_frames=num_frames, size=size[0]))
    return torch.stack(clips)


def renderer_spread(
    prompts: Sequence[Prompt], draw: Draw, *, num_seeds: int, num_frames: int, size: tuple[int, int]
) -> dict[str, float]:
    """Return feature -> deviation over rendered clips of one prompt, averaged over prompts."""
    features = [
        [
            _open_features(clip, prompt.text)
            for prompt, clip in zip(
                prompts, clean_clips(prompts, draw, sample=seed, num_frames=num_frames, size=size), strict=True
            )
        ]
        for seed in range(num_seeds)
    ]
    spreads = {}
    for name in features[0][0]:
        table = torch.tensor([[float(clip[name]) for clip in seed] for seed in features])  # [seeds, prompts]
        spread = table.std(dim=0, correction=0)
        spreads[name] = float(spread[spread.isfinite()].mean())
    return spreads


def _open_features(frames: Tensor, prompt: str) -> Mapping[str, float]:
    return oracle.open_features(frames, prompt)
