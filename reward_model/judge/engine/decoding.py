"""Answers token by token behind shared prefixes: all answers to a prefix stay in its packed sequence and share its keys.

Shapes: R packed sequences, L tokens of the longest, A answers, S slots for answers in the fullest sequence, n new tokens, V
vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from reward_model.judge.attention.tree import NO_MASK, AttentionSpans, SuffixCache, additive, splits_attention
from reward_model.judge.engine.shared_prefix import PackedSequences, prefixes_of, ranges
from reward_model.judge.families.base import VisionFamily

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
END_TOKENS = ("<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True)
class Completion:
    """One answer: `tokens` with the end token if it came, `log_probs` [n] of each, fp32, and whether it `ended`.

    `allowed` holds for each token the ids among which it was drawn; empty where that was the whole vocabulary.
    """

    tokens: tuple[int, ...]
    log_probs: Tensor
    ended: bool
    allowed: tuple[Tensor, ...] = ()


def token_ids(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """Return the ids of those special tokens that the tokenizer has."""
    known = tokenizer.get_added_vocab()
    return [known[token] for token in tokens if token in known]


def uniforms(keys: Sequence[str], num: int) -> Tensor:
    """Return [len(keys), num] uniform numbers in [0, 1), each line from its own generator, seeded by its key."""
    seeds = [int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big") for key in keys]
    return torch.stack([torch.rand(num, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


# Two sequences, P b1 b2 and Q b3, with two answers to each branch have S = 4 slots:
#   slot        0  1  2  3        branch      0  0  1  1      positions   those behind the branch, plus the turn
#   sequence 0  a1 a1 a2 a2                   0  0  1  1
#   sequence 1  a3 a3 -  -                    2  2  -  -      (unused slots are computed and never read)
# Each turn runs one token per slot: a2 attends to P, to b2 and to the earlier tokens of its own slot.


class _Slots:
    """Slots of the answers in their packed sequences, and the forward pass of one more token of each."""

    def __init__(
        self, sequences: PackedSequences, num_samples: int, max_new_tokens: int, model: Any, cache: Any
    ) -> None:
        num_sequences, self.length = sequences.tokens.shape
        self.device, self.embed = model.lm_head.weight.device, model.get_input_embeddings()
        sequence = repeat(sequences.suffixes[:, 0], "b -> (b n)", n=num_samples)
        counts = torch.bincount(sequence, minlength=num_sequences)
        slot = torch.cat([torch.arange(count) for count in counts.tolist()])
        branch = torch.zeros(num_sequences, int(counts.max()), dtype=torch.long)
        positions = torch.zeros_like(branch)
        branch[sequence, slot] = repeat(torch.arange(len(sequences.ends)), "b -> (b n)", n=num_samples)
        positions[sequence, slot] = repeat(sequences.next_positions, "b -> (b n)", n=num_samples)
        if splits_attention(model):
            places, known = ranges(*sequences.suffixes.T[3:])
            self.cache = SuffixCache(cache, places[branch], known[branch], max_new_tokens)
            self.spans = AttentionSpans(NO_MASK, prefixes=prefixes_of(sequences), cache=self.cache)
        else:
            self.cache = cache
            mask = _slot_mask(sequences, branch, max_new_tokens).to(self.device)
            self.spans = AttentionSpans(additive(mask, self.embed.weight.dtype)[:, None])  # [R, 1, S, L + n S]
        self.sequence, self.slot, self.positions = (t.to(self.device) for t in (sequence, slot, positions))

    def forward(self, model: Any, family: VisionFamily, token: Tensor, turn: int) -> Tensor:
        """Return the logits [A, V] behind new token number `turn` [A]."""
        tokens = torch.zeros_like(self.positions)  # [R, S]
        tokens[self.sequence, self.slot] = token
        positions, spans = repeat(self.positions + turn, "r s -> three r s", three=3), self.spans
        if spans.cache is None:
            spans = AttentionSpans(spans.mask[..., : self.length + (turn + 1) * tokens.shape[1]])
        hidden = family.text(model, self.embed(tokens), positions, spans, cache=self.cache)  # [R, S, D]
        if spans.cache is not None:
            spans.cache.size += 1
        return model.lm_head(hidden[self.sequence, self.slot]).float()


def _slot_mask(sequences: PackedSequences, branch: Tensor, max_new_tokens: int) -> Tensor:
    """Return [R, S, L + n S]: whether a slot sees the common part, its branch [R, S], and its own of the new tokens."""
    name = sequences.branch.flatten()[sequences.ends][branch]
    of_token, of_slot = rearrange(sequences.branch, "r l -> r 1 l"), rearrange(name, "r s -> r s 1")
    encoded = (of_token == 0) | (of_token == of_slot)
    same_slot = torch.eye(branch.shape[1], dtype=torch.bool)
    own = repeat(same_slot, "s other -> r s (n other)", r=len(branch), n=max_new_tokens - 1)
    return torch.cat([encoded, own], dim=2)


def continue_branches(
    model: Any,
    family: VisionFamily,
    logits: Tensor,
    cache: Any,
    sequences: PackedSequences,
    *,
    num_samples: int,
    noise: Tensor | None,
    temperature: float,
    max_new_tokens: int,
    suppressed: Sequence[int],
    ends: Sequence[int],
    top_p: float = 1.0,
    top_k: int = 0,
) -> list[Completion]:
    """Extend each branch of encoded sequences `num_samples` times, until each answer ends.

    Args:
        model: the whole model.
        family: its family.
        logits: [branches, V] of the first new token.
        cache: keys and values of the sequences; each turn adds one token of every answer.
        sequences: as encoded, without answers.
        num_samples: answers that continue each branch.
        noise: [A, max_new_tokens] uniform numbers that choose the tokens; None takes the likeliest.
        temperature: divides the logits where `noise` is given; log-probabilities are those of the scaled logits.
        max_new_tokens: most tokens of an answer.
        suppressed: tokens that have probability 0.
        ends: tokens that end an answer.
        top_p: see `likeliest`; read where `noise` is given.
        top_k: see `likeliest`; read where `noise` is given.

    Returns:
        The answers, those to a branch following one another.
    """
    slots, device = _Slots(sequences, num_samples, max_new_tokens, model, cache), logits.device
    logits = repeat(logits, "b v -> (b n) v", n=num_samples)
    stop, never = (torch.tensor(list(ids), device=device, dtype=torch.long) for ids in (ends, suppressed))
    alive = torch.ones(len(logits), dtype=torch.bool, device=device)
    cut = noise is not None and (top_p < 1 or top_k > 0)
    tokens, chosen, living, kept = [], [], [], []
    for turn in range(max_new_tokens):
        scaled = logits / temperature if noise is not None else logits
        log_probs = scaled.index_fill(1, never, -torch.inf).log_softmax(-1)
        if cut:
            keep = likeliest(log_probs, top_p=top_p, top_k=top_k)
            log_probs = log_probs.masked_fill(~keep, -torch.inf).log_softmax(-1)
            kept.append([line.nonzero()[:, 0].cpu() for line in keep])
        token = log_probs.argmax(-1) if noise is None else _inverse_cdf(log_probs, noise[:, turn].to(device))
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
        Completion(tuple(ids[i][:n]), values[i, :n], ended=not still, allowed=tuple(turn[i] for turn in kept[:n]))
        for i, (n, still) in enumerate(zip(lengths, alive.tolist(), strict=True))
    ]


def likeliest(log_probs: Tensor, *, top_p: float, top_k: int) -> Tensor:
    """Return which tokens may be drawn: the `top_k` likeliest, and of these the fewest whose probabilities reach `top_p`.

    Args:
        log_probs: [A, V].
        top_p: in (0, 1]; of the probability that the `top_k` tokens have together, as transformers cuts.
        top_k: 0 is all tokens.

    Returns:
        Bool [A, V]; the likeliest token is always among them.
    """
    ordered, order = log_probs.sort(dim=-1, descending=True, stable=True)
    if top_k:
        ordered = ordered[:, :top_k].log_softmax(-1)
    probs = ordered.exp()
    before = probs.cumsum(-1) - probs  # probability of all likelier tokens
    keep = (before < top_p) & (probs > 0)
    keep[:, 0] = True
    return torch.zeros_like(log_probs, dtype=torch.bool).scatter(1, order[:, : keep.shape[1]], keep)


def _inverse_cdf(log_probs: Tensor, noise: Tensor) -> Tensor:
    """Return the token [A] at which the summed probabilities pass the uniform number."""
    total = log_probs.exp().cumsum(dim=-1)
    # a number above the rounded total would fall behind the last token
    goal = (noise * total[:, -1]).clamp(max=torch.nextafter(total[:, -1], torch.zeros_like(noise)))
    return torch.searchsorted(total, goal[:, None], right=True)[:, 0]
