"""Shared code of the experiments with several arms and seeds: options, runs in processes of their own, joined clips, plots."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from generator_loop.evaluation.columns import Evaluation

Line = tuple[Sequence[float], Sequence[float]]
"""Values along x and along y."""


def parser_of(doc: str, arms: Collection[str], *, runs: str) -> argparse.ArgumentParser:
    """Return a parser of --arms, --seeds, --jobs, --runs, --docs and --from-json; finished runs stand in runs/`runs`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=arms, default=list(arms))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / runs, help="folder of the runs")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the results")
    parser.add_argument(
        "--from-json", action="store_true", help="write the pages again from their JSON, and run nothing"
    )
    return parser


def run_apart(words: Sequence[str], folder: Path) -> int:
    """Run Python with `words` on one thread, its output in the folder's log.txt; say how it ended and return 0 or 1."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        status = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    said = "done" if status == 0 else f"failed ({status}), see {folder / 'log.txt'}"
    print(f"{folder.name}: {said}", flush=True)
    return int(status != 0)


def joined(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Put the clips of several seeds into one evaluation; clips of one prompt stay one unit of the bootstrap."""
    names = set.intersection(*(set(item.columns) for item in evaluations))
    ids = tuple(prompt_id for item in evaluations for prompt_id in item.prompt_ids)
    columns = {name: tuple(v for item in evaluations for v in item.columns[name]) for name in sorted(names)}
    return Evaluation(ids, columns)


def plot(panels: Mapping[str, Mapping[str, Line]], path: Path, *, xlabel: str, dashed: Collection[str] = ()) -> None:
    """Draw panels side by side: title -> label -> line; `dashed` labels are controls."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "the same names in every run"

    figure, axes = pyplot.subplots(1, len(panels), figsize=(6 * len(panels), 4.5), sharex=True)
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for label, (x, y) in lines.items():
            axis.plot(x, y, "--" if label in dashed else "-", marker="o", markersize=3, label=label)
        axis.set(title=title, xlabel=xlabel)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
