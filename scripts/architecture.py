"""Writes docs/architecture.md and its drawings from the files themselves.

python scripts/architecture.py [--check]

The tree takes each file's phrase from its first sentence, the floors come from the imports. `--check` writes nothing and ends
with 1 where a page is out of date.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("reward_model", "generator_loop")
DRAWN = (*PACKAGES, "reward_model.judge", "reward_model.training")
"""Packages whose rooms are drawn: a room is a file or folder right under the package."""

LISTED = ("reward_model", "generator_loop", "configs", "scripts")
PAGE = "docs/architecture.md"
Graph = Mapping[str, frozenset[str]]
"""Room -> the rooms that it imports."""


@dataclass(frozen=True)
class Stage:
    """One stage of a data flow: its name, the files or folders that do it, and a sentence about it."""

    name: str
    paths: tuple[str, ...]
    sentence: str


FLOWS: Mapping[str, tuple[Stage, ...]] = {
    "training": (
        Stage("prompts", ("generator_loop/sampling/prompts.py",), "A round's prompts, shared out among the processes."),
        Stage(
            "sampling", ("generator_loop/sampling/rollout.py", "generator_loop/adapters"), "Groups of clips per prompt."
        ),
        Stage(
            "rewards", ("generator_loop/rewards/scorer.py",), "The judge's dimensions and the user's terms, weighted."
        ),
        Stage("advantages", ("generator_loop/rewards/advantages.py",), "Rewards against those of the same prompt."),
        Stage("objective", ("generator_loop/objectives", "generator_loop/flow"), "The loss of one micro-batch."),
        Stage("optimiser", ("generator_loop/optim",), "Accumulate, reduce over processes, clip, step, average."),
        Stage(
            "refresh",
            ("generator_loop/refresh", "reward_model/training/methods/refresh.py"),
            "The judge learns new pairs.",
        ),
        Stage("guards", ("generator_loop/guards",), "Statistics that no reward sees, against reward hacking."),
        Stage("evaluation", ("generator_loop/evaluation",), "Held-out prompts under judges and oracle."),
        Stage("tracking", ("generator_loop/tracking",), "Checkpoints, the metric log, the report, the model card."),
    ),
    "scoring": (
        Stage(
            "video",
            ("reward_model/video_reward.py", "reward_model/media/video_io.py"),
            "Tensors, frames, paths or bytes.",
        ),
        Stage(
            "intake",
            ("reward_model/media/intake.py", "reward_model/media/frame_sampling.py"),
            "Clips with planned frames.",
        ),
        Stage("requests", ("reward_model/language/requests.py",), "One prefix with the clip, one branch per question."),
        Stage(
            "engine",
            ("reward_model/judge/model.py", "reward_model/judge/engine"),
            "Packed batches, logits of the answers.",
        ),
        Stage("readouts", ("reward_model/judge/engine/readouts.py",), "Logits to level probabilities and preferences."),
        Stage("assembly", ("reward_model/scoring/assemble.py",), "Scores, spreads, warnings and reasons of a batch."),
        Stage("output", ("reward_model/records.py",), "The frozen `RewardOutput`, `Comparison` or `Ranking`."),
    ),
}
"""Flow -> its stages, in the order of the data."""


def python_files(root: Path, folder: str) -> list[Path]:
    """Return the Python files of a folder, stored weights and caches aside."""
    return [path for path in sorted((root / folder).rglob("*.py")) if "__pycache__" not in path.parts]


def first_sentence(path: Path) -> str:
    """Return the first sentence of a module's docstring or recipe's comment, without its stop; ValueError where none is."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        paragraph = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0]
    else:
        lines = [line.removeprefix("#").strip() for line in text.splitlines()]
        paragraph = " ".join(lines[: next((n for n, line in enumerate(text.splitlines()) if line[:1] != "#"), 0)])
    sentence = re.split(r"(?<=[.?!])\s|: (?:python|accelerate) ", " ".join(paragraph.split()))[0].rstrip(".")
    if not sentence:
        raise ValueError(f"{path} must open with a sentence about its purpose; give it a docstring or a comment")
    return sentence


def tree(root: Path) -> list[str]:
    """Return the lines of the tree: every Python file and recipe with its first sentence, folders before files."""
    lines: list[str] = []

    def visit(folder: Path, depth: int) -> None:
        own = folder / "__init__.py"
        lines.append(_line(f"{folder.name}/", depth, first_sentence(own) if own.exists() else ""))
        entries = [path for path in sorted(folder.iterdir()) if path.name not in ("assets", "__pycache__")]
        for path in (path for path in entries if path.is_dir() and any([*path.rglob("*.py"), *path.rglob("*.yaml")])):
            visit(path, depth + 1)
        for path in entries:
            if path.suffix in (".py", ".yaml") and path.name != "__init__.py":
                lines.append(_line(path.name, depth + 1, first_sentence(path)))

    for name in LISTED:
        visit(root / name, 0)
    return [*lines, _line("joint_train.py", 0, first_sentence(root / "joint_train.py"))]


