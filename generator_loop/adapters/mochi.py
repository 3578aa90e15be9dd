"""Mochi 1 text-to-video (diffusers `MochiPipeline` layout).

Model facts kept here: its time runs from noise at 0 to the clip at 1000 and its velocity points the other way, so both are
turned round; the schedule is linear at high noise and quadratic below; latents are normalised by the VAE's mean, deviation
and scale; T pixel frames are 6 (F - 1) + 1.

Shape legend: B batch, T pixel frames, F latent frames, c latent channels, h, w latent height and width, L text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from generator_loop.adapters.pipeline import PipelineGenerator, check_clip
from generator_loop.records import Conditioning

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin

THRESHOLD_NOISE = 0.025
"""Part of the way that the linear half of the schedule goes, as the pipeline has it."""


class MochiGenerator(PipelineGenerator):
    """A Mochi pipeline as the loop sees it."""

    name = "mochi"
    pipeline_name = "MochiPipeline"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2")

    @torch.no_grad()
    def encode_prompts(self, texts: Sequence[str]) -> Conditioning:
        """Encode prompts to [B, L, d] with their masks [B, L], and the negative prompt where guidance is on."""
        found = self.pipeline.encode_prompt(
            list(texts),
            [self.negative_prompt] * len(texts),
            do_classifier_free_guidance=self.guidance_scale > 1,
            max_sequence_length=self.max_sequence_length,
            device=self.device,
            dtype=self.pipeline.transformer.dtype,
        )
        names = ("positive", "positive_mask", "negative", "negative_mask")
        return Conditioning({name: value for name, value in zip(names, found, strict=True) if value is not None})

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

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Encode frames [B, T, 3, H, W] in [0, 1] to the mode of their latents [B, c, F, h, w]."""
        vae = self.pipeline.vae
        mean, std = self._latent_statistics()
        pixels = (frames.to(self.device) * 2 - 1).transpose(1, 2).to(vae.dtype)
        modes = [vae.encode(part).latent_dist.mode().float() for part in pixels.split(self.decode_batch_size)]
        return (torch.cat(modes) - mean) / std

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

    def _latent_shape(self) -> tuple[int, int, int, int]:
        pipeline, patch = self.pipeline, self.pipeline.transformer.config.patch_size
        spatial, temporal = pipeline.vae_spatial_scale_factor, pipeline.vae_temporal_scale_factor
        check_clip(self.size, self.num_frames, spatial=spatial * patch, temporal=temporal)
        channels = pipeline.transformer.config.in_channels
        return channels, (self.num_frames - 1) // temporal + 1, self.size[0] // spatial, self.size[1] // spatial

    def _schedule_of(self, scheduler: SchedulerMixin) -> FlowMatchEulerDiscreteScheduler:
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
