"""Reads the judge's next-token logits: a rating from level words, a preference from three words.

Shapes: N inputs, V vocabulary, K = 5 levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reward_model.records import LevelReadout

MIN_LEVEL_MASS = 0.5
"""Below this probability on the answer words the judge is not answering the question."""


def read_levels(logits: Tensor, level_ids: Sequence[int]) -> LevelReadout:
    """Turn next-token logits into a rating.

    Args:
        logits: [N, V], fp32.
        level_ids: token ids of the K level words, worst first.

    Returns:
        The expected quality over the renormalised words with its gradient, their probabilities, their spread, and the mass
        that the whole softmax puts on them.
    """
    chosen = logits[:, list(level_ids)]  # [N, K]
    probs = chosen.softmax(dim=-1)
    mass = (chosen.logsumexp(dim=-1) - logits.logsumexp(dim=-1)).exp()
    values = torch.linspace(0, 1, len(level_ids), dtype=logits.dtype, device=logits.device)
    quality = probs @ values
    variance = (probs * (values - quality[:, None]).square()).sum(dim=-1)
    # the square root has no gradient at 0, where one level has all probability
    std = variance.clamp_min(torch.finfo(logits.dtype).tiny).sqrt()
    return LevelReadout(quality=quality, level_probs=probs, std=std, mass=mass)


def read_preference(logits: Tensor, ids: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Turn next-token logits into a preference.

    Args:
        logits: [N, V], fp32.
        ids: token ids of "first", "second", "tie".

    Returns:
        P(first better) [N] and P(tie) [N] over the renormalised words, and the mass [N] that the whole softmax puts on them.
    """
    chosen = logits[:, list(ids)]
    probs = chosen.softmax(dim=-1)
    mass = (chosen.logsumexp(dim=-1) - logits.logsumexp(dim=-1)).exp()
    return probs[:, 0], probs[:, 2], mass
