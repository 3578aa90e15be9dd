"""Turns what is known of a clip into the text that a judge learns to say about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NO_FAULT = "none"


def reasoning(caption: str, faults: Mapping[str, Sequence[str]]) -> str:
    """Return the chain of thought of a reasoned answer: what is seen, then the faults of each dimension.

    Args:
        caption: what the clip shows.
        faults: dimension -> names of its faults, none for a clean one.

    Returns:
        One line, e.g. "the video shows a red circle moving left . visual_quality : blur , grain . motion_quality : none"
        with one full stop a clause; `language.parsing.parse_faults` reads it back.
    """
    clauses = [f"{name}: {', '.join(names) if names else NO_FAULT}." for name, names in faults.items()]
    return " ".join([f"the video shows {caption}.", *clauses])
