"""`video-judge serve`: runs `reward_model.serving.server.main` with the judge that the options name."""

from __future__ import annotations

import argparse

from reward_model.commands.judge_options import JudgeFactory, open_judge
from reward_model.serving.server import main as server

add_arguments = server.add_arguments


def run(args: argparse.Namespace, judge_factory: JudgeFactory) -> int:
    """Serve until SIGTERM or SIGINT; the judge is loaded after the address is bound."""
    return server.run(args, lambda parsed: open_judge(parsed, judge_factory))
