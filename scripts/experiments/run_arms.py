"""Runs the arms of the toy experiment, several seeds each, and writes their table, plot and JSON.

    python scripts/experiments/run_arms.py                     all arms, three seeds, two runs at a time on one thread each
    python scripts/experiments/run_arms.py --arms nft dpo --seeds 0 --jobs 1
    python scripts/experiments/run_arms.py --from-json         the page again, from the JSON of earlier runs

A finished run is not repeated and an interrupted one is resumed: the script can be stopped and started at will.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from arms import ROOT, Line, joined, parser_of, plot, run_apart

from generator_loop.evaluation.columns import CURRENT, INITIAL
from generator_loop.evaluation.summary import difference, means_by_source
from generator_loop.run.state import ends
from reward_model.evaluation import metrics

ARMS: dict[str, tuple[str, ...]] = {
    "nft": (),
    "nft_no_refresh": ("refresh.every=0",),
    "dpo": ("objective.name=dpo", "update.learning_rate=1e-4"),
    "draft": ("objective.name=draft", "update.learning_rate=1e-4", "sampling.group_size=4", "loop.num_rounds=2"),
    "shuffled": ("reward.transform=shuffle",),
    "reversed": ("reward.transform=negate",),
}
"""Arm -> its overrides of configs/toy.yaml."""

TITLES = {
    "nft": "DiffusionNFT, judge refreshed",
    "nft_no_refresh": "DiffusionNFT, judge fixed",
    "dpo": "Diffusion-DPO, judge refreshed",
    "draft": "DRaFT-K, judge refreshed (short)",
    "shuffled": "control: rewards shuffled",
    "reversed": "control: rewards reversed",
}
JUDGES = (INITIAL, CURRENT)
ALPHA = 0.05
"""Chance of one or more wrong findings on the page."""
DIMENSIONS = ("overall", "visual_quality", "motion_quality", "text_alignment")


def main() -> int:
    """Run the missing runs, then write the results; return the number of runs that failed."""
    options = parser_of(__doc__, ARMS, runs="arms").parse_args()
    if options.from_json:
        content = json.loads((options.docs / "toy_results.json").read_text(encoding="utf-8"))
        (options.docs / "toy_results.md").write_text(page_of(content["arms"]), encoding="utf-8")
        return 0
    todo = [(arm, seed) for seed in options.seeds for arm in options.arms]
    with ThreadPoolExecutor(options.jobs) as pool:
        statuses = list(pool.map(lambda item: run_one(options.runs, *item), todo))
    summaries = {arm: collect([output(options.runs, arm, seed) for seed in options.seeds]) for arm in options.arms}
    summaries = {arm: summary for arm, summary in summaries.items() if summary}
    if summaries:
        write_results(summaries, options.docs)
    return sum(status != 0 for status in statuses)


def output(runs: Path, arm: str, seed: int) -> Path:
    """Return the folder of one run."""
    return runs / f"{arm}-{seed}"


def run_one(runs: Path, arm: str, seed: int) -> int:
    """Run or resume one arm with one seed in a process of one thread, and return its exit status."""
    folder = output(runs, arm, seed)
    if (folder / "summary.json").exists():
        return 0
    started = (folder / "checkpoints" / "LATEST").exists()
    place = f"resume={folder}" if started else f"run.output={folder}"
    if not started and (folder / "config.yaml").exists():
        (folder / "config.yaml").unlink()  # killed before its first checkpoint: nothing to resume
    settings = [*ARMS[arm], f"run.seed={seed}", "run.num_threads=1", place]
    return run_apart([str(ROOT / "joint_train.py"), str(ROOT / "configs" / "toy.yaml"), *settings], folder)


def collect(folders: Sequence[Path]) -> dict[str, Any]:
    """Return one summary of an arm over its finished seeds; empty if none has finished."""
    done = [folder for folder in folders if (folder / "summary.json").exists()]
    if not done:
        return {}
    summaries = [json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in done]
    before, after = (joined(side) for side in zip(*(ends(folder) for folder in done), strict=True))
    settings = summaries[0]["config"]
    settings["run"]["output"] = os.path.relpath(settings["run"]["output"], ROOT)
    for summary in summaries:
        del summary["config"]
    return {
        "before": means_by_source(before),
        "after": means_by_source(after),
        "difference": difference(before, after, num_resamples=2000, seed=0),
        "num_prompts": summaries[0]["num_prompts"],
        "num_seeds": len(summaries),
        "config": settings,
        "runs": summaries,
    }


def write_results(arms: Mapping[str, Mapping[str, Any]], docs: Path) -> None:
    """Write toy_results.json, .md and .svg."""
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "toy_results.json").write_text(json.dumps({"arms": arms}, indent=1) + "\n", encoding="utf-8")
    panels = {
        "oracle, overall (measures only)": lines_of(arms, _oracle),
        "reward of the initial judge": lines_of(arms, _reward),
    }
    plot(panels, docs / "toy_results.svg", xlabel="round", dashed=[TITLES["shuffled"], TITLES["reversed"]])
    (docs / "toy_results.md").write_text(page_of(arms), encoding="utf-8")


def page_of(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page of the summaries by arm, which `toy_results.json` holds."""
    corrected = corrected_p_values(arms)
    lines = [
        "# Results of the toy loop",
        "",
        "## Findings",
        "",
        *(f"- {sentence}" for sentence in findings(arms, corrected)),
        "",
        *on_refreshing(arms),
        "## Protocol",
        "",
        "The generator learns from the judge alone; the oracle only measures. Each row is the change on "
        f"{next(iter(arms.values()))['num_prompts']} held-out prompts with the same noise before and after. Intervals are 95 %, "
        "Student's t over the seeds, each by itself; they hold the prompts fixed. Holm's p is corrected for all "
        f"{len(corrected)} changes of this page. A change counts as shown where it is below {ALPHA} and the interval by prompt "
        "over all seeds (`low` and `high` in the JSON) leaves out 0 too. Learning rates were not tuned for each arm, so this page "
        "does not rank objectives. `python scripts/experiments/run_arms.py` makes this page, `--from-json` writes it again from "
        "the JSON. The rules are in [protocol.md](protocol.md).",
        "",
        "![oracle by round](toy_results.svg)",
        "",
        "| arm | seeds | oracle before | after | "
        + " | ".join(f"{name.replace('_', ' ')}, Holm's p" for name in DIMENSIONS)
        + " | diversity | flow loss, times | right pairs | refreshes kept | minutes |",
        "|---" * (9 + len(DIMENSIONS)) + "|",
        *(table_line(arm, summary, corrected) for arm, summary in arms.items()),
        "",
        "Right pairs: how often the judge orders two clips of one held-out prompt as the oracle does, where the oracle "
        "sets them 0.05 apart: the first judge before, the refreshed judge after (random scores on the same pairs).",
        "",
    ]
    return "\n".join(lines)


