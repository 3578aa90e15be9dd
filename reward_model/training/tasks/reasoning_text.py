"""Writes the reasoning that a judge learns to say about a clip from its caption, faults and qualities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reward_model.language.requests import level_answer
from reward_model.records import DIMENSIONS

NO_FAULT = "none"


def reasoning(caption: str, faults: Mapping[str, Sequence[str]], quality: Mapping[str, float]) -> str:
    """Return the chain of thought of a reasoned answer: the caption, then each dimension's level and faults.

    The level comes first, so that the answer's numbers follow a judgement that is already spoken.

    Args:
        caption: of the clip's content.
        faults: dimension -> names of its faults, none for a clean one.
        quality: dimension -> [0, 1].

    Returns:
        One line, e.g. "the video shows a red circle moving left. visual_quality: poor, blur, grain. overall: poor." with
        one full stop a clause; `language.parsing.parse_faults` reads it back.
    """
    clauses = [f"the video shows {caption}."]
    for name in DIMENSIONS:
        level = [level_answer(quality[name]).strip()] if name in quality else []
        if level or name in faults:
            clauses.append(f"{name}: {', '.join([*level, *faults.get(name, ())]) or NO_FAULT}.")
    return " ".join(clauses)
