"""Wan 2.1 and 2.2 text-to-video (diffusers `WanPipeline` layout).

Wan 2.2 A14B has two transformers, one above a sigma and one below, each trained and saved by itself; TI2V 5B
is told the time of every token.

The sampling schedule is the checkpoint's own grid of sigmas, that of UniPC for the published ones. Steps along it are of first
order, since objectives need each step as a function of one state, where UniPC's are of second order; and the transformer is
told the exact time, where UniPC cuts it down to a whole number (less than one of 1000).

Model facts kept here: flow time is sigma x 1000 as a float, pixels live in [-1, 1] as [B, C, T, H, W], latents are
normalised by the VAE's per-channel mean and deviation, and T pixel frames are 4 F - 3.

Shape legend: B batch, T pixel frames, F latent frames, c latent channels, h, w latent height and width, L text tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from einops import repeat
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from generator_loop.adapters.partial_decode import constant_calls
from generator_loop.adapters.pipeline import PipelineGenerator
from generator_loop.processes import LOCKSTEP

if TYPE_CHECKING:
    from diffusers import SchedulerMixin


class WanGenerator(PipelineGenerator):
    """A Wan pipeline as the loop sees it."""

    name = "wan"
    pipeline_name = "WanPipeline"

    def _sigmas(self, num_steps: int) -> Tensor:
        """Return the checkpoint's own sigmas [S + 1]; the first, which UniPC lowers by 1e-6 to avoid a logarithm of 0, is 1."""
        self._schedule.set_timesteps(num_steps)
        sigmas = self._schedule.sigmas.clone()
        sigmas[0] = 1.0
        return sigmas.to(self.device)

    def _velocity(self, latents: Tensor, sigma: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        time = sigma.float() * self._schedule.config.num_train_timesteps
        if len(self._transformers) == 1:
            return self._call("transformer", latents, time, cond["text"])
        early = self._is_early(sigma)
        velocity = torch.empty_like(latents, dtype=torch.float32)
        for name, mask in (("transformer", early), ("transformer_2", ~early)):
            is_called = LOCKSTEP.any(bool(mask.any()))
            if mask.any():
                velocity[mask] = self._call(name, latents[mask], time[mask], cond["text"][mask])
            elif is_called:  # by another process: a call takes all of them, forwards and backwards
                velocity = velocity + 0 * self._call(name, latents[:1], time[:1], cond["text"][:1])
        return velocity

    def _is_early(self, sigma: Tensor) -> Tensor:
        """Return where [B] the first of two transformers predicts."""
        num_times = self._schedule.config.num_train_timesteps
        return sigma.float() * num_times >= self.pipeline.config.boundary_ratio * num_times

    def _guidance(self, sigma: Tensor) -> float | Tensor:
        if self.config.guidance_scale_2 is None:
            return self.config.guidance_scale
        return torch.where(self._is_early(sigma), self.config.guidance_scale, self.config.guidance_scale_2).view(
            -1, 1, 1, 1, 1
        )

    def _call(self, name: str, latents: Tensor, time: Tensor, text: Tensor) -> Tensor:
        transformer = self._transformers[name]
        if self.pipeline.config.expand_timesteps:
            patch = transformer.config.patch_size
            num_tokens = math.prod(size // side for size, side in zip(latents.shape[2:], patch, strict=True))
            time = repeat(time, "b -> b l", l=num_tokens)
        output = transformer(
            hidden_states=latents.to(transformer.dtype),
            timestep=time,
            encoder_hidden_states=text,
            return_dict=False,
        )[0]
        return output.float()

    def _checkpoint_decoder(self) -> None:
        """Recompute the decoder latent frame by latent frame, handing on the cache that earlier frames fill."""
        decoder = self.pipeline.vae.decoder
        forward = decoder.forward

        def by_frame(x: Tensor, feat_cache: list | None = None, feat_idx: Any = (0,), **how: Any) -> Tensor:
            """Decode one latent frame and keep only its input and cache for the backward pass."""
            if feat_cache is None or not torch.is_grad_enabled():
                return forward(x, feat_cache=feat_cache, feat_idx=feat_idx, **how)

            def decode_frame(x: Tensor, *cache: Any) -> tuple:
                """Return the pixels and the cache as it is left, as values, so that recomputing starts from the same cache."""
                left = list(cache)
                return forward(x, feat_cache=left, feat_idx=[0], **how), *left

            pixels, *feat_cache[:] = checkpoint(decode_frame, x, *feat_cache, use_reentrant=False)
            return pixels

        decoder.forward = by_frame

    def _pixels(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        mean, inverse_std = self._latent_statistics()
        return vae.decode((latents / inverse_std + mean).to(vae.dtype), return_dict=False)[0]

    def _pixels_of(self, latents: Tensor, excerpt: range) -> Tensor:
        """Decode up to the end of an excerpt; the decoder takes one latent frame at a time, so those before it need no gradient."""
        decoder = self.pipeline.vae.decoder
        with constant_calls(decoder, excerpt.start, begins=lambda how: how.get("first_chunk", False)):
            return self._pixels(latents[:, :, : excerpt.stop])[:, :, self.frames_of(excerpt)]

    def _normalise(self, latents: Tensor) -> Tensor:
        mean, inverse_std = self._latent_statistics()
        return (latents - mean) * inverse_std

    def _latent_statistics(self) -> tuple[Tensor, Tensor]:
        config = self.pipeline.vae.config
        mean, std = (
            torch.tensor(values, device=self.device).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return mean, 1 / std

    def _check(self) -> None:
        pipeline = self.pipeline
        two = pipeline.transformer_2 is not None
        if pipeline.transformer is None or two != (pipeline.config.boundary_ratio is not None):
            raise ValueError(
                "wan: a pipeline has one transformer, or two and the boundary_ratio at which they change over, got "
                f"transformer: {pipeline.transformer is not None}, transformer_2: {two}, boundary_ratio: "
                f"{pipeline.config.boundary_ratio}"
            )

    def _transformer_names(self) -> tuple[str, ...]:
        return ("transformer", "transformer_2") if self.pipeline.transformer_2 is not None else ("transformer",)

    def _factors(self) -> tuple[int, int, int]:
        pipeline, config = self.pipeline, self.pipeline.vae.config
        temporal = 2 ** sum(config.temperal_downsample)
        spatial = 2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1)
        if (temporal, spatial) != (pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial):
            raise ValueError(
                f"the VAE shrinks time by {temporal} and space by {spatial}, but its config.json says "
                f"scale_factor_temporal {config.scale_factor_temporal} and scale_factor_spatial "
                f"{config.scale_factor_spatial}; correct the config"
            )
        return spatial, temporal, pipeline.transformer.config.patch_size[1]

    def _schedule_of(self, scheduler: SchedulerMixin) -> Any:
        """Return a copy of whichever flow scheduler the checkpoint names, for its sigmas."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler) or scheduler.config.get("use_flow_sigmas"):
            return type(scheduler).from_config(scheduler.config)
        raise ValueError(
            f"wan: {type(scheduler).__name__} is not a flow-matching scheduler; its sigmas are no flow times"
        )
