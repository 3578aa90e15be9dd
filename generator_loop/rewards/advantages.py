"""Group-relative advantages: how much better a sample is than its siblings of the same prompt.

Shape legend: B = prompts x G samples, the G samples of one prompt consecutive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

MIN_STD = 1e-4
"""Floor of the reward's standard deviation, so that equal rewards give zero advantages (flow_grpo adds as much)."""


@dataclass(frozen=True)
class Advantages:
    """Group-relative advantages of B samples.

    Attributes:
        values: [B] in units of the reward's standard deviation; 0 where not usable.
        usable: bool [B], false where the reward is missing.
        num_invalid: samples without reward.
        num_flat_groups: groups whose usable rewards are all equal, which teach nothing.
        num_groups: groups in all.
    """

    values: Tensor
    usable: Tensor
    num_invalid: int
    num_flat_groups: int
    num_groups: int


def local_sum(values: Tensor) -> Tensor:
    """Return the sum over ranks of a single process: the values themselves."""
    return values


def group_advantages(
    rewards: Tensor,
    *,
    group_size: int,
    std: Literal["global", "group"] = "global",
    all_sum: Callable[[Tensor], Tensor] = local_sum,
) -> Advantages:
    """Subtract each group's mean and divide by a standard deviation.

    The global deviation is that of the centred rewards of all groups, so that differences between prompts do not
    count. NaN rewards take no part in any mean.

    Args:
        rewards: [B], NaN where a reward is missing.
        group_size: samples of one prompt.
        std: one deviation for the whole batch of all ranks, or one for each group.
        all_sum: sums a tensor over ranks; the global deviation needs it.

    Returns:
        The advantages of every sample.

    Source:
        DeepSeekMath (arXiv 2402.03300) eq. 3 for the group mean; Flow-GRPO (arXiv 2505.05470) uses the deviation of
        the whole batch.
    """
    if rewards.ndim != 1 or len(rewards) % group_size:
        raise ValueError(f"rewards must be [B] with B a multiple of group_size {group_size}, got {list(rewards.shape)}")
    groups = rearrange(rewards.double(), "(b g) -> b g", g=group_size)
    usable = groups.isfinite()
    count = usable.sum(1, keepdim=True)
    mean = torch.where(usable, groups, 0.0).sum(1, keepdim=True) / count.clamp_min(1)
    centred = torch.where(usable, groups - mean, 0.0)
    squares = centred.square().sum(1, keepdim=True)
    if std == "global":
        total, num = all_sum(torch.stack([squares.sum(), count.sum().double()]))
        deviation = (total / num.clamp_min(1)).sqrt()
    else:
        deviation = (squares / count.clamp_min(1)).sqrt()
    spread = torch.where(usable, groups, -torch.inf).amax(1) - torch.where(usable, groups, torch.inf).amin(1)
    return Advantages(
        values=(centred / deviation.clamp_min(MIN_STD)).flatten().to(rewards.dtype),
        usable=usable.flatten(),
        num_invalid=int((~usable).sum()),
        num_flat_groups=int((~(spread > 0)).sum()),
        num_groups=len(groups),
    )


def part_advantages(
    parts: Sequence[tuple[float, Tensor]],
    *,
    group_size: int,
    std: Literal["global", "group"] = "global",
    all_sum: Callable[[Tensor], Tensor] = local_sum,
) -> Advantages:
    """Normalise each reward by itself before they are added, so that one of large spread does not drown the others.

    Args:
        parts: weight and rewards [B] of each reward; a sample that lacks one of them is not usable. One alone, of
            weight 1, is the plain case.
        group_size: samples of one prompt.
        std: as in `group_advantages`.
        all_sum: as in `group_advantages`.

    Returns:
        The advantages; the weighted sum of advantages is normalised once more.

    Source:
        GDPO, group reward-decoupled normalisation; DanceGRPO (arXiv 2505.07818) does so for its two quality scores.
    """
    if len(parts) == 1 and parts[0][0] == 1:
        return group_advantages(parts[0][1], group_size=group_size, std=std, all_sum=all_sum)
    usable = torch.stack([rewards.isfinite() for _, rewards in parts]).all(dim=0)
    total = torch.zeros_like(parts[0][1])
    for weight, rewards in parts:
        own = torch.where(usable, rewards, torch.nan)
        total = total + weight * group_advantages(own, group_size=group_size, std=std, all_sum=all_sum).values
    return group_advantages(torch.where(usable, total, torch.nan), group_size=group_size, std=std, all_sum=all_sum)


def optimality(advantages: Tensor, *, clip: float) -> Tensor:
    """Map advantages to the optimality probability r, that a sample is a good one.

    Args:
        advantages: [N].
        clip: advantage A_max that maps to 1.

    Returns:
        clip(A / A_max, -1, 1) / 2 + 1/2, [N].
    """
    return (advantages / clip).clamp(-1, 1) / 2 + 0.5
