"""Trains the toy generator's video autoencoder (a small `AutoencoderKLWan`) from nothing.

Still frames first: they teach the spatial layers at a tenth of a clip's cost. Muon on the convolutions makes the
difference between a grey blur and shapes within minutes on one CPU core.

Shape legend: B batch, C = 3, T pixel frames, H, W pixels; c, F, h, w latent channels, frames, height, width.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from reward_model import moving_shapes
from reward_model.records import RatedClip, Video

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

log = logging.getLogger(__name__)

LATENT_CHANNELS = 12
METRICS_FILE = "metrics.json"


def build_vae() -> AutoencoderKLWan:
    """Return an untrained autoencoder: 9 x 32 x 32 pixels to 12 x 3 x 8 x 8 latents, half a million parameters."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=8,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
        scale_factor_spatial=4,
        scale_factor_temporal=4,
    )


class MuonAdamW:
    """Muon for weights of two and more dimensions, flattened to matrices, and AdamW for the rest.

    torch's Muon takes matrices only, so convolutions are handed to it as views that share their memory.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], others: Iterable[nn.Parameter], *, muon_lr: float, adamw_lr: float
    ) -> None:
        """Set up both optimisers.

        Args:
            parameters: weights for Muon, contiguous, of two or more dimensions.
            others: parameters for AdamW.
            muon_lr: step of Muon, in AdamW's scale.
            adamw_lr: step of AdamW.
        """
        self.weights = list(parameters)
        self.views = [nn.Parameter(weight.data.flatten(1)) for weight in self.weights]
        self.others = list(others)
        self.lrs = (muon_lr, adamw_lr)
        self.optimizers = (
            torch.optim.Muon(self.views, lr=muon_lr, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(self.others, lr=adamw_lr, betas=(0.9, 0.95), weight_decay=0.0),
        )

    def step(self, *, lr_scale: float, max_norm: float = 1.0) -> None:
        """Clip the gradients' norm, take one step at `lr_scale` times the set rates, and clear the gradients."""
        nn.utils.clip_grad_norm_([*self.weights, *self.others], max_norm)
        for view, weight in zip(self.views, self.weights, strict=True):
            view.grad = None if weight.grad is None else weight.grad.flatten(1)
        for optimizer, lr in zip(self.optimizers, self.lrs, strict=True):
            optimizer.param_groups[0]["lr"] = lr * lr_scale
            optimizer.step()
        for parameter in (*self.weights, *self.others):
            parameter.grad = None


def lr_schedule(step: int, num_steps: int, *, num_warmup: int = 30) -> float:
    """Return the share of the full rate at `step` of `num_steps`: warm-up, flat to the middle, linear to 3 %."""
    return min(1.0, step / num_warmup) * min(1.0, max(0.03, 2 * (1 - step / num_steps)))


def train_vae(
    out: str | Path, *, seed: int = 0, num_image_steps: int = 450, num_video_steps: int = 650, num_clips: int = 2000
) -> Mapping[str, float]:
    """Train the autoencoder on clean and damaged clips and save it with the latents' mean and deviation.

    Args:
        out: folder to write.
        seed: of weights, clips and batches.
        num_image_steps: steps of 24 frames.
        num_video_steps: steps of 8 clips.
        num_clips: clips to train on.

    Returns:
        psnr (dB, on unseen clips).
    """
    torch.manual_seed(seed)
    vae = build_vae()
    clips = to_wan(moving_shapes_frames(num_clips, seed=seed + 1))
    optimizer = _optimizer(vae)
    generator = torch.Generator().manual_seed(seed)
    start = time.monotonic()
    for name, num_steps, draw in (("images", num_image_steps, _draw_images), ("clips", num_video_steps, _draw_clips)):
        for step in range(1, num_steps + 1):
            loss = reconstruction_loss(vae, draw(clips, generator), generator)
            loss.backward()
            optimizer.step(lr_scale=lr_schedule(step, num_steps))
            if step % 50 == 0:
                log.info("vae: %s %d/%d loss %.4f %.0f s", name, step, num_steps, loss, time.monotonic() - start)
    _set_latent_scale(vae, clips[:512])
    vae.save_pretrained(out)
    metrics = {"psnr": psnr(vae, to_wan(moving_shapes_frames(64, seed=seed + 2)))}
    (Path(out) / METRICS_FILE).write_text(json.dumps(metrics) + "\n", encoding="utf-8")
    return metrics


def moving_shapes_frames(num: int, *, seed: int) -> Tensor:
    """Return clips of the world, two in five of them clean, [N, T, C, H, W] in [0, 1]."""
    rated = moving_shapes.sample_rated(num, seed=seed, clean_share=0.4)
    return torch.stack([clip.video.frames for clip in rated if isinstance(clip.video, Video)])


