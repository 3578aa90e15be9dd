"""Seeded draws from labelled examples, and the split into training and held-out sources.

Listed examples are drawn in epochs: shuffled anew for each, without replacement. Their stream is a ruler on which every clip
has length 1 and every labelled pair length 2; a draw takes what begins within a stretch of it, so consecutive stretches,
however they are cut into steps and shares of processes, show each example once an epoch.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Literal

from reward_model.records import Annotation, RatedClip, VideoPair

Source = Callable[[int, int], Sequence[Annotation]]
"""source(seed, num) -> examples that show about num clips, a pair counting as two; neighbouring clips share their prompt
where the data has such clips. Equal arguments give equal examples."""

Part = Literal["train", "held_out", "selection", "report"]
"""Part of the data: for training, or held out; the held-out part is divided into one on which weights are chosen and one on
which a judge that was chosen so is reported."""


class Listed:
    """The source of a list of examples; calling it draws from the start of a seed's stream."""

    def __init__(self, examples: Sequence[Annotation]) -> None:
        """Keep the examples, grouped by prompt."""
        self.examples = tuple(examples)
        self.num_clips = sum(map(_length, self.examples))
        groups: dict[object, list[int]] = {}
        for index, one in enumerate(self.examples):
            groups.setdefault(("prompt", one.prompt) if isinstance(one, RatedClip) else index, []).append(index)
        self._groups = [*groups.values()]
        self._last: tuple[tuple[int, int], tuple[list[Annotation], list[int]]] | None = None

    def __call__(self, seed: int, num: int) -> list[Annotation]:
        """Return the examples that begin within the first `num` of the stream; see `draw`."""
        return self.draw(seed, 0, num)

    def draw(self, seed: int, start: int, num: int) -> list[Annotation]:
        """Return the examples that begin within [start, start + num) of the stream.

        Args:
            seed: of the stream: the order of every epoch.
            start: clips that the stream has shown before, over all steps and processes.
            num: clips to show; a labelled pair counts as two, and one that begins within the stretch is drawn whole.

        Returns:
            The examples; clips of one prompt stand next to each other two by two.
        """
        drawn: list[Annotation] = []
        while num > 0 and self.num_clips:
            epoch, place = divmod(start, self.num_clips)
            order, starts = self._epoch(seed, epoch)
            stretch = min(num, self.num_clips - place)
            drawn += order[bisect_left(starts, place) : bisect_left(starts, place + stretch)]
            start, num = start + stretch, num - stretch
        return drawn

    def once(self, seed: int, num: int) -> list[Annotation]:
        """Return examples that show at most `num` clips, each example once."""
        return self.draw(seed, 0, min(num, self.num_clips))

    def _epoch(self, seed: int, epoch: int) -> tuple[list[Annotation], list[int]]:
        """Return the examples in the order of an epoch, and where each begins."""
        if self._last is None or self._last[0] != (seed, epoch):
            order = [self.examples[index] for index in _epoch_order(self._groups, seed, epoch)]
            self._last = (seed, epoch), (order, [0, *accumulate(map(_length, order))][: len(order)])
        return self._last[1]


def _epoch_order(groups: Sequence[Sequence[int]], seed: int, epoch: int) -> list[int]:
    """Shuffle each group, cut it into twos and a rest of one, and shuffle these."""
    rng = random.Random(f"{seed}/{epoch}")
    units: list[Sequence[int]] = []
    for group in groups:
        shuffled = rng.sample(group, len(group))
        units += [shuffled[start : start + 2] for start in range(0, len(shuffled), 2)]
    rng.shuffle(units)
    return [index for unit in units for index in unit]


def _length(example: Annotation) -> int:
    return 2 if isinstance(example, VideoPair) else 1


def open_listed(examples: Sequence[Annotation], *, part: Part, name: str) -> Listed:
    """Return the source that draws from a part of a list of examples.

    Args:
        examples: all of them.
        part: see `part_holds`; only the part to train on must not be empty.
        name: of the list, for the message.

    Returns:
        The source.

    Raises:
        ValueError: Nothing is left to train on.
    """
    chosen = [example for example in examples if part_holds(part, example.source_id)]
    if not chosen and part == "train":
        raise ValueError(f"{name} has nothing to train on: {len(examples)} examples can be used, of held-out sources")
    return Listed(chosen)


def is_held_out(source_id: str) -> bool:
    """Return whether a source is in the held-out tenth, by its name's hash, the same on every machine."""
    return hashlib.sha256(source_id.encode()).digest()[0] % 10 == 0


def is_for_selection(source_id: str) -> bool:
    """Return whether a held-out source is in the half on which weights are chosen, by its name's hash."""
    return hashlib.sha256(source_id.encode()).digest()[1] % 2 == 0


def part_holds(part: Part, source_id: str) -> bool:
    """Return whether a part of the data holds a source; selection and report are the two halves of the held-out tenth."""
    if part == "train":
        return not is_held_out(source_id)
    return is_held_out(source_id) and (part == "held_out" or is_for_selection(source_id) == (part == "selection"))
