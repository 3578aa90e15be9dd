"""The papers' recipes: every value has its source, is the paper's, and every difference from our own form is on the page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml

from reward_model import load_config
from reward_model.config import plain
from reward_model.training.recipe import RecipeConfig

ROOT = Path(__file__).resolve().parents[3]
RECIPES, PAGE = ROOT / "configs" / "judge", ROOT / "docs" / "paper_recipes.md"
TITLES = {"vq_insight": "VQ-Insight", "vqathinker": "VQAThinker"}
ABSENT, GIVEN = "absent", "given"
ALL, VIDEO = ("warm_up", "natural", "generated", "comparator"), ("natural", "generated")
TEMPORAL_CODE = {"variant": "november_2025", "bonus": 0.3, "groups_together": 2}
RELEASED_RANKING = {"variant": "released", "groups_together": 2}
RELEASED_BELL = {"sigma": 0.5, "variant": "released"}

# setting, the paper's value, where it stands: P the paper, C released code, S the nearest public script of the same authors' base
PAPER: dict[str, list[tuple[str, Any, str]]] = {
    "vq_insight": [
        ("base", "Qwen/Qwen2.5-VL-7B-Instruct", "P, setup"),
        (
            "frame_policy",
            {"mode": "fps", "fps": 2.0, "min_frames": 4, "max_frames": 16, "multiple_of": 2},
            "C, FPS, FRAMES",
        ),
        ("min_pixels", 128 * 28 * 28, "C, VIDEO_MIN_PIXELS"),
        ("max_pixels", 128 * 28 * 28, "C, VIDEO_MAX_PIXELS"),
        ("stages.warm_up.train_max_pixels", 320 * 28 * 28, "C, MAX_PIXELS"),
        ("max_answer_tokens", 1024, "C, demo of the comparator"),
        ("stages.warm_up.data.koniq.split", "training", "P, 7k images of KonIQ-10k"),
        ("stages.natural.data.lsvq.split", "train", "P, LSVQ"),
        ("stages.comparator.data.visionreward.ties", False, "C, two options"),
        ("stages.comparator.data.video_r1.kind", "video_r1", "P, 1k yes-no questions beside the pairs"),
        ("stages.comparator.tasks", {"compare": 0.5, "ask": 1.0}, "P, pairs and questions"),
        ("stages.comparator.rewards.compare:length.settings", {"low": 320, "high": 512, "gamma": 0.1}, "P, table 5"),
        ("stages.comparator.rewards.compare:choice.name", "choice", "P, 1 for the right choice"),
        ("stages.comparator.rewards.ask:choice.name", "choice", "P, 1 for the right choice"),
        *[(f"stages.{name}.method", "grpo", "P, no supervised start") for name in ALL],
        *[(f"stages.{name}.role", None, "C, all weights") for name in ALL],
        *[(f"stages.{name}.start", "warm_up", "P, three specialists") for name in ALL[1:]],
        *[(f"stages.{name}.grpo.group_size", 8, "P") for name in ALL],
        *[(f"stages.{name}.grpo.kl_coef", 0.001, "P") for name in ALL],
        *[(f"stages.{name}.grpo.clip_range", None, "C, ratio to itself") for name in ALL],
        *[(f"stages.{name}.grpo.kl_log_ratio_limit", 10.0, "C, clamp") for name in ALL],
        *[(f"stages.{name}.grpo.loss_type", "grpo", "C, per-sequence token mean") for name in ALL],
        *[(f"stages.{name}.grpo.normalize_std", True, "C, std + 1e-4") for name in ALL],
        *[(f"stages.{name}.grpo.num_updates", 1, "C, one update per rollout") for name in ALL],
        *[(f"stages.{name}.grpo.temperature", 1.0, "C") for name in ALL],
        *[(f"stages.{name}.grpo.top_p", 0.95, "C") for name in ALL],
        *[(f"stages.{name}.grpo.top_k", 50, "C, default of transformers") for name in ALL],
        *[(f"stages.{name}.grpo.max_answer_tokens", 768, "S") for name in ALL],
        *[(f"stages.{name}.fit.num_epochs", 3, "P") for name in ALL],
        *[(f"stages.{name}.fit.learning_rate", 1e-6, "P") for name in ALL],
        *[(f"stages.{name}.fit.max_grad_norm", 5.0, "S") for name in ALL],
        *[(f"stages.{name}.fit.decay", "cosine", "S") for name in ALL],
        *[(f"stages.{name}.fit.final_rate", 0.0, "S, transformers' cosine") for name in ALL],
        *[(f"stages.{name}.fit.weight_decay", 0.01, "S") for name in ALL],
        *[(f"stages.{name}.fit.betas", [0.9, 0.999], "S, the trainer's default") for name in ALL],
        *[(f"stages.{name}.fit.batch_size", 8, "P, 8 GPUs; C, one sample on each") for name in ALL[:3]],
        *[(f"stages.{name}.rewards.reason:absolute.name", "absolute", "P, 1 - |error|") for name in ALL[:3]],
        *[(f"stages.{name}.rewards.reason:format.settings", {"variant": "released"}, "P, tags") for name in ALL[:3]],
        *[
            (f"stages.{name}.rewards.reason:temporal.settings", {"variant": "paper", "alpha": 0.3, "mu": 0.8}, "P")
            for name in VIDEO
        ],
        *[
            (f"stages.{name}.rewards.reason:length.settings", {"low": 320, "high": 512, "gamma": 0.1}, "P")
            for name in VIDEO
        ],
        *[(f"stages.{name}.grpo.perturbation", "shuffle", "P") for name in VIDEO],
        *[(f"stages.{name}.grpo.num_perturbed", 4, "C, G / 2") for name in VIDEO],
        *[(f"stages.{name}.grpo.perturb_each", "prompt", "C, one permutation") for name in VIDEO],
        *[
            (f"stages.{name}.grpo.perturbation", None, "P, none for images and pairs")
            for name in ("warm_up", "comparator")
        ],
        ("stages.warm_up.style", "q_insight", "C, key rating from 1 to 5"),
        ("stages.natural.style", "vq_insight_natural", "C, 0 to 100"),
        ("stages.generated.style", "vq_insight_generated", "C, three keys from 0 to 100"),
        ("stages.comparator.style", "vq_insight_reasoned_comparator", "C, think and answer with two options"),
    ],
    "vqathinker": [
        ("frame_policy", {"mode": "centres", "num_frames": 12}, "C, centre of 12 segments at test"),
        ("stages.natural.train_frames", {"mode": "centres", "num_frames": 6}, "C, 6 segments in training"),
        ("max_pixels", 560 * 560, "C, test"),
        ("min_pixels", 560 * 560, "C, test"),
        ("stages.natural.train_max_pixels", 448 * 448, "C, training"),
        ("stages.natural.train_min_pixels", 448 * 448, "C, training"),
        ("motion.encoder", "slowfast_r50", "C"),
        ("motion.tokens", "one_of_planned", "C, one token of the sparse frames"),
        ("max_answer_tokens", 1024, "C, inference"),
        ("seed", 42, "C"),
        ("stages.natural.method", "grpo", "C, no supervised start"),
        ("stages.natural.role", None, "C, all weights but SlowFast's"),
        ("stages.natural.style", "vqathinker", "C, 1 to 5 with two decimals"),
        ("stages.natural.data.vqathinker.hold_out", False, "C, the whole file"),
        ("stages.natural.grpo.group_size", 4, "C"),
        ("stages.natural.grpo.kl_coef", 0.04, "C"),
        ("stages.natural.grpo.clip_range", 0.2, "C"),
        ("stages.natural.grpo.loss_type", "grpo", "C, token mean per sequence"),
        ("stages.natural.grpo.normalize_std", True, "C, std + 1e-4"),
        ("stages.natural.grpo.num_updates", 1, "C, one update per batch"),
        ("stages.natural.grpo.temperature", 1.0, "C"),
        ("stages.natural.grpo.max_answer_tokens", 2048, "C"),
        ("stages.natural.grpo.perturbation", "any", "C, one of six"),
        ("stages.natural.grpo.perturb_each", "rollout", "C, drawn anew for every rollout"),
        ("stages.natural.grpo.num_perturbed", 4, "C, the same prompts rolled out again"),
        ("stages.natural.grpo.blank_colour", "grey", "C, zero after normalisation"),
        ("stages.natural.rewards.reason:ranking.settings", RELEASED_RANKING, "C, + 1e-6; one partner on the device"),
        ("stages.natural.rewards.reason:bell.settings", RELEASED_BELL, "C, trailing zeros stripped"),
        ("stages.natural.rewards.reason:format.settings", {"variant": "released"}, "C, tags"),
        (
            "stages.natural.rewards.reason:temporal_ranking.settings",
            {**TEMPORAL_CODE, "threshold": 0.5, "accuracy": {"name": "ranking", "settings": RELEASED_RANKING}},
            "C, November 2025",
        ),
        (
            "stages.natural.rewards.reason:temporal_bell.settings",
            {**TEMPORAL_CODE, "threshold": 0.9, "accuracy": {"name": "bell", "settings": RELEASED_BELL}},
            "C, November 2025",
        ),
        ("stages.natural.fit.num_epochs", 3, "C"),
        ("stages.natural.fit.learning_rate", 1e-6, "C"),
        ("stages.natural.fit.batch_size", 32, "C, 8 GPUs x 8 x 2 / G"),
        ("stages.natural.fit.max_grad_norm", 1.0, "C"),
    ],
}

LEAVES = ("settings", "columns", "tasks", "task_share", "frame_policy", "train_frames")
APART = ("estimate", "output")


def flatten(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield setting and value; data and rewards go by their kinds and names."""
    if isinstance(value, dict) and value and key.rpartition(".")[2] not in LEAVES:
        for name, inner in value.items():
            if name not in APART and not (name == "lora" and value["role"] is None):
                yield from flatten(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for inner in value:
            yield from flatten(inner, f"{key}.{inner['kind']}" + (f":{inner['name']}" if "name" in inner else ""))
    else:
        yield key, value


def settings(name: str) -> dict[str, Any]:
    """Return the settings of a recipe."""
    return dict(flatten(plain(load_config(RecipeConfig, RECIPES / f"{name}.yaml"))))


def lookup(flat: dict[str, Any], key: str) -> Any:
    """Return the value of a setting; of a whole section, whether it is there."""
    if key in flat:
        return flat[key]
    return GIVEN if any(name.startswith(f"{key}.") for name in flat) else ABSENT


def agree(told: Any, value: Any) -> bool:
    """Return whether a told value is that of a setting; of a mapping it may tell a part."""
    if told == GIVEN:
        return value not in (ABSENT, None, 0, False)
    if isinstance(told, dict) and isinstance(value, dict):
        return all(key in value and agree(told[key], value[key]) for key in told) and bool(told) >= bool(value)
    return told == value


def sections(name: str) -> dict[str, list[list[str]]]:
    """Return heading -> lines of the page's tables about a recipe, each as its cells."""
    tables: dict[str, list[list[str]]] = {}
    heading = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif line.startswith("|") and heading.startswith(TITLES[name]) and not line.startswith("|---"):
            tables.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return {heading: lines[1:] for heading, lines in tables.items()}


def told_differences(name: str) -> list[tuple[str, Any, Any]]:
    """Return pattern, the paper's value and ours of each line of the page."""
    lines = sections(name)[f"{TITLES[name]}: the paper against ours"]
    assert all(len(line) == 4 and line[3] for line in lines)
    return [(line[0].strip("`"), *(yaml.safe_load(cell.strip("`")) for cell in line[1:3])) for line in lines]


@pytest.mark.parametrize("name", TITLES)
def test_the_recipe_of_a_paper_has_the_papers_values(name: str) -> None:
    flat = settings(name)
    wrong = [
        (key, lookup(flat, key), value, source)
        for key, value, source in PAPER[name]
        if not agree(value, lookup(flat, key))
    ]
    assert wrong == []


@pytest.mark.parametrize("name", TITLES)
def test_our_form_differs_from_the_paper_only_where_the_page_says_so(name: str) -> None:
    told, ours = [pattern for pattern, *_ in told_differences(name)], settings(f"{name}_ours")
    differing = [(key, source) for key, value, source in PAPER[name] if not agree(value, lookup(ours, key))]
    untold = [one for one in differing if not any(covers(pattern, one[0]) for pattern in told)]
    assert differing and untold == []


def covers(pattern: str, key: str) -> bool:
    """Return whether a line of the page is about a setting, or about a section that holds it."""
    return fnmatchcase(key, pattern) or fnmatchcase(key, f"{pattern}.*")


@pytest.mark.parametrize("name", TITLES)
def test_every_difference_of_the_two_forms_has_a_line_and_every_line_is_one(name: str) -> None:
    paper, ours, told = settings(name), settings(f"{name}_ours"), told_differences(name)
    differing = {key for key in {*paper, *ours} if lookup(paper, key) != lookup(ours, key)}
    untold = sorted(key for key in differing if not any(covers(pattern, key) for pattern, *_ in told))
    assert untold == []
    idle = [pattern for pattern, *_ in told if not any(covers(pattern, key) for key in differing)]
    assert idle == []


@pytest.mark.parametrize("name", TITLES)
def test_the_values_of_the_page_are_those_of_the_recipes(name: str) -> None:
    paper, ours = settings(name), settings(f"{name}_ours")
    wrong = []
    for pattern, *values in told_differences(name):
        keys = {key for key in {*paper, *ours} if fnmatchcase(key, pattern)} or {
            ".".join(key.split(".")[: pattern.count(".") + 1]) for key in {*paper, *ours} if covers(pattern, key)
        }
        for key in sorted(keys):
            both = [lookup(flat, key) for flat in (paper, ours)]
            if ABSENT in both and not {ABSENT, GIVEN} & {str(told) for told in values}:
                continue  # the line of the whole section tells it
            if both[0] != both[1] and not all(agree(told, value) for told, value in zip(values, both, strict=True)):
                wrong.append((pattern, key, values, both))
    assert wrong == []


@pytest.mark.parametrize("name", TITLES)
def test_the_page_says_where_the_recipe_is_not_its_paper(name: str) -> None:
    lines = sections(name)[f"{TITLES[name]}: the paper against `{name}.yaml`"]
    assert len(lines) > 8 and all(len(line) == 4 and all(line) for line in lines)
    items = {line[0] for line in lines}
    assert {"memory", "unreadable answers", "sentences of the prompts"} <= items
    assert name != "vqathinker" or {"base", "normalisation of motion frames"} <= items


@pytest.mark.parametrize("name", TITLES)
def test_every_value_of_a_papers_recipe_names_its_source(name: str) -> None:
    lines = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    values = [
        line for line in lines if re.match(r"\s*(- )?(\w+:\s*[^\s#&]|- \{|\{)", line) and line.strip() != "name: judge"
    ]
    unsourced = [line for line in values if not re.search(r"# (.*; )?(paper|code|data|ours)\b", line)]
    allowed = {"{parameters"}  # its source stands on the line before
    assert [line for line in unsourced if not line.strip().startswith(tuple(allowed))] == []
    assert len(values) > 40
