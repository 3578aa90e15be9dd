"""Measures a stage on held-out clips of its own data: levels, reasoned answers and comparisons, whatever it trains.

Shapes: N held-out clips.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from reward_model.evaluation.benchmark import evaluate_pairs, evaluate_ratings, pairs_by_label
from reward_model.evaluation.metrics import srcc
from reward_model.judge.engine.readouts import read_levels
from reward_model.judge.model import VideoJudge
from reward_model.records import RatedClip, VideoPair, VideoQuestion
from reward_model.training.recipe import StageConfig
from reward_model.training.tasks.mixture import clip_planner, open_mixture
from reward_model.training.tasks.rollout_prompts import closed_question
from reward_model.training.tasks.supervised import clip_lesson
from reward_model.video_reward import VideoJudgeReward

HELD_OUT_SEED = 2**40
"""Seed of held-out clips, above every training draw."""

MIN_GAP = 0.1
"""Two held-out clips of a prompt form a pair where their overall quality differs by this much."""


@torch.no_grad()
def own_levels(judge: VideoJudge, clips: Sequence[RatedClip]) -> list[dict[str, float]]:
    """Return what the judge itself rates clips by its levels.

    Args:
        judge: with the role in use that is asked.
        clips: one batch; each is rated on the dimensions of its labels.

    Returns:
        Per clip, dimension -> expected quality in [0, 1].
    """
    planner = clip_planner(judge)
    requests = [clip_lesson(clip, planner, ["rate"]).request for clip in clips]
    logits = judge.next_token_logits(requests) if clips else []
    qualities = [read_levels(branches, judge.level_ids).quality.tolist() for branches in logits]
    return [dict(zip(clip.quality, values, strict=True)) for clip, values in zip(clips, qualities, strict=True)]


@torch.no_grad()
def measure_stage(judge: VideoJudge, stage: StageConfig, *, seed: int = HELD_OUT_SEED) -> dict[str, float]:
    """Measure on held-out clips what a stage has trained; rating sets the judge's calibration constants too.

    Args:
        judge: the judge after, or within, the stage.
        stage: whose role, data, tasks and number of clips are used.
        seed: seed of the held-out clips.

    Returns:
        "srcc_<dimension>" of the levels (rate), "reason_srcc_<dimension>" and "parse_rate" (reason, learned by grpo),
        "compare_accuracy" and "compare_consistency" (compare), "ask_accuracy" (ask), against the labels; empty where
        nothing is held out.
    """
    if not stage.num_held_out:
        return {}
    examples = open_mixture(stage.data, held_out=True)(seed, stage.num_held_out)
    clips = [example for example in examples if isinstance(example, RatedClip)]
    reward = VideoJudgeReward(judge, role=stage.role)
    found: dict[str, float] = {}
    if "rate" in stage.tasks:
        found |= _measure_levels(judge, stage, clips)
    if "reason" in stage.tasks and stage.method == "grpo":
        table = evaluate_ratings(reward, clips, readout="reason")
        found |= {f"reason_srcc_{row.dimension}": row.srcc for row in table.rows} | {"parse_rate": table.parse_rate}
    if "compare" in stage.tasks:
        pairs = [example for example in examples if isinstance(example, VideoPair)]
        found |= _measure_pairs(reward, pairs + pairs_by_label(clips, min_gap=MIN_GAP, num=len(clips), seed=0))
    if "ask" in stage.tasks:
        found |= _measure_questions(judge, stage, [e for e in examples if isinstance(e, VideoQuestion)])
    return found


def _measure_pairs(reward: VideoJudgeReward, pairs: Sequence[VideoPair]) -> dict[str, float]:
    rows = [row for row in evaluate_pairs(reward, pairs).rows if row.dimension == "overall"] if pairs else []
    return {"compare_accuracy": rows[0].accuracy, "compare_consistency": rows[0].consistency} if rows else {}


def _measure_questions(
    judge: VideoJudge, stage: StageConfig, asked: Sequence[VideoQuestion], *, batch_size: int = 16
) -> dict[str, float]:
    planner, right = clip_planner(judge), 0
    questions = [closed_question(one, planner, group=0) for one in asked]
    with judge.use_role(stage.role):
        for start in range(0, len(questions), batch_size):
            part = questions[start : start + batch_size]
            texts = judge.generate([q.request for q in part], max_new_tokens=judge.config.max_answer_tokens)
            read = [q.read(text[0][0], num_tokens=0, ended=True) for q, text in zip(part, texts, strict=True)]
            right += sum(a.choice == q.label.choice for a, q in zip(read, part, strict=True))
    return {"ask_accuracy": right / len(questions)} if questions else {}


def _measure_levels(
    judge: VideoJudge, stage: StageConfig, clips: list[RatedClip], *, batch_size: int = 16
) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in judge.config.dimensions}
    labels: dict[str, list[float]] = {name: [] for name in judge.config.dimensions}
    with judge.use_role(stage.role):
        for start in range(0, len(clips), batch_size):
            part = clips[start : start + batch_size]
            for clip, qualities in zip(part, own_levels(judge, part), strict=True):
                for name, quality in qualities.items():
                    found[name].append(quality)
                    labels[name].append(clip.quality[name])
    rated = {name: torch.tensor(values) for name, values in found.items() if len(values) > 1}
    constants = {name: {"mean": float(q.mean()), "std": float(q.std())} for name, q in rated.items()}
    judge.configure(calibration=constants)
    return {f"srcc_{name}": srcc(values.numpy(), labels[name]) for name, values in rated.items()}
