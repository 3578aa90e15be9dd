"""Trains the toy generator's transformer by flow matching, on clips of which two in five are damaged or mismatched.

Shape legend: B batch, C = 3, T pixel frames, H, W pixels; c, F, h, w latent channels, frames, height, width; L tokens.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from generator_loop.adapters.folders import save_pipeline
from generator_loop.flow.path import noised
from generator_loop.pretrain.pipeline import build_toy_wan, encode_captions, encode_clips, sample_clips
from generator_loop.pretrain.vae import MuonAdamW, lr_schedule
from reward_model import moving_shapes, oracle
from reward_model.records import Video

if TYPE_CHECKING:
    from diffusers import WanPipeline

log = logging.getLogger(__name__)

BATCH_SIZE = 32
EMA_DECAY = 0.998
MUON_LR, ADAMW_LR = 6e-3, 1e-3


def pretrain_generator(
    vae_folder: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    cycles: Sequence[int] = (3000, 3500),
    num_clips: int = 4000,
    report_every: int = 500,
) -> dict[str, float]:
    """Train the transformer by flow matching and save the pipeline with the average of its weights.

    Args:
        vae_folder: folder that `train_vae` wrote.
        out: pipeline folder, written after each cycle; a cycle that is there already is not repeated.
        seed: of weights, clips and noise.
        cycles: optimiser steps (of 32 clips) of each cycle, which starts from the last one's average with fresh clips.
        num_clips: clips of one cycle.
        report_every: steps between measurements of the samples.

    Returns:
        loss (mean of the last hundred steps) and the oracle's mean on held-out captions by dimension.
    """
    from diffusers import AutoencoderKLWan, WanPipeline

    vae = AutoencoderKLWan.from_pretrained(vae_folder, trust_remote_code=False).eval().requires_grad_(False)
    pipeline, metrics = build_toy_wan(vae, seed=seed), {}
    for cycle, num_steps in enumerate(cycles):
        folder = Path(f"{out}-cycle{cycle}")
        if not folder.exists():
            metrics = _run_cycle(pipeline, num_steps, num_clips, report_every, seed=seed + 100 * cycle)
            save_pipeline(pipeline, folder)
        pipeline = WanPipeline.from_pretrained(folder, trust_remote_code=False)
    save_pipeline(pipeline, out)
    return metrics


def _run_cycle(
    pipeline: WanPipeline, num_steps: int, num_clips: int, report_every: int, *, seed: int
) -> dict[str, float]:
    """Train the pipeline's transformer and put the average of its weights in its place."""
    frames, captions = _training_clips(num_clips, seed=seed + 1)
    latents, text = encode_clips(pipeline.vae, frames), encode_captions(pipeline, captions)
    live, average = pipeline.transformer.train(), copy.deepcopy(pipeline.transformer).eval().requires_grad_(False)
    optimizer, generator = _optimizer(live), torch.Generator().manual_seed(seed)
    pipeline.transformer = average
    start, metrics = time.monotonic(), dict[str, float]()
    recent: list[float] = []
    for step in range(1, num_steps + 1):
        index = torch.randint(len(latents), (BATCH_SIZE,), generator=generator)
        loss = flow_loss(live, latents[index], text[index], generator)
        loss.backward()
        optimizer.step(lr_scale=lr_schedule(step, num_steps, num_warmup=100))
        _follow(average, live, decay=min(EMA_DECAY, (1 + step) / (20 + step)))
        recent = [*recent[-99:], float(loss.detach())]
        if step % report_every == 0 or step == num_steps:
            metrics = {**evaluate(pipeline, seed=seed), "loss": sum(recent) / len(recent)}
            report = " ".join(f"{name} {value:.3f}" for name, value in metrics.items())
            log.info("generator: step %d/%d %s %.0f s", step, num_steps, report, time.monotonic() - start)
    return metrics


def flow_loss(transformer: nn.Module, latents: Tensor, text: Tensor, generator: torch.Generator) -> Tensor:
    """Return the squared error of the predicted velocity at logit-normal sigmas.

    Args:
        transformer: predicts eps - x_0.
        latents: clean latents x_0 [B, c, F, h, w].
        text: embeddings [B, L, d].
        generator: source of noise and sigmas.

    Returns:
        The mean over the batch, a scalar with gradient.
    """
    noise = torch.randn(latents.shape, generator=generator)
    sigma = torch.sigmoid(torch.randn(len(latents), generator=generator))
    noisy, target = noised(latents, noise, sigma)
    predicted = transformer(noisy, sigma * 1000, text, return_dict=False)[0]
    return (predicted - target).square().mean()


def evaluate(pipeline: WanPipeline, *, seed: int, num: int = 64) -> dict[str, float]:
    """Return the oracle's mean by dimension over one clip for each of `num` held-out captions."""
    held_out = moving_shapes.split(moving_shapes.CORE)[1]
    captions = [moving_shapes.caption(scene) for scene in held_out[:num]]
    clips = sample_clips(pipeline, captions, seed=seed)
    scores = [oracle.score(clip, caption) for clip, caption in zip(clips, captions, strict=True)]
    return {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}


def _training_clips(num: int, *, seed: int) -> tuple[Tensor, list[str]]:
    """Return frames and captions of the pre-training scenes; three clips in five are clean and as captioned."""
    rated = moving_shapes.sample_rated(
        num,
        seed=seed,
        scenes=moving_shapes.pretraining_scenes(moving_shapes.CORE),
        clean_share=0.75,
        match_share=0.8,
    )
    return torch.stack([clip.video.frames for clip in rated if isinstance(clip.video, Video)]), [
        clip.prompt or "" for clip in rated
    ]


def _optimizer(transformer: nn.Module) -> MuonAdamW:
    named = list(transformer.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and name.startswith("blocks.")]
    chosen = {id(p) for p in matrices}
    return MuonAdamW(matrices, [p for _, p in named if id(p) not in chosen], muon_lr=MUON_LR, adamw_lr=ADAMW_LR)


@torch.no_grad()
def _follow(average: nn.Module, live: nn.Module, *, decay: float) -> None:
    for slow, fast in zip(average.parameters(), live.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)
