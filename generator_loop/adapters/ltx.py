"""LTX-Video text-to-video (diffusers `LTXPipeline` layout).

Model facts kept here: the transformer takes latents as packed tokens, with the text's padding mask and the clip's rate;
the schedule's shift grows with the number of tokens; latents are normalised by the VAE's own mean, deviation and scale;
T pixel frames are 8 (F - 1) + 1. A VAE that is conditioned on a time is given 0, as the pipeline's default is. The decoder's
convolutions look ahead as far as back, so that an excerpt of latent frames is decoded with the whole clip, and only cut out of it.

Shape legend: B batch, T pixel frames, F latent frames, c latent channels, h, w latent height and width, L text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from generator_loop.adapters.pipeline import PipelineGenerator

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin


class LTXGenerator(PipelineGenerator):
    """An LTX-Video pipeline as the loop sees it."""

    name = "ltx"
    pipeline_name = "LTXPipeline"
    text_tensors = ("positive", "positive_mask", "negative", "negative_mask")

    def _sigmas(self, num_steps: int) -> Tensor:
        """Return the Euler schedule [S + 1], shifted for the clip's number of tokens."""
        from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift

        config, (_, frames, height, width) = self._schedule.config, self._shape
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        limits = [config.get(name, default) for name, default in zip(names, (256, 4096, 0.5, 1.15), strict=True)]
        sigmas = torch.linspace(1.0, 1 / num_steps, num_steps, dtype=torch.float64).numpy()
        self._schedule.set_timesteps(sigmas=sigmas, mu=calculate_shift(frames * height * width, *limits))
        return self._schedule.sigmas.to(self.device)

    def _velocity(self, latents: Tensor, sigma: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        pipeline, transformer = self.pipeline, self.pipeline.transformer
        _, frames, height, width = self._shape
        spatial = pipeline.vae_spatial_compression_ratio
        output = transformer(
            hidden_states=rearrange(latents, "b c f h w -> b (f h w) c").to(transformer.dtype),
            encoder_hidden_states=cond["text"],
            timestep=sigma.float() * self._schedule.config.num_train_timesteps,
            encoder_attention_mask=cond["mask"],
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(pipeline.vae_temporal_compression_ratio / self.fps, spatial, spatial),
            return_dict=False,
        )[0]
        return rearrange(output.float(), "b (f h w) c -> b c f h w", f=frames, h=height, w=width)

    @property
    def _patches(self) -> tuple[int, int]:
        return self.pipeline.transformer_spatial_patch_size, self.pipeline.transformer_temporal_patch_size

    def _pixels(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        raw = self.pipeline._denormalize_latents(latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
        time = (
            torch.zeros(len(latents), device=raw.device, dtype=vae.dtype) if vae.config.timestep_conditioning else None
        )
        return vae.decode(raw.to(vae.dtype), time, return_dict=False)[0]

    def _normalise(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        return self.pipeline._normalize_latents(latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)

    def _check(self) -> None:
        if self._patches != (1, 1):
            raise ValueError(
                f"ltx: transformers with patches of {self._patches} are not supported, only those of (1, 1)"
            )

    def _factors(self) -> tuple[int, int, int]:
        return self.pipeline.vae_spatial_compression_ratio, self.pipeline.vae_temporal_compression_ratio, 1

    def _schedule_of(self, scheduler: SchedulerMixin) -> FlowMatchEulerDiscreteScheduler:
        from diffusers import FlowMatchEulerDiscreteScheduler

        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            raise ValueError(f"ltx: {type(scheduler).__name__} is no Euler scheduler of flow matching")
        return FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
