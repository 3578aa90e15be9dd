"""Progress of a long command on stderr: items done, rate and remaining time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

EVERY = 5.0
"""Seconds between lines if stderr is a file; on a terminal the line is redrawn every time."""


class ProgressLine:
    """Writes `done/total` with the rate since construction; callable as the `progress` of a benchmark."""

    def __init__(
        self, *, unit: str = "clips", stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.unit, self.stream, self.clock = unit, stream or sys.stderr, clock
        self.start = self.last = clock()

    def __call__(self, done: int, total: int) -> None:
        """Report that `done` of `total` items are finished."""
        now, ended = self.clock(), done >= total
        terminal = self.stream.isatty()
        if not (terminal or ended or now - self.last >= EVERY):
            return
        self.last = now
        rate = done / max(now - self.start, 1e-9)
        left = f"{duration((total - done) / rate)} left" if done else "starting"
        text = f"{done}/{total} {self.unit}, {rate:.2f} per second, {left}"
        end = "\n" if ended or not terminal else ""
        self.stream.write(("\r\x1b[K" if terminal else "") + text + end)
        self.stream.flush()


def progress_bar(wanted: bool = False, *, unit: str = "clips", beside_output: bool = False) -> ProgressLine | None:
    """Return a progress line if it is requested or stderr is a terminal, else None.

    Args:
        wanted: return one even if stderr is not a terminal.
        unit: plural name of the items.
        beside_output: results are printed meanwhile; if stdout is a terminal, too, they show the progress themselves.

    Returns:
        The progress line.
    """
    watched = sys.stderr.isatty() and not (beside_output and sys.stdout.isatty())
    return ProgressLine(unit=unit) if wanted or watched else None


def duration(seconds: float) -> str:
    """Return seconds as "9 s", "3 min 05 s" or "2 h 07 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
