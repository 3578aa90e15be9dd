"""Fixed noisy latents on which a policy is compared with the initial one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from generator_loop.adapters.base import POLICY, VideoGenerator, predict_with
from generator_loop.flow.path import keyed_noise, mean_square, noised
from generator_loop.records import Draw, Prompt, Rollout
from generator_loop.sampling.rollout import PromptEncoder


class Probes:
    """Fixed noisy latents on which a policy is compared with the initial one, and clean clips it should still fit."""

    def __init__(
        self,
        generator: VideoGenerator,
        sampled: Rollout,
        *,
        clean: tuple[Tensor, Sequence[Prompt]] | None,
        encoder: PromptEncoder,
        draw: Draw,
    ) -> None:
        """Fix the probes while the generator still is the initial one.

        Args:
            generator: the velocities of its live weights are remembered, not the weights.
            sampled: samples of the initial policy, one per prompt.
            clean: real or rendered frames [N, T, C, H, W] with their prompts; None leaves the flow loss out.
            encoder: text embeddings.
            draw: the probes' own random streams.
        """
        self._generator, self._has_clean = generator, clean is not None
        self._own = self._noised(sampled.latents, sampled.prompts, sampled.cond, draw.fork("own"))
        with torch.no_grad():
            self._initial = predict_with(generator, POLICY)(*self._own[:3])
        if clean is not None:
            frames, prompts = clean
            self._clean = self._noised(generator.encode(frames), prompts, encoder(prompts), draw.fork("clean"))

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Return `kl`, the mean squared velocity difference to the initial policy, and `flow_loss` on clean clips."""
        policy = predict_with(self._generator, POLICY)
        latents, sigma, cond, _ = self._own
        measured = {"kl": float(mean_square(policy(latents, sigma, cond) - self._initial).mean())}
        if self._has_clean:
            latents, sigma, cond, target = self._clean
            measured["flow_loss"] = float(mean_square(policy(latents, sigma, cond) - target).mean())
        return measured

    def _noised(self, latents: Tensor, prompts: Sequence[Prompt], cond: Any, draw: Draw) -> tuple[Any, ...]:
        sigma = torch.linspace(0.1, 0.9, len(latents), device=latents.device)
        noise = keyed_noise(draw, [(prompt.prompt_id, place) for place, prompt in enumerate(prompts)], latents)
        noisy, target = noised(latents, noise, sigma)
        return noisy, sigma, cond, target
