"""Logits, log-probabilities and entropies at the tokens of given answers.

Shapes: M tokens of all answers one after another, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 512
"""Tokens whose logits exist at a time in `token_log_probs`."""


@dataclass(frozen=True)
class AnswerLogits:
    """Logits that predict each token of given answers.

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
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    suppressed: Tensor,
    allowed: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return log-probability and entropy of each token, holding the logits of `CHUNK` tokens at a time.

    Args:
        head: maps hidden states to logits.
        hidden: [M, D] before each token.
        targets: [M] tokens.
        temperature: divides the logits.
        suppressed: tokens that have probability 0.
        allowed: M lists of the token ids that alone have a probability; None is all.

    Returns:
        Two [M] in fp32, the second without gradient; the backward pass computes the logits again.
    """

    def read(states: Tensor, tokens: Tensor, *kept: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probability and entropy of some tokens."""
        logits = head(states).float().index_fill(1, suppressed, -torch.inf) / temperature
        if kept:
            logits = logits.masked_fill(_outside(kept, logits), -torch.inf)
        every = logits.log_softmax(dim=-1)
        return every.gather(1, tokens[:, None])[:, 0], torch.special.entr(every.detach().exp()).sum(dim=-1)

    chunks = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    results = [
        checkpoint(read, *chunk, *(allowed or ())[i * CHUNK : (i + 1) * CHUNK], use_reentrant=False)
        for i, chunk in enumerate(chunks)
    ]
    values, entropy = (torch.cat(column) for column in zip(*results, strict=True))
    return values, entropy


def _outside(kept: Sequence[Tensor], logits: Tensor) -> Tensor:
    """Return bool [m, V]: the tokens that are not in the line's list of ids."""
    outside = torch.ones_like(logits, dtype=torch.bool)
    sizes = torch.tensor([len(ids) for ids in kept], device=logits.device)
    lines = torch.arange(len(kept), device=logits.device).repeat_interleave(sizes)
    outside[lines, torch.cat(list(kept)).to(logits.device)] = False
    return outside
