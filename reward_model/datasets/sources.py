"""Seeded, endless draws from labelled examples, and the split into training and held-out sources."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from functools import partial

from reward_model.records import Annotation, RatedClip, VideoPair

Source = Callable[[int, int], Sequence[Annotation]]
"""source(seed, num) -> examples that show about num clips, a pair counting as two; neighbouring clips share their prompt
where the data has such clips. Equal arguments give equal examples."""


def open_listed(examples: Sequence[Annotation], *, held_out: bool, name: str) -> Source:
    """Return the source that draws from a list of examples.

    Args:
        examples: all of them.
        held_out: draw from the tenth of the sources that `is_held_out` names, otherwise from the rest.
        name: of the list, for the message.

    Returns:
        The source.

    Raises:
        ValueError: Nothing is left on the asked side of the split.
    """
    chosen = [example for example in examples if is_held_out(example.source_id) == held_out]
    if not chosen:
        raise ValueError(f"{name} has nothing {'to hold out' if held_out else 'to train on'} of {len(examples)}")
    return partial(draw_listed, sorted(chosen, key=_place))


def is_held_out(source_id: str) -> bool:
    """Return whether a source is in the held-out tenth, by its name's hash, the same on every machine."""
    return hashlib.sha256(source_id.encode()).digest()[0] % 10 == 0


def draw_listed(examples: Sequence[Annotation], seed: int, num: int) -> list[Annotation]:
    """Draw neighbours two by two, or one labelled pair in place of two clips, until about `num` clips are shown."""
    rng = random.Random(seed)
    drawn: list[Annotation] = []
    for _ in range((num + 1) // 2):
        start = rng.randrange(max(1, len(examples) - 1))
        if isinstance(examples[start], VideoPair):
            drawn.append(examples[start])
        else:
            drawn += [e for e in examples[start : start + 2] if not isinstance(e, VideoPair)]
    return drawn[:num]


def _place(example: Annotation) -> tuple[str, str]:
    """Sort by kind, and clips of one prompt next to each other."""
    return type(example).__name__, (example.prompt or "") if isinstance(example, RatedClip) else ""
