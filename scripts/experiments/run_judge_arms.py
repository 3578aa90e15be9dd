"""Trains the toy GRPO recipes, one factor at a time and with several seeds each, and writes a table for each.

    python scripts/experiments/run_judge_arms.py                            both recipes, all arms, three seeds, two runs at a time
    python scripts/experiments/run_judge_arms.py --arms vq_insight no_temporal --seeds 0
    python scripts/experiments/run_judge_arms.py --from-json                the pages again, from the JSON of earlier runs

All arms of a recipe go on from one supervised start. Start and end are measured on held-out clips and pairs, against the oracle;
differences are paired by clip and by seed; `judge_page` makes the page of them. Finished runs are kept, and
stages that two arms of a seed share are trained once.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import ROOT, parser_of, run_apart
from judge_page import DRAWS, MEASURES, write_page

from reward_model.config import load_config
from reward_model.evaluation import benchmark, metrics
from reward_model.media.distortions import DEFECTS
from reward_model.toy_world import moving_shapes
from reward_model.training.recipe import RecipeConfig, StageConfig
from reward_model.video_reward import VideoJudgeReward

Change = Callable[[StageConfig], StageConfig | None]
"""Function from a stage of GRPO to the arm's form of it; None leaves the stage out."""

NUM_CLIPS, NUM_UNSEEN, NUM_PAIRS, SEED, NUM_RESAMPLES = 1000, 500, 1500, 4321, 1000

RATED = {"generated": ("visual_quality", "motion_quality", "text_alignment"), "natural": ("overall",)}
"""Scorer -> dimensions that it reasons about."""

WHOLE = {"toy_vq_insight": "vq_insight", "toy_vqathinker": "vqathinker"}
"""Recipe -> arm that leaves it whole."""

STARTS = {recipe: f"{arm}_start" for recipe, arm in WHOLE.items()}
"""Recipe -> training run of its supervised stage alone, with seed 0, from which the arms go on with every seed."""

Answers = Sequence[Mapping[str, Any]]
"""Answers of one role after each of several runs."""


def without(*names: str) -> Change:
    """Return the change that drops rewards, and the rollouts on disturbed clips where no temporal reward is left."""

    def change(stage: StageConfig) -> StageConfig:
        """Drop them."""
        kept = [term for term in stage.rewards if term.name not in names]
        temporal = any(term.name.startswith("temporal") for term in kept)
        grpo = stage.grpo if temporal else dataclasses.replace(stage.grpo, perturbation=None)
        return dataclasses.replace(stage, rewards=kept, grpo=grpo)

    return change


def instead(name: str, other: str, **settings: Any) -> Change:
    """Return the change that puts another reward in a reward's place, or changes settings of the same."""

    def change(stage: StageConfig) -> StageConfig:
        """Put the other in its place."""
        terms = [
            dataclasses.replace(term, name=other, settings=(term.settings if other == name else {}) | settings)
            if term.name == name
            else term
            for term in stage.rewards
        ]
        return dataclasses.replace(stage, rewards=terms)

    return change


def scorer_only(change: Change) -> Change:
    """Return the change without the comparator, which it does not affect."""
    return lambda stage: None if stage.role == "comparator" else change(stage)


def cold(stage: StageConfig) -> StageConfig | None:
    """Leave out the image warm-up."""
    return None if stage.name == "warm_up" else dataclasses.replace(stage, start=None)


ARMS: Mapping[str, tuple[str, Change]] = {
    "vq_insight": ("toy_vq_insight", lambda stage: stage),
    "no_warm_up": ("toy_vq_insight", scorer_only(cold)),
    "no_temporal": ("toy_vq_insight", scorer_only(without("temporal"))),
    "temporal_released": ("toy_vq_insight", scorer_only(instead("temporal", "temporal", variant="released"))),
    "vqathinker": ("toy_vqathinker", lambda stage: stage),
    "absolute": ("toy_vqathinker", instead("bell", "absolute")),
    "threshold": ("toy_vqathinker", instead("bell", "threshold")),
    "no_ranking": ("toy_vqathinker", without("ranking")),
    "no_consistency": ("toy_vqathinker", without("temporal_ranking")),
}
"""Arm -> recipe and its change of every stage of GRPO."""


def recipe_of(arm: str, seed: int, folder: Path) -> RecipeConfig:
    """Return the arm's recipe for one seed."""
    name, change = ARMS[arm]
    config = load_config(RecipeConfig, ROOT / "configs" / "judge" / f"{name}.yaml")
    changed = {name: stage if stage.method == "sft" else change(stage) for name, stage in config.stages.items()}
    stages = {name: stage for name, stage in changed.items() if stage is not None}
    return dataclasses.replace(config, seed=seed, stages=stages, output=str(folder))


def run_start(recipe: str, folder: Path) -> None:
    """Train the stage that a recipe's arms share, on the processes of torchrun, and write its answers on held-out clips."""
    from reward_model.training.stages import run_recipe

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    config = recipe_of(WHOLE[recipe], 0, folder)
    trained = run_recipe(config, num_stages=1)
    if not torch.distributed.get_rank():
        write_answers(config, trained, folder, start=True)


