"""Sets the generator's objectives against one another: oracle and judge by seconds, from the same judge and generator.

    python scripts/experiments/run_objectives.py --tune        learning rate of each objective, by the judge's reward on training prompts
    python scripts/experiments/run_objectives.py               all arms, three seeds, 300 seconds each on one thread, then the page
    python scripts/experiments/run_objectives.py --from-json   the page again, from the JSON of earlier runs

Seconds are processor time of sampling, scoring and learning alone, so a busy machine gives the same figures. The judge
stays fixed; the oracle only measures, on held-out prompts with the same noise each time. Finished runs are kept.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import ROOT, joined, parser_of, plot, run_apart

from generator_loop.evaluation.columns import INITIAL, Evaluation
from generator_loop.evaluation.summary import difference, diversity
from generator_loop.loop import iterate
from generator_loop.run.build import open_session, read_config
from generator_loop.run.launch import Processes
from generator_loop.run.session import Session
from generator_loop.run.state import begin
from generator_loop.tracking.metric_log import read_log
from reward_model.evaluation import metrics

SECONDS, NUM_MARKS = 300.0, 5
RATES = (1e-4, 3e-4, 1e-3)
TUNE_SEED = 100
DIMENSIONS = ("overall", "visual_quality", "motion_quality", "text_alignment")
RATES_FILE = "learning_rates.json"
ALPHA = 0.05
"""Chance of one or more wrong findings on the page."""
LATE_MARKS = 2
"""Marks at the end whose seconds are shown apart."""
STILL, RISES = 0.01, 0.05
"""An oracle that moves by less than the first while its judge rises by more than the second stands still."""


@dataclass(frozen=True)
class Arm:
    """One line of the table: its title, its overrides of configs/toy.yaml, and the arm whose learning rate it takes.

    `tune_seconds` is long for objectives where a rate that wins early wears the generator down later.
    """

    title: str
    settings: tuple[str, ...]
    tuned_as: str | None = None
    tune_seconds: float = 75.0


FLOW = ("objective.name=flow_grpo", "objective.window=0")
SMALL = ("sampling.group_size=4",)
ARMS: Mapping[str, Arm] = {
    "nft": Arm("DiffusionNFT", ()),
    "draft": Arm("DRaFT-K", ("objective.name=draft", *SMALL)),
    "drtune": Arm("DRTune", ("objective.name=draft", "objective.detach_input=true", *SMALL)),
    "flow_grpo": Arm("Flow-GRPO, reweighted", FLOW),
    "flow_grpo_plain": Arm("Flow-GRPO, no reweighting", (*FLOW, "objective.balance=none")),
    "mix_window": Arm("Flow-GRPO, window of 4 steps", ("objective.name=flow_grpo", "objective.window=4")),
    "dpo": Arm("Flow-DPO, anchored winners", ("objective.name=dpo",), tune_seconds=SECONDS),
    "dpo_plain": Arm("Flow-DPO, no anchor", ("objective.name=dpo", "objective.anchor=0"), tune_seconds=SECONDS),
    "rwr": Arm("Flow-RWR, anchored", ("objective.name=rwr",), tune_seconds=SECONDS),
    "rwr_plain": Arm("Flow-RWR, no anchor", ("objective.name=rwr", "objective.anchor=none"), tune_seconds=SECONDS),
    "refl": Arm("ReFL", ("objective.name=refl", *SMALL)),
    "shuffled": Arm("control: DiffusionNFT, rewards shuffled", ("reward.transform=shuffle",), "nft"),
    "frozen": Arm("control: frozen weights, new noise", ()),
}


def open_arm(name: str, seed: int, folder: Path, rate: float) -> Session:
    """Return the started loop of one arm: configs/toy.yaml with the arm's settings, the judge fixed."""
    torch.set_num_threads(1)
    options = [*ARMS[name].settings, f"run.seed={seed}", f"run.output={folder}/run", "refresh.every=0"]
    options += ["judge.audit_path=null", f"update.learning_rate={rate}", "evaluation.num_seeds=2"]
    session = open_session(read_config(ROOT / "configs" / "toy.yaml", options), Processes(device=torch.device("cpu")))
    begin(session)
    return session


def train(session: Session, seconds: float) -> float:
    """Iterate for about `seconds` of processor time and return how many they were."""
    clock = 0.0
    while clock < seconds:
        started = time.process_time()
        iterate(session)
        session.progress.iteration += 1
        clock += time.process_time() - started
    return clock


