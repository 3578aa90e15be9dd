"""Shared prefixes as token trees: each prefix once, its branches and their answers behind it in the same packed sequence.

A sequence is prefix | branch 1 | answer 1 of branch 1 | ... | branch 2 | ...; a token attends to the prefix, its own branch
and its own answer only, and positions restart behind the common part. One forward over packed sequences thus equals one
forward per (prefix, branch, answer), values and gradients, at a fraction of the tokens.

    tokens     P  P  P | b1 b1 | a  a | b2       branch 1 with one answer, branch 2 without
    positions  0  1  2 | 3  4  | 5  6 | 3
    branch     0  0  0 | 1  1  | 1  1 | 2
    answer     0  0  0 | 0  0  | 1  1 | 0        a attends to P and b1, b2 to P only
    ends = 4, 7;  sources = 4, 5 (tokens that predict a a);  targets = a, a;  next_positions = 5, 4

Shapes: R packed sequences, L tokens of the longest, M answer tokens of all sequences, N suffixes (branches and answers).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from reward_model.judge.attention.tree import NO_MASK, AttentionSpans, SuffixSpans, additive, splits_attention
from reward_model.judge.families.base import text_positions

LEAST = 256
"""Common tokens below which a masked pass is not split: the second call costs more than it saves."""

MAX_MASK = 2**24
"""Values of a mask above which a pass is split where that is possible: 64 MB in single precision."""


@dataclass(frozen=True)
class Branch:
    """Token ids of one question and of its answers (none where only the next token is read)."""

    tokens: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Tree:
    """One prefix, its positions [3, P], the position of the text behind it, and its branches."""

    prefix: Tensor
    positions: Tensor
    next_position: int
    branches: tuple[Branch, ...]


@dataclass(frozen=True)
class PackedSequences:
    """Packed trees.

    `tokens` [R, L] and `positions` [3, R, L]; `branch` and `answer` [R, L] number the branch and the answer that a token
    belongs to (0: common part, -1: padding). `ends` holds the flat index (sequence * L + place) of each branch's last token,
    in order; `sources` [M] that of the token before each answer token, `targets` [M] the answer tokens, `owners` [M] the
    running number of their answer. `next_positions` follows each branch. `suffixes` [N, 5] are the branches and answers in
    their order: sequence, start and stop of the branch that an answer continues (equal for a branch itself), start and stop
    of its own tokens.
    """

    tokens: Tensor
    positions: Tensor
    branch: Tensor
    answer: Tensor
    ends: Tensor
    sources: Tensor
    targets: Tensor
    owners: Tensor
    next_positions: Tensor
    suffixes: Tensor


def pack(trees: Sequence[Tree], *, pad_id: int) -> PackedSequences:
    """Pack each tree into one sequence, padded on the right."""
    singles = [_pack_tree(tree) for tree in trees]
    length = max(len(one.tokens) for one in singles)
    tokens = torch.full((len(singles), length), pad_id)
    positions = torch.zeros(3, len(singles), length, dtype=torch.long)
    branch, answer = torch.full_like(tokens, -1), torch.zeros_like(tokens)
    ends, sources, owners, suffixes, answers = [], [], [], [], 0
    for number, one in enumerate(singles):
        used = len(one.tokens)
        tokens[number, :used], positions[:, number, :used] = one.tokens, one.positions
        branch[number, :used], answer[number, :used] = one.branch, one.answer
        ends.append(one.ends + number * length)
        sources.append(one.sources + number * length)
        owners.append(one.owners + answers)
        suffixes.append(one.suffixes + torch.tensor([number, 0, 0, 0, 0]))
        answers += sum(len(b.answers) for b in trees[number].branches)
    return PackedSequences(
        tokens=tokens,
        positions=positions,
        branch=branch,
        answer=answer,
        ends=torch.cat(ends),
        sources=torch.cat(sources),
        targets=torch.cat([one.targets for one in singles]),
        owners=torch.cat(owners),
        next_positions=torch.cat([one.next_positions for one in singles]),
        suffixes=torch.cat(suffixes),
    )


def spans_of(sequences: PackedSequences, model: Any, *, exact: bool = True) -> AttentionSpans:
    """Return the attention spans of a pass over whole sequences.

    Args:
        sequences: as packed.
        model: the whole model.
        exact: give each token the same bits as in decoding and beside other sequences, where the model's kernel allows it;
            otherwise the cheaper pass, whose values agree to rounding.

    Returns:
        The spans.
    """
    common, (num, length) = num_common(sequences), sequences.tokens.shape
    fits = num * (length - common) * length <= MAX_MASK
    if not splits_attention(model) or (fits and not exact):
        weight = model.get_input_embeddings().weight
        mask = tree_mask(sequences, dtype=weight.dtype, device=weight.device, start=common)
        return AttentionSpans(mask, common)
    places = sequences.suffixes
    sizes = (places[:, 4] - places[:, 3]).float().log2().ceil()  # suffixes of like length are padded together
    suffixes = tuple(_suffix_spans(places[sizes == size]) for size in sizes.unique())
    return AttentionSpans(NO_MASK, prefixes=prefixes_of(sequences), suffixes=suffixes)


def _suffix_spans(places: Tensor) -> SuffixSpans:
    sequence, *bounds = places.T
    (before, known), (own, real) = ranges(*bounds[:2]), ranges(*bounds[2:])
    num, length = own.shape
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    allowed = torch.cat([repeat(known, "n k -> n q k", q=length), repeat(causal, "q k -> n q k", n=num)], dim=2)
    mask = additive(rearrange(allowed, "n q k -> n 1 q k"), torch.float64)
    return SuffixSpans(sequence[:, None], own, real, torch.cat([before, own], dim=1), mask)


def ranges(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places [N, K] from each `start` to its `stop` [N], and which are real; the others are 0."""
    places = start[:, None] + torch.arange(int((stop - start).max()))
    real = places < stop[:, None]
    return places.where(real, 0), real


