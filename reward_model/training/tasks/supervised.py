"""Supervised tasks: rate a clip, match it with prompts, describe it, reason about it, answer a question, compare two.

K = 5 rating levels. Every task yields an `SFTExample`; the tasks of one clip share its prefix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reward_model.language.requests import (
    END,
    closed_request,
    compare_request,
    describe_answer,
    describe_request,
    level_answer,
    preference_answer,
    reason_answer,
    reason_request,
    score_request,
)
from reward_model.records import LEVELS, Clip, JudgeRequest, RatedClip, Video, VideoPair, VideoQuestion
from reward_model.training.tasks.reasoning_text import reasoning

TIE_MARGIN = 0.05
"""Pairs whose overall quality differs by less are taught as ties."""

CLOSED = (("yes", "no"), ("Yes", "No"))
"""Answers of a question without listed options."""

ToClip = Callable[[Video | Path], Clip]
"""Function that reads a video and plans the frames that the judge sees of it."""


@dataclass(frozen=True)
class SFTExample:
    """A request and, per branch, the answer text and its weight; `qualities` holds the label where a level answers."""

    request: JudgeRequest
    answers: tuple[str, ...]
    qualities: tuple[float | None, ...]
    kinds: tuple[str, ...]


def soft_level(quality: Tensor) -> Tensor:
    """Return the distribution [..., K] over levels whose expectation is `quality` [...] in [0, 1], on two neighbours."""
    place = quality.clamp(0, 1)[..., None] * (len(LEVELS) - 1)
    return (1 - (place - torch.arange(len(LEVELS), device=quality.device)).abs()).clamp_min(0)


def clip_example(
    rated: RatedClip, to_clip: ToClip, kinds: Sequence[str], *, scores: Mapping[str, float] | None = None
) -> SFTExample:
    """Return the supervised example of one rated clip.

    Args:
        rated: the clip; "describe" and "reason" read `facts["caption"]` (of what it shows) and `facts["faults"]`
            (dimension -> fault names), "match" reads `facts["matches"]` (prompt -> text alignment in [0, 1]).
        to_clip: plans the frames.
        kinds: of "rate", "match", "describe", "reason".
        scores: dimension -> quality in [0, 1] that a reasoned answer gives; None gives the labels.

    Returns:
        One request with all branches behind the same prefix.

    Raises:
        ValueError: an unknown kind, or facts that the kind needs are missing.
    """
    clip = to_clip(rated.video)
    spoken = rated if scores is None else dataclasses.replace(rated, quality=scores)
    tasks = [_TASKS[kind](spoken if kind == "reason" else rated, clip) for kind in kinds]
    prefixes = {request.prefix for request, *_ in tasks}
    if len(prefixes) != 1:
        raise ValueError(f"tasks of one clip must share their prefix, got {len(prefixes)} different ones")
    return SFTExample(
        request=JudgeRequest(tasks[0][0].clips, tasks[0][0].prefix, tuple(b for r, *_ in tasks for b in r.branches)),
        answers=tuple(a for _, answers, _ in tasks for a in answers),
        qualities=tuple(q for _, _, qualities in tasks for q in qualities),
        kinds=tuple(kind for kind, (r, *_) in zip(kinds, tasks, strict=True) for _ in r.branches),
    )


_Task = tuple[JudgeRequest, tuple[str, ...], tuple[float | None, ...]]
"""Request, answer of each branch, and its label where a level answers."""


def _rate(rated: RatedClip, clip: Clip) -> _Task:
    names = tuple(rated.quality)
    request = score_request(clip, rated.prompt, names)
    qualities = tuple(float(rated.quality[name]) for name in names)
    return request, tuple(level_answer(q) for q in qualities), qualities


def _match(rated: RatedClip, clip: Clip) -> _Task:
    matches = {str(prompt): float(quality) for prompt, quality in _fact(rated, "matches").items()}
    requests = [score_request(clip, prompt, ("text_alignment",)) for prompt in matches]
    whole = JudgeRequest((clip,), requests[0].prefix, tuple(branch for r in requests for branch in r.branches))
    return whole, tuple(level_answer(q) for q in matches.values()), tuple(matches.values())


def _describe(rated: RatedClip, clip: Clip) -> _Task:
    return describe_request(clip), (describe_answer(_fact(rated, "caption")),), (None,)


def _reason(rated: RatedClip, clip: Clip) -> _Task:
    thought = reasoning(_fact(rated, "caption"), _fact(rated, "faults"), rated.quality)
    answer = reason_answer(rated.quality, thought)
    return reason_request(clip, rated.prompt, tuple(rated.quality)), (answer,), (None,)


_TASKS: Mapping[str, Callable[[RatedClip, Clip], _Task]] = {
    "rate": _rate,
    "match": _match,
    "describe": _describe,
    "reason": _reason,
}


def pair_of(first: RatedClip, second: RatedClip) -> VideoPair:
    """Return the pair of two rated clips of one prompt, labelled in every dimension on which both are rated.

    Qualities that differ by less than `TIE_MARGIN` tie.
    """
    names = [name for name in first.quality if name in second.quality]
    gaps = {name: float(first.quality[name]) - float(second.quality[name]) for name in names}
    preference = {name: 0.5 if abs(gap) < TIE_MARGIN else float(gap > 0) for name, gap in gaps.items()}
    source = f"{first.source_id}|{second.source_id}"
    return VideoPair(first.video, second.video, first.prompt, preference, source)


def neighbours(annotations: Sequence[object]) -> list[tuple[RatedClip, RatedClip]]:
    """Return the pairs of adjacent rated clips that share their prompt and at least one rated dimension."""
    beside = [
        (a, b)
        for a, b in zip(annotations, annotations[1:], strict=False)
        if isinstance(a, RatedClip) and isinstance(b, RatedClip)
    ]
    return [(a, b) for a, b in beside if a.prompt == b.prompt and not a.quality.keys().isdisjoint(b.quality)]


def swapped(pair: VideoPair) -> VideoPair:
    """Return the pair in the other order."""
    preference = {name: 1 - p for name, p in pair.preference.items()}
    return VideoPair(pair.second, pair.first, pair.prompt, preference, pair.source_id, place=pair.place)


def turned(pairs: Sequence[VideoPair], turn: int) -> list[VideoPair]:
    """Return pairs of which every second is swapped, the first of them where `turn` is odd."""
    return [swapped(pair) if (place + turn) % 2 else pair for place, pair in enumerate(pairs)]


def pair_example(pair: VideoPair, to_clip: ToClip) -> SFTExample:
    """Return the supervised example that compares a pair's clips in every labelled dimension."""
    clips = (to_clip(pair.first), to_clip(pair.second))
    requests = [compare_request(*clips, pair.prompt, name) for name in pair.preference]
    answers = tuple(preference_answer(p - 0.5) for p in pair.preference.values())
    whole = JudgeRequest(clips, requests[0].prefix, tuple(branch for r in requests for branch in r.branches))
    return SFTExample(whole, answers, (None,) * len(answers), ("compare",) * len(answers))


def closed_example(question: VideoQuestion, to_clip: ToClip) -> SFTExample:
    """Return the supervised example of a question with listed answers."""
    choices = choices_of(question)
    request = closed_request(to_clip(question.video), question.question, question.options or choices)
    return SFTExample(request, (f"{question.answer}{END}",), (None,), ("ask",))


def choices_of(question: VideoQuestion) -> tuple[str, ...]:
    """Return the possible answers: the letters of options such as "A. red", the options, or yes and no.

    Args:
        question: with its right answer.

    Returns:
        The choices, the right answer among them.

    Raises:
        ValueError: The right answer is none of them: the question is an open one.
    """
    letters = tuple(option.partition(".")[0].strip() for option in question.options)
    for choices in (letters, question.options, *([] if question.options else CLOSED)):
        if question.answer in choices:
            return choices
    raise ValueError(
        f"question about {question.source_id} is an open one: {question.answer!r} is none of {question.options}; only "
        "questions with listed answers can be asked"
    )


def _fact(rated: RatedClip, name: str) -> Any:
    if name not in rated.facts:
        raise ValueError(f"clip {rated.source_id} lacks facts[{name!r}], which this task needs")
    return rated.facts[name]
