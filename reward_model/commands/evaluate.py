"""`video-judge eval`: agreement of a judge with labels of clips, pairs or the embedded world."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from reward_model.commands.judge_options import JudgeFactory, column_map, open_judge, positive
from reward_model.commands.progress import progress_bar

if TYPE_CHECKING:
    from reward_model.evaluation.tables import PairTable, RatingTable

EXAMPLES = """examples:
  video-judge eval --world moving_shapes --num 500
  video-judge eval --pairs pairs.csv --readout level
  video-judge eval --manifest ratings.csv --columns video=path "visual_quality=VQ[1,5]"

srcc and krcc are rank correlations with the labels (srcc with a 95 % bootstrap interval), plcc is linear correlation,
and plcc logistic is plcc after the usual logistic fit. Pair accuracy compares clips of the same prompt. Each figure is
shown next to the value for random scores. Coverage is the share of clips with a score; below 1 the exit status is 1."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description, parser.epilog = "Measure how well a judge agrees with labels.", EXAMPLES
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--world", choices=("moving_shapes",), help="rendered held-out clips, labelled by the oracle")
    source.add_argument("--manifest", metavar="FILE", help="CSV or JSONL list of rated clips")
    source.add_argument("--pairs", metavar="FILE", help="CSV or JSONL list of pairs labelled A, B or same")
    parser.add_argument("--num", type=positive, default=500, help="number of clips of a world (default: 500)")
    parser.add_argument("--seed", type=int, default=1234, help="random seed of a world (default: 1234)")
    parser.add_argument("--columns", nargs="+", default=[], metavar="OURS=THEIRS", help="columns of the file")
    parser.add_argument(
        "--readout",
        choices=("level", "reason", "compare"),
        default="level",
        help="readout of the judge (default: level)",
    )
    parser.add_argument("--samples", type=positive, default=1, help="reasoned answers to average (default: 1, greedy)")
    parser.add_argument("--min-gap", type=float, help="smallest label gap of a pair (default: 0.05; compare: 0.1)")


def run(args: argparse.Namespace, judge_factory: JudgeFactory) -> int:
    """Evaluate on a world or a file and print the table."""
    from reward_model.evaluation import tables

    table = _evaluate(args, judge_factory)
    print(json.dumps(tables.to_json(table), allow_nan=False) if args.json else tables.format_table(table))
    return int(any(line.coverage < 1 for line in table.rows) or not table.rows)


def _evaluate(args: argparse.Namespace, judge_factory: JudgeFactory) -> RatingTable | PairTable:
    from reward_model.datasets.base import read_manifest, read_pairs
    from reward_model.evaluation import benchmark

    columns = column_map(args.columns)
    compares = args.readout == "compare"
    gap = (0.1 if compares else 0.05) if args.min_gap is None else args.min_gap
    role = "comparator" if compares else "generated"
    if args.pairs:
        pairs = read_pairs(args.pairs, columns=columns)
        judge, bar = open_judge(args, judge_factory, role=role), progress_bar(unit="pairs")
        return benchmark.evaluate_pairs(judge, pairs, method=args.readout, batch_size=args.batch_size, progress=bar)
    if args.manifest:
        clips = read_manifest(args.manifest, columns=columns)
    elif columns:
        raise ValueError("--columns describes a file; a world has no columns")
    else:
        clips = benchmark.moving_shapes_clips(args.num, seed=args.seed)
    judge = open_judge(args, judge_factory, role=role, real_clips=bool(args.manifest))
    if not compares:
        return benchmark.evaluate_ratings(
            judge,
            clips,
            readout=args.readout,
            num_samples=args.samples,
            min_gap=gap,
            batch_size=args.batch_size,
            progress=progress_bar(),
        )
    pairs = benchmark.pairs_by_label(clips, min_gap=gap, num=len(clips), seed=args.seed)
    if not pairs:
        raise ValueError(f"no two clips of one prompt differ by {gap} in overall; lower --min-gap")
    return benchmark.evaluate_pairs(judge, pairs, batch_size=args.batch_size, progress=progress_bar(unit="pairs"))
