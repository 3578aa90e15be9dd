"""Options shared by all commands, and the judge that they name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

JudgeFactory = Callable[[argparse.Namespace], Any]
"""Takes the parsed arguments and returns a `VideoJudgeReward` or an object with its methods."""

TOY_WARNING = (
    "warning: the embedded toy judge is for moving shapes, small rendered clips; its scores are meaningless for real "
    "video. Choose a judge with --judge FOLDER_OR_HUB_ID."
)


def add_judge_options(parser: argparse.ArgumentParser, *, batches: bool) -> None:
    """Add the options of all commands: the judge, its device and the output; `batches` adds --batch-size."""
    shared = parser.add_argument_group("judge")
    shared.add_argument("--judge", default="toy", help="judge folder or hub id (default: the embedded toy judge)")
    shared.add_argument("--role", help="adapter to use (default: generated, or comparator for comparisons)")
    shared.add_argument("--device", help="device such as cpu or cuda (default: the first CUDA device, else cpu)")
    shared.add_argument("--threads", type=positive, default=1, help="CPU threads (default: 1)")
    if batches:
        shared.add_argument(
            "--batch-size", type=positive, default=8, help="clips or pairs per forward pass (default: 8)"
        )
    shared.add_argument("--allow-damaged", action="store_true", help="judge damaged files by their readable frames")
    shared.add_argument("--json", action="store_true", help="print one JSON object per line")


def load_judge(args: argparse.Namespace) -> Any:
    """Load the judge that the arguments name, and set the thread count of this process."""
    import torch

    from reward_model.video_reward import VideoJudgeReward

    if args.device:
        check_device(args.device)
    torch.set_num_threads(args.threads)
    return VideoJudgeReward.from_pretrained(
        args.judge, role=args.role or "generated", device=args.device, allow_damaged=args.allow_damaged
    )


def check_device(name: str) -> None:
    """Refuse a device that torch does not know, or that this machine or build of torch does not have.

    Args:
        name: one device, such as "cpu", "cuda" or "cuda:1".

    Raises:
        ValueError: the device cannot be used.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device must be cpu, cuda, cuda:1 or the like, got {name!r}") from error
    try:
        torch.empty(1, device=device).item()
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = (
            "this build of torch has no CUDA" if device.type == "cuda" and not torch.version.cuda else "no such device"
        )
        raise ValueError(f"--device {name}: {reason} here; use --device cpu, or leave it out") from error


def open_judge(
    args: argparse.Namespace, judge_factory: JudgeFactory, *, role: str = "generated", real_clips: bool = True
) -> Any:
    """Make the judge of a command; warn if the embedded judge is used on clips of another world.

    Args:
        args: the parsed arguments; their role is set if none was given.
        judge_factory: makes the judge.
        role: default role of the command.
        real_clips: whether the clips may come from outside the embedded judge's world.

    Returns:
        The judge.
    """
    if real_clips:
        warn_of_toy(args)
    args.role = args.role or role
    return judge_factory(args)


def warn_of_toy(args: argparse.Namespace) -> None:
    """Warn on stderr if the judge is the embedded one, which knows only moving shapes."""
    if args.judge == "toy":
        print(TOY_WARNING, file=sys.stderr)


def column_map(items: list[str]) -> dict[str, str] | None:
    """Return the mapping of `--columns OURS=THEIRS ...`, None if there is none; ValueError for another form."""
    for item in items:
        if "=" not in item:
            raise ValueError(f"--columns takes OURS=THEIRS, got {item!r}")
    return dict(item.split("=", 1) for item in items) or None


def positive(text: str) -> int:
    """Return a whole number >= 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1, got {value}")
    return value
