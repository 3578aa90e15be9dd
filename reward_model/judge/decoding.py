"""Answers token by token behind shared prefixes: the rows are encoded once, then each sequence keeps only what it may see.

Shapes: B branches, S = B x samples sequences, L tokens of the longest row, K kept tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reward_model.judge.families.base import Family
from reward_model.judge.shared_prefix import Rows, additive

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
END_TOKENS = ("<|im_end|>", "<|endoftext|>")


def token_ids(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """Return the ids of those special tokens that the tokenizer has."""
    known = tokenizer.get_added_vocab()
    return [known[token] for token in tokens if token in known]


def uniforms(keys: Sequence[str], num: int) -> Tensor:
    """Return [len(keys), num] uniform numbers in [0, 1), each row from its own generator, seeded by its key."""
    seeds = [int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big") for key in keys]
    return torch.stack([torch.rand(num, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def branch_cache(cache: Any, rows: Rows, num_samples: int) -> Tensor:
    """Cut a cache of packed rows into one of sequences, in place.

    Args:
        cache: keys and values [R, heads, L, d] of each layer.
        rows: what was encoded, without answers.
        num_samples: sequences that continue each branch.

    Returns:
        bool [S, K]: which of the kept places a sequence may see; sequences of a branch follow one another.
    """
    device = cache.layers[0].keys.device
    length = rows.tokens.shape[1]
    row = rows.ends // length
    own = rows.branch.flatten()[rows.ends]
    labels = rows.branch[row]  # [B, L]
    seen = (labels == 0) | (labels == own[:, None])
    counts = seen.sum(dim=1)
    keep = int(counts.max())
    places = seen.int().argsort(dim=1, descending=True, stable=True)[:, :keep].to(device)  # [B, K]
    for layer in cache.layers:
        index = places[:, None, :, None].expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3])
        for name in ("keys", "values"):
            kept = getattr(layer, name)[row.to(device)].gather(2, index)  # [B, heads, K, d]
            setattr(layer, name, kept.repeat_interleave(num_samples, dim=0))
    visible = torch.arange(keep) < counts[:, None]
    return visible.repeat_interleave(num_samples, dim=0).to(device)


def continue_branches(
    model: Any,
    family: Family,
    logits: Tensor,
    cache: Any,
    visible: Tensor,
    next_positions: Tensor,
    *,
    draws: Tensor | None,
    temperature: float,
    max_new_tokens: int,
    banned: Sequence[int],
    ends: Sequence[int],
) -> list[list[int]]:
    """Extend each sequence until it ends.

    Args:
        model: the whole model.
        family: its family.
        logits: [S, V] of the first new token.
        cache: as `branch_cache` leaves it.
        visible: bool [S, K].
        next_positions: [S], position of the first new token.
        draws: [S, max_new_tokens] uniform numbers that choose the tokens; None takes the likeliest.
        temperature: > 0 where `draws` are given.
        max_new_tokens: most tokens of an answer.
        banned: tokens that never come.
        ends: tokens that end an answer; not part of it.

    Returns:
        Token ids per sequence.
    """
    device = logits.device
    stop = torch.tensor(list(ends), device=device)
    position = next_positions.to(device)
    alive = torch.ones(len(logits), dtype=torch.bool, device=device)
    written, living = [], []
    for turn in range(max_new_tokens):
        logits[:, list(banned)] = -torch.inf
        token = _choose(logits, None if draws is None else draws[:, turn].to(device), temperature)
        alive = alive & ~torch.isin(token, stop)
        written.append(token)
        living.append(alive)
        if turn + 1 == max_new_tokens or not bool(alive.any()):
            break
        visible = torch.cat([visible, visible.new_ones(len(visible), 1)], dim=1)
        embeddings = model.get_input_embeddings()(token[:, None])
        mask = additive(visible, embeddings.dtype)[:, None, None]  # [S, 1, 1, K]
        places = (position + turn)[None, :, None].expand(3, -1, -1)
        hidden = family.text(model, embeddings, places, mask, cache=cache)
        logits = model.lm_head(hidden[:, -1]).float()
    tokens, lengths = torch.stack(written, dim=1).tolist(), torch.stack(living, dim=1).sum(dim=1).tolist()
    return [ids[:length] for ids, length in zip(tokens, lengths, strict=True)]


def _choose(logits: Tensor, draw: Tensor | None, temperature: float) -> Tensor:
    if draw is None:
        return logits.argmax(dim=-1)
    total = (logits / temperature).softmax(dim=-1).cumsum(dim=-1)
    # a draw above the rounded total would fall behind the last token
    goal = (draw * total[:, -1]).clamp(max=torch.nextafter(total[:, -1], torch.zeros_like(draw)))
    return torch.searchsorted(total, goal[:, None], right=True)[:, 0]
