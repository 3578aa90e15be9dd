"""Supervised fine-tuning on examples behind shared prefixes, level words with soft labels, text by likelihood.

Shapes: A answers of a batch, M tokens of all answers, V vocabulary, K = 5 levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from reward_model.judge.model import VideoJudge
from reward_model.training.tasks.supervised import SFTExample, soft_level


def example_loss(
    judge: VideoJudge, examples: Sequence[SFTExample], weights: Mapping[str, float]
) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted mean negative log-likelihood of a batch of examples.

    A level answer is scored against the two levels around its label, so that the expected level is the label itself;
    any other answer by its tokens, each answer counting once whatever its length.

    Args:
        judge: the judge, with the trained adapter in use.
        examples: the batch.
        weights: task kind -> weight; every kind in the batch needs one.

    Returns:
        The scalar loss and the unweighted mean per kind.
    """
    alike: dict[tuple[str, ...], list[SFTExample]] = {}
    for example in examples:  # examples of the same tasks are about equally long and need little padding
        alike.setdefault(example.kinds, []).append(example)
    nll = torch.cat([answer_nll(judge, group) for group in alike.values()])
    kinds = [kind for group in alike.values() for example in group for kind in example.kinds]
    means = {
        name: nll[torch.tensor([kind == name for kind in kinds], device=nll.device)].mean()
        for name in sorted(set(kinds))
    }
    total = torch.stack([weights[name] * mean for name, mean in means.items()]).sum()
    return total, {f"nll_{name}": float(mean.detach()) for name, mean in means.items()}


def answer_nll(judge: VideoJudge, examples: Sequence[SFTExample]) -> Tensor:
    """Return the negative log-likelihood [A] of every answer in order, per token of the answer; soft for levels."""
    answers = judge.answer_logits([example.request for example in examples], [example.answers for example in examples])
    qualities = [quality for example in examples for quality in example.qualities]
    log_probs = answers.logits.log_softmax(dim=-1)  # [M, V]
    nll = -log_probs.gather(-1, answers.targets[:, None])[:, 0]  # [M]
    rated = torch.tensor([quality is not None for quality in qualities], device=nll.device)
    first = answers.is_first & rated[answers.owner]
    labels = torch.tensor([-1.0 if q is None else q for q in qualities], device=nll.device)[answers.owner[first]]
    level_ids = torch.tensor(judge.level_ids, device=nll.device)
    nll = nll.masked_scatter(first, -(soft_level(labels) * log_probs[first][:, level_ids]).sum(-1))
    sums = torch.zeros(len(qualities), device=nll.device).index_add(0, answers.owner, nll)
    return sums / torch.bincount(answers.owner, minlength=len(qualities))
