"""The table of rated dimensions: prompts, scores and tables read one entry of it for each dimension.

A new dimension is one more entry of `BY_NAME`. A judge answers those that its own `config.dimensions` lists.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

OVERALL = "overall"
"""Dimension that sums the others up: without a prompt, the mean of the available ones stands for it."""


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One rated dimension."""

    name: str
    """Key in scores, files and configurations; words joined by "_"."""
    question: str
    """Question of a rating."""
    rubric: str
    """Sentence that explains the question."""
    prompt: Literal["unused", "optional", "required"]
    """Whether the question shows the generation prompt; "required" makes the score invalid without one."""
    in_prefix: bool = False
    """Whether the rubric stands in the prefix that all requests about a clip share, and the question in comparisons. Those
    texts belong to `PROMPTS_VERSION`: judges were trained with them. The rubric of a later dimension precedes its question."""
    short: str
    """Heading of a narrow column."""
    video_align: str = ""
    """VideoAlign's name; empty for none."""


BY_NAME: dict[str, Dimension] = {
    entry.name: entry
    for entry in (
        Dimension(
            name="visual_quality",
            question="Visual quality?",
            rubric="Visual quality: sharp, clean frames.",
            prompt="unused",
            in_prefix=True,
            short="visual",
            video_align="VQ",
        ),
        Dimension(
            name="motion_quality",
            question="Motion quality?",
            rubric="Motion quality: smooth, plausible motion.",
            prompt="unused",
            in_prefix=True,
            short="motion",
            video_align="MQ",
        ),
        Dimension(
            name="text_alignment",
            question="Text alignment?",
            rubric="Text alignment: shows the prompt.",
            prompt="required",
            in_prefix=True,
            short="text",
            video_align="TA",
        ),
        Dimension(
            name=OVERALL,
            question="Overall quality?",
            rubric="Overall quality: all of it.",
            prompt="optional",
            in_prefix=True,
            short="overall",
        ),
    )
}
"""Name -> dimension, in the order in which the judge is asked for them."""


def dimension_of(name: str) -> Dimension:
    """Return a dimension by its name; ValueError for an unknown one."""
    if name not in BY_NAME:
        raise ValueError(f"unknown dimension {name!r}, expected one of {', '.join(BY_NAME)}")
    return BY_NAME[name]


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return the known dimensions among `names`, in the order of the table."""
    wanted = set(names)
    return tuple(name for name in BY_NAME if name in wanted)


def needs_prompt(name: str) -> bool:
    """Return whether a dimension is invalid without a generation prompt."""
    return dimension_of(name).prompt == "required"


def shows_prompt(name: str) -> bool:
    """Return whether the question of a dimension shows the generation prompt."""
    return dimension_of(name).prompt != "unused"


def video_align_names() -> dict[str, str]:
    """Return VideoAlign's names -> dimensions, in the order in which VideoAlign lists them."""
    return {entry.video_align: entry.name for entry in BY_NAME.values() if entry.video_align}
