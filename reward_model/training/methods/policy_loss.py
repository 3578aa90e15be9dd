"""The pure part of GRPO: advantages inside groups, and the clipped policy loss with a penalty towards a reference.

Shapes: N answers, M tokens of all answers one after another.

Source: Shao et al., DeepSeekMath (arXiv 2402.03300), equations 3 and 4; VQ-Insight (arXiv 2506.18564), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo"]
"""How token losses become one number, by trl's names. grpo: the mean over each answer's tokens, then over answers. bnpo: the
mean over all tokens of a micro-batch, averaged over micro-batches. dr_grpo: the sum divided by answers times the longest allowed
answer. dapo: the mean over all tokens of the step."""

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
    clip_range: float | None,
    kl_coef: float,
    num_answers: float,
    clip_range_high: float | None = None,
    kl_log_ratio_limit: float | None = None,
    loss_type: LossType = "grpo",
    num_tokens: float | None = None,
    max_answer_tokens: int | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Return the policy loss of some answers; their sum over micro-batches is the optimiser step's loss.

    Args:
        log_probs: [M] of the policy, with gradient.
        old: [M] of the policy that sampled the answers.
        reference: [M] of the reference policy; None where `kl_coef` is 0.
        advantages: [N].
        owner: [M], the answer of each token.
        clip_range: the ratio to the old policy counts from 1 - this only; raising it allows larger steps. None neither clips
            nor reads `old`: the ratio is that of the policy to itself, 1 with the gradient of the log-probability.
        kl_coef: weight of KL(policy || reference), estimated per token as exp(d) - d - 1 with d = reference - policy.
        num_answers: answers of the whole optimiser step, over all micro-batches and processes.
        clip_range_high: the ratio counts up to 1 + this only; None is `clip_range`. Larger lets rare tokens rise (DAPO: 0.28).
        kl_log_ratio_limit: d counts within +- this only, beyond which it has no gradient; None bounds nothing.
        loss_type: how token losses are averaged.
        num_tokens: tokens of the whole optimiser step, counted as `num_answers`; dapo needs it.
        max_answer_tokens: tokens of the longest allowed answer; dr_grpo needs it.

    Returns:
        The scalar loss; "kl" and "clip_rate" (share of tokens outside the range, 0 without one), averaged as the loss is;
        "ratio_error", the largest |ratio to the old policy - 1|.

    Source: `GRPOTrainer._compute_loss` of trl 1.16.0; DAPO (arXiv 2503.14476), equations 8 to 12; Dr. GRPO (arXiv 2503.20783).
    """
    share = _token_weights(owner, len(advantages), loss_type, num_answers, num_tokens, max_answer_tokens)
    start = log_probs.detach() if clip_range is None else old
    low = -torch.inf if clip_range is None else 1 - clip_range
    high = torch.inf if clip_range is None else 1 + (clip_range if clip_range_high is None else clip_range_high)
    ratio, gain = (log_probs - start).exp(), advantages[owner]
    surrogate = torch.minimum(ratio * gain, ratio.clamp(low, high) * gain)
    loss = -(surrogate * share).sum()
    outside = (ratio.detach() < low) | (ratio.detach() > high)
    drift = ((log_probs.detach() - old).exp() - 1).abs().max()
    metrics = {"clip_rate": float((outside * share).sum()), "ratio_error": float(drift)}
    if reference is not None:
        gap = reference - log_probs
        if kl_log_ratio_limit is not None:
            gap = gap.clamp(-kl_log_ratio_limit, kl_log_ratio_limit)
        kl = ((gap.exp() - gap - 1) * share).sum()
        loss = loss + kl_coef * kl
        metrics["kl"] = float(kl.detach())
    return loss, metrics


def _token_weights(
    owner: Tensor,
    num_own: int,
    loss_type: LossType,
    num_answers: float,
    num_tokens: float | None,
    max_answer_tokens: int | None,
) -> Tensor:
    """Return the weight [M] of each token in the step's loss."""
    if loss_type == "grpo":
        count = torch.bincount(owner, minlength=num_own).clamp_min(1)
        return 1.0 / (count[owner] * num_answers)
    if loss_type == "bnpo":  # a micro-batch's share of the step is its share of the answers
        weight = num_own / num_answers / max(len(owner), 1)
    elif loss_type == "dr_grpo":
        assert max_answer_tokens is not None
        weight = 1 / (num_answers * max_answer_tokens)
    else:
        assert num_tokens is not None
        weight = 1 / max(num_tokens, 1.0)
    return torch.full(owner.shape, weight, device=owner.device)
