"""`video-judge compare`: the better of two videos, for one pair or a list of pairs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reward_model.commands.inputs import LISTS, PAIR_COLUMNS
from reward_model.commands.judge_options import JudgeFactory, column_map, open_judge
from reward_model.commands.progress import progress_bar
from reward_model.commands.results import Result, json_line
from reward_model.scoring.json_records import comparison_records
from reward_model.terminal import visible

if TYPE_CHECKING:
    from reward_model.records import Comparison

COLUMNS = ("first", "second", "prompt")
"""Names that --columns maps to those of a list of pairs."""

EXAMPLES = """examples:
  video-judge compare first.mp4 second.mp4 --prompt "a red ring moving up"
  video-judge compare pairs.csv --json             columns path_A, path_B (or first, second) and prompt
  video-judge compare pairs.jsonl --columns first=winner second=loser

Each pair is compared in both orders, and the results are averaged. p_first is the probability that the first video is
better, p_tie that neither is; margin is the lead of the first (-1 to 1); consistent tells whether both orders have the
same winner. `video-judge rank` ranks a group; `video-judge eval --pairs` measures agreement with known preferences."""


@dataclass(frozen=True)
class PathPair:
    """Paths of two videos with one prompt."""

    first: str
    second: str
    prompt: str | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description, parser.epilog = "Compare two videos by overall quality.", EXAMPLES
    parser.add_argument("inputs", nargs="+", metavar="FILE", help="two video files, or one CSV or JSONL list of pairs")
    parser.add_argument("--prompt", help="generation prompt of pairs without one in a list")
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="OURS=THEIRS", help="columns of a list: first, second and prompt"
    )


def run(args: argparse.Namespace, judge_factory: JudgeFactory) -> int:
    """Compare all pairs in both orders, and print each batch of results as it is ready."""
    pairs = _pairs(args)
    judge = open_judge(args, judge_factory, role="comparator")
    progress, failed = progress_bar(unit="pairs", beside_output=True), False
    for start in range(0, len(pairs), args.batch_size):
        batch = pairs[start : start + args.batch_size]
        for result in _compare(judge, batch):
            failed |= not result["valid"]
            text = (
                _sentence(result) if len(pairs) == 1 else f"{result['first']}  {result['second']}  {_sentence(result)}"
            )
            print(json_line(result) if args.json else visible(text), flush=True)
        if progress:
            progress(start + len(batch), len(pairs))
    return int(failed)


def _pairs(args: argparse.Namespace) -> list[PathPair]:
    if len(args.inputs) == 1 and Path(args.inputs[0]).suffix.lower() in LISTS:
        return list(_listed(Path(args.inputs[0]), column_map(args.columns) or {}, args.prompt))
    if len(args.inputs) != 2:
        raise ValueError(f"compare takes two videos, or one CSV or JSONL list of pairs; got {len(args.inputs)} files")
    if args.columns:
        raise ValueError("--columns describes a list of pairs; two videos have no columns")
    first, second = args.inputs
    return [PathPair(first, second, args.prompt)]


def _listed(path: Path, columns: dict[str, str], prompt: str | None) -> Iterator[PathPair]:
    from reward_model.datasets.base import read_records

    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise ValueError(f"--columns: unknown name {unknown[0]!r}; expected some of {', '.join(COLUMNS)}")
    for line, record in enumerate(read_records(path), start=1):
        names = _names(record, columns)
        for name in ("first", "second"):
            if not str(record.get(names[name]) or "").strip():
                raise ValueError(f"{path}, record {line}: no video in column {names[name]!r}; see --columns")
        first, second = (str(path.parent / str(record[names[name]]).strip()) for name in ("first", "second"))
        yield PathPair(first, second, str(record.get(names["prompt"]) or "").strip() or prompt)


def _names(record: Mapping[str, Any], columns: dict[str, str]) -> dict[str, str]:
    """Return the columns of a list of pairs: those that were named, else the first known ones that it has."""
    first, second = next((pair for pair in PAIR_COLUMNS if set(pair) <= set(record)), PAIR_COLUMNS[0])
    return {"first": first, "second": second, "prompt": "prompt"} | columns


def _compare(judge: Any, pairs: Sequence[PathPair]) -> Iterator[Result]:
    sides = [pair.first for pair in pairs], [pair.second for pair in pairs]
    output: Comparison = judge.compare(*sides, [pair.prompt for pair in pairs], batch_size=len(pairs))
    for pair, record in zip(pairs, comparison_records(output, [pair.prompt for pair in pairs]), strict=True):
        yield {"first": pair.first, "second": pair.second, **record}


def _sentence(result: Result) -> str:
    if not result["valid"]:
        return f"not compared: {result['reason']}"
    p_first, p_tie, margin = (result[name] for name in ("p_first", "p_tie", "margin"))
    winner = "neither is better" if margin == 0 else f"{result['first' if margin > 0 else 'second']} is better"
    agreement = "both orders agree" if result["consistent"] else "the two orders disagree"
    return f"{winner} (first {p_first:.3f}, second {1 - p_first - p_tie:.3f}, tie {p_tie:.3f}; {agreement})"
