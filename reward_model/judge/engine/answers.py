"""What the judge says at each token of given answers.

Shapes: M tokens of all answers one after another, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 512
"""Tokens whose logits exist at a time in `token_log_probs`."""


@dataclass(frozen=True)
class AnswerLogits:
    """What the judge would have said in place of each answer token.

    `logits` [M, V] fp32 with gradient, `targets` [M] the answer tokens, `owner` [M] the running number of the answer over
    all requests and branches in the order given, `is_first` [M] whether a token opens its answer.
    """

    logits: Tensor
    targets: Tensor
    owner: Tensor
    is_first: Tensor


@dataclass(frozen=True)
class TokenLogProbs:
    """The tokens of all answers in the order given.

    `values` [M] fp32 with gradient, `entropy` [M] in nats of the distribution that each token was drawn from (without
    gradient), `owner` [M] the running number of the answer.
    """

    values: Tensor
    entropy: Tensor
    owner: Tensor

    def by_answer(self) -> list[Tensor]:
        """Return the values of each answer."""
        return list(self.values.split(torch.bincount(self.owner).tolist()))


def token_log_probs(
    head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, *, temperature: float, banned: Tensor
) -> tuple[Tensor, Tensor]:
    """Return log-probability and entropy of each token, holding the logits of `CHUNK` tokens at a time.

    Args:
        head: maps hidden states to logits.
        hidden: [M, D] before each token.
        targets: [M] tokens.
        temperature: divides the logits.
        banned: tokens that cannot come.

    Returns:
        Two [M] in fp32, the second without gradient; the backward pass computes the logits again.
    """

    def read(part: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probability and entropy of some tokens."""
        logits = head(part).float().index_fill(1, banned, -torch.inf) / temperature
        every = logits.log_softmax(dim=-1)
        return every.gather(1, tokens[:, None])[:, 0], torch.special.entr(every.detach().exp()).sum(dim=-1)

    parts = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    found = [checkpoint(read, *part, use_reentrant=False) for part in parts]
    values, entropy = (torch.cat(column) for column in zip(*found, strict=True))
    return values, entropy
