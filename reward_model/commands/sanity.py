"""`video-judge sanity`: damage clips on purpose, and check that the scores of the damaged dimension fall."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from reward_model.commands.inputs import list_items
from reward_model.commands.judge_options import JudgeFactory, open_judge, positive
from reward_model.commands.progress import progress_bar

if TYPE_CHECKING:
    from reward_model.records import RatedClip

EXAMPLES = """examples:
  video-judge sanity                                        the embedded judge on clips of its world
  video-judge sanity --judge FOLDER list.csv                your clips with their prompts (columns path and prompt)
  video-judge sanity --judge FOLDER clips/ --json

These scores must fall: text alignment with another clip's prompt, and with the clip's own prompt if it names a
direction and the clip is reversed; motion quality of shuffled and of frozen frames; visual quality of blurred and of
noisy frames. The effect of another frame rate is only reported. Each clip is its own control: `change` is the mean
change of the score with a 95 % bootstrap interval, and a check passes if the whole interval is below 0. Good clips that
fit their prompts make the best test. The exit status is 1 if a check fails or a clip is unreadable. For the meaning of
a score see `video-judge calibrate`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description, parser.epilog = (
        "Damage clips on purpose, and check that the scores fall as they must.",
        EXAMPLES,
    )
    parser.add_argument(
        "inputs", nargs="*", help="video files, folders or lists (default: clips of the embedded world)"
    )
    parser.add_argument("--prompt", help="generation prompt of videos without one in a list")
    parser.add_argument("--path-column", default="path", help="column of a list that holds the videos (default: path)")
    parser.add_argument(
        "--prompt-column", default="prompt", help="column of a list that holds the prompts (default: prompt)"
    )
    parser.add_argument(
        "--num", type=positive, default=100, help="number of clips of the embedded world (default: 100)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of clips, swaps and damage (default: 0)")


def run(args: argparse.Namespace, judge_factory: JudgeFactory) -> int:
    """Print the table."""
    from reward_model.evaluation.sanity import clean_shapes, sanity

    clips = _clips(args) if args.inputs else clean_shapes(args.num, seed=args.seed)
    judge = open_judge(args, judge_factory, real_clips=bool(args.inputs))
    table = sanity(
        judge,
        clips,
        policy=judge.frame_policy,
        allow_damaged=args.allow_damaged,
        batch_size=args.batch_size,
        seed=args.seed,
        progress=progress_bar(),
    )
    named = {"judge": args.judge, "role": args.role, "seed": args.seed}
    print(json.dumps(named | table.to_json(), allow_nan=False) if args.json else table.format())
    return int(bool(table.failed) or table.num_unread > 0)


def _clips(args: argparse.Namespace) -> list[RatedClip]:
    from reward_model.records import RatedClip

    items = list_items(args.inputs, prompt=args.prompt, path_column=args.path_column, prompt_column=args.prompt_column)
    return [RatedClip(Path(item.path), item.prompt, {}, item.path) for item in items]
