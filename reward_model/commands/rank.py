"""`video-judge rank`: videos of one prompt in order, best first."""

from __future__ import annotations

import argparse
import sys

from reward_model.commands.inputs import list_items
from reward_model.commands.judge_options import JudgeFactory, open_judge
from reward_model.commands.results import json_line
from reward_model.terminal import visible

EXAMPLES = """examples:
  video-judge rank a.mp4 b.mp4 c.mp4 --prompt "a red ring moving up"
  video-judge rank clips/ --prompt "..." --json

N videos take at most N log2 N comparisons, each in both orders. Ties keep the order of the command line. An unreadable
video is listed with the reason and left out of the order."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description, parser.epilog = "Rank videos of one prompt, best first.", EXAMPLES
    parser.add_argument("inputs", nargs="+", help="video files or folders of them")
    parser.add_argument("--prompt", help="generation prompt of all videos")


def run(args: argparse.Namespace, judge_factory: JudgeFactory) -> int:
    """Print the order of the group."""
    paths = [item.path for item in list_items(args.inputs)]
    judge = open_judge(args, judge_factory, role="comparator")
    try:
        ranking = judge.rank(paths, args.prompt, batch_size=args.batch_size)
    except RuntimeError as error:
        print(f"video-judge rank: {visible(str(error))}", file=sys.stderr)
        return 1
    failed = {path: reason for path, reason in zip(paths, ranking.reasons, strict=True) if reason}
    order = [paths[place] for place in ranking.order]
    if args.json:
        ranked = {"order": order, "prompt": args.prompt, "valid": not failed, "reasons": failed}
        print(json_line(ranked | {"num_compared": ranking.num_compared}))
    else:
        for place, path in enumerate(order, start=1):
            print(f"{place:4d}  {visible(path)}")
        for path, reason in failed.items():
            print(f"   -  {visible(path)}: {visible(reason)}")
    return int(bool(failed))