def prefixes_of(sequences: PackedSequences) -> tuple[tuple[int, int], ...]:
    """Return, for neighbouring sequences whose prefixes have one length, their number and that length."""
    lengths = (sequences.branch != 0).long().argmax(dim=1).tolist()
    return tuple((len(list(group)), length) for length, group in groupby(lengths))


def num_common(sequences: PackedSequences) -> int:
    """Return how many tokens at the start of every sequence belong to its prefix; 0 where they are too few to split."""
    common = min(length for _, length in prefixes_of(sequences))
    return common if common >= LEAST else 0


def tree_mask(sequences: PackedSequences, *, dtype: torch.dtype, device: torch.device, start: int = 0) -> Tensor:
    """Return the additive mask [R, 1, L - start, L] of tokens from `start` on: 0 where one may look, else the dtype's minimum."""
    branch, answer = sequences.branch.to(device), sequences.answer.to(device)
    same_branch = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, start:, None])
    same_answer = (answer[:, None, :] == 0) | (answer[:, None, :] == answer[:, start:, None])
    length = branch.shape[1]
    earlier = torch.ones(length - start, length, dtype=torch.bool, device=device).tril(diagonal=start)
    return additive(same_branch & same_answer & earlier, dtype)[:, None]  # [R, 1, L - start, L]


@dataclass(frozen=True)
class _Suffix:
    """One branch, or one answer with the `before` (start, stop) of its branch; `start` is the place of its first token."""

    tokens: tuple[int, ...]
    position: int
    start: int
    before: tuple[int, int]
    branch: int
    answer: int

    @property
    def stop(self) -> int:
        """Place behind its last token."""
        return self.start + len(self.tokens)


def _suffixes(tree: Tree) -> Iterator[_Suffix]:
    """Yield the branches and answers of a tree in the order in which they are packed."""
    start = len(tree.prefix)
    for index, branch in enumerate(tree.branches, start=1):
        own = _Suffix(branch.tokens, tree.next_position, start, (start, start), index, 0)
        yield own
        start = own.stop
        for turn, tokens in enumerate(branch.answers, start=1):
            answer = _Suffix(tokens, own.position + len(own.tokens), start, (own.start, own.stop), index, turn)
            yield answer
            start = answer.stop


def _pack_tree(tree: Tree) -> PackedSequences:
    """Pack one tree; the fields are those of `PackedSequences` without the sequence axis."""
    suffixes = list(_suffixes(tree))
    branches, answers = [s for s in suffixes if not s.answer], [s for s in suffixes if s.answer]
    sizes = torch.tensor([len(tree.prefix), *(len(s.tokens) for s in suffixes)])
    owners = [number for number, answer in enumerate(answers) for _ in answer.tokens]
    sources = [place for a in answers for place in (a.before[1] - 1, *range(a.start, a.stop - 1))]
    return PackedSequences(
        tokens=torch.cat([tree.prefix, *(torch.tensor(s.tokens) for s in suffixes)]),
        positions=torch.cat([tree.positions, *(text_positions(s.position, len(s.tokens)) for s in suffixes)], dim=1),
        branch=torch.tensor([0, *(s.branch for s in suffixes)]).repeat_interleave(sizes),
        answer=torch.tensor([0, *(s.answer for s in suffixes)]).repeat_interleave(sizes),
        ends=torch.tensor([b.stop - 1 for b in branches], dtype=torch.long),
        sources=torch.tensor(sources, dtype=torch.long),
        targets=torch.tensor([token for answer in answers for token in answer.tokens], dtype=torch.long),
        owners=torch.tensor(owners, dtype=torch.long),
        next_positions=torch.tensor([b.position + len(b.tokens) for b in branches], dtype=torch.long),
        suffixes=torch.tensor([(0, *s.before, s.start, s.stop) for s in suffixes], dtype=torch.long).reshape(-1, 5),
    )