def run(arm: str, seed: int, folder: Path) -> None:
    """Train one arm with one seed and write its answers about the held-out clips and pairs."""
    from reward_model.training.stages import run_recipe

    torch.set_num_threads(1)
    config = recipe_of(arm, seed, folder)
    for other in (folder.parent / f"{STARTS[ARMS[arm][0]]}-0", *sorted(folder.parent.glob(f"*-{seed}"))):
        take_stages(config, other, folder)
    write_answers(config, run_recipe(config), folder)


def write_answers(config: RecipeConfig, judge: Path, folder: Path, *, start: bool = False) -> None:
    """Write a judge's answers about held-out clips, in each role that the recipe trains and the table shows."""
    roles = [stage.role for stage in config.stages.values() if stage.role in (*RATED, "comparator")]
    answers = {role: answers_of(judge, role, start=start) for role in roles}
    (folder / "answers.json").write_text(json.dumps(answers) + "\n")


def take_stages(config: RecipeConfig, other: Path, folder: Path) -> None:
    """Copy the leading stages that another run of the seed has finished with the same settings."""
    for number, stage in enumerate(config.stages.values()):
        place = Path("stages") / f"{number:02d}-{stage.name}"
        if (folder / place / "done.json").exists():
            continue
        done = other / place / "done.json"
        if not done.exists() or json.loads(done.read_text())["stage"] != json.loads(
            json.dumps(dataclasses.asdict(stage))
        ):
            return
        shutil.copytree(other / place, folder / place)


def answers_of(judge: Path, role: str, *, start: bool = False) -> dict[str, Any]:
    """Return a role's reasoned scores of the held-out clips, or which of the held-out pairs it orders rightly.

    With `start` a judge without roles gets the prompts of the later role.
    """
    reward = VideoJudgeReward.from_pretrained(judge, role=None if start else role)
    if role == "comparator":
        clips = benchmark.moving_shapes_clips(NUM_PAIRS, seed=SEED)
        pairs = benchmark.pairs_by_label(clips, min_gap=0.1, num=NUM_PAIRS, seed=SEED)
        output = reward.compare([p.first for p in pairs], [p.second for p in pairs], [p.prompt for p in pairs])
        right = [m * (p.preference["overall"] - 0.5) > 0 for m, p in zip(output.margin.tolist(), pairs, strict=True)]
        return {"prompts": [p.prompt for p in pairs], "right": right}
    if start:
        reward.judge.configure(reasoned={"": [RATED[role]]})
    answers: dict[str, Any] = {}
    for name, shown in (("scores", held_out()), ("unseen", held_out(unseen=True))):
        scores, parse_rate = benchmark.score_clips(reward, shown, readout="reason")
        answers[name] = {dimension: values.tolist() for dimension, values in scores.items()}
        answers[f"parse_rate_{name}"] = parse_rate
    return answers


def held_out(*, unseen: bool = False) -> list[Any]:
    """Return the held-out clips, labelled by the oracle; `unseen` with kinds of damage that training never shows."""
    if not unseen:
        return benchmark.moving_shapes_clips(NUM_CLIPS, seed=SEED)
    defects = [name for name in DEFECTS if name not in moving_shapes.CORE_DEFECTS]
    return benchmark.moving_shapes_clips(NUM_UNSEEN, seed=SEED, defects=defects)


def score(answers: Mapping[str, Any], measure: str, truth: Mapping[str, np.ndarray], places: np.ndarray) -> float:
    """Return a measure of the answers at some places, higher for a better judge; unread answers are 0.5.

    Accuracy of the comparator; of a scorer the mean over the dimensions of `truth` of the rank correlation, or of the
    nearness, 1 - |quality - label|, which the reward `absolute` pays.
    """
    if measure == "right":
        return float(np.mean(np.array(answers["right"])[places]))
    shown, _, kind = measure.partition(":")
    values = {name: np.nan_to_num(np.array(answers[shown][name], dtype=float), nan=0.5)[places] for name in truth}
    if kind == "nearness":
        return float(np.mean([1 - np.abs(values[name] - truth[name][places]).mean() for name in truth]))
    return float(np.mean([metrics.srcc(values[name], truth[name][places]) for name in truth]))


def compare(first: Answers, last: Answers, measure: str, dimensions: Sequence[str]) -> dict[str, Any]:
    """Return the mean over the runs on each side, the difference with its bootstrap interval, and the difference by seed.

    Prompts and runs are resampled; where both sides have several runs, those of one seed stay together and their differences
    are by seed too.
    """
    clips = held_out(unseen=measure.startswith("unseen"))
    truth = {name: np.array([clip.quality[name] for clip in clips]) for name in dimensions}
    prompts = np.array(first[0].get("prompts") or [clip.prompt for clip in clips])
    groups = [np.flatnonzero(prompts == prompt) for prompt in dict.fromkeys(prompts)]
    rng = np.random.default_rng(0)

    def mean(side: Answers, places: np.ndarray, runs: Sequence[int]) -> float:
        """Return the mean score of a side at some places, over some runs; the start is one run."""
        chosen = [run % len(side) for run in runs]
        scores = {run: score(side[run], measure, truth, places) for run in set(chosen)}
        return float(np.mean([scores[run] for run in chosen]))

    differences = []
    for _ in range(NUM_RESAMPLES):
        places = np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])
        runs = rng.integers(len(last), size=len(last)).tolist()
        differences.append(mean(last, places, runs) - mean(first, places, runs))
    everything = np.arange(len(prompts))
    before, after = (mean(side, everything, range(len(last))) for side in (first, last))
    low, high = np.quantile(differences, [0.025, 0.975])
    return {
        "first": before,
        "last": after,
        "difference": after - before,
        "low": float(low),
        "high": float(high),
        "by_seed": [mean(last, everything, [run]) - mean(first, everything, [run]) for run in range(len(last))],
    }