def _line(name: str, depth: int, phrase: str) -> str:
    return f"{'  ' * depth + name:<30} {phrase}".rstrip()


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, wherever the statement stands; no relative imports exist."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms(root: Path, package: str) -> dict[str, frozenset[str]]:
    """Return the rooms of a package, each with the other rooms that its files import."""
    base = root / package.replace(".", "/")
    names = {
        path.relative_to(base).parts[0].removesuffix(".py")
        for path in python_files(root, base.relative_to(root).as_posix())
    }
    graph: dict[str, set[str]] = {name: set() for name in sorted(names - {"__init__"})}
    for path in python_files(root, base.relative_to(root).as_posix()):
        name = path.relative_to(base).parts[0].removesuffix(".py")
        targets = {
            target.removeprefix(f"{package}.").split(".")[0]
            for target in imports(path)
            if target.startswith(f"{package}.")
        }
        if name in graph:
            graph[name] |= (targets & set(graph)) - {name}
    return {name: frozenset(targets) for name, targets in graph.items()}


def floors(graph: Graph) -> dict[str, int]:
    """Return each room's floor: 0 without imports, else one above the highest room that it imports; ValueError in a circle."""
    heights: dict[str, int] = {}

    def height(name: str, path: tuple[str, ...]) -> int:
        if name in path:
            raise ValueError(f"rooms import each other in a circle: {' -> '.join((*path, name))}")
        if name not in heights:
            heights[name] = max((height(other, (*path, name)) + 1 for other in sorted(graph[name])), default=0)
        return heights[name]

    for name in graph:
        height(name, ())
    return heights


def direct(graph: Graph) -> dict[str, frozenset[str]]:
    """Return the graph without the imports that others imply (the transitive reduction)."""
    heights = floors(graph)
    below: dict[str, frozenset[str]] = {}
    for name in sorted(graph, key=lambda name: heights[name]):
        below[name] = graph[name].union(*(below[other] for other in graph[name]))
    return {name: targets.difference(*(below[other] for other in targets)) for name, targets in graph.items()}


BOX, GAP, STOREY = 30, 26, 84
"""Height of a box, space between boxes and height of a floor, in pixels."""
STYLE = (
    "<style>text{font:14px monospace;fill:#222}.floor{fill:#888}rect{fill:#eef3fb;stroke:#4a6fa5}"
    "path{fill:none;stroke:#9aa7b8}</style>"
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z" style="fill:#9aa7b8"/></marker></defs>'
)


def floor_drawing(graph: Graph) -> str:
    """Return the rooms as an SVG: one line of boxes a floor, the ground floor last, an arrow for each direct import."""
    heights, arrows = floors(graph), direct(graph)
    storeys = _ordered(heights, arrows)
    widths = {name: 9 * len(name) + 20 for name in graph}
    lengths = [sum(widths[name] + GAP for name in storey) for storey in storeys]
    width, top = max(lengths) + 90, max(heights.values())
    corners = {}
    for level, storey in enumerate(storeys):
        x = 80 + (max(lengths) - lengths[level]) / 2
        for name in storey:
            corners[name] = (x, 16 + STOREY * (top - level))
            x += widths[name] + GAP
    shapes = [
        f'<text class="floor" x="8" y="{36 + STOREY * (top - level)}">floor {level}</text>' for level in range(top + 1)
    ]
    for name in sorted(arrows):
        for other in sorted(arrows[name]):
            start = (corners[name][0] + widths[name] / 2, corners[name][1] + BOX)
            end = (corners[other][0] + widths[other] / 2, corners[other][1])
            shapes.append(_arrow(start, end))
    shapes += [_box(*corners[name], widths[name], name) for name in sorted(corners)]
    return _svg(width, STOREY * top + BOX + 32, shapes)


def _ordered(heights: Mapping[str, int], arrows: Graph) -> list[list[str]]:
    """Return the rooms by floor; a room stands at the mean place of the rooms that it is joined to."""
    storeys = [sorted(name for name in heights if heights[name] == level) for level in range(max(heights.values()) + 1)]
    joined = {name: {*arrows[name], *(other for other in arrows if name in arrows[other])} for name in arrows}
    for _ in range(8):
        places = {name: (n + 0.5) / len(storey) for storey in storeys for n, name in enumerate(storey)}
        means = {
            name: sum(places[other] for other in near) / len(near) if near else 0.5 for name, near in joined.items()
        }
        storeys = [sorted(storey, key=lambda name: (round(means[name], 6), name)) for storey in storeys]
    return storeys


