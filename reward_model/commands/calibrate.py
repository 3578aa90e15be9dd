"""`video-judge calibrate`: what a judge's scores mean, and the constants of its z scores."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reward_model.commands.judge_options import JudgeFactory, column_map, open_judge, positive
from reward_model.commands.progress import progress_bar

if TYPE_CHECKING:
    from reward_model.evaluation.calibration import Calibration
    from reward_model.records import RatedClip

WORLD = "moving_shapes"

EXAMPLES = """examples:
  video-judge calibrate moving_shapes --dry-run                the tables for the embedded judge
  video-judge calibrate rated.csv --judge FOLDER               constants into FOLDER/judge_config.json
  video-judge calibrate rated.csv --judge ORG/NAME --output FOLDER     a copy of the judge with the constants
  video-judge calibrate rated.csv --judge FOLDER --columns video=path prompt=text "overall=mos[1,5]"

What it prints:
  constants    mean and deviation of the scores; afterwards --normalize z (in Python normalize="z") standardises by them
  reference    scores at quantiles of these clips, and the mean label of the clips around them; for moving_shapes also
               the scores of clips with one fault of known size
  reliability  the stated spread of a score against the error that was made, and the comparator's probability against
               how often it was right; the calibration error is the mean gap between the two

The list has the columns video and prompt, and labels where they are known (visual_quality, motion_quality,
text_alignment, overall, in [0, 1] unless --columns states their scale). Without labels there are constants only."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description, parser.epilog = (
        "Learn what a judge's scores mean, and write the constants of z scores.",
        EXAMPLES,
    )
    parser.add_argument("dataset", help=f"CSV or JSONL of clips, or {WORLD}: rendered clips, labelled by the oracle")
    parser.add_argument("--columns", nargs="+", default=[], metavar="OURS=THEIRS", help="columns of the file")
    parser.add_argument("--num", type=positive, default=500, help=f"clips of {WORLD} (default: 500)")
    parser.add_argument("--seed", type=int, default=4321, help=f"seed of {WORLD} and of the pairs (default: 4321)")
    parser.add_argument("--pairs", type=int, default=500, help="most pairs for the comparator; 0: none (default: 500)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--output", type=Path, metavar="FOLDER", help="save a copy of the judge with the constants")
    where.add_argument("--dry-run", action="store_true", help="print the tables and write nothing")


def run(args: argparse.Namespace, judge_factory: JudgeFactory) -> int:
    """Calibrate, print the tables and write the constants."""
    from reward_model.evaluation.calibration import calibrate
    from reward_model.evaluation.reference import damage_rows

    _check_place(args)
    clips = _clips(args)
    judge = open_judge(args, judge_factory, real_clips=args.dataset != WORLD)
    found = calibrate(
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
        rows = damage_rows(judge, num=num, seed=args.seed, batch_size=args.batch_size)
        found = dataclasses.replace(found, damage=rows)
    place = None if args.dry_run else str(_write(args, judge, found.for_config()))
    _show(args, found, place)
    return int(any(row.coverage < 1 for row in found.constants))


def _show(args: argparse.Namespace, found: Calibration, place: str | None) -> None:
    if args.json:
        named = {"judge": args.judge, "role": args.role, "dataset": args.dataset, "written_to": place}
        print(json.dumps(named | found.to_json(), allow_nan=False))
        return
    print(found.format())
    if place:
        print(f"\nconstants of {', '.join(row.dimension for row in found.constants)} written to {place}")


def _check_place(args: argparse.Namespace) -> None:
    """Refuse a judge that has no folder of its own to write to, before anything is computed."""
    from reward_model.judge.checkpoints.format import CONFIG_FILE

    if args.output and args.output.exists() and any(args.output.iterdir()):
        raise ValueError(f"--output {args.output} is not empty; name a new folder")
    local = args.judge != "toy" and (Path(args.judge) / CONFIG_FILE).is_file()
    if not (local or args.output or args.dry_run):
        raise ValueError(
            f"constants are written into a judge's own folder, and {args.judge} is none; save a copy of the judge with "
            "--output FOLDER, or look only with --dry-run"
        )


def _clips(args: argparse.Namespace) -> list[RatedClip]:
    from reward_model.datasets.base import CLIP_COLUMNS, read_manifest, read_records
    from reward_model.evaluation.benchmark import moving_shapes_clips
    from reward_model.records import DIMENSIONS, RatedClip

    columns = column_map(args.columns)
    if args.dataset == WORLD:
        if columns:
            raise ValueError(f"--columns describes a file; {WORLD} has none")
        return moving_shapes_clips(args.num, seed=args.seed)
    path = Path(args.dataset)
    rows = read_records(path)
    names = columns or {name: name for name in CLIP_COLUMNS if name in rows[0]}
    if set(names) & set(DIMENSIONS) or set(names) - set(CLIP_COLUMNS) or "video" not in names:
        return read_manifest(path, columns=columns)
    return [
        RatedClip(
            path.parent / str(row[names["video"]]), str(row.get(names.get("prompt", "")) or "") or None, {}, str(i)
        )
        for i, row in enumerate(rows)
    ]


def _comparator(judge: Any) -> Any:
    """Return the judge's comparator; None where it has other roles only. A judge without roles does all by itself."""
    if not judge.judge.roles:
        return judge
    return judge.with_role("comparator") if "comparator" in judge.judge.roles else None


def _write(args: argparse.Namespace, judge: Any, constants: Mapping[str, Mapping[str, float]]) -> Path:
    """Write the constants of the measured dimensions; those of others stay."""
    from reward_model.judge.checkpoints.format import CONFIG_FILE, JudgeConfig

    if args.output:
        judge.judge.configure(calibration={**judge.judge.config.calibration, **constants})
        judge.save_pretrained(args.output)
        return args.output / CONFIG_FILE
    folder = Path(args.judge)
    config = JudgeConfig.load(folder)
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        dataclasses.replace(config, calibration={**config.calibration, **constants}).save(Path(beside))
        os.replace(Path(beside) / CONFIG_FILE, folder / CONFIG_FILE)
    return folder / CONFIG_FILE
