"""Random steps of a flow-matching sampler, with the probability of each, for policy gradients.

Shape legend: N samples with latents [N, ...], K steps, S steps of the schedule. Convention: x_t = (1 - t) x_0 + t eps, v = eps - x_0,
a step goes from t = sigma to t' = sigma_next < t. All in float32.

Source: Flow-GRPO (arXiv 2505.05470) eq. 9 to 13, DanceGRPO (arXiv 2505.07818), CPS (Coefficients-Preserving Sampling, arXiv
2509.05952); the gradient coefficient and its cure: Flash-GRPO's rectification, computed here for any schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

KernelName = Literal["flow", "dance", "cps"]


@dataclass(frozen=True)
class Kernel:
    """How much noise a step adds.

    flow: std a sqrt(t / (1 - t)) per unit of time; dance: a constant one; both keep the marginals of the deterministic
    sampler. cps: the share sin(a pi / 2) of the next sigma is drawn anew, which keeps clips clean at few steps.
    """

    name: KernelName
    noise_level: float

    def transition(self, latents: Tensor, velocity: Tensor, sigma: float, sigma_next: float, *, ceiling: float) -> Step:
        """Return the mean [N, ...] and the deviation of the next latents.

        Args:
            latents: x_t [N, ...].
            velocity: v [N, ...].
            sigma: t in (0, 1].
            sigma_next: t' in [0, t).
            ceiling: the schedule's second sigma, which stands for t where 1 - t would be 0.

        Returns:
            The step; its noise deviation is a at t = 1 of kernel flow.
        """
        latents, velocity = latents.float(), velocity.float()
        if self.name == "cps":
            drawn = self._std(sigma, sigma_next, ceiling)
            clean, noise = latents - sigma * velocity, latents + (1 - sigma) * velocity
            return Step((1 - sigma_next) * clean + math.sqrt(sigma_next**2 - drawn**2) * noise, drawn)
        rate, span = self._rate(sigma, ceiling), sigma - sigma_next
        drift = velocity + rate**2 / (2 * sigma) * (latents + (1 - sigma) * velocity)
        return Step(latents - span * drift, rate * math.sqrt(span))

    def log_prob(self, step: Step, result: Tensor) -> Tensor:
        """Return the log-probability [N] of `result` [N, ...], averaged over elements; cps leaves constants and scale out."""
        square = (result.float() - step.mean).square().flatten(1).mean(1)
        if self.name == "cps":
            return -square
        return -square / (2 * step.std**2) - math.log(step.std) - 0.5 * math.log(2 * math.pi)

    def coefficient(self, sigma: float, sigma_next: float, *, ceiling: float) -> float:
        """Return c_t: the log-probability's derivative by the velocity is -c_t z, z the noise that was drawn."""
        if self.name == "cps":
            drawn = self._std(sigma, sigma_next, ceiling)
            slope = (1 - sigma_next) * sigma - math.sqrt(sigma_next**2 - drawn**2) * (1 - sigma)
            return 2 * drawn * abs(slope)
        rate, root = self._rate(sigma, ceiling), math.sqrt(sigma - sigma_next)
        return root / rate + rate * root * (1 - sigma) / (2 * sigma)

    def _rate(self, sigma: float, ceiling: float) -> float:
        if self.name == "dance":
            return self.noise_level
        return self.noise_level * math.sqrt(sigma / (1 - min(sigma, ceiling)))

    def _std(self, sigma: float, sigma_next: float, ceiling: float) -> float:
        return sigma_next * math.sin(self.noise_level * math.pi / 2)


@dataclass(frozen=True)
class Step:
    """A Gaussian step: `mean` [N, ...] with the graph of the velocity, and the deviation `std` of each element."""

    mean: Tensor
    std: float


def step_weights(kernel: Kernel, sigmas: Tensor) -> list[float]:
    """Return for each step but the last 1 / c_t over its mean, so that all steps pull on the policy alike.

    Args:
        kernel: of the steps.
        sigmas: falling schedule [S + 1] that ends in 0.

    Returns:
        S - 1 weights of mean 1.
    """
    values = sigmas.tolist()
    inverse = [
        1 / kernel.coefficient(t, after, ceiling=values[1]) for t, after in zip(values[:-2], values[1:-1], strict=True)
    ]
    return [value * len(inverse) / sum(inverse) for value in inverse]


@dataclass(frozen=True)
class RandomSteps:
    """Random steps of a rollout: `length` consecutive ones (0: all), never the last, which would leave noise."""

    kernel: Kernel
    length: int

    def choose(self, num_steps: int, generator: torch.Generator) -> range:
        """Return the numbers of the random steps, which begin anywhere."""
        size = min(self.length or num_steps, num_steps - 1)
        if size < 1:
            raise ValueError(f"random steps need at least 2 sampling steps, got {num_steps}")
        start = int(torch.randint(num_steps - size, (), generator=generator))
        return range(start, start + size)
