"""`video-judge`: score, compare and explain videos, calibrate and check a judge.

Only the module of the given command is imported, which keeps `--help` fast.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module

import reward_model
from reward_model.commands.judge_options import JudgeFactory, add_judge_options, load_judge
from reward_model.terminal import VisibleParser, visible, warnings_of

COMMANDS = {
    "score": ("reward_model.commands.score", "score videos: files, folders, CSV or JSONL lists"),
    "compare": ("reward_model.commands.compare", "compare two videos, or a list of pairs"),
    "rank": ("reward_model.commands.rank", "rank videos of one prompt"),
    "explain": ("reward_model.commands.explain", "explain the scores of a video"),
    "eval": ("reward_model.commands.evaluate", "measure agreement with labels"),
    "calibrate": ("reward_model.commands.calibrate", "measure what scores mean, and the constants of z scores"),
    "sanity": ("reward_model.commands.sanity", "damage clips on purpose, and check that the scores fall"),
    "bench": ("reward_model.commands.bench", "measure clips per second and peak memory"),
    "export": ("reward_model.commands.export", "write a judge, or one merged role, with a model card"),
    "serve": ("reward_model.commands.serve", "answer requests over HTTP"),
}
"""Command -> its module and one line of help."""

UNBATCHED = ("explain", "bench", "export")
"""Commands without --batch-size."""

DESCRIPTION = """Judge generated or natural video.

Four dimensions are scored, each in [0, 1], higher is better: visual_quality, motion_quality, text_alignment and
overall. Text alignment needs the prompt that the video was generated from; without one, overall is the mean of the
other dimensions. An unavailable score is empty (null in JSON) and comes with a reason; scores are never made up."""

EXAMPLES = """examples:
  video-judge score clip.mp4 --prompt "a large red circle moving left slowly over a plain floor"
  video-judge score clips/ --output scores.csv               resumable with --resume, parallel with --jobs 4
  video-judge compare first.mp4 second.mp4 --prompt "..."
  video-judge rank clips/*.mp4 --prompt "..."                best first
  video-judge explain clip.mp4
  video-judge eval --world moving_shapes --num 500           agreement with labels
  video-judge sanity --judge FOLDER                          must score damaged clips lower
  video-judge calibrate rated.csv --judge FOLDER             constants for z scores, into the judge's folder
  video-judge COMMAND --help                                 all options of a command, with examples

The meaning of a score depends on the judge. `video-judge calibrate moving_shapes --dry-run` prints a reference table
for the judge of --judge: its scores at quantiles of known clips, and the labels of these clips.

exit status: 0 success; 1 an item has no score or a check failed; 2 the command line or an input file is wrong."""


def main(argv: Sequence[str] | None = None, *, judge_factory: JudgeFactory | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program name; None takes those of the process.
        judge_factory: makes the judge; None loads the one that `--judge` names.

    Returns:
        Exit status: 0, 1 if any item failed, 2 for a wrong command line, 130 if interrupted.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    args = build_parser(given).parse_args(given)
    try:
        with warnings_of("video-judge"):
            return args.run(args, judge_factory or load_judge)
    except (ValueError, OSError) as error:
        print(f"video-judge {args.command}: {visible(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"video-judge {args.command}: interrupted", file=sys.stderr)
        return 130


class ShowVersion(argparse.Action):
    """Prints the version, which is looked up only if it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print program and version, and exit with 0."""
        print(f"{parser.prog} {reward_model.__version__}")
        parser.exit()


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of all commands; only the command in `argv` has its options."""
    layout = partial(argparse.RawDescriptionHelpFormatter, max_help_position=28)
    parser = VisibleParser(prog="video-judge", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=layout)
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    asked = next((item for item in argv if not item.startswith("-")), None)
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, formatter_class=layout)
        if name == asked:
            chosen = import_module(module)
            add_judge_options(command, batches=name not in UNBATCHED)
            chosen.add_arguments(command)
            command.set_defaults(run=chosen.run)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
