"""HunyuanVideo text-to-video (diffusers `HunyuanVideoPipeline` layout).

Model facts kept here: the prompt goes through a language model (embeddings and padding mask) and through CLIP (one pooled
vector); guidance is a number that the distilled model is told, so that one prediction does and no negative prompt is read;
latents are multiplied by the VAE's scaling factor; T pixel frames are 4 F - 3; the decoder is not causal: clips of more than 4
latent frames are decoded in overlapping tiles of 5, each as a whole.

Shape legend: B batch, T pixel frames, F latent frames, c latent channels, h, w latent height and width, L text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from generator_loop.adapters.pipeline import PipelineGenerator
from generator_loop.records import Conditioning

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin


class HunyuanVideoGenerator(PipelineGenerator):
    """A HunyuanVideo pipeline as the loop sees it; `guidance_scale` is the number that the model is told (6 is usual)."""

    name = "hunyuan_video"
    pipeline_name = "HunyuanVideoPipeline"

    @torch.no_grad()
    def _encode_prompts(self, texts: Sequence[str]) -> Conditioning:
        """Encode prompts to [B, L, d] with their masks [B, L], and to pooled vectors [B, p]."""
        text, pooled, mask = self.pipeline.encode_prompt(
            list(texts), max_sequence_length=self.config.max_sequence_length, device=self.device
        )
        dtype = self.pipeline.transformer.dtype
        tensors = {"positive": text.to(dtype), "positive_mask": mask.to(dtype), "positive_pooled": pooled.to(dtype)}
        return Conditioning(tensors)

    def _sigmas(self, num_steps: int) -> Tensor:
        """Return the Euler schedule [S + 1] with the checkpoint's own shift."""
        sigmas = torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)[:-1]
        self._schedule.set_timesteps(sigmas=sigmas.numpy())
        return self._schedule.sigmas.to(self.device)

    def _velocity(self, latents: Tensor, sigma: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        transformer = self.pipeline.transformer
        guidance = torch.full(
            (len(latents),), 1000.0 * self.config.guidance_scale, device=self.device, dtype=transformer.dtype
        )
        output = transformer(
            hidden_states=latents.to(transformer.dtype),
            timestep=sigma.float() * self._schedule.config.num_train_timesteps,
            encoder_hidden_states=cond["text"],
            encoder_attention_mask=cond["mask"],
            pooled_projections=cond["pooled"],
            guidance=guidance if transformer.config.guidance_embeds else None,
            return_dict=False,
        )[0]
        return output.float()

    def _pixels(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        return vae.decode((latents / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0]

    def _pixels_of(self, latents: Tensor, excerpt: range) -> Tensor:
        """Decode the tiles of time that reach into an excerpt.

        The decoder's norms extend over time, so that each frame of a tile depends on all of its latent frames, which therefore
        are all in the graph; a short clip is one tile. The library decodes the beginning of the next tile as well.
        """
        vae, frames = self.pipeline.vae, self.frames_of(excerpt)
        factor = vae.temporal_compression_ratio
        size, stride = vae.tile_sample_min_num_frames // factor, vae.tile_sample_stride_num_frames // factor
        if latents.shape[2] <= size:
            return super()._pixels_of(latents, excerpt)
        overlap = size - stride  # latent frames whose pixels are blended with those of the tile before
        first, last = max(excerpt.start - 1 - overlap, 0) // stride, max(excerpt.stop - 2, 0) // stride
        pixels = self._pixels(latents[:, :, first * stride : last * stride + size + 1])
        skipped = first * vae.tile_sample_stride_num_frames
        return pixels[:, :, frames.start - skipped : frames.stop - skipped]

    def _normalise(self, latents: Tensor) -> Tensor:
        return latents * self.pipeline.vae.config.scaling_factor

    def _check(self) -> None:
        if self.config.negative_prompt:
            raise ValueError(
                "hunyuan_video: negative_prompt is not read, as guidance is told to the model; leave it empty"
            )
        if self.pipeline.transformer.config.image_condition_type is not None:
            raise ValueError("hunyuan_video: image-to-video checkpoints are not supported")

    def _factors(self) -> tuple[int, int, int]:
        pipeline, patch = self.pipeline, self.pipeline.transformer.config.patch_size
        return pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal, patch

    def _schedule_of(self, scheduler: SchedulerMixin) -> FlowMatchEulerDiscreteScheduler:
        from diffusers import FlowMatchEulerDiscreteScheduler

        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            raise ValueError(f"hunyuan_video: {type(scheduler).__name__} is no Euler scheduler of flow matching")
        return FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
