"""`video-judge explain`: why a video scores as it does."""

from __future__ import annotations

import argparse
from typing import Any

from reward_model.commands.judge_options import JudgeFactory, open_judge
from reward_model.commands.results import json_line
from reward_model.scoring.json_records import explanation_record, unexplained_record

EXAMPLES = """examples:
  video-judge explain clip.mp4
  video-judge explain clip.mp4 --prompt "a red ring moving up" --json

The text is the judge's reasoned answer. Below it, per dimension: the level word, the score and the faults that the
answer names, and the frame on which the level hangs most, by the gradient of the score at the pixels."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description, parser.epilog = "Say why a video scores as it does.", EXAMPLES
    parser.add_argument("video", help="video file")
    parser.add_argument("--prompt", help="generation prompt")


def run(args: argparse.Namespace, judge_factory: JudgeFactory) -> int:
    """Print reasoned text, levels, faults and the frames that matter."""
    from reward_model.records import VideoError

    judge = open_judge(args, judge_factory)
    try:
        row = explanation_record(judge.explain(args.video, args.prompt), args.prompt)
    except VideoError as error:
        row = unexplained_record(str(error), args.prompt)
    result = {"path": args.video, **row}
    print(json_line(result) if args.json else _text(result))
    return int(not result["valid"])


def _text(result: dict[str, Any]) -> str:
    if result["text"] is None:
        return f"not explained: {result['reason']}"
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
