"""Measures the toy judge on held-out scenes.

python scripts/experiments/judge_report.py [--judge toy] [--num 500]

Writes docs/toy_judge.md and docs/toy_judge.json: level and reasoned ratings and comparisons against the oracle, as
`video-judge eval --world moving_shapes` prints them, how the scores fall where clips are damaged on purpose, as
`video-judge sanity` does, and which single attributes of a prompt the judge checks; for the embedded judge its model card.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from reward_model.evaluation import benchmark, tables
from reward_model.evaluation.attribution import evaluate_attributions
from reward_model.evaluation.card import CardFacts, read_tables, write_card
from reward_model.evaluation.sanity import clean_shapes, sanity
from reward_model.toy_world import moving_shapes as world
from reward_model.video_reward import TOY_JUDGE, VideoJudgeReward

NUM_SAMPLES = 8
"""Reasoned answers whose mean is scored beside the greedy one."""

NOTES = "The embedded judge of the moving-shapes world, for demonstrations, tests and controlled experiments."

MIN_GAP = 0.1
"""Oracle's gap of overall quality in the pairs that are compared."""


def attribute_checks(judge: VideoJudgeReward, num: int) -> dict[str, dict[str, float]]:
    """Return attribute -> mean text alignment of clean clips whose prompt names its right, or a wrong, value alone."""
    clips = world.sample_rated(num, seed=77, scenes=world.split(world.CORE)[1], clean_share=1.0)
    means = {}
    for name, phrase in world.PHRASES.items():
        asked = [(clip, value) for clip in clips for value in world.CORE.values(name)]
        scores = judge([c.video for c, _ in asked], [phrase.format(value) for _, value in asked], batch_size=16).scores
        values = scores["text_alignment"]
        right = torch.tensor([clip.facts["shown"][name] == value for clip, value in asked])  # type: ignore[index]
        means[name] = {"right": float(values[right].nanmean()), "wrong": float(values[~right].nanmean())}
    return means


def main(argv: Sequence[str]) -> int:
    """Measure and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default="toy", help="judge folder (default: the embedded one)")
    parser.add_argument("--num", type=int, default=500, help="clips rated by levels; fewer are reasoned about")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the results")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    judge = VideoJudgeReward.from_pretrained(options.judge)
    clips = benchmark.moving_shapes_clips(options.num, seed=1234)
    pairs = benchmark.pairs_by_label(clips, min_gap=MIN_GAP, num=len(clips), seed=1234)
    few = clips[: max(2, options.num * 2 // 5)]
    damaged = sanity(judge, clean_shapes(max(2, options.num // 5), seed=0), policy=judge.frame_policy)
    measured: dict[str, tables.Table] = {
        "level readout": benchmark.evaluate_ratings(judge, clips),
        "reasoned readout": benchmark.evaluate_ratings(judge, few, readout="reason"),
        f"reasoned readout, mean of {NUM_SAMPLES} answers": benchmark.evaluate_ratings(
            judge, few, readout="reason", num_samples=NUM_SAMPLES
        ),
        "named faults": evaluate_attributions(judge, few),
        "comparator": benchmark.evaluate_pairs(judge.with_role("comparator"), pairs),
    }
    checks = attribute_checks(judge, max(2, options.num // 5))
    options.docs.mkdir(parents=True, exist_ok=True)
    plain = {name: tables.to_json(table) for name, table in measured.items()}
    plain |= {"sanity": damaged.to_json(), "attributes": checks}
    (options.docs / "toy_judge.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# How well the embedded judge sees its world",
        "",
        f"{len(clips)} clips of attribute combinations that training never saw, rated by the oracle ({len(few)} for the "
        f"reasoned readout; {len(pairs)} pairs at least {MIN_GAP} apart for the comparator). "
        "`python scripts/experiments/judge_report.py` makes this page.",
    ]
    for name, table in measured.items():
        lines += ["", f"## {name[0].upper()}{name[1:]}", "", "```", tables.format_table(table), "```"]
    lines += ["", "## Sanity: damage on purpose", "", "```", damaged.format(), "```"]
    lines += [
        "",
        "## Attributes of a prompt that it checks",
        "",
        "Text alignment of clean clips under a prompt that names one",
    ]
    lines += ["attribute alone. Where right and wrong score alike, the judge does not check it.", ""]
    lines += ["| attribute | right value | wrong value | label of wrong |", "|---|---|---|---|"]
    lines += [f"| {n} | {c['right']:.2f} | {c['wrong']:.2f} | {world.WRONG[n]:.2f} |" for n, c in checks.items()]
    (options.docs / "toy_judge.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    sys.stdout.write("\n".join([*lines, ""]))
    if options.judge == "toy":
        stages = json.loads((TOY_JUDGE / "provenance.json").read_text(encoding="utf-8"))["stages"]
        shown = read_tables(options.docs / "toy_judge.json")
        write_card(TOY_JUDGE, CardFacts(name="toy", license="apache-2.0", tables=shown, stages=stages, notes=NOTES))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
