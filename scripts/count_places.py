"""Counts the files that name one thing of each kind: the places to change when another one is added.

python scripts/count_places.py [CHECKOUT ...] [--files] [--write]

Files of both packages count where their code names the thing (docstrings and comments left out); tests, pages and recipes do
not. Each checkout gets a column; the default is this one. `--files` lists the files of the last checkout.
"""

from __future__ import annotations

import argparse
import ast
import functools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("reward_model", "generator_loop")
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- places -->", "<!-- /places -->"
"""Marks of the table in CONTRIBUTING.md."""

THINGS: Mapping[str, tuple[str, ...]] = {
    "generator family": ("mochi", "MochiGenerator"),
    "objective": ("refl", "Refl", "ReflConfig"),
    "judge family": ("qwen2_vl", "Qwen2VL"),
    "dataset reader": ("koniq", "read_koniq"),
    "dimension": ("motion_quality",),
    "refresh pair source": ("new_beats_old", "NewBeatsOld", "losers_of", "Loser"),
    "guard": ("saturation", "Saturation"),
    "GRPO reward": ("bell",),
    "host": ("vader",),
    "CLI command": ("bench",),
}
"""Kind -> the names under which one thing of the kind occurs in code."""


class _WithoutDocstrings(ast.NodeTransformer):
    """Removes docstrings, those under fields and constants included."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:  # noqa: N802
        """Replace a bare string by a constant without text."""
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return ast.Expr(ast.Constant(...)) if is_text else node


@functools.cache
def code_of(path: Path) -> str:
    """Return a file's code without comments and docstrings."""
    return ast.unparse(_WithoutDocstrings().visit(ast.parse(path.read_text(encoding="utf-8"))))


def places(root: Path, names: Sequence[str]) -> list[str]:
    """Return the files of the packages whose code or file name holds one of the names as a whole word."""
    pattern = re.compile(rf"(?<![A-Za-z0-9_])(?:{'|'.join(names)})(?![A-Za-z0-9_])")
    files = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    return [path.relative_to(root).as_posix() for path in files if path.stem in names or pattern.search(code_of(path))]


def table(roots: Sequence[Path]) -> str:
    """Return the Markdown table with a column for each checkout."""
    heads = ["files"] if len(roots) == 1 else [f"files in {root}" for root in roots]
    lines = ["| to add | example | " + " | ".join(heads) + " |", "|---" * (2 + len(roots)) + "|"]
    for kind, names in THINGS.items():
        counts = [str(len(places(root, names))) for root in roots]
        lines.append(f"| {kind} | `{names[0]}` | " + " | ".join(counts) + " |")
    return "\n".join(lines)


def page(text: str) -> str:
    """Return the text of CONTRIBUTING.md with the table of this checkout between its marks."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table([ROOT])}\n{END}{rest.partition(END)[2]}"


def main(argv: Sequence[str]) -> int:
    """Print the table, or write it into CONTRIBUTING.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[ROOT], help="folders of checkouts")
    parser.add_argument("--files", action="store_true", help="list the files of the last checkout")
    parser.add_argument("--write", action="store_true", help="write this checkout's table into CONTRIBUTING.md")
    options = parser.parse_args(argv)
    if options.write:
        CONTRIBUTING.write_text(page(CONTRIBUTING.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    print(table(options.checkouts))
    for kind, names in THINGS.items() if options.files else ():
        print(f"\n{kind}:", *places(options.checkouts[-1], names), sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
