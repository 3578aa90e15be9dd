"""The straight path between noise and data: x_sigma = (1 - sigma) x_0 + sigma eps, velocity = eps - x_0.

Shape legend: N rows of a batch.
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
    rows = [torch.randn(like.shape[1:], generator=draw.generator(*key)) for key in keys]
    return torch.stack(rows).to(like)


def logit_normal_levels(draw: Draw, keys: Sequence[tuple[int, int]]) -> Tensor:
    """Draw noise levels [N] by (prompt id, sample) from the logit-normal (0, 1) that flow matching trains with."""
    streams = (draw.fork("sigma").generator(*key) for key in keys)
    return torch.stack([torch.randn((), generator=stream) for stream in streams]).sigmoid()


def noised(latents: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return noisy latents and their velocity target.

    Args:
        latents: x_0 [N, ...].
        noise: eps [N, ...].
        sigma: noise levels [N] in [0, 1].

    Returns:
        x_sigma = (1 - sigma) x_0 + sigma eps and eps - x_0, both [N, ...].
    """
    level = sigma.view(-1, *[1] * (latents.ndim - 1))
    return (1 - level) * latents + level * noise, noise - latents


def mean_square(value: Tensor) -> Tensor:
    """Return the mean square of each row.

    Args:
        value: [N, ...].

    Returns:
        [N].
    """
    return value.square().flatten(1).mean(1)