def to_wan(frames: Tensor) -> Tensor:
    """Turn frames [B, T, C, H, W] in [0, 1] into the model's [B, C, T, H, W] in [-1, 1]."""
    return frames.transpose(1, 2) * 2 - 1


def reconstruction_loss(vae: AutoencoderKLWan, clips: Tensor, generator: torch.Generator) -> Tensor:
    """Return squared error, plus absolute error of pixels and of spatial differences, which keeps edges sharp.

    Args:
        vae: the autoencoder.
        clips: [B, C, T, H, W] in [-1, 1].
        generator: source of the small noise on the latents, which makes the decoder smooth.

    Returns:
        A scalar with gradient.
    """
    latents = vae.encode(clips).latent_dist.mode()
    decoded = vae.decode(latents + 0.03 * torch.randn(latents.shape, generator=generator)).sample
    error = decoded - clips
    edges = error.diff(dim=3).abs().mean() + error.diff(dim=4).abs().mean()
    return error.square().mean() + 0.1 * error.abs().mean() + 0.1 * edges + 1e-4 * latents.square().mean()


@torch.no_grad()
def reconstruct(vae: AutoencoderKLWan, clips: Tensor, *, batch_size: int = 16) -> Tensor:
    """Return clips [B, C, T, H, W] in [-1, 1] after encoding and decoding."""
    return torch.cat(
        [vae.decode(vae.encode(some).latent_dist.mode()).sample.clamp(-1, 1) for some in clips.split(batch_size)]
    )


def round_trip(vae: AutoencoderKLWan, clips: Sequence[RatedClip]) -> list[RatedClip]:
    """Return clips as the autoencoder gives them back, with their labels: the generator's look at known quality.

    Args:
        vae: trained autoencoder.
        clips: clips in memory, all of one size.

    Returns:
        The clips with other frames.
    """
    videos = [clip.video for clip in clips if isinstance(clip.video, Video)]
    decoded = reconstruct(vae, to_wan(torch.stack([video.frames for video in videos]))).transpose(1, 2) / 2 + 0.5
    return [
        replace(clip, video=replace(video, frames=frames))
        for clip, video, frames in zip(clips, videos, decoded, strict=True)
    ]


def wait_for_vae(folder: str | Path, *, interval: float = 5.0) -> AutoencoderKLWan:
    """Return the autoencoder of `folder`, as soon as another process has written it.

    Args:
        folder: where `train_vae` writes; its record of metrics comes last.
        interval: seconds between looks.

    Returns:
        The trained autoencoder, frozen.
    """
    from diffusers import AutoencoderKLWan

    while not (Path(folder) / METRICS_FILE).exists():
        time.sleep(interval)
    return AutoencoderKLWan.from_pretrained(folder, trust_remote_code=False).eval().requires_grad_(False)


def psnr(vae: AutoencoderKLWan, clips: Tensor) -> float:
    """Return the peak signal-to-noise ratio of reconstructions in dB."""
    error = (reconstruct(vae, clips) - clips) / 2
    return -10 * float(torch.log10(error.square().mean()))


def _optimizer(vae: AutoencoderKLWan) -> MuonAdamW:
    def is_matrix(weight: nn.Parameter) -> bool:
        """Return whether Muon trains a weight: kernels with at least three channels on either side."""
        return weight.ndim >= 4 and min(weight.shape[:2]) >= 3

    parameters = list(vae.parameters())
    return MuonAdamW(
        [p for p in parameters if is_matrix(p)],
        [p for p in parameters if not is_matrix(p)],
        muon_lr=5e-3,
        adamw_lr=2e-3,
    )


def _draw_images(clips: Tensor, generator: torch.Generator) -> Tensor:
    which = torch.randint(len(clips), (24,), generator=generator)
    frame = torch.randint(clips.shape[2], (24,), generator=generator)
    return clips[which, :, frame][:, :, None]  # [B, C, 1, H, W]


def _draw_clips(clips: Tensor, generator: torch.Generator) -> Tensor:
    return clips[torch.randint(len(clips), (8,), generator=generator)]


@torch.no_grad()
def _set_latent_scale(vae: AutoencoderKLWan, clips: Tensor) -> None:
    latents = torch.cat([vae.encode(some).latent_dist.mode() for some in clips.split(16)])
    vae.register_to_config(
        latents_mean=latents.mean((0, 2, 3, 4)).tolist(), latents_std=latents.std((0, 2, 3, 4)).tolist()
    )
