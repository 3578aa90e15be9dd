"""Figures that a page about a judge's arms needs beside its runs: earlier starts from git's history, and baselines.

python scripts/experiments/judge_starts.py      renews both in docs/toy_vq_insight.json and docs/toy_vqathinker.json
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import run_judge_arms as experiment
import torch
import yaml
from arms import ROOT
from judge_page import write_page

from reward_model.evaluation import benchmark, metrics
from reward_model.video_reward import VideoJudgeReward

SCRIPTS = ("scripts/experiments/run_judge_arms.py", "scripts/run_judge_arms.py")
"""Places of the experiment's script, today's first."""

EARLIER = "docs/toy_grpo.json"
"""File of both recipes' figures before each recipe had a file of its own."""


def starts_of(recipe: str) -> list[dict[str, Any]]:
    """Return every start of a recipe in git's history, in order, each with all figures that were published of it.

    A start is its base and its supervised stage. Figures belong to the start that the recipe had when they came in.
    """
    settings, published = f"configs/judge/{recipe}.yaml", (f"docs/{recipe}.json", EARLIER)
    starts: list[dict[str, Any]] = []
    seen: list[Any] = []
    for commit in _git("log", "--reverse", "--format=%H", "--", settings, *published).split():
        text = _shown(commit, settings)
        if text is None:
            continue
        start = start_in(yaml.safe_load(text))
        if not starts or start != {key: starts[-1][key] for key in start}:
            starts.append({**start, "from": _git("show", "-s", "--format=%cs", commit).strip(), "figures": []})
        figures = next((read for place in published if (read := figures_in(_shown(commit, place), recipe))), {})
        rounded = {name: {key: round(value, 3) for key, value in one.items()} for name, one in figures.items()}
        if figures and rounded not in seen:  # the same runs evaluated again differ in the fifth decimal
            seen.append(rounded)
            date = _git("show", "-s", "--format=%cd", "--date=format:%Y-%m-%d %H:%M", commit).strip()
            starts[-1]["figures"].append({"commit": commit[:7], "date": date, **_sizes(commit), "measures": figures})
    return starts


def start_in(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a recipe starts from: base, written answers by source (None: endless; no sources: none), supervised steps."""
    stages = recipe["stages"]
    supervised = [
        stage
        for stage in (stages.values() if isinstance(stages, dict) else stages)
        if stage.get("method", "sft") == "sft"
    ]
    sources = [source.get("num_clips") for stage in supervised for source in stage["data"]]
    steps = sum(stage["fit"]["num_steps"] for stage in supervised)
    return {"base": Path(recipe["base"]).name, "answers": sources, "supervised_steps": steps}


def figures_in(text: str | None, recipe: str) -> dict[str, Any]:
    """Return measure -> start, after, bounds as published and seeds of the whole recipe; empty where none were published."""
    content = json.loads(text) if text else {}
    arm, figures = experiment.WHOLE[recipe], {}
    if isinstance(content, list) or "entries" in content:
        for entry in content if isinstance(content, list) else content["entries"]:
            if entry["arm"] == arm:
                own = entry["start"]
                figures[f"{entry['role']}/{entry['part']}"] = _figure(own["first"], own["last"], own, entry["seeds"])
        return figures
    for title, own in content.items():
        name, role, *unseen = title.split(", ")
        if name == arm:
            part = "right" if role == "comparator" else "unseen" if unseen else "scores"
            figures[f"{role}/{part}"] = _figure(own["start"], own.get("end", own.get("mean")), own, own["seeds"])
    return figures


def _figure(start: float, after: float, bounds: Mapping[str, float], seeds: int) -> dict[str, float]:
    return {"start": start, "after": after, "low": bounds["low"], "high": bounds["high"], "seeds": seeds}


def _sizes(commit: str) -> dict[str, int]:
    """Return the numbers of held-out clips and the seed of their draw in the script of a commit."""
    script = next(text for place in SCRIPTS if (text := _shown(commit, place)))
    names, values = next(
        (line.split("=")[0], line.split("=")[1]) for line in script.splitlines() if line.startswith("NUM_CLIPS,")
    )
    sizes = dict(zip(re.findall(r"\w+", names), map(int, re.findall(r"\d+", values)), strict=True))
    return {"num_clips": sizes["NUM_CLIPS"], "clips_seed": sizes["SEED"]}


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _shown(commit: str, place: str) -> str | None:
    """Return a file of a commit, None where the commit has no such file."""
    done = subprocess.run(["git", "show", f"{commit}:{place}"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def baselines_of(recipe: str) -> dict[str, dict[str, float | None]]:
    """Return measure -> figure of the base's level readout, of a constant and of random scores, on the held-out clips.

    The constant is the median of these very labels, the nearest that any constant comes; its ranks are undefined (None). Of
    pairs it is "the first, always". The base judge is read before any training of the recipe.
    """
    config = experiment.recipe_of(experiment.WHOLE[recipe], 0, Path("unused"))
    base = VideoJudgeReward.from_pretrained(ROOT / config.base)
    roles = [stage.role for stage in config.stages.values()]
    measured: dict[str, dict[str, float | None]] = {}
    for role in [role for role in roles if role in experiment.RATED]:
        for part in ("scores", "unseen"):
            clips = experiment.held_out(unseen=part == "unseen")
            levels, _ = benchmark.score_clips(base, clips)
            measured |= _scored(clips, levels, role, part)
    if "comparator" in roles:
        clips = benchmark.moving_shapes_clips(experiment.NUM_PAIRS, seed=experiment.SEED)
        pairs = benchmark.pairs_by_label(clips, min_gap=0.1, num=experiment.NUM_PAIRS, seed=experiment.SEED)
        levels, _ = benchmark.score_clips(base, clips)
        of_video = {id(clip.video): score for clip, score in zip(clips, levels["overall"], strict=True)}
        margin = [of_video[id(pair.first)] - of_video[id(pair.second)] for pair in pairs]
        label = [pair.preference["overall"] for pair in pairs]
        measured["comparator/right"] = {
            "level": metrics.pair_accuracy(margin, label),
            "constant": metrics.pair_accuracy(np.ones(len(label)), label),
            "random": metrics.pair_accuracy(np.random.default_rng(0).uniform(-1, 1, len(label)), label),
        }
    return measured


def _scored(clips: Sequence[Any], levels: Mapping[str, np.ndarray], role: str, part: str) -> dict[str, Any]:
    """Return the baselines of one role's ranks and nearness."""
    truth = {name: np.array([clip.quality[name] for clip in clips]) for name in experiment.RATED[role]}
    rng, everything = np.random.default_rng(0), np.arange(len(clips))
    answers = {
        "level": {part: levels},
        "constant": {part: {name: np.full(len(clips), np.median(values)) for name, values in truth.items()}},
        "random": {part: {name: rng.uniform(size=len(clips)) for name in truth}},
    }
    return {
        f"{role}/{measure}": {
            name: None if np.isnan(value := experiment.score(one, measure, truth, everything)) else value
            for name, one in answers.items()
        }
        for measure in (part, f"{part}:nearness")
    }


def main() -> int:
    """Renew starts and baselines of both recipes, then their pages."""
    torch.set_num_threads(1)
    for recipe in experiment.WHOLE:
        file = ROOT / "docs" / f"{recipe}.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        content |= {"baselines": baselines_of(recipe), "starts": starts_of(recipe)}
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        write_page(recipe, ROOT / "docs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
