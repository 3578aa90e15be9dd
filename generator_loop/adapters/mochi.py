"""Mochi 1 text-to-video (diffusers `MochiPipeline` layout).

Model facts kept here: its time goes from noise at 0 to the clip at 1000 and its velocity points the other way, so both are
turned round; the schedule is linear at high noise and quadratic below; latents are normalised by the VAE's mean, deviation
and scale; T pixel frames are 6 (F - 1) + 1; the decoder is causal and decodes a clip at once.

Shape legend: B batch, T pixel frames, F latent frames, c latent channels, h, w latent height and width, L text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from generator_loop.adapters.pipeline import PipelineGenerator

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin

THRESHOLD_NOISE = 0.025
"""Part of the way that the linear half of the schedule goes, as the pipeline has it."""


class MochiGenerator(PipelineGenerator):
    """A Mochi pipeline as the loop sees it."""

    name = "mochi"
    pipeline_name = "MochiPipeline"
    text_tensors = ("positive", "positive_mask", "negative", "negative_mask")

    def _sigmas(self, num_steps: int) -> Tensor:
        """Return the Euler schedule [S + 1], linear and then quadratic."""
        from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

        if num_steps < 2:
            raise ValueError(
                f"mochi: its schedule has a linear and a quadratic part, so at least 2 steps, got {num_steps}"
            )
        sigmas = torch.tensor(linear_quadratic_schedule(num_steps, THRESHOLD_NOISE), dtype=torch.float64)
        self._schedule.set_timesteps(sigmas=sigmas.numpy())
        return (1 - self._schedule.sigmas).to(self.device)

    def _velocity(self, latents: Tensor, sigma: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        transformer = self.pipeline.transformer
        output = transformer(
            hidden_states=latents.to(transformer.dtype),
            encoder_hidden_states=cond["text"],
            timestep=(1 - sigma.float()) * self._schedule.config.num_train_timesteps,
            encoder_attention_mask=cond["mask"],
            return_dict=False,
        )[0]
        return -output.float()

    def _pixels(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        mean, std = self._latent_statistics()
        return vae.decode((latents * std + mean).to(vae.dtype), return_dict=False)[0]

    def _pixels_of(self, latents: Tensor, excerpt: range) -> Tensor:
        """Decode up to the end of an excerpt; a first call without gradient covers the frames before it."""
        with self._stream.split(excerpt.start):
            return self._pixels(latents[:, :, : excerpt.stop])[:, :, self.frames_of(excerpt)]

    @cached_property
    def _stream(self) -> _Stream:
        return _Stream(self.pipeline.vae.decoder)

    def _normalise(self, latents: Tensor) -> Tensor:
        mean, std = self._latent_statistics()
        return (latents - mean) / std

    def _latent_statistics(self) -> tuple[Tensor, Tensor]:
        """Return the mean and deviation that a unit latent stands for, the scaling factor included."""
        config, channels = self.pipeline.vae.config, self._shape[0]
        mean = torch.tensor(config.latents_mean or [0.0] * channels, device=self.device)
        std = torch.tensor(config.latents_std or [1.0] * channels, device=self.device)
        return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1) / config.scaling_factor

    def _check(self) -> None:
        if not self.pipeline.scheduler.config.get("invert_sigmas"):
            raise ValueError(
                "mochi: the checkpoint's scheduler does not count its time the other way; is it a Mochi one?"
            )

    def _factors(self) -> tuple[int, int, int]:
        pipeline, patch = self.pipeline, self.pipeline.transformer.config.patch_size
        return pipeline.vae_spatial_scale_factor, pipeline.vae_temporal_scale_factor, patch

    def _schedule_of(self, scheduler: SchedulerMixin) -> FlowMatchEulerDiscreteScheduler:
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)


class _Stream:
    """Lets the decoder be called for the beginning of a clip and then for the rest of it.

    Its causal convolutions are handed a cache that they do not read, because they repeat the frame at the clip's edge; here
    they go on from a cache where there is one.
    """

    def __init__(self, decoder: nn.Module) -> None:
        from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d

        self._decoder, self._keeps = decoder, False
        for conv in decoder.modules():
            if isinstance(conv, CogVideoXCausalConv3d):
                conv.forward = partial(self._convolve, conv, conv.forward)

    def _convolve(
        self, conv: Any, forward: Callable[..., Any], inputs: Tensor, conv_cache: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        if conv_cache is None:
            output, _ = forward(inputs)
        else:
            joined = torch.cat([conv_cache, inputs], dim=2)
            output = conv.conv(pad(joined, (*conv.time_causal_padding[:4], 0, 0), mode="replicate"))
        if not self._keeps:
            return output, None
        last = inputs[:, :, -conv.time_pad :]
        return output, torch.cat([inputs[:, :, :1]] * (conv.time_pad - last.shape[2]) + [last], dim=2)

    @contextmanager
    def split(self, num_frames: int) -> Iterator[None]:
        """Run the first latent frames of each clip or tile in a call of their own, without gradient."""
        forward = self._decoder.forward

        def in_two(inputs: Tensor) -> tuple[Tensor, None]:
            """Decode the early latent frames without gradient, then the rest from the caches that they leave."""
            self._keeps = True
            with torch.no_grad():
                early, cache = forward(inputs[:, :, :num_frames])
            self._keeps = False
            late, _ = forward(inputs[:, :, num_frames:], conv_cache=cache)
            return torch.cat([early, late], dim=2), None

        if num_frames:
            self._decoder.forward = in_two
        try:
            yield
        finally:
            self._keeps, self._decoder.forward = False, forward
