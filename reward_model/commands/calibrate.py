"""`video-judge calibrate`: reference tables for a judge's scores, and the constants of its z scores."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reward_model.commands.judge_options import JudgeFactory, column_map, open_judge, positive
from reward_model.commands.progress import progress_bar
from reward_model.terminal import visible

if TYPE_CHECKING:
    from reward_model.evaluation.calibration import Calibration
    from reward_model.records import RatedClip

WORLD = "moving_shapes"

EXAMPLES = """examples:
  video-judge calibrate moving_shapes --dry-run                the tables for the embedded judge
  video-judge calibrate rated.csv --judge FOLDER               constants into FOLDER/judge_config.json
  video-judge calibrate rated.csv --judge ORG/NAME --output FOLDER     a copy of the judge with the constants
  video-judge calibrate rated.csv --judge FOLDER --columns video=path prompt=text "overall=mos[1,5]"

Output:
  constants    mean and standard deviation of the scores, by which --normalize z (normalize="z" in Python) standardises
  reference    scores at quantiles of these clips, and the mean label of the clips around each; for moving_shapes also
               the scores of clips with one fault of known size
  reliability  the stated spread of a score against the actual error, and the comparator's probability against its
               accuracy; the calibration error is the mean gap between the two

The list has the columns video and prompt, and optional labels (visual_quality, motion_quality, text_alignment,
overall, in [0, 1] unless --columns states another scale). Without labels only the constants are computed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description, parser.epilog = (
        "Measure what a judge's scores mean, and write the constants of its z scores.",
        EXAMPLES,
    )
    parser.add_argument(
        "dataset", help=f"CSV or JSONL list of clips, or {WORLD}: rendered clips, labelled by the oracle"
    )
    parser.add_argument("--columns", nargs="+", default=[], metavar="OURS=THEIRS", help="columns of the file")
    parser.add_argument("--num", type=positive, default=500, help=f"number of clips of {WORLD} (default: 500)")
    parser.add_argument("--seed", type=int, default=4321, help=f"seed of {WORLD} and of the pairs (default: 4321)")
    parser.add_argument(
        "--pairs", type=int, default=500, help="maximum number of pairs for the comparator; 0: none (default: 500)"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--output", type=Path, metavar="FOLDER", help="save a copy of the judge with the constants")
    where.add_argument("--dry-run", action="store_true", help="print the tables without writing the constants")


def run(args: argparse.Namespace, judge_factory: JudgeFactory) -> int:
    """Calibrate, print the tables and write the constants."""
    from reward_model.evaluation.calibration import calibrate
    from reward_model.evaluation.reference import damage_rows

    _check_destination(args)
    clips = _clips(args)
    judge = open_judge(args, judge_factory, real_clips=args.dataset != WORLD)
    calibration = calibrate(
        judge,
        clips,
        comparator=_comparator(judge) if args.pairs > 0 else None,
        num_pairs=args.pairs,
        batch_size=args.batch_size,
        seed=args.seed,
        progress=progress_bar(unit="clips and pairs"),
    )
    if args.dataset == WORLD:
        num = max(len(clips) // 20, 1)
        damage = damage_rows(judge, num=num, seed=args.seed, batch_size=args.batch_size)
        calibration = dataclasses.replace(calibration, damage=damage)
    written = None if args.dry_run else str(_write(args, judge, calibration.for_config()))
    _show(args, calibration, written)
    return int(any(constant.coverage < 1 for constant in calibration.constants))


def _show(args: argparse.Namespace, calibration: Calibration, written: str | None) -> None:
    if args.json:
        named = {"judge": args.judge, "role": args.role, "dataset": args.dataset, "written_to": written}
        print(json.dumps(named | calibration.to_json(), allow_nan=False))
        return
    print(calibration.format())
    if written:
        print(
            f"\nconstants of {', '.join(constant.dimension for constant in calibration.constants)} written to {visible(written)}"
        )


def _check_destination(args: argparse.Namespace) -> None:
    """Raise, before anything is computed, if there is no folder to write the constants to."""
    from reward_model.judge.checkpoints.format import CONFIG_FILE

    if args.output and args.output.exists() and any(args.output.iterdir()):
        raise ValueError(f"--output {args.output} is not empty; name a new folder")
    local = args.judge != "toy" and (Path(args.judge) / CONFIG_FILE).is_file()
    if not (local or args.output or args.dry_run):
        raise ValueError(
            f"constants are written into the judge's folder, and {args.judge} is not a local folder; save a copy of the "
            "judge with --output FOLDER, or only print the tables with --dry-run"
        )


def _clips(args: argparse.Namespace) -> list[RatedClip]:
    from reward_model.datasets.base import CLIP_COLUMNS, read_manifest, read_records
    from reward_model.evaluation.benchmark import moving_shapes_clips
    from reward_model.records import DIMENSIONS, RatedClip

    columns = column_map(args.columns)
    if args.dataset == WORLD:
        if columns:
            raise ValueError(f"--columns describes a file; {WORLD} has no columns")
        return moving_shapes_clips(args.num, seed=args.seed)
    path = Path(args.dataset)
    records = read_records(path)
    names = columns or {name: name for name in CLIP_COLUMNS if name in records[0]}
    if set(names) & set(DIMENSIONS) or set(names) - set(CLIP_COLUMNS) or "video" not in names:
        return read_manifest(path, columns=columns)
    return [
        RatedClip(
            path.parent / str(record[names["video"]]),
            str(record.get(names.get("prompt", "")) or "") or None,
            {},
            str(i),
        )
        for i, record in enumerate(records)
    ]


def _comparator(judge: Any) -> Any:
    """Return the judge in its comparator role; None if it has only other roles. A judge without roles is returned."""
    if not judge.judge.roles:
        return judge
    return judge.with_role("comparator") if "comparator" in judge.judge.roles else None


def _write(args: argparse.Namespace, judge: Any, constants: Mapping[str, Mapping[str, float]]) -> Path:
    """Write the constants of the measured dimensions, keep those of others, and return the path."""
    from reward_model.judge.checkpoints.format import CONFIG_FILE, JudgeConfig

    if args.output:
        judge.judge.configure(calibration={**judge.judge.config.calibration, **constants})
        judge.save_pretrained(args.output)
        return args.output / CONFIG_FILE
    folder = Path(args.judge)
    config = JudgeConfig.load(folder)
    dataclasses.replace(config, calibration={**config.calibration, **constants}).save(folder)
    return folder / CONFIG_FILE
