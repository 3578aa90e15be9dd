"""Turns requests into packed rows: distinct clips once, requests with the same prefix in one row, texts tokenised once.

Shapes: N distinct clips, P patches of all clips, M video tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reward_model.judge.engine.shared_prefix import Branch, Rows, Tree, pack
from reward_model.judge.families.base import Family, Grid, Run, grid_of, merged, patchify, prefix_positions
from reward_model.judge.modules.motion_tokens import check_motion, motion_slots
from reward_model.records import Clip, JudgeRequest

AnswerText = str | tuple[int, ...]
"""An answer as text, or as the token ids that a judge wrote."""


@dataclass(frozen=True)
class Batch:
    """Packed requests.

    `motion` [K, F] holds the motion features of all rows in their order, None where there are none. `video_index` [M] picks each video token's feature from those of the distinct `clips` in their order. Branch number i in
    the order of the requests is number `branch_order[i]` of the rows; answer number i is number `answer_places[i]` of the
    rows, and `answer_order` is the inverse of that.
    """

    rows: Rows
    clips: tuple[Clip, ...]
    video_index: Tensor
    motion: Tensor | None
    branch_order: Tensor
    answer_places: list[int]
    answer_order: Tensor


class TokenCache:
    """Remembers the token ids of texts and the positions of prefixes."""

    SIZE = 4096

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._ids: dict[str, tuple[int, ...]] = {}
        self._prefixes: dict[tuple, tuple[Tensor, Tensor, int]] = {}

    @property
    def pad_id(self) -> int:
        """Token that fills rows; no other token looks at it."""
        return self.tokenizer.pad_token_id or 0

    def ids(self, text: AnswerText) -> tuple[int, ...]:
        """Return the token ids of a text by itself; one without tokens is refused (ValueError)."""
        found = text if isinstance(text, tuple) else self._ids_of(text)
        if not found:
            raise ValueError("a branch or an answer must not be empty")
        return found

    def _ids_of(self, text: str) -> tuple[int, ...]:
        if text not in self._ids:
            _bound(self._ids, self.SIZE)
            self._ids[text] = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        return self._ids[text]

    def prefix(self, text: str, runs: list[Run], video_token_id: int) -> tuple[Tensor, Tensor, int]:
        """Return token ids [P], positions [3, P] and the next position of a prefix with its placeholders in place."""
        key = (text, tuple(runs))
        if key not in self._prefixes:
            ids = torch.tensor(self.tokenizer.encode(text, add_special_tokens=False))
            _bound(self._prefixes, self.SIZE)
            self._prefixes[key] = (ids, *prefix_positions(ids == video_token_id, runs))
        return self._prefixes[key]


def lay_out(
    requests: Sequence[JudgeRequest],
    answers: Sequence[Sequence[Sequence[AnswerText]]] | None,
    *,
    family: Family,
    texts: TokenCache,
    motion_size: int = 0,
) -> Batch:
    """Pack requests, and per branch the texts of `answers`, one row per distinct prefix.

    Args:
        requests: any number, of any clips.
        answers: per request and branch, any number of texts or token ids; None where only the next token is
            read.
        family: of the model.
        texts: token ids of what was seen before.
        motion_size: features of a motion token; 0 shows frames only.

    Returns:
        The rows, and where each part of the requests stands in them.

    Raises:
        ValueError: no requests, a request without branches, or answers that do not match the branches.
    """
    _check(requests, answers)
    clips: dict[tuple, int] = {}
    distinct: list[Clip] = []
    rows: dict[tuple, list[tuple[int, int]]] = {}
    for number, request in enumerate(requests):
        for clip in request.clips:
            if clips.setdefault(_identity(clip), len(distinct)) == len(distinct):
                distinct.append(clip)
        key = (request.prefix, tuple(clips[_identity(clip)] for clip in request.clips))
        rows.setdefault(key, []).extend((number, branch) for branch in range(len(request.branches)))
    grids = [clip_grid(clip, family) for clip in distinct]
    trees = []
    for (prefix, held), places in rows.items():
        shown = [distinct[i] for i in held]
        text, runs = _prefix_text(prefix, shown, [grids[i] for i in held], family, motion=motion_size > 0)
        branches = tuple(
            Branch(
                texts.ids(requests[r].branches[b]),
                tuple(texts.ids(answer) for answer in answers[r][b]) if answers else (),
            )
            for r, b in places
        )
        trees.append(Tree(*texts.prefix(text, runs, family.facts.video_token_id), branches))
    packed = pack(trees, pad_id=texts.pad_id)
    order = [place for places in rows.values() for place in places]
    motion = _motion(rows, distinct, motion_size) if motion_size else None
    return Batch(packed, tuple(distinct), _video_index(rows, grids, family), motion, *_orders(order, requests, answers))


def patches_of(clips: Sequence[Clip], family: Family, *, quantise: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the patches [P, ...] of all clips in order and their grids [N, 3]; clips of one size go together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, clip in enumerate(clips):
        groups.setdefault(tuple(clip.frames.shape), []).append(index)
    patches: list[Tensor] = [torch.empty(0)] * len(clips)
    for shape, members in groups.items():
        frames = torch.stack([clips[i].frames.to(device) for i in members])  # [n, T, C, H, W]
        size = family.size(shape[0], shape[2], shape[3])
        for index, found in zip(members, patchify(frames, size, family.facts, quantise=quantise), strict=True):
            patches[index] = found
    grids = torch.tensor([clip_grid(clip, family) for clip in clips], device=device)
    return torch.cat(patches), grids


def clip_grid(clip: Clip, family: Family) -> Grid:
    """Return the grid of patches that a clip becomes; frames that do not fit their plan are refused (ValueError)."""
    shape = tuple(clip.frames.shape)
    if len(shape) != 4 or shape[1] != 3 or 0 in shape or len(clip.plan.times) != shape[0]:
        raise ValueError(
            f"a clip needs frames [T, 3, H, W] and a plan of T times, got {shape} and {len(clip.plan.times)}"
        )
    return grid_of(shape[0], family.size(shape[0], shape[2], shape[3]), family.facts)


def _identity(clip: Clip) -> tuple:
    return id(clip.frames), clip.plan, id(clip.motion)


def _prefix_text(
    prefix: tuple[str | int, ...], clips: Sequence[Clip], grids: Sequence[Grid], family: Family, *, motion: bool
) -> tuple[str, list[Run]]:
    parts: list[str] = []
    runs: list[Run] = []
    for part in prefix:
        if isinstance(part, str):
            parts.append(part)
            continue
        parts.append(family.placeholder(clips[part].plan, grids[part]))
        parts.append(motion_slots(clips[part].motion) if motion else "")
        runs.extend(family.runs(clips[part].plan, grids[part]))
    return "".join(parts), runs


def _motion(rows: dict[tuple, list], clips: Sequence[Clip], size: int) -> Tensor | None:
    """Return the motion features [K, F] of all clips in the order in which the rows show them."""
    used = [clips[held[part]].motion for prefix, held in rows for part in prefix if isinstance(part, int)]
    found = [features for features in used if features is not None]
    for features in found:
        check_motion(features, size)
    return torch.cat([features.detach().cpu().float() for features in found]) if found else None


def _video_index(rows: dict[tuple, list], grids: Sequence[Grid], family: Family) -> Tensor:
    sizes = [torch.tensor(merged(grid, family.facts)).prod().item() for grid in grids]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    used = [held[part] for prefix, held in rows for part in prefix if isinstance(part, int)]
    return torch.cat(
        [torch.arange(starts[i], starts[i] + sizes[i]) for i in used] or [torch.zeros(0, dtype=torch.long)]
    )


def _orders(
    order: list[tuple[int, int]],
    requests: Sequence[JudgeRequest],
    answers: Sequence[Sequence[Sequence[AnswerText]]] | None,
) -> tuple[Tensor, list[int], Tensor]:
    """Return where each branch and each answer of the requests, in order, stands in the rows; and the inverse of the last."""
    place = {key: i for i, key in enumerate(order)}
    keys = [(r, b) for r, request in enumerate(requests) for b in range(len(request.branches))]
    branch_order = torch.tensor([place[key] for key in keys], dtype=torch.long)
    starts, count = {}, 0
    for r, b in order:
        starts[r, b] = count
        count += len(answers[r][b]) if answers else 0
    answer_places = [starts[r, b] + i for r, b in keys for i in range(len(answers[r][b]) if answers else 0)]
    answer_order = torch.empty(len(answer_places), dtype=torch.long)
    answer_order[answer_places] = torch.arange(len(answer_places))
    return branch_order, answer_places, answer_order


def _check(requests: Sequence[JudgeRequest], answers: Sequence[Sequence[Sequence[AnswerText]]] | None) -> None:
    if not requests or not all(request.branches for request in requests):
        raise ValueError("at least one request is needed, each with at least one branch")
    if answers is None:
        return
    shape = [len(request.branches) for request in requests]
    got = [len(branches) for branches in answers]
    if shape != got:
        raise ValueError(f"answers must match the branches of each request: expected {shape}, got {got}")


def _bound(cache: dict, size: int) -> None:
    if len(cache) >= size:
        cache.clear()
