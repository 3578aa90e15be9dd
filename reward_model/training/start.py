"""Builds the judge that a recipe begins with: a loaded checkpoint, or a small one with random weights that may grow later."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import torch

from reward_model.judge.checkpoints.format import JudgeConfig
from reward_model.judge.families import FAMILIES
from reward_model.judge.families.tiny import build_tiny, build_tokenizer
from reward_model.judge.model import VideoJudge
from reward_model.language.styles import OWN
from reward_model.media.distortions import DEFECTS
from reward_model.media.motion_encoders import build_encoder
from reward_model.records import DIMENSIONS
from reward_model.toy_world import moving_shapes
from reward_model.training.recipe import RecipeConfig, ScratchConfig, StageConfig
from reward_model.video_reward import TOY_JUDGE

WORLD_SIZE, WORLD_FRAMES = 32, 9
"""Pixels per side and frames of the clips that a judge built from nothing is made for."""


def start_judge(config: RecipeConfig) -> VideoJudge:
    """Return the judge that the first stage trains: a loaded checkpoint or a small one with random weights."""
    if config.base is None:
        assert config.scratch is not None
        judge = _build_judge(config.scratch, seed=config.seed)
    else:
        base = TOY_JUDGE if config.base == "toy" else config.base
        judge = VideoJudge.from_pretrained(base, dtype=getattr(torch, config.dtype))
    # whatever prompts its base was trained on, this recipe uses its own stages' style
    judge.configure(trained_on=config.trained_on, prompt_style=OWN, wording={}, dimensions=DIMENSIONS)
    if config.frame_policy is not None:
        judge.configure(frame_policy=config.frame_policy.to_dict())
    show_pixels(judge, config.min_pixels, config.max_pixels)
    if config.motion is not None:
        size = build_encoder(config.motion).feature_size
        judge.add_motion({**asdict(config.motion), "feature_size": size})
    if config.max_answer_tokens is not None:
        judge.configure(max_answer_tokens=config.max_answer_tokens)
    return judge


def show_pixels(judge: VideoJudge, low: int | None, high: int | None) -> None:
    """Set the pixel bounds of a judge; None keeps a bound, but that neither passes the other that is given."""
    most = max(judge.config.max_pixels, low or 0) if high is None else high
    judge.configure(min_pixels=min(judge.config.min_pixels, most) if low is None else low, max_pixels=most)


@contextmanager
def shown_for_training(judge: VideoJudge, stage: StageConfig) -> Iterator[None]:
    """Show the judge clips as a stage trains on them inside this context, and as it is used afterwards."""
    before = judge.config
    if stage.train_frames is not None:
        judge.configure(frame_policy=stage.train_frames.to_dict())
    if stage.train_min_pixels is not None or stage.train_max_pixels is not None:
        show_pixels(judge, stage.train_min_pixels, stage.train_max_pixels)
    try:
        yield
    finally:
        judge.configure(frame_policy=before.frame_policy, min_pixels=before.min_pixels, max_pixels=before.max_pixels)


def _build_judge(scratch: ScratchConfig, *, seed: int) -> VideoJudge:
    """Return an untrained judge of the moving-shapes world, which it sees frame by frame at its own size."""
    tokenizer = build_tokenizer([*_world_words(), *DEFECTS])
    sizes = {"hidden": scratch.hidden, "layers": scratch.layers, "patch_size": scratch.patch_size}
    width = {"vision_hidden": scratch.hidden, "vision_layers": scratch.layers}
    model, tokenizer = build_tiny(scratch.family, **sizes, **width, seed=seed, tokenizer=tokenizer)
    pixels = WORLD_SIZE**2 * FAMILIES[scratch.family].counted_frames(WORLD_FRAMES)
    config = JudgeConfig.for_model(
        model.config,
        min_pixels=pixels,
        max_pixels=pixels,
        frame_policy={"mode": "all", "max_frames": WORLD_FRAMES},
        max_answer_tokens=160,
    )
    return VideoJudge(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, config)


def _world_words() -> list[str]:
    grammar = moving_shapes.FULL
    words = [value for name in moving_shapes.ATTRIBUTES for value in grammar.values(name)]
    return [*words, *moving_shapes.ATTRIBUTES, moving_shapes.caption(grammar.scenes()[0])]


def add_layers(judge: VideoJudge, num: int) -> None:
    """Append layers to the text model, which at first change nothing of its output.

    Each is a copy of the last layer whose two output projections are zero.

    Args:
        judge: a judge without roles; it grows in place.
        num: how many layers; 0 does nothing.

    Raises:
        ValueError: The judge has roles, whose adapters would lack the new layers.

    Source: Gong et al., Efficient Training of BERT by Progressively Stacking (ICML 2019).
    """
    if not num:
        return
    if judge.roles:
        raise ValueError(f"a judge grows before it has roles, this one has {', '.join(judge.roles)}")
    text = judge.model.model.language_model
    for _ in range(num):
        layer = copy.deepcopy(text.layers[-1])
        layer.self_attn.layer_idx = len(text.layers)
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            torch.nn.init.zeros_(projection.weight)
        text.layers.append(layer)
    config = judge.model.config.text_config
    config.num_hidden_layers = len(text.layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [*config.layer_types, *config.layer_types[-1:] * num]
