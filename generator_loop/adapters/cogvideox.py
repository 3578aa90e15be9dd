"""CogVideoX 1.0 text-to-video (diffusers `CogVideoXPipeline` layout): v-prediction brought to sigma and velocity.

The model knows x_t = alpha x_0 + s eps with alpha^2 + s^2 = 1 and predicts v = alpha eps - s x_0. Divided by alpha + s, its
latents are (1 - sigma) x_0 + sigma eps with sigma = s / (alpha + s), and

    velocity = eps - x_0 = (alpha + s) ((s - alpha) x_sigma + v).

An Euler step in sigma is then exactly a deterministic DDIM step, and every objective serves the family unchanged. Sigmas
between the model's integer times are given the time in between.

Shape legend: B batch, T pixel frames, F latent frames, c latent channels, h, w latent height and width, L text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from generator_loop.adapters.partial_decode import constant_calls
from generator_loop.adapters.pipeline import PipelineGenerator

if TYPE_CHECKING:
    from diffusers import CogVideoXDDIMScheduler, SchedulerMixin

NEAR_INTEGER = 0.01
"""A time this near to an integer is that integer: sigma in 32 bit cannot tell them apart."""


class CogVideoXGenerator(PipelineGenerator):
    """A CogVideoX pipeline as the loop sees it."""

    name = "cogvideox"
    pipeline_name = "CogVideoXPipeline"

    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw unit Gaussian noise [B, c, F, h, w], one sample from each CPU generator, frames first as the pipeline does."""
        channels, frames, height, width = self._shape
        samples = [torch.randn(frames, channels, height, width, generator=generator) for generator in generators]
        return torch.stack(samples).transpose(1, 2).to(self.device)

    def _sigmas(self, num_steps: int) -> Tensor:
        """Return the sigmas [S + 1] at the pipeline's times, and 0."""
        self._schedule.set_timesteps(num_steps)
        sigmas = self._known_sigmas()[self._schedule.timesteps]
        return torch.cat([sigmas, sigmas.new_zeros(1)]).float().to(self.device)

    def _known_sigmas(self) -> Tensor:
        """Return sigma at every integer time, rising, in float64."""
        signal = self._schedule.alphas_cumprod.double()
        alpha, noise = signal.sqrt(), (1 - signal).sqrt()
        return noise / (alpha + noise)

    def _time(self, sigma: Tensor) -> Tensor:
        """Return the model's time [B] at sigmas [B]; whole where sigma is one of the model's own."""
        known, wanted = self._known_sigmas(), sigma.detach().double().cpu()
        above = torch.searchsorted(known, wanted).clamp(1, len(known) - 1)
        low, high = known[above - 1], known[above]
        time = above - 1 + ((wanted - low) / (high - low)).clamp(0, 1)
        whole = time.round()
        return torch.where((time - whole).abs() < NEAR_INTEGER, whole, time).float().to(self.device)

    def _velocity(self, latents: Tensor, sigma: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        transformer = self.pipeline.transformer
        share = sigma.float().view(-1, 1, 1, 1, 1)
        scale = (share**2 + (1 - share) ** 2).rsqrt()  # alpha + s
        output = transformer(
            hidden_states=(scale * latents).transpose(1, 2).to(transformer.dtype),
            encoder_hidden_states=cond["text"],
            timestep=self._time(sigma),
            image_rotary_emb=self._rotary(),
            return_dict=False,
        )[0]
        return scale * ((2 * share - 1) * scale * latents + output.float().transpose(1, 2))

    def _rotary(self) -> tuple[Tensor, Tensor] | None:
        if not self.pipeline.transformer.config.use_rotary_positional_embeddings:
            return None
        return self.pipeline._prepare_rotary_positional_embeddings(*self.size, self._shape[1], self.device)

    def _pixels(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        return vae.decode((latents / self.pipeline.vae_scaling_factor_image).to(vae.dtype)).sample

    def _pixels_of(self, latents: Tensor, excerpt: range) -> Tensor:
        """Decode up to the batch of latent frames in which an excerpt ends; the batches before the excerpt need no gradient.

        The decoder takes two latent frames at a time (the first time three where their number is odd) and mixes them by norms
        over time; an excerpt that shares a batch with its neighbours costs as much as the whole batch.
        """
        vae, num_frames = self.pipeline.vae, latents.shape[2]
        batch = vae.num_latent_frames_batch_size
        ends = [batch * (i + 1) + num_frames % batch for i in range(max(num_frames // batch, 1))]
        stop = min(end for end in ends if end >= excerpt.stop)
        num_before = sum(end <= excerpt.start for end in ends)
        with constant_calls(vae.decoder, num_before, begins=lambda how: how["conv_cache"] is None):
            return self._pixels(latents[:, :, :stop])[:, :, self.frames_of(excerpt)]

    def frames_of(self, excerpt: range) -> slice:
        """Return the pixel frames of an excerpt; in clips of an even number of latent frames the first is as long as the others."""
        if self._shape[1] % 2:
            return super().frames_of(excerpt)
        _, temporal, _ = self._factors()
        return slice(temporal * excerpt.start, temporal * excerpt.stop)

    def _normalise(self, latents: Tensor) -> Tensor:
        return latents * self.pipeline.vae_scaling_factor_image

    def _check(self) -> None:
        if self.pipeline.transformer.config.patch_size_t is not None:
            raise ValueError("cogvideox: CogVideoX 1.5, which packs frames, is not supported; use a 1.0 checkpoint")

    def _factors(self) -> tuple[int, int, int]:
        pipeline, patch = self.pipeline, self.pipeline.transformer.config.patch_size
        return pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal, patch

    def _schedule_of(self, scheduler: SchedulerMixin) -> CogVideoXDDIMScheduler:
        from diffusers import CogVideoXDDIMScheduler

        if scheduler.config.get("prediction_type") != "v_prediction":
            raise ValueError(
                f"cogvideox: {type(scheduler).__name__} does not predict v, as the family's checkpoints do"
            )
        return CogVideoXDDIMScheduler.from_config(scheduler.config)
