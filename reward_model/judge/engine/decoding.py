"""Answers token by token behind shared prefixes: the sequences of a prefix stay in its row, whose keys and values they share.

Shapes: R rows, L tokens of the longest row, S sequences of the fullest row, n new tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reward_model.judge.attention.tree import NO_MASK, Seen, Written, additive, attends_in_parts
from reward_model.judge.engine.shared_prefix import Rows, prefixes_of, ranges
from reward_model.judge.families.base import Family

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
END_TOKENS = ("<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True)
class Completion:
    """One answer: `tokens` with the end token if it came, `log_probs` [n] of each, fp32, and whether it `ended`."""

    tokens: tuple[int, ...]
    log_probs: Tensor
    ended: bool


def token_ids(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """Return the ids of those special tokens that the tokenizer has."""
    known = tokenizer.get_added_vocab()
    return [known[token] for token in tokens if token in known]


def uniforms(keys: Sequence[str], num: int) -> Tensor:
    """Return [len(keys), num] uniform numbers in [0, 1), each row from its own generator, seeded by its key."""
    seeds = [int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big") for key in keys]
    return torch.stack([torch.rand(num, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


class _Slots:
    """The sequences' places in the rows, and the forward pass of one more token of each."""

    def __init__(self, rows: Rows, num_samples: int, max_new_tokens: int, model: Any, cache: Any) -> None:
        num_rows, self.length = rows.tokens.shape
        self.device, self.embed = model.lm_head.weight.device, model.get_input_embeddings()
        row = rows.texts[:, 0].repeat_interleave(num_samples)
        counts = torch.bincount(row, minlength=num_rows)
        column = torch.cat([torch.arange(count) for count in counts.tolist()])
        branch = torch.zeros(num_rows, int(counts.max()), dtype=torch.long)
        positions = torch.zeros_like(branch)
        branch[row, column] = torch.arange(len(rows.ends)).repeat_interleave(num_samples)
        positions[row, column] = rows.next_positions.repeat_interleave(num_samples)
        if attends_in_parts(model):
            places, known = ranges(*rows.texts.T[3:])
            self.cache = Written(cache, places[branch], known[branch], max_new_tokens)
            self.seen = Seen(NO_MASK, prefixes=prefixes_of(rows), written=self.cache)
        else:
            self.cache = cache
            # a token sees the common part and its branch, and of the tokens written since its own sequence's
            name = rows.branch.flatten()[rows.ends][branch]
            prefix = (rows.branch[:, None] == 0) | (rows.branch[:, None] == name[:, :, None])  # [R, S, L]
            own = torch.eye(branch.shape[1], dtype=torch.bool).repeat(1, max_new_tokens - 1).expand(num_rows, -1, -1)
            allowed = torch.cat([prefix, own], dim=2).to(self.device)
            self.seen = Seen(additive(allowed, self.embed.weight.dtype)[:, None])  # [R, 1, S, L + n S]
        self.row, self.column, self.positions = (t.to(self.device) for t in (row, column, positions))

    def forward(self, model: Any, family: Family, token: Tensor, turn: int) -> Tensor:
        """Return the logits [sequences, V] behind new token number `turn` [sequences]."""
        tokens = torch.zeros_like(self.positions)  # [R, S]
        tokens[self.row, self.column] = token
        positions, seen = (self.positions + turn).expand(3, -1, -1), self.seen
        if seen.written is None:
            seen = Seen(seen.mask[..., : self.length + (turn + 1) * tokens.shape[1]])
        hidden = family.text(model, self.embed(tokens), positions, seen, cache=self.cache)  # [R, S, D]
        if seen.written is not None:
            seen.written.size += 1
        return model.lm_head(hidden[self.row, self.column]).float()


def continue_branches(
    model: Any,
    family: Family,
    logits: Tensor,
    cache: Any,
    rows: Rows,
    *,
    num_samples: int,
    draws: Tensor | None,
    temperature: float,
    max_new_tokens: int,
    banned: Sequence[int],
    ends: Sequence[int],
) -> list[Completion]:
    """Extend each branch of encoded rows `num_samples` times, until each sequence ends.

    Args:
        model: the whole model.
        family: its family.
        logits: [branches, V] of the first new token.
        cache: keys and values of the rows; each step adds one token of every sequence to its row.
        rows: what was encoded, without answers.
        num_samples: sequences that continue each branch.
        draws: [sequences, max_new_tokens] uniform numbers that choose the tokens; None takes the likeliest.
        temperature: divides the logits where `draws` are given; log-probabilities are those of the scaled logits.
        max_new_tokens: most tokens of an answer.
        banned: tokens that never come.
        ends: tokens that end an answer.

    Returns:
        The sequences, those of a branch following one another.
    """
    slots, device = _Slots(rows, num_samples, max_new_tokens, model, cache), logits.device
    logits = logits.repeat_interleave(num_samples, dim=0)
    stop, never = (torch.tensor(list(ids), device=device, dtype=torch.long) for ids in (ends, banned))
    alive = torch.ones(len(logits), dtype=torch.bool, device=device)
    tokens, chosen, living = [], [], []
    for turn in range(max_new_tokens):
        log_probs = (
            (logits / temperature if draws is not None else logits).index_fill(1, never, -torch.inf).log_softmax(-1)
        )
        token = log_probs.argmax(-1) if draws is None else _draw(log_probs, draws[:, turn].to(device))
        tokens.append(token)
        chosen.append(log_probs.gather(1, token[:, None])[:, 0])
        living.append(alive)
        alive = alive & ~torch.isin(token, stop)
        if turn + 1 == max_new_tokens or not bool(alive.any()):
            break
        logits = slots.forward(model, family, token, turn)
    lengths = torch.stack(living, dim=1).sum(dim=1).tolist()
    ids, values = torch.stack(tokens, dim=1).tolist(), torch.stack(chosen, dim=1).cpu()
    return [
        Completion(tuple(ids[i][:n]), values[i, :n], ended=not still)
        for i, (n, still) in enumerate(zip(lengths, alive.tolist(), strict=True))
    ]


def _draw(log_probs: Tensor, draw: Tensor) -> Tensor:
    total = log_probs.exp().cumsum(dim=-1)
    # a draw above the rounded total would fall behind the last token
    goal = (draw * total[:, -1]).clamp(max=torch.nextafter(total[:, -1], torch.zeros_like(draw)))
    return torch.searchsorted(total, goal[:, None], right=True)[:, 0]
