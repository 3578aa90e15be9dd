"""Knockout against all pairs: how often a prompt's best and worst candidate agree, and how many comparisons each asks.

python scripts/bench/tournament.py [--prompts 64] [--group-size 10] [--seed 0] [--docs docs]

The candidates are the embedded generator's, of training prompts; the comparator is the embedded judge's. Each pair is asked
in one order, as VQ-Insight does, and in both.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from generator_loop.evaluation.summary import commit_of
from generator_loop.records import Rollout
from generator_loop.rewards.comparator import Comparator, ComparatorConfig, Margins
from generator_loop.run.build import open_session, read_config
from generator_loop.run.launch import start_processes
from reward_model import VideoJudgeReward

CONFIG = ROOT / "configs" / "joint" / "toy_vq_insight.yaml"


class CountingComparator(Comparator):
    """A comparator that counts the pairs that it is asked for."""

    num_pairs = 0

    def _margins(self, clips: torch.Tensor, prompt: str) -> Margins:
        margins = super()._margins(clips, prompt)

        def counted(pairs: Sequence[tuple[int, int]]) -> Sequence[float]:
            self.num_pairs += len(pairs)
            return margins(pairs)

        return counted


def main(argv: Sequence[str]) -> int:
    """Compare the schedules and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--group-size", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--docs", type=Path, help="folder for bench_tournament.json and .md; none prints the page alone"
    )
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    results = measure(options.prompts, options.group_size, options.seed)
    content = page(results)
    sys.stdout.write(content)
    if options.docs:
        (options.docs / "bench_tournament.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (options.docs / "bench_tournament.md").write_text(content, encoding="utf-8")
    return 0


def measure(num_prompts: int, group_size: int, seed: int) -> dict[str, Any]:
    """Return agreement and cost of the schedules on the same candidates."""
    settings = [f"sampling.num_prompts={num_prompts}", f"sampling.group_size={group_size}", f"run.seed={seed}"]
    session = open_session(
        read_config(CONFIG, [*settings, "refresh.every=0", "run.output=unused"]), start_processes("cpu", {})
    )
    samples = session.sampler.sample(session.sampler.choose_prompts(0), session.draw)
    assert isinstance(session.judge, VideoJudgeReward)
    tables = {
        (both, schedule): standings(session.judge, samples, schedule=schedule, both=both)
        for both in (False, True)
        for schedule in ("round_robin", "knockout")
    }
    lines = [
        {
            "orders": 2 if both else 1,
            "schedule": schedule,
            "pairs": num / num_prompts,
            "seconds": seconds / num_prompts,
            "best": agreement(values, tables[both, "round_robin"][0], best=True),
            "worst": agreement(values, tables[both, "round_robin"][0], best=False),
            "best_of_both_orders": agreement(values, tables[True, "round_robin"][0], best=True),
        }
        for (both, schedule), (values, num, seconds) in tables.items()
    ]
    return {
        "command": f"python scripts/bench/tournament.py --prompts {num_prompts} --group-size {group_size} --seed {seed}",
        "commit": commit_of(ROOT),
        "num_prompts": num_prompts,
        "group_size": group_size,
        "lines": lines,
    }


def standings(
    judge: VideoJudgeReward, samples: Rollout, *, schedule: str, both: bool
) -> tuple[torch.Tensor, int, float]:
    """Return the standings [prompts, G] by a schedule, the pairs asked, and the seconds of this process."""
    config = ComparatorConfig(schedule=schedule, both_orders=both)  # type: ignore[arg-type]
    column = CountingComparator(config, judge, fps=8.0, batch_size=16)
    begun = time.process_time()
    values = column.values(samples).view(-1, samples.group_size)
    return values, column.num_pairs, time.process_time() - begun


def agreement(values: torch.Tensor, reference: torch.Tensor, *, best: bool) -> float:
    """Return the share of prompts whose best (or worst) clip is the reference's."""
    chosen, right = (
        table.nan_to_num(0.5).argmax(1) if best else table.nan_to_num(0.5).argmin(1) for table in (values, reference)
    )
    return float((chosen == right).float().mean())


def page(results: dict[str, Any]) -> str:
    """Return the page in Markdown."""
    lines = [
        "# Knockout against all pairs",
        "",
        f"The best and the worst of {results['group_size']} candidates of each of {results['num_prompts']} prompts by the toy "
        "judge's comparator. Agreement is with all pairs asked in the same orders; the last column is with all pairs asked in "
        "both. A random choice agrees for one prompt in "
        f"{results['group_size']}. Seconds are processor time per prompt on one core.",
        "",
        "| schedule | orders | pairs a prompt | seconds | same best | same worst | best as in both orders |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {line['schedule'].replace('_', ' ')} | {line['orders']} | {line['pairs']:.1f} | {line['seconds']:.2f} | "
        f"{line['best']:.2f} | {line['worst']:.2f} | {line['best_of_both_orders']:.2f} |"
        for line in results["lines"]
    ]
    return "\n".join([*lines, "", f"`{results['command']} --docs docs`, commit {str(results['commit'])[:7]}.", ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
