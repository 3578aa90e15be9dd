"""Recipes of the hosts' docstrings, which the tests of the hosts run as they stand."""

from __future__ import annotations

from textwrap import dedent
from types import ModuleType


def recipes(module: ModuleType) -> list[str]:
    """Return the indented blocks of a module's docstring."""
    blocks, lines = [], []
    for line in [*(module.__doc__ or "").splitlines(), "end"]:
        if line.startswith("    ") or (lines and not line.strip()):
            lines.append(line)
        elif lines:
            blocks.append(dedent("\n".join(lines)).strip())
            lines = []
    return blocks