def tune(name: str, rate: float, folder: Path) -> None:
    """Train one arm at one learning rate and write the judge's rewards, iteration by iteration."""
    train(open_arm(name, TUNE_SEED, folder, rate), ARMS[name].tune_seconds)
    records = [record for record in read_log(folder / "run" / "metrics.jsonl") if record["kind"] == "iteration"]
    (folder / "rewards.json").write_text(json.dumps([record["reward"] for record in records]) + "\n")


def run(name: str, seed: int, folder: Path, rate: float) -> None:
    """Train one arm for SECONDS and write the measurements before and at each of the marks."""
    session = open_arm(name, seed, folder, rate)
    evaluator, everything, marks = session.evaluator, len(session.evaluator.prompts), list[dict[str, Any]]()
    before: Evaluation | None = None
    clock = 0.0
    for mark in range(NUM_MARKS + 1):
        if mark and name == "frozen":
            evaluator = dataclasses.replace(session.evaluator, draw=session.evaluator.draw.fork("again"))
            clock = SECONDS
        elif mark:
            clock += train(session, SECONDS * mark / NUM_MARKS - clock)
        evaluation = evaluator.evaluate(session.generator, everything, judge_is_initial=True)
        before = before or evaluation
        columns = {
            key: evaluation.columns[key] for key in evaluation.columns if key.split("/")[0] in (INITIAL, "oracle")
        }
        marks.append(
            {
                "seconds": clock,
                "iterations": session.progress.iteration,
                "columns": columns,
                "diversity": diversity(evaluation, before, session.renderer),
                "flow_loss": session.probes.measure()["flow_loss"],
            }
        )
        if mark and name == "frozen":
            break
    done = {"prompt_ids": evaluation.prompt_ids, "marks": marks, "learning_rate": rate}
    (folder / "marks.json").write_text(json.dumps(done) + "\n")


def tuned_rate(name: str, runs: Path) -> float:
    """Return the learning rate that tuning chose for an arm."""
    if name == "frozen":
        return RATES[0]
    chosen = json.loads((runs / RATES_FILE).read_text())
    return float(chosen[ARMS[name].tuned_as or name]["rate"])


