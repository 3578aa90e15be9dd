"""Parsers of reasoned answers: tolerant of white space, strict on form, keys and range; never a default score."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from reward_model.dimensions import BY_NAME
from reward_model.language.requests import END, SCORE_RANGE
from reward_model.records import LEVELS, Answer, ParsedAnswer, ParseFailure

_FORM = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)


def parse_reason(text: str, dimensions: Sequence[str] = ()) -> ParsedAnswer | ParseFailure:
    """Read `<think>..</think><answer>{"dimension": score, ...}</answer>`.

    Args:
        text: the answer as generated, with or without the end-of-turn token.
        dimensions: required dimensions; () accepts any non-empty set of known ones.

    Returns:
        Quality per dimension in [0, 1], or the reason why the text is malformed.
    """
    form = _FORM.fullmatch(text.strip().removesuffix(END))
    if form is None:
        return ParseFailure("not of the form <think>..</think><answer>..</answer>", text)
    try:
        scores = json.loads(form[2], object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except ValueError as error:
        return ParseFailure(f"answer is not JSON: {error}", text)
    reason = _fault(scores, dimensions)
    if reason:
        return ParseFailure(reason, text)
    low, high = SCORE_RANGE
    return ParsedAnswer({name: (score - low) / (high - low) for name, score in scores.items()}, form[1].strip())


def read_scores(text: str, num_tokens: int, dimensions: Sequence[str]) -> Answer:
    """Read a reasoned answer for the rewards: each score as written in the text, or the fault of the answer.

    Args:
        text: the answer without its end token.
        num_tokens: its length.
        dimensions: required dimensions.

    Returns:
        The answer; without scores if it is malformed.
    """
    parsed = parse_reason(text, dimensions)
    if isinstance(parsed, ParseFailure):
        return Answer(text, num_tokens, fault=parsed.reason)
    form = _FORM.fullmatch(text.strip().removesuffix(END))
    assert form is not None
    return Answer(text, num_tokens, scores=json.loads(form[2], parse_float=str, parse_int=str))


def read_choice(text: str, num_tokens: int, choices: Sequence[str]) -> Answer:
    """Read the answer to a closed question: one of `choices`, by itself or inside the answer block."""
    form = _FORM.fullmatch(text.strip().removesuffix(END))
    word = (form[2] if form else text).strip()
    if word not in choices:
        return Answer(text, num_tokens, fault=f"not one of {', '.join(choices)}")
    return Answer(text, num_tokens, choice=word)


def parse_faults(reasoning: str) -> dict[str, tuple[str, ...]]:
    """Return dimension -> faults named in clauses such as "visual_quality: poor, blur."; a level or "none" is no fault.

    Dimensions without a clause are left out.
    """
    named = {}
    for name, faults in re.findall(rf"\b({'|'.join(BY_NAME)})\s*:\s*([^.:]*)", reasoning):
        words = (fault.strip() for fault in faults.split(","))
        named[name] = tuple(word for word in words if word and word not in ("none", *LEVELS))
    return named


def _fault(scores: object, dimensions: Sequence[str]) -> str:
    low, high = SCORE_RANGE
    if not isinstance(scores, dict) or not scores:
        return "answer is not a JSON object with scores"
    unknown = [name for name in scores if name not in BY_NAME]
    if unknown:
        return f"unknown dimension {unknown[0]!r}"
    missing = [name for name in dimensions if name not in scores]
    if missing:
        return f"no score for {missing[0]}"
    for name, score in scores.items():
        if isinstance(score, bool) or not isinstance(score, (int, float)):
            return f"score of {name} is not a number"
        if not low <= score <= high:
            return f"score of {name} is outside [{low}, {high}]: {score}"
    return ""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError("a key comes twice")
    return dict(pairs)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a score")
