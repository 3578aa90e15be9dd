"""Measures a stage on held-out clips of its own data, in each task that it trains.

Shapes: N held-out clips.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from reward_model.datasets.readers import Keep, refuse_faults
from reward_model.datasets.sources import Part
from reward_model.evaluation.benchmark import evaluate_pairs, evaluate_ratings, pairs_by_label
from reward_model.evaluation.metrics import srcc
from reward_model.judge.engine.readouts import read_levels
from reward_model.judge.model import VideoJudge
from reward_model.records import RatedClip, VideoPair, VideoQuestion
from reward_model.training.recipe import StageConfig
from reward_model.training.tasks.mixture import clip_planner, open_mixture
from reward_model.training.tasks.rollout_prompts import closed_prompt
from reward_model.training.tasks.supervised import clip_example
from reward_model.video_reward import VideoJudgeReward

HELD_OUT_SEED = 2**40
"""Seed of held-out clips, above every training draw."""

MIN_GAP = 0.1
"""Two held-out clips of a prompt form a pair where their overall quality differs by this much."""


@torch.no_grad()
def own_levels(judge: VideoJudge, clips: Sequence[RatedClip]) -> list[dict[str, float]]:
    """Return the judge's own ratings of clips by its levels.

    Args:
        judge: with the asked role in use.
        clips: one batch; each is rated on the dimensions of its labels.

    Returns:
        Per clip, dimension -> expected quality in [0, 1].
    """
    planner = clip_planner(judge)
    requests = [clip_example(clip, planner, ["rate"]).request for clip in clips]
    logits = judge.next_token_logits(requests) if clips else []
    qualities = [read_levels(branches, judge.level_ids).quality.tolist() for branches in logits]
    return [dict(zip(clip.quality, values, strict=True)) for clip, values in zip(clips, qualities, strict=True)]


@torch.no_grad()
def measure_stage(
    judge: VideoJudge,
    stage: StageConfig,
    *,
    seed: int = HELD_OUT_SEED,
    part: Part = "held_out",
    keep: Keep = refuse_faults,
    pause: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Measure a stage's tasks on held-out clips; the task rate also sets the judge's calibration constants.

    Args:
        judge: the judge after, or within, the stage.
        stage: its role, data, tasks and number of held-out clips are used.
        seed: seed of the held-out clips; of a list each is shown once.
        part: of the data; weights are chosen on another than the one they are reported on.
        keep: see `readers.open_source`.
        pause: called between batches; what it raises ends the measurement.

    Returns:
        "srcc_<dimension>" of the levels (rate), "reason_srcc_<dimension>" and "parse_rate" (reason, learned by grpo),
        "compare_accuracy" and "compare_consistency" (compare), "ask_accuracy" (ask), against the labels; empty where
        nothing is held out.
    """
    if not stage.num_held_out:
        return {}
    annotations = open_mixture(stage.data, part=part, keep=keep)(seed, stage.num_held_out)
    clips = [one for one in annotations if isinstance(one, RatedClip)]
    reward = VideoJudgeReward(judge, role=stage.role)
    metrics: dict[str, float] = {}
    if "rate" in stage.tasks:
        metrics |= _measure_levels(judge, stage, clips, pause)
    if "reason" in stage.tasks and stage.method == "grpo":
        table = evaluate_ratings(reward, clips, readout="reason", progress=lambda *_: pause())
        metrics |= {f"reason_srcc_{entry.dimension}": entry.srcc for entry in table.rows}
        metrics["parse_rate"] = table.parse_rate
    if "compare" in stage.tasks:
        pairs = [one for one in annotations if isinstance(one, VideoPair)]
        pause()
        metrics |= _measure_pairs(reward, pairs + pairs_by_label(clips, min_gap=MIN_GAP, num=len(clips), seed=0))
    if "ask" in stage.tasks:
        metrics |= _measure_questions(judge, stage, [e for e in annotations if isinstance(e, VideoQuestion)], pause)
    return metrics


def _measure_pairs(reward: VideoJudgeReward, pairs: Sequence[VideoPair]) -> dict[str, float]:
    entries = evaluate_pairs(reward, pairs).rows if pairs else ()
    overall = [entry for entry in entries if entry.dimension == "overall"]
    if not overall:
        return {}
    return {"compare_accuracy": overall[0].accuracy, "compare_consistency": overall[0].consistency}


def _measure_questions(
    judge: VideoJudge,
    stage: StageConfig,
    asked: Sequence[VideoQuestion],
    pause: Callable[[], None],
    *,
    batch_size: int = 16,
) -> dict[str, float]:
    planner, right = clip_planner(judge), 0
    prompts = [closed_prompt(question, planner, group=0, style=judge.style) for question in asked]
    with judge.use_role(stage.role):
        for start in range(0, len(prompts), batch_size):
            pause()
            batch = prompts[start : start + batch_size]
            texts = judge.generate([one.request for one in batch], max_new_tokens=judge.config.max_answer_tokens)
            read = [one.read(text[0][0], num_tokens=0, ended=True) for one, text in zip(batch, texts, strict=True)]
            right += sum(answer.choice == one.label.choice for answer, one in zip(read, batch, strict=True))
    return {"ask_accuracy": right / len(prompts)} if prompts else {}


def _measure_levels(
    judge: VideoJudge, stage: StageConfig, clips: list[RatedClip], pause: Callable[[], None], *, batch_size: int = 16
) -> dict[str, float]:
    given: dict[str, list[float]] = {name: [] for name in judge.config.dimensions}
    labels: dict[str, list[float]] = {name: [] for name in judge.config.dimensions}
    with judge.use_role(stage.role):
        for start in range(0, len(clips), batch_size):
            pause()
            batch = clips[start : start + batch_size]
            for clip, qualities in zip(batch, own_levels(judge, batch), strict=True):
                for name, quality in qualities.items():
                    given[name].append(quality)
                    labels[name].append(clip.quality[name])
    rated = {name: torch.tensor(values) for name, values in given.items() if len(values) > 1}
    constants = {name: {"mean": float(q.mean()), "std": float(q.std())} for name, q in rated.items()}
    judge.configure(calibration=constants)
    return {f"srcc_{name}": srcc(values.numpy(), labels[name]) for name, values in rated.items()}
