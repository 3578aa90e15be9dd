"""Text for a terminal or a log: whatever a file name, a prompt or a message holds, it can neither forge a line nor move the cursor."""

from __future__ import annotations

import argparse
import logging
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, TextIO

_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def visible(text: str) -> str:
    r"""Return a text for a terminal or a table: control, format and line characters, which could forge it, as `\x1b`."""
    return "".join(
        one.encode("unicode_escape").decode() if unicodedata.category(one) in _UNSEEN else one for one in text
    )


class VisibleFormatter(logging.Formatter):
    """Formats each message of a log as one visible line; the lines of a traceback stay apart."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and below it those of an exception."""
        return "\n".join(visible(line) for line in self._lines(super().format(record), record))

    def _lines(self, text: str, record: logging.LogRecord) -> list[str]:
        below = record.exc_text or (self.formatStack(record.stack_info) if record.stack_info else "")
        head = text.removesuffix(below) if below else text
        return [head.removesuffix("\n"), *(below.splitlines() if below else [])]


def log_visibly(form: str, *, stream: TextIO) -> None:
    """Send all logs of this program to a stream, one visible line for each message.

    Args:
        form: of a line, in the style of `logging`.
        stream: of the terminal.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(VisibleFormatter(form))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


@contextmanager
def warnings_of(program: str) -> Iterator[None]:
    """Show each warning as one line that begins with the program's name, not with a place in the code.

    Args:
        program: its name.

    Yields:
        Nothing.
    """
    before = warnings.formatwarning

    def one_line(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        """Return the line; its place is left out."""
        return f"{program}: warning: {visible(str(message))}\n"

    warnings.formatwarning = one_line
    try:
        yield
    finally:
        warnings.formatwarning = before


class VisibleParser(argparse.ArgumentParser):
    """A parser whose refusals quote the command line visibly, since a shell may have put file names into it."""

    def error(self, message: str) -> NoReturn:
        """Print usage and refusal, and exit with 2."""
        super().error(visible(message))
