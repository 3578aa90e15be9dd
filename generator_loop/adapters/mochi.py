"""Mochi 1 text-to-video (diffusers `MochiPipeline` layout).

Model facts kept here: its time runs from noise at 0 to the clip at 1000 and its velocity points the other way, so both are
turned round; the schedule is linear at high noise and quadratic below; latents are normalised by the VAE's mean, deviation
and scale; T pixel frames are 6 (F - 1) + 1.

Shape legend: B batch, T pixel frames, F latent frames, c latent channels, h, w latent height and width, L text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

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

    def sigmas(self, num_steps: int) -> Tensor:
        """Return the Euler schedule [S + 1], linear and then quadratic."""
        from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

        levels = torch.tensor(linear_quadratic_schedule(num_steps, THRESHOLD_NOISE), dtype=torch.float64)
        self._schedule.set_timesteps(sigmas=levels.numpy())
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
                "mochi: the checkpoint's scheduler does not run its time the other way; is it a Mochi one?"
            )

    def _factors(self) -> tuple[int, int, int]:
        pipeline, patch = self.pipeline, self.pipeline.transformer.config.patch_size
        return pipeline.vae_spatial_scale_factor, pipeline.vae_temporal_scale_factor, patch

    def _schedule_of(self, scheduler: SchedulerMixin) -> FlowMatchEulerDiscreteScheduler:
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
