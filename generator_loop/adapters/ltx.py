"""LTX-Video text-to-video (diffusers `LTXPipeline` layout).

Model facts kept here: the transformer takes latents as packed tokens, with the text's padding mask and the clip's rate;
the schedule's shift grows with the number of tokens; latents are normalised by the VAE's own mean, deviation and scale;
T pixel frames are 8 (F - 1) + 1. A VAE that is conditioned on a time is given 0, as the pipeline's default is.

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


class LTXGenerator(PipelineGenerator):
    """An LTX-Video pipeline as the loop sees it."""

    name = "ltx"
    pipeline_name = "LTXPipeline"
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
        """Return the Euler schedule [S + 1], shifted for the clip's number of tokens."""
        from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift

        config, (_, frames, height, width) = self._schedule.config, self._shape
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        limits = [config.get(name, default) for name, default in zip(names, (256, 4096, 0.5, 1.15), strict=True)]
        levels = torch.linspace(1.0, 1 / num_steps, num_steps, dtype=torch.float64).numpy()
        self._schedule.set_timesteps(sigmas=levels, mu=calculate_shift(frames * height * width, *limits))
        return self._schedule.sigmas.to(self.device)

    def _velocity(self, latents: Tensor, sigma: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        pipeline, transformer = self.pipeline, self.pipeline.transformer
        _, frames, height, width = self._shape
        spatial = pipeline.vae_spatial_compression_ratio
        output = transformer(
            hidden_states=pipeline._pack_latents(latents, *self._patches).to(transformer.dtype),
            encoder_hidden_states=cond["text"],
            timestep=sigma.float() * self._schedule.config.num_train_timesteps,
            encoder_attention_mask=cond["mask"],
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(pipeline.vae_temporal_compression_ratio / self.fps, spatial, spatial),
            return_dict=False,
        )[0]
        return pipeline._unpack_latents(output.float(), frames, height, width, *self._patches)

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

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Encode frames [B, T, 3, H, W] in [0, 1] to the mode of their latents [B, c, F, h, w]."""
        vae = self.pipeline.vae
        pixels = (frames.to(self.device) * 2 - 1).transpose(1, 2).to(vae.dtype)
        modes = [vae.encode(part).latent_dist.mode().float() for part in pixels.split(self.decode_batch_size)]
        return self.pipeline._normalize_latents(
            torch.cat(modes), vae.latents_mean, vae.latents_std, vae.config.scaling_factor
        )

    def _check(self) -> None:
        if self._patches != (1, 1):
            raise ValueError(
                f"ltx: transformers with patches of {self._patches} are not supported, only those of (1, 1)"
            )

    def _latent_shape(self) -> tuple[int, int, int, int]:
        spatial, temporal = self.pipeline.vae_spatial_compression_ratio, self.pipeline.vae_temporal_compression_ratio
        check_clip(self.size, self.num_frames, spatial=spatial, temporal=temporal)
        channels = self.pipeline.transformer.config.in_channels
        return channels, (self.num_frames - 1) // temporal + 1, self.size[0] // spatial, self.size[1] // spatial

    def _schedule_of(self, scheduler: SchedulerMixin) -> FlowMatchEulerDiscreteScheduler:
        from diffusers import FlowMatchEulerDiscreteScheduler

        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            raise ValueError(f"ltx: {type(scheduler).__name__} is no Euler scheduler of flow matching")
        return FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
