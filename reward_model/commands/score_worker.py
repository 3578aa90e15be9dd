"""Worker process of `video-judge score --jobs N`: reads batches from stdin and writes results to stdout."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from typing import IO

from reward_model.commands.inputs import Item
from reward_model.commands.judge_options import load_judge
from reward_model.commands.results import Reading, judged_by, score_items


def serve(args: argparse.Namespace, reading: Reading, requests: IO[str], replies: IO[str]) -> None:
    """Answer every line of `requests`; `workers` describes the format of both streams."""
    judge = None
    for line in requests:
        try:
            judge = judge or load_judge(args)
            items = [Item(path, prompt) for path, prompt in json.loads(line)["items"]]
            reply: dict[str, object] = {"results": score_items(judge, items, reading, judged_by(args, reading))}
        except (ValueError, OSError) as error:
            reply = {"error": str(error)}
        replies.write(json.dumps(reply, allow_nan=False) + "\n")
        replies.flush()


def main() -> None:
    """Read the options from the command line and answer on stdout; other output goes to stderr."""
    settings = json.loads(sys.argv[1])
    reading = Reading(**settings.pop("reading"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it and ends its workers
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(argparse.Namespace(**settings), reading, sys.stdin, replies)


if __name__ == "__main__":
    main()
