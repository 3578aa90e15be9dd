"""The progress line: when it is written, and how it tells time."""

from __future__ import annotations

import io

import pytest

from reward_model.commands.progress import EVERY, ProgressLine, duration


class TerminalText(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (7620, "2 h 07 min"),
        (90061, "25 h 01 min"),
    ],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def reported(stream: io.StringIO, reports: list[tuple[float, int]], total: int = 100) -> list[str]:
    """Return the lines that reports of (seconds, done) write, from second 3 on."""
    clock = [3.0]
    line = ProgressLine(stream=stream, clock=lambda: clock[0])
    for seconds, done in reports:
        clock[0] = 3.0 + seconds
        line(done, total)
    return stream.getvalue().splitlines()


def test_a_file_gets_a_line_every_few_seconds_and_the_last() -> None:
    reports = [(EVERY - 0.1, 5), (EVERY, 10), (2 * EVERY - 0.1, 15), (2 * EVERY, 20), (2 * EVERY + 1, 100)]
    assert reported(io.StringIO(), reports) == [
        "10/100 clips, 2.00 per second, 45 s left",
        "20/100 clips, 2.00 per second, 40 s left",
        "100/100 clips, 9.09 per second, 0 s left",
    ]


def test_a_terminal_is_redrawn_at_every_report() -> None:
    stream = TerminalText()
    reported(stream, [(0.5, 0), (1.0, 4)])
    assert stream.getvalue() == (
        "\r\x1b[K0/100 clips, 0.00 per second, starting\r\x1b[K4/100 clips, 4.00 per second, 24 s left"
    )
