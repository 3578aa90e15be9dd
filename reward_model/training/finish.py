"""Finishes a recipe: the last stage's judge, with its provenance and a model card that shows its reactions to damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from reward_model.datasets.readers import Keep, refuse_faults
from reward_model.datasets.sources import Part
from reward_model.evaluation.benchmark import ProgressCallback
from reward_model.evaluation.card import CardFacts, write_card
from reward_model.evaluation.sanity import sanity
from reward_model.files import put_back, write_beside
from reward_model.judge.model import VideoJudge
from reward_model.records import RatedClip
from reward_model.training.measure import HELD_OUT_SEED
from reward_model.training.recipe import RecipeConfig, StageConfig
from reward_model.training.tasks.mixture import open_mixture
from reward_model.video_reward import VideoJudgeReward

PROVENANCE = "provenance.json"
BEST_OF = 4
"""Clips drawn per damaged one: the best rated are damaged, since damage shows least on bad clips."""


def finish(
    config: RecipeConfig,
    stages: Sequence[Path],
    folder: Path,
    *,
    part: Part = "held_out",
    keep: Callable[[StageConfig, VideoJudge], Keep] = lambda stage, judge: refuse_faults,
    progress: ProgressCallback | None = None,
) -> None:
    """Write the judge of the last stage to `folder`, unless it stands there already.

    Args:
        config: the recipe.
        stages: folders of the finished stages, in order.
        folder: of the finished judge; replaced as a whole.
        part: of the data whose clips are damaged for the sanity table.
        keep: returns for a stage and its judge which examples of a file can be used.
        progress: told of the clips damaged, and their number.
    """
    record: dict[str, Any] = {
        "stages": {stage.name: json.loads((stage / "done.json").read_text()) for stage in stages},
        "num_sanity": config.num_sanity,
    }
    text = json.dumps(record, indent=1) + "\n"
    put_back(folder)
    if (folder / PROVENANCE).exists() and (folder / PROVENANCE).read_text() == text:
        return

    def reactions(beside: Path) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Return the sanity table of the judge."""
        return _reactions(beside, config, part, keep, progress)

    def write(beside: Path) -> None:
        """Copy the judge and write its provenance and card."""
        shutil.copytree(stages[-1], beside, ignore=shutil.ignore_patterns("done.json"))
        (beside / PROVENANCE).write_text(text)
        facts = CardFacts(name=Path(config.output).name, stages=record["stages"], tables=reactions(beside))
        write_card(beside, facts)

    write_beside(folder, write)


def _reactions(
    folder: Path,
    config: RecipeConfig,
    part: Part,
    keep: Callable[[StageConfig, VideoJudge], Keep],
    progress: ProgressCallback | None,
) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """Return the sanity table of the last stage that rates clips, on its best held-out clips; empty without such."""
    rating = [stage for stage in config.stages.values() if {"rate", "reason"} & set(stage.tasks)]
    if not rating or not config.num_sanity:
        return {}
    judge = VideoJudge.from_pretrained(folder, dtype=getattr(torch, config.dtype))
    clips = _best_held_out(rating[-1], config.num_sanity, part, keep(rating[-1], judge))
    if not clips:
        return {}
    reward = VideoJudgeReward(judge, role=rating[-1].role)
    table = sanity(reward, clips, policy=reward.frame_policy, progress=progress)
    return {"Sanity: damage on purpose": table.to_json()["rows"]}  # type: ignore[dict-item]


def _best_held_out(stage: StageConfig, num: int, part: Part, keep: Keep) -> list[RatedClip]:
    drawn = open_mixture(stage.data, part=part, keep=keep)(HELD_OUT_SEED, BEST_OF * num)
    clips = [one for one in drawn if isinstance(one, RatedClip) and one.quality]
    return sorted(clips, key=lambda clip: -sum(clip.quality.values()) / len(clip.quality))[:num]
