"""Comparisons of clips: the better one of two, and the order of a group by few comparisons.

Shapes: N pairs, or N clips of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Protocol

import torch

from reward_model.judge.engine import readouts
from reward_model.judge.model import VideoJudge
from reward_model.language.requests import PREFERENCES
from reward_model.media.intake import in_chunks, num_pixels
from reward_model.records import Clip, Comparison, JudgeRequest, PreferenceReadout, Ranking
from reward_model.scoring.assemble import average_orders

Margins = Callable[[list[tuple[int, int]]], Sequence[float]]
"""margins(pairs) -> lead of a over b for each pair (a, b); all pairs of a call are compared at once."""

REMEMBERED_CLIPS = 256
"""Clips of a group whose vision features are kept; a group has fewer as a rule, and each clip is then encoded once."""


def merge_order(items: Sequence[int], margins: Margins, *, at_once: int | None = None) -> tuple[list[int], int]:
    """Sort by merging, so that N items take at most N log2 N comparisons in place of N (N - 1) / 2.

    Several merges of a pass advance together, each with one pair at a time, so that a call carries many pairs. A judge need not
    be transitive: the order is then one of those that its answers allow.

    Args:
        items: ids, in an order that ties keep.
        margins: compares pairs of ids.
        at_once: merges that advance together, so that a call asks about twice as many items, most of them those of the call
            before; the next merge starts where one ends. None takes all merges of a pass.

    Returns:
        The ids, best first, and the number of pairs that were compared.
    """
    ordered, num_compared = [[item] for item in items], 0
    while len(ordered) > 1:
        merges = [_Merge(ordered[i], ordered[i + 1]) for i in range(0, len(ordered) - 1, 2)]
        while active := [merge for merge in merges if merge.left and merge.right][:at_once]:
            leads = margins([(merge.left[0], merge.right[0]) for merge in active])
            num_compared += len(active)
            for merge, lead in zip(active, leads, strict=True):
                merge.take(first=lead >= 0)
        odd = ordered[-1:] if len(ordered) % 2 else []
        ordered = [merge.done + merge.left + merge.right for merge in merges] + odd
    return (ordered[0] if ordered else []), num_compared


class _Merge:
    def __init__(self, left: Sequence[int], right: Sequence[int]) -> None:
        self.left, self.right, self.done = list(left), list(right), list[int]()

    def take(self, *, first: bool) -> None:
        """Move the better one of the two heads to the merged list."""
        self.done.append((self.left if first else self.right).pop(0))


def compare_clips(
    judge: VideoJudge,
    role: str | None,
    left: Sequence[Clip | str],
    right: Sequence[Clip | str],
    texts: Sequence[str | None],
    *,
    swap: bool,
    batch_size: int,
) -> Comparison:
    """Compare N pairs of planned clips; unreadable pairs carry the reason.

    Args:
        judge: the judge.
        role: adapter that compares.
        left: first clips, or reasons.
        right: second clips, or reasons.
        texts: generation prompts.
        swap: ask in both orders and average.
        batch_size: pairs per forward pass.

    Returns:
        The outcome.
    """
    reasons = [next((c for c in pair if isinstance(c, str)), "") for pair in zip(left, right, strict=True)]
    readable = [index for index, reason in enumerate(reasons) if not reason]
    pairs = [
        (a, b, t) for a, b, t in zip(left, right, texts, strict=True) if isinstance(a, Clip) and isinstance(b, Clip)
    ]
    orders = [_preferences(judge, role, pairs, batch_size)]
    if swap:
        orders.append(_preferences(judge, role, [(b, a, text) for a, b, text in pairs], batch_size).swapped())
    return average_orders(orders, readable, reasons)


def join_comparisons(parts: Sequence[Comparison]) -> Comparison:
    """Return the outcomes of one or more batches of pairs as one."""
    return Comparison(
        p_first=torch.cat([part.p_first for part in parts]),
        p_tie=torch.cat([part.p_tie for part in parts]),
        margin=torch.cat([part.margin for part in parts]),
        valid=torch.cat([part.valid for part in parts]),
        reasons=[reason for part in parts for reason in part.reasons],
        consistent=torch.cat([part.consistent for part in parts]),
    )


class ClipsByPlace(Protocol):
    """N clips, or reasons, of which each is read when it is asked for."""

    def __len__(self) -> int:
        """Return N."""

    def __getitem__(self, place: int, /) -> Clip | str:
        """Return one clip, or the reason why it is unreadable."""


def rank_clips(
    judge: VideoJudge, role: str | None, clips: ClipsByPlace, prompt: str | None, *, batch_size: int
) -> Ranking:
    """Order a group of planned clips, of which memory holds no more than a chunk of pairs; see `VideoJudgeReward.rank`.

    Args:
        judge: the judge.
        role: adapter that compares.
        clips: the group, each clip asked for once for its reason and then once a pass or so.
        prompt: their generation prompt.
        batch_size: pairs per forward pass.

    Returns:
        The order.

    Raises:
        RuntimeError: the judge does not compare.
    """
    reasons = [clip if isinstance(clip, str) else "" for clip in (clips[place] for place in range(len(clips)))]

    def margins(pairs: list[tuple[int, int]]) -> list[float]:
        """Return the margin of the first of each pair of ids, asked in both orders."""
        compared = ((clips[first], clips[second]) for first, second in pairs)
        leads: list[float] = []
        for chunk in in_chunks(compared, batch_size, lambda pair: num_pixels(pair[0]) + num_pixels(pair[1])):
            left, right = zip(*chunk, strict=True)
            texts = [prompt] * len(chunk)
            outcome = compare_clips(judge, role, left, right, texts, swap=True, batch_size=batch_size)
            if not bool(outcome.valid.all()):
                raise RuntimeError(f"the judge does not compare: {next(filter(None, outcome.reasons))}")
            leads += outcome.margin.tolist()
            del chunk, left, right  # before the next ones are read
        return leads

    with torch.no_grad(), judge.remember_clips(REMEMBERED_CLIPS):
        readable = [place for place, reason in enumerate(reasons) if not reason]
        order, num_compared = merge_order(readable, margins, at_once=batch_size)
    return Ranking(tuple(order), reasons, num_compared)


@torch.no_grad()
def _preferences(
    judge: VideoJudge, role: str | None, pairs: Sequence[tuple[Clip, Clip, str | None]], batch_size: int
) -> PreferenceReadout:
    """Return the readout of N pairs in the order that they are given in."""
    empty = torch.zeros(0, device=judge.device)
    batches = [PreferenceReadout(empty, empty, empty, empty)]
    with judge.use_role(role):
        for start in range(0, len(pairs), batch_size):
            requests = [judge.style.compare_request(*pair) for pair in pairs[start : start + batch_size]]
            read = _reasoned_preferences if judge.style.reasons_to_compare else _next_token_preferences
            batches.append(read(judge, requests))
    return PreferenceReadout(
        *(torch.cat([getattr(batch, field.name) for batch in batches]) for field in fields(PreferenceReadout))
    )


def _next_token_preferences(judge: VideoJudge, requests: list[JudgeRequest]) -> PreferenceReadout:
    logits = torch.cat(judge.next_token_logits(requests))
    p_first, p_tie, mass = readouts.read_preference(logits, judge.preference_ids)
    return PreferenceReadout(p_first, 1 - p_first - p_tie, p_tie, mass)


def _reasoned_preferences(judge: VideoJudge, requests: list[JudgeRequest]) -> PreferenceReadout:
    """Return the readout of greedy reasoned answers: all on the chosen clip, and no mass where none was chosen."""
    texts = judge.generate(requests, max_new_tokens=judge.config.max_answer_tokens)
    chosen = [judge.style.read_choice(branch[0], 0, judge.style.preferences).choice for ((branch),) in texts]
    votes = torch.tensor([[word == option for option in PREFERENCES] for word in chosen], device=judge.device).float()
    return PreferenceReadout(votes[:, 0], votes[:, 1], votes[:, 2], votes.sum(dim=1))