def flow_drawing(stages: Sequence[Stage]) -> str:
    """Return a data flow as an SVG: a box a stage from top to bottom, with its paths beside it."""
    shapes = []
    for place, stage in enumerate(stages):
        y = 10 + 54 * place
        shapes.append(_box(10, y, 150, stage.name))
        shapes.append(f'<text x="176" y="{y + 20}">{escape(", ".join(stage.paths))}</text>')
        if place:
            shapes.append(_arrow((85, y - 54 + BOX), (85, y)))
    longest = max(len(", ".join(stage.paths)) for stage in stages)
    return _svg(190 + 9 * longest, 54 * len(stages) - 6, shapes)


def _box(x: float, y: float, width: float, name: str) -> str:
    text = f'<text x="{x + width / 2:g}" y="{y + 20:g}" text-anchor="middle">{escape(name)}</text>'
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{BOX}" rx="5"/>{text}'


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    bend = (end[1] - start[1]) / 2
    curve = f"M{start[0]:g} {start[1]:g}C{start[0]:g} {start[1] + bend:g} {end[0]:g} {end[1] - bend:g} {end[0]:g} {end[1]:g}"
    return f'<path d="{curve}" marker-end="url(#tip)"/>'


def _svg(width: float, height: float, shapes: Sequence[str]) -> str:
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    ground = '<rect width="100%" height="100%" style="fill:#fff;stroke:none"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', STYLE, ground, *shapes, "</svg>", ""])


def flow_lines(root: Path, stages: Sequence[Stage]) -> list[str]:
    """Return one numbered line a stage; ValueError where a named path does not exist."""
    gone = [path for stage in stages for path in stage.paths if not (root / path).exists()]
    if gone:
        raise ValueError(f"FLOWS in scripts/architecture.py names paths that do not exist: {', '.join(gone)}")
    lines = []
    for number, stage in enumerate(stages, start=1):
        links = ", ".join(f"[{path}](../{path})" for path in stage.paths)
        lines.append(f"{number}. **{stage.name}** ({links}): {stage.sentence}")
    return lines


def pages(root: Path) -> dict[str, str]:
    """Return path -> text of everything that this script writes."""
    texts = {f"docs/floors_{name.replace('.', '_')}.svg": floor_drawing(rooms(root, name)) for name in DRAWN}
    texts |= {f"docs/flow_{name}.svg": flow_drawing(stages) for name, stages in FLOWS.items()}
    lines = [
        "# Architecture",
        "",
        "Written by `python scripts/architecture.py`; a test fails while this page is out of date.",
        "",
        "## Data flows",
        "",
        "**Training a generator.** `generator_loop/loop.py` runs these stages once an iteration:",
        "",
        *flow_lines(root, FLOWS["training"]),
        "",
        "![the training flow](flow_training.svg)",
        "",
        "**Scoring a video.** `VideoJudgeReward` sends a batch through these stages:",
        "",
        *flow_lines(root, FLOWS["scoring"]),
        "",
        "![the scoring flow](flow_scoring.svg)",
        "",
        "## Floors",
        "",
        "A box is a room, that is a file or folder right under its package. A room imports only from floors below its own;",
        "`tests/unit/house/test_floors.py` holds this. An arrow points from a room to one that it imports; imports that follow",
        "from other arrows are left out.",
    ]
    for name in DRAWN:
        graph = rooms(root, name)
        count = f"{len(graph)} rooms on {max(floors(graph).values()) + 1} floors"
        lines += ["", f"**{name}**: {count}.", "", f"![floors of {name}](floors_{name.replace('.', '_')}.svg)"]
    lines += [
        "",
        "## Files",
        "",
        "Each phrase is the first sentence of its file.",
        "",
        "```text",
        *tree(root),
        "```",
        "",
    ]
    return texts | {PAGE: "\n".join(lines)}


def stale(root: Path) -> list[str]:
    """Return the written pages whose text on disk differs from the one that their sources give now."""
    texts = pages(root)
    return [
        name for name in texts if not (root / name).exists() or (root / name).read_text(encoding="utf-8") != texts[name]
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages, or only compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where a page is out of date")
    if parser.parse_args(argv).check:
        old = stale(ROOT)
        if old:
            print(f"out of date: {', '.join(old)}; run python scripts/architecture.py", file=sys.stderr)
        return int(bool(old))
    for name, text in pages(ROOT).items():
        (ROOT / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
