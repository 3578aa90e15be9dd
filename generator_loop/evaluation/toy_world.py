"""The embedded world as the loop uses it: prompts, the oracle's measures, clean clips and how varied they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from generator_loop.config import PromptSettings
from generator_loop.evaluation.held_out import Measure
from generator_loop.evaluation.summary import OPEN, ORACLE
from generator_loop.records import Draw, Prompt
from generator_loop.sampling.prompts import read_prompts
from reward_model import moving_shapes, oracle


def open_prompts(settings: PromptSettings, *, seed: int) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Return training and held-out prompts, which share none.

    Args:
        settings: the world, or the user's file.
        seed: chooses the held-out prompts of a file, and the order of both.

    Returns:
        Training prompts and held-out prompts.

    Raises:
        ValueError: the source holds too few prompts.
    """
    if settings.world is None:
        pool = read_prompts(Path(settings.path or ""), column=settings.column)
        shuffled = [pool[index] for index in _order(len(pool), seed)]
        held_out, train = shuffled[: settings.num_held_out], shuffled[settings.num_held_out :]
    else:
        known, unseen = (
            moving_shapes.finetuning_scenes(moving_shapes.CORE),
            moving_shapes.split(moving_shapes.CORE)[1],
        )
        train = [Prompt(place, moving_shapes.caption(scene)) for place, scene in enumerate(known)]
        others = [Prompt(len(known) + place, moving_shapes.caption(scene)) for place, scene in enumerate(unseen)]
        held_out = [others[index] for index in _order(len(others), seed)][: settings.num_held_out]
    if len(held_out) < settings.num_held_out or not train:
        raise ValueError(
            f"prompts.num_held_out={settings.num_held_out} leaves {len(train)} training prompts; lower it or add prompts"
        )
    return tuple(train[: settings.max_prompts]), tuple(held_out)


def measures() -> dict[str, Measure]:
    """Return what the world can say of any clip: the oracle's dimensions, and what the prompt left open."""
    return {ORACLE: oracle.score, OPEN: _open_features}


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
    rows = [
        [
            _open_features(clip, prompt.text)
            for prompt, clip in zip(
                prompts, clean_clips(prompts, draw, sample=seed, num_frames=num_frames, size=size), strict=True
            )
        ]
        for seed in range(num_seeds)
    ]
    found = {}
    for name in rows[0][0]:
        table = torch.tensor([[float(row[name]) for row in seed_rows] for seed_rows in rows])  # [seeds, prompts]
        spread = table.std(dim=0, correction=0)
        found[name] = float(spread[spread.isfinite()].mean())
    return found


def _open_features(frames: Tensor, prompt: str) -> Mapping[str, float]:
    return oracle.open_features(frames, prompt)


def _order(num: int, seed: int) -> list[int]:
    return torch.randperm(num, generator=torch.Generator().manual_seed(seed)).tolist()