def main(argv: Sequence[str]) -> int:
    """Run what is missing, then write the tables; return the number of runs that failed."""
    parser = parser_of(__doc__, ARMS, runs="judge_arms")
    parser.add_argument("--only", nargs=2, metavar=("ARM", "SEED"), help="run one in this process and write no table")
    options = parser.parse_args(argv)
    if options.only:
        arm, seed = options.only
        folder = options.runs / f"{arm}-{seed}"
        recipe = next((name for name, start in STARTS.items() if start == arm), None)
        if recipe is None:
            run(arm, int(seed), folder)
        else:
            run_start(recipe, folder)
        return 0
    recipes = [recipe for recipe in WHOLE if any(ARMS[arm][0] == recipe for arm in options.arms)]
    if options.from_json:
        for recipe in recipes:
            write_page(recipe, options.docs)
        return 0
    if any(_run_apart(STARTS[recipe], 0, options.runs) for recipe in recipes):
        return 1
    todo = [(arm, seed) for arm in options.arms for seed in options.seeds]  # an arm's stages serve the next
    with ThreadPoolExecutor(options.jobs) as pool:
        failed = sum(pool.map(lambda one: _run_apart(*one, options.runs), todo))
    torch.set_num_threads(1)
    for recipe in recipes:
        arms = [arm for arm in options.arms if ARMS[arm][0] == recipe]
        write(recipe, arms, options.seeds, options.runs, options.docs)
    return failed


def _run_apart(arm: str, seed: int, runs: Path) -> int:
    folder = runs / f"{arm}-{seed}"
    if (folder / "answers.json").exists():
        return 0
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if arm in STARTS.values() else []
    return run_apart([*launch, __file__, "--only", arm, str(seed), "--runs", str(runs)], folder)


def table_entry(
    start: Mapping[str, Any], whole: Mapping[int, Any], ended: Mapping[int, Any], role: str, measure: str
) -> dict[str, Any]:
    """Return one entry of the table: an arm's runs by seed against the start and, where it is another, the whole recipe."""
    rated, both = RATED.get(role, ()), sorted(set(whole) & set(ended))
    against = None
    if both and whole is not ended:
        against = compare([whole[seed][role] for seed in both], [ended[seed][role] for seed in both], measure, rated)
    own = compare([start[role]], [one[role] for one in ended.values()], measure, rated)
    return {"seeds": len(ended), "start": own, "whole": against}


def parse_rates(start: Mapping[str, Any], ended: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return role/part -> share of answers that could be read at the start and, as a mean over the runs, after GRPO."""
    return {
        f"{role}/{part}": {"start": start[role][key], "after": float(np.mean([one[role][key] for one in ended]))}
        for role in start
        for part in ("scores", "unseen")
        if (key := f"parse_rate_{part}") in start[role]
    }


def write(recipe: str, arms: Sequence[str], seeds: Sequence[int], runs: Path, docs: Path) -> None:
    """Write docs/<recipe>.json of the finished runs of a recipe's arms, and its page; starts and baselines in it stay."""
    start = json.loads((runs / f"{STARTS[recipe]}-0" / "answers.json").read_text())
    answers: dict[str, dict[int, Any]] = {}
    for arm in dict.fromkeys([WHOLE[recipe], *arms]):
        files = {seed: runs / f"{arm}-{seed}" / "answers.json" for seed in seeds}
        answers[arm] = {seed: json.loads(file.read_text()) for seed, file in files.items() if file.exists()}
    whole = answers[WHOLE[recipe]]
    entries = [
        {"arm": arm, "role": role, "part": measure, **table_entry(start, whole, answers[arm], role, measure)}
        for arm in arms
        for role in next(iter(answers[arm].values()), ())
        for measure in MEASURES
        if measure.partition(":")[0] in start[role]
    ]
    sizes = {"num_clips": NUM_CLIPS, "num_unseen": NUM_UNSEEN, "num_pairs": NUM_PAIRS, "clips_seed": SEED}
    file = docs / f"{recipe}.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    content = {
        "protocol": {"arms": list(arms), "seeds": list(seeds), **sizes, "draws": DRAWS},
        "entries": entries,
        "parse_rates": parse_rates(start, list(whole.values())) if whole else None,
        "baselines": kept.get("baselines", {}),
        "starts": kept.get("starts", []),
    }
    docs.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(write_page(recipe, docs))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
