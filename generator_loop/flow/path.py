"""The straight path between noise and data: x_sigma = (1 - sigma) x_0 + sigma eps, velocity = eps - x_0.

Shape legend: N samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from generator_loop.records import Draw


def keyed_noise(draw: Draw, keys: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """Draw unit Gaussian noise by (prompt id, sample) on the CPU.

    Args:
        draw: random streams.
        keys: N pairs of prompt id and sample.
        like: a tensor [_, ...] whose trailing shape, dtype and device the noise takes.

    Returns:
        Noise [N, ...].
    """
    samples = [torch.randn(like.shape[1:], generator=draw.generator(*key)) for key in keys]
    return torch.stack(samples).to(like)


def logit_normal_sigmas(draw: Draw, keys: Sequence[tuple[int, int]]) -> Tensor:
    """Draw sigmas [N] by (prompt id, sample) from the logit-normal (0, 1) that flow matching trains with."""
    streams = (draw.fork("sigma").generator(*key) for key in keys)
    return torch.stack([torch.randn((), generator=stream) for stream in streams]).sigmoid()


def uniform_sigmas(
    draw: Draw, keys: Sequence[tuple[int, int]], *, between: tuple[float, float], shift: float
) -> Tensor:
    """Draw sigmas [N] by (prompt id, sample), uniform between two values and then moved up.

    Args:
        draw: random streams.
        keys: N pairs of prompt id and sample; equal pairs get equal sigmas.
        between: the lowest and the highest value before the shift.
        shift: s of s u / (1 + (s - 1) u); 1 leaves them where they are.

    Returns:
        [N].
    """
    low, high = between
    uniform = torch.stack([torch.rand((), generator=draw.fork("sigma").generator(*key)) for key in keys])
    sigma = low + (high - low) * uniform
    return shift * sigma / (1 + (shift - 1) * sigma)


def check_sigmas(between: tuple[float, float], shift: float) -> None:
    """Refuse (ValueError) an objective's `sigma_range` and `sigma_shift` that `uniform_sigmas` cannot draw from."""
    low, high = between
    if not 0 < low < high <= 1:
        raise ValueError(f"objective.sigma_range must be two rising values in (0, 1], got {between}")
    if not shift > 0:
        raise ValueError(f"objective.sigma_shift must be > 0, got {shift}")


def noised(latents: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return noisy latents and their velocity target.

    Args:
        latents: x_0 [N, ...].
        noise: eps [N, ...].
        sigma: [N] in [0, 1].

    Returns:
        x_sigma = (1 - sigma) x_0 + sigma eps and eps - x_0, both [N, ...].
    """
    sigma = like_latents(sigma, latents)
    return (1 - sigma) * latents + sigma * noise, noise - latents


def like_latents(sigma: Tensor, latents: Tensor) -> Tensor:
    """Return sigma [N] with as many axes as latents [N, ...], each of length 1: [N, 1, ...]."""
    return sigma.view(-1, *[1] * (latents.ndim - 1))


def mean_square(value: Tensor) -> Tensor:
    """Return the mean square of each sample.

    Args:
        value: [N, ...].

    Returns:
        [N].
    """
    return value.square().flatten(1).mean(1)
