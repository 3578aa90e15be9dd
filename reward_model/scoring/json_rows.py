"""Records as JSON objects, one a video or pair: what the command line prints and the server sends.

A number that could not be had is null. Nothing heavy is imported here, so that a command line is quick.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reward_model.records import DIMENSIONS, NO_PROMPT

if TYPE_CHECKING:
    from torch import Tensor

    from reward_model.records import Comparison, Explanation, RewardOutput

Row = dict[str, Any]
"""One result as a JSON object."""


def output_rows(output: RewardOutput, prompts: Sequence[str | None]) -> list[Row]:
    """Return each video's result.

    A row is `valid` unless more than a prompt was missing.

    Args:
        output: of B videos.
        prompts: B generation prompts.

    Returns:
        B rows.
    """
    return [_output_row(output, row, prompt) for row, prompt in enumerate(prompts)]


def _output_row(output: RewardOutput, row: int, prompt: str | None) -> Row:
    reasons = {name: found[row] for name, found in output.reasons.items() if found[row]}
    plan = output.frame_plan[row]
    return {
        "prompt": prompt,
        "valid": all(reason == NO_PROMPT for reason in reasons.values()),
        "valid_dimensions": {name: bool(valid[row]) for name, valid in output.valid.items()},
        "reward": number(output.rewards[row]),
        "scores": {name: number(values[row]) for name, values in output.scores.items()},
        "std": {name: number(values[row]) for name, values in output.std.items()},
        "level_probs": {name: _numbers(values[row]) for name, values in output.level_probs.items()},
        "level_mass": {name: number(values[row]) for name, values in output.level_mass.items()},
        "reasons": reasons,
        "overall_from": list(output.overall_from[row]),
        "warnings": list(output.warnings[row]) if output.warnings else [],
        "text": output.texts[row] if output.texts is not None else None,
        "frames": None if plan is None else {name: _plain(value) for name, value in vars(plan).items()},
    }


def unscored_row(reason: str, prompt: str | None) -> Row:
    """Return the row of a video that no judge has answered for."""
    nothing = dict.fromkeys(DIMENSIONS)
    return {
        "prompt": prompt,
        "valid": False,
        "valid_dimensions": dict.fromkeys(DIMENSIONS, False),
        "reward": None,
        "scores": nothing,
        "std": nothing,
        "level_probs": nothing,
        "level_mass": nothing,
        "reasons": dict.fromkeys(DIMENSIONS, reason),
        "overall_from": [],
        "warnings": [],
        "text": None,
        "frames": None,
    }


def comparison_rows(found: Comparison, prompts: Sequence[str | None]) -> list[Row]:
    """Return each pair's result; `consistent` is null where there is none."""
    rows = []
    for row, prompt in enumerate(prompts):
        valid = bool(found.valid[row])
        result: Row = {"prompt": prompt, "valid": valid}
        result |= {name: number(getattr(found, name)[row]) for name in ("p_first", "p_tie", "margin")}
        rows.append(
            result | {"consistent": bool(found.consistent[row]) if valid else None, "reason": found.reasons[row]}
        )
    return rows


def explanation_row(found: Explanation, prompt: str | None) -> Row:
    """Return an explanation as a JSON object; it is valid if its reasoned answer could be read."""
    return {
        "prompt": prompt,
        "valid": not found.reason,
        "reason": found.reason,
        "text": found.text,
        "levels": dict(found.levels),
        "scores": {name: number(value) for name, value in found.quality.items()},
        "labels": {name: list(labels) for name, labels in found.labels.items()},
        "saliency": {name: [number(share) for share in shares] for name, shares in found.saliency.items()},
    }


def unexplained_row(reason: str, prompt: str | None) -> Row:
    """Return the row of a video that could not be read."""
    empty: Row = {"text": None, "levels": {}, "scores": {}, "labels": {}, "saliency": {}}
    return {"prompt": prompt, "valid": False, "reason": reason, **empty}


def number(value: Any) -> float | None:
    """Return a finite number, or None."""
    plain = float(value)
    return plain if math.isfinite(plain) else None


def _numbers(values: Tensor) -> list[float | None] | None:
    found = [number(value) for value in values]
    return None if None in found else found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
