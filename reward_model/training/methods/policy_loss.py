"""The pure part of GRPO: advantages inside groups, and the clipped policy loss with a penalty towards a reference.

Shapes: N answers, M tokens of all answers one after another.

Source: Shao et al., DeepSeekMath (arXiv 2402.03300), equations 3 and 4; VQ-Insight (arXiv 2506.18564), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STD_FLOOR = 1e-4
"""Added to a group's standard deviation, as VQ-Insight and VQAThinker do."""


@dataclass(frozen=True)
class GRPOAdvantages:
    """`values` [N]; `num_groups`, and `num_flat`: the number of them whose rewards are all equal, which teach nothing."""

    values: Tensor
    num_groups: int
    num_flat: int


def grpo_advantages(
    rewards: Tensor, groups: Tensor, *, normalize_std: bool = True, usable: Tensor | None = None
) -> GRPOAdvantages:
    """Subtract the mean of each answer's group and divide by its standard deviation.

    The generator's estimator, `generator_loop.rewards.advantages.group_advantages`, is another: its deviation is biased,
    floored at 1e-4 and, unless asked otherwise, one for the whole batch; here it is unbiased and 1e-4 is added to it.

    Args:
        rewards: [N].
        groups: [N], id of the rollout prompt that each answer was sampled for.
        normalize_std: divide by the group's deviation (unbiased) + 1e-4; without it groups with clear answers weigh less.
        usable: bool [N]; answers that are not usable stay out of all statistics and get advantage 0; None uses all.

    Returns:
        The advantages; 0 in a group of one answer.
    """
    kept = torch.ones_like(rewards, dtype=torch.bool) if usable is None else usable
    _, member = groups.unique(return_inverse=True)
    num = int(member.max()) + 1 if len(member) else 0
    weight = kept.to(rewards.dtype)

    def total(values: Tensor) -> Tensor:
        """Return the sum of usable values per group."""
        return torch.zeros(num, dtype=rewards.dtype).index_add(0, member, values * weight)

    count = total(torch.ones_like(rewards))
    centred = (rewards - (total(rewards) / count.clamp_min(1))[member]) * weight
    deviation = (total(centred**2) / (count - 1).clamp_min(1)).sqrt()
    flat = deviation <= 1e-8
    values = centred / (deviation[member] + STD_FLOOR) if normalize_std else centred
    return GRPOAdvantages(values.masked_fill(flat[member], 0.0), num, int(flat.sum()))


def policy_loss(
    log_probs: Tensor,
    old: Tensor,
    reference: Tensor | None,
    advantages: Tensor,
    owner: Tensor,
    *,
    clip_range: float,
    kl_coef: float,
    num_answers: float,
) -> tuple[Tensor, dict[str, float]]:
    """Return the clipped policy loss: the mean over an answer's tokens, summed over answers and divided by `num_answers`.

    Args:
        log_probs: [M] of the policy, with gradient.
        old: [M] of the policy that sampled the answers.
        reference: [M] of the reference policy; None where `kl_coef` is 0.
        advantages: [N].
        owner: [M], the answer of each token.
        clip_range: the ratio to the old policy counts within 1 +- this only; raising it allows larger steps.
        kl_coef: weight of KL(policy || reference), estimated per token as exp(d) - d - 1 with d = reference - policy.
        num_answers: answers of the whole optimiser step, over all micro-batches and processes.

    Returns:
        The scalar loss; "kl" and "clip_rate" (share of tokens outside the range), averaged as the loss is; "ratio_error", the
        largest |ratio - 1|.
    """
    count = torch.bincount(owner, minlength=len(advantages)).clamp_min(1)
    share = 1.0 / (count[owner] * num_answers)  # weight of a token: 1 / tokens of its answer / answers
    ratio, gain = (log_probs - old).exp(), advantages[owner]
    surrogate = torch.minimum(ratio * gain, ratio.clamp(1 - clip_range, 1 + clip_range) * gain)
    loss = -(surrogate * share).sum()
    change = (ratio.detach() - 1).abs()
    metrics = {"clip_rate": float(((change > clip_range) * share).sum()), "ratio_error": float(change.max())}
    if reference is not None:
        gap = reference - log_probs
        kl = ((gap.exp() - gap - 1) * share).sum()
        loss = loss + kl_coef * kl
        metrics["kl"] = float(kl.detach())
    return loss, metrics