def choose_rates(names: Sequence[str], runs: Path) -> None:
    """Write the learning rate of each objective with the highest rewards of training prompts in its second half.

    All rates of an objective meet the same prompts and noise; the first iterations that all of them reached are compared.
    Objectives that were tuned before keep their line.
    """
    file = runs / RATES_FILE
    chosen = json.loads(file.read_text()) if file.exists() else {}
    for name in names:
        rewards = {
            f"{rate:g}": json.loads((runs / "tune" / f"{name}-{rate:g}" / "rewards.json").read_text()) for rate in RATES
        }
        num = min(map(len, rewards.values()))
        means = {rate: float(np.mean(values[num // 2 : num])) for rate, values in rewards.items()}
        chosen[name] = {"rate": float(max(means, key=lambda rate: means[rate])), "rewards": means}
    file.write_text(json.dumps(chosen, indent=1) + "\n")
    sys.stdout.write(json.dumps(chosen, indent=1) + "\n")


def clips_at(runs: Sequence[Mapping[str, Any]], mark: int) -> Evaluation:
    """Return one evaluation of the clips of all seeds at a mark."""
    return joined([Evaluation(tuple(one["prompt_ids"]), one["marks"][mark]["columns"]) for one in runs])


def curve(runs: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return seconds [marks], as means over the seeds, and a column's clips [marks, N]."""
    num = min(len(one["marks"]) for one in runs)
    seconds = np.array([np.mean([one["marks"][mark]["seconds"] for one in runs]) for mark in range(num)])
    return seconds, np.array([clips_at(runs, mark).columns[key] for mark in range(num)])


def seconds_to(seconds: np.ndarray, means: np.ndarray, goal: float) -> float:
    """Return the second at which a curve first reaches a goal, straight between its marks; infinite where it never does."""
    for place in range(1, len(means)):
        if means[place] >= goal > means[place - 1]:
            share = (goal - means[place - 1]) / (means[place] - means[place - 1])
            return float(seconds[place - 1] + share * (seconds[place] - seconds[place - 1]))
    return math.inf


def speed_ratio(
    runs: Sequence[Mapping[str, Any]], slow: Sequence[Mapping[str, Any]], *, num_resamples: int = 1000
) -> Any:
    """Return how many times sooner than `slow` the runs reach the oracle score where `slow` ends, with its interval."""
    (own, mine), (theirs, other) = curve(runs, "oracle/overall"), curve(slow, "oracle/overall")
    ids = np.array(clips_at(runs, 0).prompt_ids)
    groups = [np.flatnonzero(ids == one) for one in dict.fromkeys(ids)]
    rng = np.random.default_rng(0)

    def ratio(picked: np.ndarray) -> float:
        """Return the ratio on some clips."""
        return float(theirs[-1] / seconds_to(own, mine[:, picked].mean(1), other[:, picked].mean(1)[-1]))

    drawn = [
        ratio(np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]))
        for _ in range(num_resamples)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"ratio": ratio(np.arange(len(ids))), "low": float(low), "high": float(high)}


def summarise(ended: Mapping[int, Mapping[str, Any]], slow: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Return one arm's summary, of its finished runs by seed; it is set against `slow` on the seeds that both have finished."""
    runs, both = list(ended.values()), sorted(set(ended) & set(slow))
    last = [one["marks"][-1] for one in runs]
    first = [one["marks"][0] for one in runs]
    before, after = clips_at(runs, 0), clips_at(runs, -1)
    seconds, clips = curve(runs, "oracle/overall")
    return {
        "num_seeds": len(runs),
        "learning_rate": runs[0]["learning_rate"],
        "iterations": float(np.mean([mark["iterations"] for mark in last])),
        "oracle": {"before": before.mean("oracle/overall"), "after": after.mean("oracle/overall")},
        "judge": {"before": before.mean(f"{INITIAL}/overall"), "after": after.mean(f"{INITIAL}/overall")},
        "difference": difference(before, after, num_resamples=2000, seed=0),
        "by_seed": [
            clips_at([one], -1).mean("oracle/overall") - clips_at([one], 0).mean("oracle/overall") for one in runs
        ],
        "diversity": float(np.mean([mark["diversity"] for mark in last])),
        "flow_loss_ratio": float(np.mean([b["flow_loss"] / a["flow_loss"] for a, b in zip(first, last, strict=True)])),
        "sooner": speed_ratio([ended[seed] for seed in both], [slow[seed] for seed in both]) if both else None,
        "curve": {
            "seconds": seconds.tolist(),
            "oracle": clips.mean(1).tolist(),
            "judge": curve(runs, f"{INITIAL}/overall")[1].mean(1).tolist(),
        },
    }


def write(arms: Sequence[str], seeds: Sequence[int], runs: Path, docs: Path) -> None:
    """Write docs/toy_objectives.{md,json,svg} of the finished runs."""
    ended_by_arm: dict[str, dict[int, Any]] = {}
    for name in arms:
        files = {seed: runs / f"{name}-{seed}" / "marks.json" for seed in seeds}
        ended_by_arm[name] = {seed: json.loads(file.read_text()) for seed, file in files.items() if file.exists()}
    slow = ended_by_arm.get("flow_grpo", {})
    summaries = {
        name: summarise(ended, slow if name != "frozen" else {}) for name, ended in ended_by_arm.items() if ended
    }
    rates = json.loads((runs / RATES_FILE).read_text()) if (runs / RATES_FILE).exists() else {}
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "toy_objectives.json").write_text(json.dumps({"arms": summaries, "learning_rates": rates}, indent=1) + "\n")
    shown = {ARMS[name].title: summary["curve"] for name, summary in summaries.items() if name != "frozen"}
    panels = {
        source: {title: (curve["seconds"], curve[source]) for title, curve in shown.items()}
        for source in ("oracle", "judge")
    }
    plot(panels, docs / "toy_objectives.svg", xlabel="seconds of one core", dashed=[ARMS["shuffled"].title])
    page = page_of(summaries, rates)
    (docs / "toy_objectives.md").write_text(page, encoding="utf-8")
    sys.stdout.write(page)


def page_of(summaries: Mapping[str, Mapping[str, Any]], rates: Mapping[str, Any]) -> str:
    """Return the page of the summaries by arm and the tuned learning rates, which `toy_objectives.json` holds."""
    corrected = corrected_p_values(summaries)
    longer = "; ".join(arm.title for arm in ARMS.values() if arm.tune_seconds != Arm.tune_seconds)
    late = max(late_change(summary["curve"])[0] for name, summary in summaries.items() if name != "frozen")
    lines = [
        "# The objectives against one another",
        "",
        "## Findings",
        "",
        *(f"- {sentence}" for sentence in findings(summaries, rates, corrected)),
        "",
        "## Protocol",
        "",
        f"{SECONDS:.0f} seconds of one processor core each for sampling, scoring and learning, from the same generator and the",
        "same fixed judge; 64 held-out prompts x 2 clips a seed, the same noise before and after. The oracle only measures.",
        "By prompt: 95 % bootstrap intervals by prompt over all seeds, which say nothing of other seeds. Over seeds: Student's t,",
        "95 %, with Holm's p, corrected for the number of arms. Learning rates were chosen from "
        + ", ".join(f"{rate:g}" for rate in RATES),
        f"by the judge's reward on training prompts in the second half of {Arm.tune_seconds:.0f} seconds, or of {SECONDS:.0f} where the rate",
        f"that wins early wears the generator down later ({longer}); see",
        "toy_objectives.json. Sooner: how many times earlier than reweighted Flow-GRPO an arm reaches the oracle score where",
        f"that ends (0: never). Late: the change of oracle and judge in the last {late:.0f} seconds or less, between the same marks.",
        "`python scripts/experiments/run_objectives.py` makes this page, `--from-json` writes it again from the JSON. The rules are",
        "in [protocol.md](protocol.md).",
        "",
        "![oracle and judge by seconds](toy_objectives.svg)",
        "",
        "| arm | seeds | rate | iterations | oracle | change, by prompt | change, over seeds | judge | late oracle | late judge "
        "| diversity | flow loss, times | sooner |",
        "|" + "---|" * 13,
        *(line(name, summary, corrected, rates) for name, summary in summaries.items()),
        "",
        "The rows without anchor are the published forms. Unanchored pairs only ask that winners beat losers: they learn as fast",
        "as the anchored ones at first, then both get worse (see the curve and the flow loss); at the lowest rate, which learns",
        "more slowly, that had not begun when tuning ended (toy_objectives.json). Unanchored regression imitates one's own samples",
        "of few steps, which wears a generator down whatever they are worth.",
        "",
    ]
    return "\n".join(lines)


def corrected_p_values(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return arm -> p value over seeds after Holm's correction, of the arms whose runs were kept by seed."""
    plain = {
        name: metrics.t_interval(summary["by_seed"]).p_value
        for name, summary in summaries.items()
        if "by_seed" in summary
    }
    return dict(zip(plain, metrics.holm(list(plain.values())).tolist(), strict=True))


def edge_of(name: str, rates: Mapping[str, Any]) -> str:
    """Return `highest` or `lowest` where tuning chose that rate of the grid for an arm, nothing where a rate between."""
    chosen = rates.get(ARMS[name].tuned_as or name)
    return "" if chosen is None else {max(RATES): "highest", min(RATES): "lowest"}.get(chosen["rate"], "")


def late_change(curve: Mapping[str, Sequence[float]]) -> tuple[float, float, float]:
    """Return the seconds between the last marks of a curve, and the changes of oracle and judge in them."""
    start = max(len(curve["seconds"]) - 1 - LATE_MARKS, 0)
    seconds, oracle, judge = (curve[key][-1] - curve[key][start] for key in ("seconds", "oracle", "judge"))
    return seconds, oracle, judge


def findings(
    summaries: Mapping[str, Mapping[str, Any]], rates: Mapping[str, Any], corrected: Mapping[str, float]
) -> list[str]:
    """Return plain sentences on seeds, on rates at the edge of the grid, and on oracles that stand still."""
    sentences = []
    without = [ARMS[name].title for name in summaries if name not in corrected]
    if corrected:
        shown = [ARMS[name].title for name, p_value in corrected.items() if p_value < ALPHA]
        sentences.append(
            f"Shown to change the oracle, over seeds after the correction: {'; '.join(shown) or 'nothing'}."
        )
    if without:
        which = "every arm" if len(without) == len(summaries) else "; ".join(without)
        sentences.append(
            f"Figures by seed were not kept for {which}: only means over the seeds are in the JSON, and the runs are gone. So no "
            "interval over seeds can be given; the intervals by prompt hold the seeds fixed, and neither a change nor the order "
            "of two arms is shown to hold for other seeds."
        )
    for side in ("highest", "lowest"):
        named = [ARMS[name].title for name in summaries if name != "frozen" and edge_of(name, rates) == side]
        if named:
            sentences.append(
                f"The {side} rate of the grid won, so that a better one may lie beyond it: {'; '.join(named)}. Between such arms "
                "the page compares rates as well as objectives."
            )
    for name, summary in summaries.items():
        seconds, oracle, judge = late_change(summary["curve"])
        if name != "frozen" and abs(oracle) < STILL and judge > RISES:
            curve = summary["curve"]
            sentences.append(
                f"{ARMS[name].title}: in the last {seconds:.0f} seconds the oracle stands still "
                f"({curve['oracle'][-1 - LATE_MARKS]:.3f} to {curve['oracle'][-1]:.3f}) while the judge rises by {judge:.3f}: "
                "what is learned there pleases the judge alone."
            )
    return sentences


def line(name: str, summary: Mapping[str, Any], corrected: Mapping[str, float], rates: Mapping[str, Any]) -> str:
    """Return one arm's line of the table."""
    change, sooner = summary["difference"]["overall"], summary["sooner"]
    edge = edge_of(name, rates)
    cells = [ARMS[name].title, str(summary["num_seeds"])]
    rate = f"{summary['learning_rate']:g}" + (f" ({edge})" if edge else "")
    cells += ["" if name == "frozen" else rate, f"{summary['iterations']:.0f}"]
    cells.append(f"{summary['oracle']['before']:.3f} to {summary['oracle']['after']:.3f}")
    cells.append(f"{change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]")
    if name in corrected:
        interval = metrics.t_interval(summary["by_seed"])
        cells.append(f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}], {corrected[name]:.3f}")
    else:
        cells.append("not kept")
    cells.append(f"{summary['judge']['before']:.3f} to {summary['judge']['after']:.3f}")
    cells += ["", ""] if name == "frozen" else [f"{one:+.3f}" for one in late_change(summary["curve"])[1:]]
    cells += [f"{summary['diversity']:.2f}", f"{summary['flow_loss_ratio']:.2f}"]
    cells.append("" if sooner is None else f"{sooner['ratio']:.1f} [{sooner['low']:.1f}, {sooner['high']:.1f}]")
    return "| " + " | ".join(cells) + " |"


def main(argv: Sequence[str]) -> int:
    """Run the missing arms, then write the page; return the number of runs that failed."""
    parser = parser_of(__doc__, ARMS, runs="objectives")
    parser.add_argument("--tune", action="store_true", help="choose the learning rates")
    parser.add_argument(
        "--only", nargs=3, metavar=("ARM", "SEED", "RATE"), help="one run in this process (RATE 0: tuned)"
    )
    options = parser.parse_args(argv)
    if options.from_json:
        content = json.loads((options.docs / "toy_objectives.json").read_text(encoding="utf-8"))
        page = page_of(content["arms"], content["learning_rates"])
        (options.docs / "toy_objectives.md").write_text(page, encoding="utf-8")
        return 0
    if options.only:
        name, seed, rate = options.only[0], int(options.only[1]), float(options.only[2])
        if rate:
            tune(name, rate, options.runs / "tune" / f"{name}-{rate:g}")
        else:
            run(name, seed, options.runs / f"{name}-{seed}", tuned_rate(name, options.runs))
        return 0
    tuned = [name for name in options.arms if name != "frozen" and ARMS[name].tuned_as is None]
    todo = [(name, TUNE_SEED, rate) for name in tuned for rate in RATES] if options.tune else []
    todo = todo or [(name, seed, 0.0) for seed in options.seeds for name in options.arms]
    with ThreadPoolExecutor(options.jobs) as pool:
        failed = sum(pool.map(lambda one: _run_apart(*one, options.runs), todo))
    if options.tune:
        choose_rates(tuned, options.runs)
    else:
        write(options.arms, options.seeds, options.runs, options.docs)
    return failed


def _run_apart(name: str, seed: int, rate: float, runs: Path) -> int:
    folder = runs / "tune" / f"{name}-{rate:g}" if rate else runs / f"{name}-{seed}"
    if (folder / ("rewards.json" if rate else "marks.json")).exists():
        return 0
    shutil.rmtree(folder, ignore_errors=True)
    return run_apart([__file__, "--only", name, str(seed), str(rate), "--runs", str(runs)], folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
