"""Requests to packed sequences: distinct clips once, requests with the same prefix in one sequence, texts tokenised once.

Shapes: N distinct clips, P patches of all clips, M video tokens of all sequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reward_model.judge.engine.shared_prefix import Branch, PackedSequences, Tree, pack
from reward_model.judge.families.base import (
    Grid,
    VideoSpan,
    VisionFamily,
    grid_of,
    merged,
    patchify,
    prefix_positions,
)
from reward_model.judge.modules.motion_tokens import check_motion, motion_slots
from reward_model.records import Clip, JudgeRequest

AnswerText = str | tuple[int, ...]
"""An answer as text, or as the token ids that a judge wrote."""

Answers = Sequence[Sequence[Sequence[AnswerText]]]
"""Per request and branch, any number of answers."""

MAX_STACKED = 2**25
"""Values of the clips that are resized together, several copies of which exist at a time; a larger clip goes alone."""

_Shown = tuple[tuple[str | int, ...], tuple[int, ...]]
"""A prefix, and the numbers of the distinct clips that its integers stand for; requests that agree in it share a tree."""


@dataclass(frozen=True)
class PackedBatch:
    """Packed requests.

    `video_index` [M] picks each video token's feature from those of the distinct `clips` in their order; `motion` [K, F]
    holds the motion features of all sequences in their order, None where there are none. Branch number i in the order of
    the requests is number `branch_order[i]` of the sequences; answer number i of the sequences is number `answer_order[i]`
    in the order of the requests.
    """

    sequences: PackedSequences
    clips: tuple[Clip, ...]
    video_index: Tensor
    motion: Tensor | None
    branch_order: Tensor
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
        """Token that fills sequences; no other token looks at it."""
        return self.tokenizer.pad_token_id or 0

    def ids(self, text: AnswerText) -> tuple[int, ...]:
        """Return the token ids of a text by itself; one without tokens is refused (ValueError)."""
        tokens = text if isinstance(text, tuple) else self._ids_of(text)
        if not tokens:
            raise ValueError("a branch or an answer must not be empty")
        return tokens

    def _ids_of(self, text: str) -> tuple[int, ...]:
        if text not in self._ids:
            _bound(self._ids, self.SIZE)
            self._ids[text] = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        return self._ids[text]

    def prefix(self, text: str, spans: list[VideoSpan], video_token_id: int) -> tuple[Tensor, Tensor, int]:
        """Return token ids [P], positions [3, P] and the next position of a prefix with its placeholders in place."""
        key = (text, tuple(spans))
        if key not in self._prefixes:
            ids = torch.tensor(self.tokenizer.encode(text, add_special_tokens=False))
            _bound(self._prefixes, self.SIZE)
            self._prefixes[key] = (ids, *prefix_positions(ids == video_token_id, spans))
        return self._prefixes[key]


# Requests A, B, C with prefixes p, q, p and branches A1 A2 | B1 | C1 become two sequences,
#   p A1 A2 C1 and q B1, so branch_order = 0 1 3 2: the third branch asked for, B1, is the fourth of the sequences.


def pack_requests(
    requests: Sequence[JudgeRequest],
    answers: Answers | None,
    *,
    family: VisionFamily,
    texts: TokenCache,
    motion_size: int = 0,
) -> PackedBatch:
    """Pack requests, and per branch the texts of `answers`, into one sequence per distinct prefix.

    Args:
        requests: any number, of any clips.
        answers: per request and branch, any number of texts or token ids; None where only the next token is
            read.
        family: of the model.
        texts: token ids of earlier texts.
        motion_size: features of a motion token; 0 shows frames only.

    Returns:
        The sequences, and the place of each branch, answer and clip in them.

    Raises:
        ValueError: no requests, a request without branches, or answers that do not match the branches.
    """
    _check(requests, answers)
    clips, branches = _by_prefix(requests)
    grids = [clip_grid(clip, family) for clip in clips]
    trees = []
    for (prefix, held), places in branches.items():
        shown = [(clips[i], grids[i]) for i in held]
        text, spans = _prefix_text(prefix, shown, family, motion=motion_size > 0)
        questions = tuple(
            Branch(
                texts.ids(requests[r].branches[b]),
                tuple(texts.ids(answer) for answer in answers[r][b]) if answers else (),
            )
            for r, b in places
        )
        trees.append(Tree(*texts.prefix(text, spans, family.facts.video_token_id), questions))
    order = [place for places in branches.values() for place in places]
    return PackedBatch(
        sequences=pack(trees, pad_id=texts.pad_id),
        clips=tuple(clips),
        video_index=_video_index(branches, grids, family),
        motion=_motion(branches, clips, motion_size) if motion_size else None,
        branch_order=_branch_order(order, requests),
        answer_order=_answer_order(order, requests, answers),
    )


def patches_of(
    clips: Sequence[Clip], family: VisionFamily, *, quantise: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the patches [P, ...] of all clips in order and their grids [N, 3]; clips of one size go together."""
    groups: dict[tuple, list[int]] = {}
    for index, clip in enumerate(clips):
        groups.setdefault((tuple(clip.frames.shape), shown_size(clip, family)), []).append(index)
    patches: list[Tensor] = [torch.empty(0)] * len(clips)
    for (shape, size), alike in groups.items():
        num = max(1, MAX_STACKED // math.prod(shape))
        for members in (alike[start : start + num] for start in range(0, len(alike), num)):
            shown = [clips[i].frames.to(device) for i in members]
            frames = shown[0][None] if len(shown) == 1 else torch.stack(shown)  # [n, T, C, H, W]
            for index, own in zip(members, patchify(frames, size, family.facts, quantise=quantise), strict=True):
                patches[index] = own
    grids = torch.tensor([clip_grid(clip, family) for clip in clips], device=device)
    return torch.cat(patches), grids


def clip_grid(clip: Clip, family: VisionFamily) -> Grid:
    """Return the grid of patches that a clip becomes; frames that do not fit their plan are refused (ValueError)."""
    shape = tuple(clip.frames.shape)
    if len(shape) != 4 or shape[1] != 3 or 0 in shape or len(clip.plan.times) != shape[0]:
        raise ValueError(
            f"a clip needs frames [T, 3, H, W] and a plan of T times, got {shape} and {len(clip.plan.times)}"
        )
    return grid_of(shape[0], shown_size(clip, family), family.facts)


def shown_size(clip: Clip, family: VisionFamily) -> tuple[int, int]:
    """Return the height and width that a clip is shown at, which those of its source decide (ValueError: too narrow)."""
    return family.size(len(clip.frames), *(clip.source_size or clip.frames.shape[-2:]))


def _by_prefix(requests: Sequence[JudgeRequest]) -> tuple[list[Clip], dict[_Shown, list[tuple[int, int]]]]:
    """Return the distinct clips, and per distinct prefix its branches as (request, branch) numbers."""
    numbers: dict[tuple, int] = {}
    distinct: list[Clip] = []
    branches: dict[_Shown, list[tuple[int, int]]] = {}
    for number, request in enumerate(requests):
        for clip in request.clips:
            if numbers.setdefault(_identity(clip), len(distinct)) == len(distinct):
                distinct.append(clip)
        shown = (request.prefix, tuple(numbers[_identity(clip)] for clip in request.clips))
        branches.setdefault(shown, []).extend((number, branch) for branch in range(len(request.branches)))
    return distinct, branches


def _identity(clip: Clip) -> tuple:
    return id(clip.frames), clip.plan, id(clip.motion)


def _prefix_text(
    prefix: tuple[str | int, ...], clips: Sequence[tuple[Clip, Grid]], family: VisionFamily, *, motion: bool
) -> tuple[str, list[VideoSpan]]:
    pieces: list[str] = []
    spans: list[VideoSpan] = []
    for piece in prefix:
        if isinstance(piece, str):
            pieces.append(piece)
            continue
        clip, grid = clips[piece]
        pieces.append(family.placeholder(clip.plan, grid))
        pieces.append(motion_slots(clip.motion) if motion else "")
        spans.extend(family.video_spans(clip.plan, grid))
    return "".join(pieces), spans


def _clips_in_order(prefixes: Iterable[_Shown]) -> list[int]:
    """Return the numbers of the distinct clips in the order in which the sequences show them."""
    return [held[piece] for prefix, held in prefixes for piece in prefix if isinstance(piece, int)]


def _motion(prefixes: Iterable[_Shown], clips: Sequence[Clip], size: int) -> Tensor | None:
    """Return the motion features [K, F] of all clips in the order in which the sequences show them."""
    motions = [clips[i].motion for i in _clips_in_order(prefixes)]
    shown = [features for features in motions if features is not None]
    for features in shown:
        check_motion(features, size)
    return torch.cat([features.detach().cpu().float() for features in shown]) if shown else None


def _video_index(prefixes: Iterable[_Shown], grids: Sequence[Grid], family: VisionFamily) -> Tensor:
    features = torch.arange(sum(sizes := [math.prod(merged(grid, family.facts)) for grid in grids])).split(sizes)
    return torch.cat([torch.zeros(0, dtype=torch.long), *(features[i] for i in _clips_in_order(prefixes))])


def _branch_order(order: Sequence[tuple[int, int]], requests: Sequence[JudgeRequest]) -> Tensor:
    """Return the place among the packed branches, `order`, of each branch of the requests."""
    place = {key: i for i, key in enumerate(order)}
    keys = [(r, b) for r, request in enumerate(requests) for b in range(len(request.branches))]
    return torch.tensor([place[key] for key in keys], dtype=torch.long)


def _answer_order(
    order: Sequence[tuple[int, int]], requests: Sequence[JudgeRequest], answers: Answers | None
) -> Tensor:
    """Return the number among the requests' answers of each packed answer."""
    numbers, count = {}, 0
    for r in range(len(requests)):
        for b in range(len(requests[r].branches)):
            num = len(answers[r][b]) if answers else 0
            numbers[r, b] = range(count, count + num)
            count += num
    return torch.tensor([number for key in order for number in numbers[key]], dtype=torch.long)


def _check(requests: Sequence[JudgeRequest], answers: Answers | None) -> None:
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
