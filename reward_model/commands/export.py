"""`video-judge export`: a judge, or one merged role, as a folder with a model card, optionally uploaded to a hub."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reward_model.commands.judge_options import JudgeFactory
from reward_model.terminal import visible

if TYPE_CHECKING:
    from reward_model.evaluation.card import CardFacts
    from reward_model.judge.exchange.servers import ScoreChange
    from reward_model.judge.model import VideoJudge

EXAMPLES = """examples:
  video-judge export OUT --judge FOLDER --tables held_out.json --license apache-2.0     the judge and its card
  video-judge export OUT --judge FOLDER --merge generated --dtype bfloat16       a stock checkpoint for transformers
  video-judge export OUT --judge FOLDER --push OWNER/NAME --private              and upload it to the hub

Each file of --tables holds the output of one `video-judge eval --json`. A merged role can be used as a judge, too; its card has
the lines that score with stock transformers, and says for which clips vLLM and SGLang give the same positions."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description, parser.epilog = "Write a judge as a folder with a model card, to share it.", EXAMPLES
    parser.add_argument("output", type=Path, help="folder to write; must be new or empty with --merge")
    parser.add_argument("--merge", metavar="ROLE", help="merge this role into a stock checkpoint; base: merge none")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="dtype of the weights (default: float32)",
    )
    card = parser.add_argument_group("model card")
    card.add_argument("--name", help="title and hub id (default: the repository of --push, or the name of the folder)")
    card.add_argument("--license", default="", help="licence id, such as apache-2.0")
    card.add_argument("--tables", nargs="+", default=[], metavar="FILE", help="JSON of `video-judge eval --json`")
    card.add_argument(
        "--provenance", metavar="FILE", help="JSON of training stages (default: those in the judge's folder, if any)"
    )
    card.add_argument("--notes", default="", help="a paragraph of your own for the card")
    card.add_argument("--base-id", default="", help="hub id of the base, if the judge names a local folder")
    card.add_argument("--base-revision", help="revision of --base-id")
    hub = parser.add_argument_group("hub")
    hub.add_argument("--push", metavar="OWNER/NAME", help="upload the folder to this repository")
    hub.add_argument("--private", action="store_true", help="create the repository as private")


def run(args: argparse.Namespace, _: JudgeFactory) -> int:
    """Write the folder, upload it with --push, and print its place; the judge is loaded with all roles, none active."""
    from reward_model.evaluation.card import write_card
    from reward_model.evaluation.export import export_hub_folder, push_to_hub
    from reward_model.judge.exchange.merge import merge_role
    from reward_model.judge.model import VideoJudge

    facts = _facts(args)
    judge = VideoJudge.from_pretrained(_source(args), dtype=args.dtype, device=args.device or "cpu")
    if args.merge is None:
        export_hub_folder(judge, args.output, facts, base_id=args.base_id, base_revision=args.base_revision)
    else:
        role = None if args.merge == "base" else args.merge
        merge_role(judge, role, args.output)
        change = _change_on_servers(judge, role)
        write_card(args.output, dataclasses.replace(facts, served=change))
    written = {"folder": str(args.output)}
    if args.push:
        written["url"] = push_to_hub(args.output, args.push, private=args.private)
    sys.stdout.write(f"{json.dumps(written) if args.json else chr(10).join(map(visible, written.values()))}\n")
    return 0


def _change_on_servers(judge: VideoJudge, role: str | None) -> ScoreChange | None:
    """Measure the change of the scores under vLLM's and SGLang's positions, and warn where there is one."""
    from reward_model.judge.exchange.servers import score_change
    from reward_model.language.styles import OWN

    family = judge.family
    is_read_by_levels = judge.config.prompt_style == OWN and judge.head is None
    if not is_read_by_levels or family.server_rule not in family.position_rules:
        return None
    change = score_change(judge, role)
    if change is not None:
        warnings.warn(
            f"vLLM and SGLang have other positions than `{family.position_rule}` for some clips, and give other scores there: by "
            f"{change.mean:.3f} in the mean for {change.seconds:g} s at {change.height} x {change.width} pixels; see the model card",
            stacklevel=2,
        )
    return change


def _facts(args: argparse.Namespace) -> CardFacts:
    from reward_model.evaluation.card import CardFacts, read_tables

    return CardFacts(
        name=args.name or args.push or args.output.name,
        license=args.license,
        tables={title: table for file in args.tables for title, table in read_tables(file).items()},
        stages=_stages(args),
        notes=args.notes,
    )


def _stages(args: argparse.Namespace) -> dict[str, Any]:
    """Return the training stages in the file of --provenance, or in the judge's folder if it has such a file."""
    own = _source(args) / "provenance.json"
    file = Path(args.provenance) if args.provenance else own
    if file == own and not own.is_file():
        return {}
    return json.loads(file.read_text(encoding="utf-8"))["stages"]


def _source(args: argparse.Namespace) -> Path:
    from reward_model.video_reward import TOY_JUDGE

    return TOY_JUDGE if args.judge == "toy" else Path(args.judge)
