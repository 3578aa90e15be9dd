"""How far a long command is: done, rate and the time that remains, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

EVERY = 5.0
"""Seconds between lines where stderr is a file; a terminal's one line is drawn anew each time."""


class Progress:
    """Draws `done/total` with the rate since it was made; callable as a benchmark's `progress`."""

    def __init__(
        self, *, unit: str = "clips", stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.unit, self.stream, self.clock = unit, stream or sys.stderr, clock
        self.start = self.last = clock()

    def __call__(self, done: int, total: int) -> None:
        """Tell that `done` of `total` are finished."""
        now, ended = self.clock(), done >= total
        terminal = self.stream.isatty()
        if not (terminal or ended or now - self.last >= EVERY):
            return
        self.last = now
        rate = done / max(now - self.start, 1e-9)
        left = f"{duration((total - done) / rate)} left" if done else "starting"
        text = f"{done}/{total} {self.unit}, {rate:.2f} a second, {left}"
        end = "\n" if ended or not terminal else ""
        self.stream.write(("\r\x1b[K" if terminal else "") + text + end)
        self.stream.flush()


def progress_bar(wanted: bool = False, *, unit: str = "clips", beside_output: bool = False) -> Progress | None:
    """Return a progress line where it was asked for or somebody watches, else None.

    Args:
        wanted: whatever stderr is.
        unit: what is counted.
        beside_output: results are printed meanwhile, and on a terminal show by themselves how far it is.

    Returns:
        The line.
    """
    watched = sys.stderr.isatty() and not (beside_output and sys.stdout.isatty())
    return Progress(unit=unit) if wanted or watched else None


def duration(seconds: float) -> str:
    """Return seconds as "9 s", "3 min 05 s" or "2 h 07 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
