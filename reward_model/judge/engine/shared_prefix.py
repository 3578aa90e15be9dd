"""Shared prefixes as token trees: each prefix once, its branches and their answers behind it in the same row.

A row is prefix | branch 1 | answer 1 of branch 1 | ... | branch 2 | ...; a mask lets a token see the prefix, its own branch
and its own answer only, and positions restart behind the common part. One forward over the rows thus equals one forward
per (prefix, branch, answer), values and gradients, at a fraction of the tokens.

Shapes: R rows, L tokens of the longest row, M answer tokens of all rows, S sequences that are continued.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from reward_model.judge.attention.tree import NO_MASK, Seen, Texts, additive, attends_in_parts
from reward_model.judge.families.base import text_positions

LEAST = 256
"""Common tokens below which a masked pass is not split: the second call costs more than it saves."""


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
class Rows:
    """Packed trees.

    `tokens` [R, L], `positions` [3, R, L]; `branch` and `answer` [R, L] say which part a token belongs to (0: common part,
    -1: padding). `ends` names the flat index (row * L + place) of each branch's last token, in order; `sources` [M] that of
    the token before each answer token, `targets` [M] the answer tokens, `owners` [M] the running number of their answer.
    `next_positions` follows each branch. `texts` [N, 5] are the branches and answers in their order: row, where the branch
    that it continues begins and ends (nothing for a branch), where its own tokens begin and end.
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
    texts: Tensor


def pack(trees: Sequence[Tree], *, pad_id: int) -> Rows:
    """Lay out one tree a row, padded on the right."""
    parts = [_row(tree) for tree in trees]
    length = max(len(row.tokens) for row in parts)
    tokens = torch.full((len(parts), length), pad_id)
    positions = torch.zeros(3, len(parts), length, dtype=torch.long)
    branch, answer = torch.full_like(tokens, -1), torch.zeros_like(tokens)
    ends, sources, owners, texts, answers = [], [], [], [], 0
    for number, row in enumerate(parts):
        used = len(row.tokens)
        tokens[number, :used], positions[:, number, :used] = row.tokens, row.positions
        branch[number, :used], answer[number, :used] = row.branch, row.answer
        ends.append(row.ends + number * length)
        sources.append(row.sources + number * length)
        owners.append(row.owners + answers)
        texts.append(row.texts + torch.tensor([number, 0, 0, 0, 0]))
        answers += sum(len(b.answers) for b in trees[number].branches)
    return Rows(
        tokens=tokens,
        positions=positions,
        branch=branch,
        answer=answer,
        ends=torch.cat(ends),
        sources=torch.cat(sources),
        targets=torch.cat([row.targets for row in parts]),
        owners=torch.cat(owners),
        next_positions=torch.cat([row.next_positions for row in parts]),
        texts=torch.cat(texts),
    )


def seen_in(rows: Rows, model: Any) -> Seen:
    """Return what the tokens of rows see in a pass over all of them."""
    if not attends_in_parts(model):
        weight = model.get_input_embeddings().weight
        return Seen(tree_mask(rows, dtype=weight.dtype, device=weight.device), num_common(rows))
    sizes = (rows.texts[:, 4] - rows.texts[:, 3]).float().log2().ceil()  # texts of like length are padded together
    texts = tuple(_texts(rows.texts[sizes == size]) for size in sizes.unique())
    return Seen(NO_MASK, prefixes=prefixes_of(rows), texts=texts)


def _texts(places: Tensor) -> Texts:
    row, *bounds = places.T
    (before, known), (own, real) = ranges(*bounds[:2]), ranges(*bounds[2:])
    num, length = own.shape
    causal = torch.ones(length, length, dtype=torch.bool).tril().expand(num, -1, -1)
    allowed = torch.cat([known[:, None].expand(-1, length, -1), causal], dim=2)  # [N, Q, K]
    mask = additive(allowed, torch.float64)[:, None]
    return Texts(row[:, None], own, real, torch.cat([before, own], dim=1), mask)


def ranges(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places [N, K] from each `start` to its `stop` [N], and which are real; the others are 0."""
    places = start[:, None] + torch.arange(int((stop - start).max()))
    real = places < stop[:, None]
    return places.where(real, 0), real


def prefixes_of(rows: Rows) -> tuple[tuple[int, int], ...]:
    """Return, for neighbouring rows whose prefixes have one length, their number and that length."""
    lengths = (rows.branch != 0).long().argmax(dim=1).tolist()
    return tuple((len(list(group)), length) for length, group in groupby(lengths))


def num_common(rows: Rows) -> int:
    """Return how many tokens at the start of every row belong to its prefix; 0 where they are too few to split."""
    common = min(length for _, length in prefixes_of(rows))
    return common if common >= LEAST else 0


def tree_mask(rows: Rows, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the additive mask [R, 1, L, L]: 0 where a token may look, the dtype's minimum elsewhere."""
    branch, answer = rows.branch.to(device), rows.answer.to(device)
    same_branch = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    same_answer = (answer[:, None, :] == 0) | (answer[:, None, :] == answer[:, :, None])
    length = branch.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return additive(same_branch & same_answer & earlier, dtype)[:, None]  # [R, 1, L, L]


def _row(tree: Tree) -> Rows:
    """Lay out one tree; the fields are those of `Rows` without the row axis."""
    tokens, positions = [tree.prefix], [tree.positions]
    labels = [(len(tree.prefix), 0, 0)]
    ends: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    after: list[int] = []
    texts: list[tuple[int, ...]] = []
    place, number = len(tree.prefix), 0
    for index, branch in enumerate(tree.branches, start=1):
        size = len(branch.tokens)
        tokens.append(torch.tensor(branch.tokens))
        positions.append(text_positions(tree.next_position, size))
        labels.append((size, index, 0))
        texts.append((0, place, place, place, place + size))
        place += size
        end, follow = place - 1, tree.next_position + size
        ends.append(end)
        after.append(follow)
        for turn, answer in enumerate(branch.answers, start=1):
            tokens.append(torch.tensor(answer))
            positions.append(text_positions(follow, len(answer)))
            labels.append((len(answer), index, turn))
            texts.append((0, end + 1 - size, end + 1, place, place + len(answer)))
            sources.extend([end, *range(place, place + len(answer) - 1)])
            targets.extend(answer)
            owners.extend([number] * len(answer))
            place += len(answer)
            number += 1
    sizes, branches, answers = (torch.tensor(column) for column in zip(*labels, strict=True))
    return Rows(
        tokens=torch.cat(tokens),
        positions=torch.cat(positions, dim=1),
        branch=branches.repeat_interleave(sizes),
        answer=answers.repeat_interleave(sizes),
        ends=torch.tensor(ends, dtype=torch.long),
        sources=torch.tensor(sources, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        owners=torch.tensor(owners, dtype=torch.long),
        next_positions=torch.tensor(after, dtype=torch.long),
        texts=torch.tensor(texts, dtype=torch.long).reshape(-1, 5),
    )
