"""Writes the tables of docs/mutation.md from docs/mutation.json: mutants and how many of them fail a test, part by part.

python scripts/experiments/mutation_page.py
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"


def table(mutants: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of one sample: each part in the order of the file, and all of them."""
    lines = ["| part | mutants run | killed before | killed after | before | after |", "|---|---|---|---|---|---|"]
    for part in [*dict.fromkeys(mutant["part"] for mutant in mutants), "all"]:
        own = [mutant for mutant in mutants if part in ("all", mutant["part"])]
        counts = [sum(mutant[name] for mutant in own) for name in ("killed_before", "killed_after")]
        shares = " | ".join(f"{count / len(own):.0%}".replace("%", " %") for count in counts)
        lines.append(f"| {part} | {len(own)} | {counts[0]} | {counts[1]} | {shares} |")
    return "\n".join(lines)


def page(text: str, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the page with the table of each sample between its marks, `<!-- NAME sample -->` and `<!-- end -->`."""
    for name, mutants in samples.items():
        pattern = re.compile(rf"(<!-- {name} sample -->\n).*?(\n<!-- end -->)", re.DOTALL)
        text, num = pattern.subn(lambda match, own=mutants: f"{match[1]}{table(own)}{match[2]}", text)
        if num != 1:
            raise ValueError(f"docs/mutation.md needs one pair of marks for the {name} sample, got {num}")
    return text


def main() -> int:
    """Write the page."""
    file = DOCS / "mutation.md"
    samples = json.loads((DOCS / "mutation.json").read_text(encoding="utf-8"))
    file.write_text(page(file.read_text(encoding="utf-8"), samples), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
