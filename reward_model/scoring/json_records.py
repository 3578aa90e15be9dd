"""Results as JSON objects, one for each video or pair, which the command line prints and the server sends.

An unavailable number is null. No heavy import here: the command line must start fast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reward_model.dimensions import BY_NAME
from reward_model.records import NO_PROMPT

if TYPE_CHECKING:
    from torch import Tensor

    from reward_model.records import Comparison, Explanation, RewardOutput

JsonRecord = dict[str, Any]
"""One result as a JSON object."""


def output_records(output: RewardOutput, prompts: Sequence[str | None]) -> list[JsonRecord]:
    """Return each video's result; it is `valid` unless more than a prompt was missing.

    Args:
        output: of B videos.
        prompts: B generation prompts.

    Returns:
        B records.
    """
    return [_output_record(output, index, prompt) for index, prompt in enumerate(prompts)]


def _output_record(output: RewardOutput, index: int, prompt: str | None) -> JsonRecord:
    reasons = {name: texts[index] for name, texts in output.reasons.items() if texts[index]}
    plan = output.frame_plan[index]
    return {
        "prompt": prompt,
        "valid": all(reason == NO_PROMPT for reason in reasons.values()),
        "valid_dimensions": {name: bool(valid[index]) for name, valid in output.valid.items()},
        "reward": number(output.rewards[index]),
        "scores": {name: number(values[index]) for name, values in output.scores.items()},
        "std": {name: number(values[index]) for name, values in output.std.items()},
        "level_probs": {name: _numbers(values[index]) for name, values in output.level_probs.items()},
        "level_mass": {name: number(values[index]) for name, values in output.level_mass.items()},
        "reasons": reasons,
        "overall_from": list(output.overall_from[index]),
        "warnings": list(output.warnings[index]) if output.warnings else [],
        "text": output.texts[index] if output.texts is not None else None,
        "frames": None if plan is None else {name: _plain(value) for name, value in vars(plan).items()},
    }


def unscored_record(reason: str, prompt: str | None) -> JsonRecord:
    """Return the record of a video without any score."""
    nothing = dict.fromkeys(BY_NAME)
    return {
        "prompt": prompt,
        "valid": False,
        "valid_dimensions": dict.fromkeys(BY_NAME, False),
        "reward": None,
        "scores": nothing,
        "std": nothing,
        "level_probs": nothing,
        "level_mass": nothing,
        "reasons": dict.fromkeys(BY_NAME, reason),
        "overall_from": [],
        "warnings": [],
        "text": None,
        "frames": None,
    }


def comparison_records(comparison: Comparison, prompts: Sequence[str | None]) -> list[JsonRecord]:
    """Return each pair's result; `consistent` is null for a pair without result."""
    records = []
    for index, prompt in enumerate(prompts):
        valid = bool(comparison.valid[index])
        record: JsonRecord = {"prompt": prompt, "valid": valid}
        record |= {name: number(getattr(comparison, name)[index]) for name in ("p_first", "p_tie", "margin")}
        record["consistent"] = bool(comparison.consistent[index]) if valid else None
        record["reason"] = comparison.reasons[index]
        records.append(record)
    return records


def explanation_record(explanation: Explanation, prompt: str | None) -> JsonRecord:
    """Return an explanation as a JSON object; it is valid if its reasoned answer is well-formed."""
    return {
        "prompt": prompt,
        "valid": not explanation.reason,
        "reason": explanation.reason,
        "text": explanation.text,
        "levels": dict(explanation.levels),
        "scores": {name: number(value) for name, value in explanation.quality.items()},
        "labels": {name: list(labels) for name, labels in explanation.labels.items()},
        "saliency": {name: [number(share) for share in shares] for name, shares in explanation.saliency.items()},
        "words": explanation.words,
    }


def unexplained_record(reason: str, prompt: str | None) -> JsonRecord:
    """Return the record of an unreadable video."""
    empty: JsonRecord = {"text": None, "levels": {}, "scores": {}, "labels": {}, "saliency": {}, "words": ""}
    return {"prompt": prompt, "valid": False, "reason": reason, **empty}


def number(value: Any) -> float | None:
    """Return a finite number, or None."""
    plain = float(value)
    return plain if math.isfinite(plain) else None


def _numbers(values: Tensor) -> list[float | None] | None:
    numbers = [number(value) for value in values]
    return None if None in numbers else numbers


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
