"""`video-judge explain`: reasoned text, faults and decisive frames of a video."""

from __future__ import annotations

import argparse
from typing import Any

from reward_model.commands.judge_options import JudgeFactory, open_judge
from reward_model.commands.results import json_line
from reward_model.scoring.json_records import explanation_record, unexplained_record
from reward_model.terminal import visible

EXAMPLES = """examples:
  video-judge explain clip.mp4 --prompt "a red ring moving up" --json

The text is the judge's reasoned answer. Below it, each dimension has the level word, the score and the faults that the
answer names, and the frame that affects the level most, by the gradient of the score with respect to the pixels."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description, parser.epilog = "Explain the scores of a video.", EXAMPLES
    parser.add_argument("video", help="video file")
    parser.add_argument("--prompt", help="generation prompt")


def run(args: argparse.Namespace, judge_factory: JudgeFactory) -> int:
    """Print the reasoned text, levels, faults and decisive frames."""
    from reward_model.records import VideoError

    judge = open_judge(args, judge_factory)
    try:
        record = explanation_record(judge.explain(args.video, args.prompt), args.prompt)
    except VideoError as error:
        record = unexplained_record(str(error), args.prompt)
    result = {"path": args.video, **record}
    print(json_line(result) if args.json else _text(result))
    return int(not result["valid"])


def _text(result: dict[str, Any]) -> str:
    if result["text"] is None:
        return f"not explained: {visible(result['reason'])}"
    refusal = f"not explained: {visible(result['reason'])}"
    lines = [*([refusal] if result["reason"] else map(visible, result["text"].split("\n"))), ""]
    if result["words"]:
        lines.append(f"asked in {visible(result['words'])}")
    for name, level in result["levels"].items():
        shares = result["saliency"].get(name, [])
        facts = [f"{name}: {level}"]
        if result["scores"].get(name) is not None:
            facts.append(f"reasoned score {result['scores'][name]:.3f}")
        if result["labels"].get(name):
            facts.append("faults: " + ", ".join(result["labels"][name]))
        if shares and None not in shares:
            facts.append(f"frame {max(range(len(shares)), key=shares.__getitem__) + 1} of {len(shares)} matters most")
        lines.append(visible("; ".join(facts)))
    return "\n".join(lines)