def by_seed(summary: Mapping[str, Any], dimension: str) -> list[float]:
    """Return the oracle's change on the held-out prompts, one value a seed."""
    return [run["after"]["oracle"][dimension] - run["before"]["oracle"][dimension] for run in summary["runs"]]


def corrected_p_values(arms: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """Return (arm, dimension) -> p value over seeds after Holm's correction for all changes of the page."""
    plain = {
        (arm, name): metrics.t_interval(by_seed(summary, name)).p_value
        for arm, summary in arms.items()
        for name in DIMENSIONS
    }
    return dict(zip(plain, metrics.holm(list(plain.values())).tolist(), strict=True))


def findings(arms: Mapping[str, Mapping[str, Any]], corrected: Mapping[tuple[str, str], float]) -> list[str]:
    """Return plain sentences on what the intervals show."""
    verdicts: dict[str, list[str]] = {"rise": [], "fall": [], "not shown": []}
    for (arm, name), p_value in corrected.items():
        change = arms[arm]["difference"][name]
        side = "rise" if change["low"] > 0 else "fall" if change["high"] < 0 else "not shown"
        verdicts[side if p_value < ALPHA else "not shown"].append(f"{TITLES[arm]} ({name.replace('_', ' ')})")
    texts = {
        "rise": "The oracle is shown to rise",
        "fall": "The oracle is shown to fall",
        "not shown": "No change of the oracle is shown over seeds after the correction",
    }
    intervals = [metrics.t_interval(by_seed(arms[arm], name)) for arm, name in corrected]
    alone = sum(one.low > 0 or one.high < 0 for one in intervals)
    return [
        *(f"{texts[verdict]}: {'; '.join(named)}." for verdict, named in verdicts.items() if named),
        f"Each by itself, {alone} of the {len(intervals)} intervals over seeds leave out 0.",
    ]


def on_refreshing(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a paragraph that sets the refreshed judge against the fixed one, nothing where either arm is missing."""
    if not {"nft", "nft_no_refresh"} <= arms.keys():
        return []
    refreshed, fixed = (arms[name]["after"]["oracle"]["overall"] for name in ("nft", "nft_no_refresh"))
    change = arms["nft_no_refresh"]["difference"]["overall"]
    equal = change["low"] <= refreshed - arms["nft"]["before"]["oracle"]["overall"] <= change["high"]
    apart = [
        a - b for a, b in zip(*(by_seed(arms[name], "overall") for name in ("nft", "nft_no_refresh")), strict=True)
    ]
    interval = metrics.t_interval(apart)
    ends = f"the oracle ends at {refreshed:.4f} with the refreshed judge and at {fixed:.4f} with the fixed one."
    if not equal:
        return [f"The refreshed and the fixed judge differ: {ends}", ""]
    return [
        f"Refreshing the judge shows no benefit here: {ends} In runs this short the oracle rises under the fixed judge as well, "
        "so this page neither supports nor refutes that refreshing keeps a judge from being gamed.",
        f"Refreshed minus fixed, by seed: {', '.join(f'{one:+.4f}' for one in apart)}; 95 % interval over seeds "
        f"[{interval.low:+.4f}, {interval.high:+.4f}].",
        "",
    ]


def table_line(arm: str, summary: Mapping[str, Any], corrected: Mapping[tuple[str, str], float]) -> str:
    """Return one arm's line of the table."""
    runs = summary["runs"]
    cells = [TITLES[arm], str(summary["num_seeds"])]
    cells += [f"{summary[side]['oracle']['overall']:.3f}" for side in ("before", "after")]
    intervals = {name: metrics.t_interval(by_seed(summary, name)) for name in DIMENSIONS}
    cells += [f"{i.mean:+.3f} [{i.low:+.3f}, {i.high:+.3f}], {corrected[arm, n]:.3f}" for n, i in intervals.items()]
    cells.append(f"{mean([run['rounds'][-1]['diversity'] for run in runs]):.2f}")
    cells.append(f"{mean([run['rounds'][-1]['flow_loss'] / run['rounds'][0]['flow_loss'] for run in runs]):.2f}")
    pairs = {side: [run["pair_accuracy"][side] for run in runs] for side in ("before", "after")}
    first, last = (
        mean([accuracy[judge] for accuracy in pairs[side]]) for side, judge in zip(pairs, JUDGES, strict=True)
    )
    cells.append(f"{first:.2f} to {last:.2f} ({mean([accuracy['random'] for accuracy in pairs['after']]):.2f})")
    kept = [record["judge_kept"] for run in runs for record in run["rounds"] if record["judge_kept"] is not None]
    cells.append(f"{sum(kept)} of {len(kept)}")
    cells.append(f"{mean([sum(record['seconds'] for record in run['rounds']) for run in runs]) / 60:.1f}")
    return "| " + " | ".join(cells) + " |"


def lines_of(arms: Mapping[str, Mapping[str, Any]], read: Callable[[Mapping[str, Any]], float]) -> dict[str, Line]:
    """Return each arm's mean over its seeds by round."""
    curves: dict[str, Line] = {}
    for arm, summary in arms.items():
        length = min(len(run["rounds"]) for run in summary["runs"])
        values = [mean([read(run["rounds"][place]) for run in summary["runs"]]) for place in range(length)]
        curves[TITLES[arm]] = range(length), values
    return curves


def _oracle(record: Mapping[str, Any]) -> float:
    return record["oracle"]["overall"]


def _reward(record: Mapping[str, Any]) -> float:
    return record["reward_initial_judge"]


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)


if __name__ == "__main__":
    sys.exit(main())
