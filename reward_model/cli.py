"""`video-judge`: score, compare and explain videos, and evaluate a judge.

Nothing heavy is imported before the arguments are understood, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reward_model.evaluation.tables import PairTable, RatingTable
    from reward_model.records import RewardOutput

SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg", ".flv", ".ogv", ".wmv", ".gif"}
"""What counts as a video when a folder is given; files named one by one are always tried."""

SHORT = {"visual_quality": "visual", "motion_quality": "motion", "text_alignment": "text", "overall": "overall"}
NO_PROMPT = "no prompt"

TOY_WARNING = (
    "warning: the embedded toy judge is for moving shapes, small rendered clips; its scores say nothing about real "
    "video. Name a judge with --judge FOLDER_OR_HUB_ID."
)

EXAMPLES = """examples:
  video-judge score clip.mp4 --prompt "a large red circle moving left slowly over a plain floor"
  video-judge score clips/ more/*.mp4 --json       one JSON object a line, null where a score could not be had
  video-judge score list.csv                       a CSV with the columns path and prompt
  video-judge compare first.mp4 second.mp4 --prompt "..."
  video-judge explain clip.mp4
  video-judge eval --world moving_shapes --num 500
  video-judge eval --pairs pairs.csv --readout level
  video-judge eval --manifest ratings.csv --columns video=path "visual_quality=VQ[1,5]"

Scores are in [0, 1], higher is better. Text alignment needs a prompt; without one, overall is the mean of the other
dimensions. The exit status is 1 if any item could not be scored and 2 if the command line is wrong."""

JudgeFactory = Callable[[argparse.Namespace], Any]
"""Takes the parsed arguments and returns what `VideoJudgeReward` is."""


def main(argv: Sequence[str] | None = None, *, judge_factory: JudgeFactory | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None takes those of the process.
        judge_factory: makes the judge; None loads the one that `--judge` names.

    Returns:
        Exit status: 0, 1 if any item failed, 2 for a wrong command line.
    """
    args = build_parser().parse_args(argv)
    if args.role is None:
        args.role = "comparator" if args.compares(args) else "generated"
    try:
        return args.run(args, judge_factory or load_judge)
    except (ValueError, OSError) as error:
        print(f"video-judge {args.command}: {error}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--judge", default="toy", help="judge folder or hub id (default: the embedded toy judge)")
    shared.add_argument("--role", help="adapter to use (default: generated, or comparator where clips are compared)")
    shared.add_argument("--device", help="device such as cpu or cuda (default: cpu)")
    shared.add_argument("--threads", type=_positive, default=1, help="CPU threads (default: 1)")
    shared.add_argument("--batch-size", type=_positive, default=8, help="clips a forward pass (default: 8)")
    shared.add_argument(
        "--allow-damaged", action="store_true", help="judge damaged files by the frames that can be read"
    )
    shared.add_argument("--json", action="store_true", help="print one JSON object a line")
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="video-judge", description="Judge generated or natural video.", epilog=EXAMPLES, formatter_class=raw
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="score|compare|explain|eval")

    score = commands.add_parser("score", parents=[shared], help="score videos", epilog=EXAMPLES, formatter_class=raw)
    score.add_argument("inputs", nargs="+", help="video files, folders of them, or CSV files with path and prompt")
    score.add_argument("--prompt", help="generation prompt of every video that has none in a CSV")
    score.add_argument("--path-column", default="path", help="CSV column of the videos (default: path)")
    score.add_argument("--prompt-column", default="prompt", help="CSV column of the prompts (default: prompt)")
    score.add_argument("--readout", choices=("level", "reason"), default="level", help="one pass, or a reasoned answer")
    score.add_argument("--samples", type=_positive, default=1, help="reasoned answers to average (default: 1, greedy)")
    score.set_defaults(run=run_score, compares=lambda args: False)

    compare = commands.add_parser("compare", parents=[shared], help="say which of two videos is better")
    compare.add_argument("first", help="video file")
    compare.add_argument("second", help="video file")
    compare.add_argument("--prompt", help="generation prompt of both")
    compare.set_defaults(run=run_compare, compares=lambda args: True)

    explain = commands.add_parser("explain", parents=[shared], help="say why a video scores as it does")
    explain.add_argument("video", help="video file")
    explain.add_argument("--prompt", help="generation prompt")
    explain.set_defaults(run=run_explain, compares=lambda args: False)

    evaluate = commands.add_parser(
        "eval", parents=[shared], help="set a judge against labels", epilog=EXAMPLES, formatter_class=raw
    )
    source = evaluate.add_mutually_exclusive_group(required=True)
    source.add_argument("--world", choices=("moving_shapes",), help="rendered held-out clips, labelled by the oracle")
    source.add_argument("--manifest", metavar="FILE", help="CSV or JSONL of rated clips")
    source.add_argument("--pairs", metavar="FILE", help="CSV or JSONL of pairs labelled A, B or same")
    evaluate.add_argument("--num", type=_positive, default=500, help="clips of a world (default: 500)")
    evaluate.add_argument("--seed", type=int, default=1234, help="seed of a world (default: 1234)")
    evaluate.add_argument("--columns", nargs="+", default=[], metavar="OURS=THEIRS", help="columns of the file")
    evaluate.add_argument("--readout", choices=("level", "reason", "compare"), default="level", help="how to read it")
    evaluate.add_argument(
        "--samples", type=_positive, default=1, help="reasoned answers to average (default: 1, greedy)"
    )
    evaluate.add_argument("--min-gap", type=float, help="smallest label gap of a pair (default: 0.05; compare: 0.1)")
    evaluate.set_defaults(run=run_eval, compares=lambda args: args.readout == "compare")
    return parser


def load_judge(args: argparse.Namespace) -> Any:
    """Load the judge that the arguments name, with the thread count of this process set."""
    import torch

    from reward_model.video_reward import VideoJudgeReward

    torch.set_num_threads(args.threads)
    return VideoJudgeReward.from_pretrained(
        args.judge, role=args.role, device=args.device, allow_damaged=args.allow_damaged
    )


def run_score(args: argparse.Namespace, judge_factory: JudgeFactory) -> int:
    """Score files, folders and CSV lists, printing as results come."""
    items = list(_items(args))
    _warn(args)
    judge = judge_factory(args)
    width = max(len(path) for path, _ in items)
    if not args.json:
        print("  ".join(["file".ljust(width), *(name.rjust(7) for name in SHORT.values()), "remarks"]))
    failed = False
    for start in range(0, len(items), args.batch_size):
        batch = items[start : start + args.batch_size]
        output = judge(
            [path for path, _ in batch],
            [prompt for _, prompt in batch],
            readout=args.readout,
            num_samples=args.samples,
        )
        for row, (path, prompt) in enumerate(batch):
            result = _result(output, row, path, prompt)
            failed |= not result["valid"]
            print(json.dumps(result, allow_nan=False) if args.json else _score_line(result, width), flush=True)
    return int(failed)


def run_compare(args: argparse.Namespace, judge_factory: JudgeFactory) -> int:
    """Compare two files in both orders."""
    _warn(args)
    output = judge_factory(args).compare([args.first], [args.second], [args.prompt])
    valid = bool(output.valid[0])
    p_first, p_tie, margin = (_number(values[0]) for values in (output.p_first, output.p_tie, output.margin))
    result = {"first": args.first, "second": args.second, "prompt": args.prompt, "valid": valid}
    result |= {"p_first": p_first, "p_tie": p_tie, "margin": margin}
    result |= {"consistent": bool(output.consistent[0]) if valid else None, "reason": output.reasons[0]}
    if args.json:
        print(json.dumps(result, allow_nan=False))
    elif p_first is None or p_tie is None or margin is None:
        print(f"not compared: {output.reasons[0]}")
    else:
        winner = "neither is better" if margin == 0 else f"{args.first if margin > 0 else args.second} is better"
        agreement = "both orders agree" if output.consistent[0] else "the two orders disagree"
        print(f"{winner} (first {p_first:.3f}, second {1 - p_first - p_tie:.3f}, tie {p_tie:.3f}; {agreement})")
    return int(not valid)


def run_explain(args: argparse.Namespace, judge_factory: JudgeFactory) -> int:
    """Print reasoned text, levels, faults and the frames that matter."""
    from reward_model.records import VideoError

    _warn(args)
    judge = judge_factory(args)
    result: dict[str, Any] = {"path": args.video, "prompt": args.prompt, "valid": False}
    try:
        found = judge.explain(args.video, args.prompt)
    except VideoError as error:
        result["reason"] = str(error)
        print(json.dumps(result) if args.json else f"not explained: {error}")
        return 1
    result |= {"valid": not found.reason, "reason": found.reason, "text": found.text, "levels": dict(found.levels)}
    result["scores"] = {name: _number(value) for name, value in found.quality.items()}
    result["labels"] = {name: list(labels) for name, labels in found.labels.items()}
    result["saliency"] = {name: [_number(share) for share in shares] for name, shares in found.saliency.items()}
    print(json.dumps(result, allow_nan=False) if args.json else _explanation(result))
    return int(not result["valid"])


def run_eval(args: argparse.Namespace, judge_factory: JudgeFactory) -> int:
    """Evaluate on a world or a file and print the table."""
    from reward_model.evaluation import tables

    table = _evaluate(args, judge_factory)
    print(json.dumps(tables.to_json(table), allow_nan=False) if args.json else tables.format_table(table))
    return int(any(row.coverage < 1 for row in table.rows) or not table.rows)


def _evaluate(args: argparse.Namespace, judge_factory: JudgeFactory) -> RatingTable | PairTable:
    from reward_model.datasets.base import read_manifest, read_pairs
    from reward_model.evaluation import benchmark

    columns = _columns(args.columns)
    common = {"batch_size": args.batch_size, "progress": _progress if sys.stderr.isatty() else None}
    compares = args.readout == "compare"
    gap = (0.1 if compares else 0.05) if args.min_gap is None else args.min_gap
    if args.pairs:
        pairs = read_pairs(args.pairs, columns=columns)
        _warn(args)
        return benchmark.evaluate_pairs(judge_factory(args), pairs, method=args.readout, **common)
    if args.manifest:
        clips = read_manifest(args.manifest, columns=columns)
        _warn(args)
    elif columns:
        raise ValueError("--columns describes a file; a world has none")
    else:
        clips = benchmark.moving_shapes_clips(args.num, seed=args.seed)
    judge = judge_factory(args)
    if not compares:
        return benchmark.evaluate_ratings(
            judge, clips, readout=args.readout, num_samples=args.samples, min_gap=gap, **common
        )
    pairs = benchmark.pairs_by_label(clips, min_gap=gap, num=len(clips), seed=args.seed)
    if not pairs:
        raise ValueError(f"no two clips of one prompt differ by {gap} in overall; lower --min-gap")
    return benchmark.evaluate_pairs(judge, pairs, **common)


def _items(args: argparse.Namespace) -> Iterator[tuple[str, str | None]]:
    """Yield path and prompt of every video that the inputs name."""
    for name in args.inputs:
        path = Path(name)
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            if not found:
                raise ValueError(f"{name}: no video files in this folder")
            yield from ((str(file), args.prompt) for file in found)
        elif path.suffix.lower() == ".csv":
            yield from _listed(path, args)
        else:
            yield name, args.prompt


def _listed(path: Path, args: argparse.Namespace) -> Iterator[tuple[str, str | None]]:
    from reward_model.datasets.base import read_rows

    for number, row in enumerate(read_rows(path), start=1):
        if args.path_column not in row:
            raise ValueError(f"{path}: no column {args.path_column!r}; it has {sorted(row)}; see --path-column")
        video = str(row[args.path_column] or "").strip()
        if not video:
            raise ValueError(f"{path}, row {number}: no video in column {args.path_column!r}")
        yield str(path.parent / video), str(row.get(args.prompt_column) or "").strip() or args.prompt


def _result(output: RewardOutput, row: int, path: str, prompt: str | None) -> dict[str, Any]:
    """Return one item's JSON object; valid unless more than a prompt was missing."""
    reasons = {name: found[row] for name, found in output.reasons.items() if found[row]}
    plan = output.frame_plan[row]
    return {
        "path": path,
        "prompt": prompt,
        "valid": all(reason == NO_PROMPT for reason in reasons.values()),
        "scores": {name: _number(values[row]) for name, values in output.scores.items()},
        "std": {name: _number(values[row]) for name, values in output.std.items()},
        "reasons": reasons,
        "overall_from": list(output.overall_from[row]),
        "text": output.texts[row] if output.texts is not None else None,
        "frames": None if plan is None else {"indices": list(plan.indices), "times": list(plan.times)},
    }


def _score_line(result: dict[str, Any], width: int) -> str:
    scores = [result["scores"].get(name) for name in SHORT]
    cells = ["-".rjust(7) if score is None else f"{score:7.3f}" for score in scores]
    remarks = list(dict.fromkeys(reason for reason in result["reasons"].values() if reason != NO_PROMPT))
    if result["valid"] and result["reasons"]:
        remarks.append(f"no prompt: overall is the mean of {' and '.join(result['overall_from'])}")
    return "  ".join([result["path"].ljust(width), *cells, "; ".join(remarks)]).rstrip()


def _explanation(result: dict[str, Any]) -> str:
    lines = [result["text"], ""]
    for name, level in result["levels"].items():
        shares = result["saliency"].get(name, [])
        parts = [f"{name}: {level}"]
        if result["scores"].get(name) is not None:
            parts.append(f"reasoned score {result['scores'][name]:.3f}")
        if result["labels"].get(name):
            parts.append("faults: " + ", ".join(result["labels"][name]))
        if shares and None not in shares:
            parts.append(f"frame {max(range(len(shares)), key=shares.__getitem__) + 1} of {len(shares)} matters most")
        lines.append("; ".join(parts))
    if result["reason"]:
        lines.append(f"the reasoned answer could not be read: {result['reason']}")
    return "\n".join(lines)


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _columns(items: Sequence[str]) -> dict[str, str] | None:
    for item in items:
        if "=" not in item:
            raise ValueError(f"--columns takes OURS=THEIRS, got {item!r}")
    return dict(item.split("=", 1) for item in items) or None


def _warn(args: argparse.Namespace) -> None:
    if args.judge == "toy":
        print(TOY_WARNING, file=sys.stderr)


def _progress(done: int, total: int) -> None:
    print(f"\r{done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1, got {value}")
    return value


if __name__ == "__main__":
    raise SystemExit(main())
