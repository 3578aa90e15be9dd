"""A run's parts, built from its config, and its progress."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from generator_loop.adapters.base import VideoGenerator
from generator_loop.config import JointConfig
from generator_loop.evaluation.held_out import Evaluation, Evaluator
from generator_loop.evaluation.probes import Probes
from generator_loop.objectives.base import Objective
from generator_loop.optim.step import Updater
from generator_loop.records import Draw, Prompt
from generator_loop.refresh.anchors import Affine, Anchors, anchor_accuracy, anchor_scores, reanchor
from generator_loop.refresh.new_beats_old import Loser
from generator_loop.rewards.scorer import Scorer, ServedJudge, weighted
from generator_loop.run.launch import Processes
from generator_loop.sampling.rollout import PromptEncoder
from generator_loop.tracking.metric_log import MetricLog, ProgressBar
from reward_model import VideoJudgeReward

RewardingJudge = VideoJudgeReward | ServedJudge


@dataclass
class Progress:
    """What changes while a run goes on, beside the weights."""

    round: int = 0
    """Rounds finished."""
    iteration: int = 0
    """Iterations finished in the round under way."""
    seconds: float = 0.0
    """Wall time of the round under way, before the last resume."""
    num_kept: int = 0
    """Refreshes kept so far."""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """Entries of the summary."""
    before: Evaluation | None = None
    """Measured before any update."""
    after: Evaluation | None = None
    """Measured at the end."""
    first: dict[str, float] = field(default_factory=dict)
    """Statistics of the first iteration, from which alarms are measured."""
    alarms: list[str] = field(default_factory=list)
    """Sentences of the monitors."""
    losers: dict[int, Loser] = field(default_factory=dict)
    """Prompt id -> what the policy of the round's start drew worst."""


@dataclass
class Session:
    """The parts of one run."""

    config: JointConfig
    output: Path
    processes: Processes
    generator: VideoGenerator
    objective: Objective[Any]
    updater: Updater
    encoder: PromptEncoder
    train_prompts: tuple[Prompt, ...]
    judge: RewardingJudge
    initial_judge: RewardingJudge
    scorer: Scorer
    evaluator: Evaluator
    probes: Probes
    renderer: dict[str, float] | None
    anchors: Anchors | None
    initial_anchor_rewards: torch.Tensor | None
    log: MetricLog
    bar: ProgressBar
    progress: Progress
    started: float

    @property
    def step(self) -> int:
        """Iterations finished over all rounds."""
        return self.progress.round * self.config.loop.num_iterations + self.progress.iteration

    @property
    def draw(self) -> Draw:
        """Random streams of the iteration that comes next."""
        return Draw(seed=self.config.run.seed, step=self.step)

    def round_seconds(self) -> float:
        """Return the wall time of the round under way."""
        return self.progress.seconds + time.monotonic() - self.started


def anchored(session: Session) -> tuple[Affine, float]:
    """Return the current judge's map to the initial scale, and its accuracy on the held-out anchors (NaN without)."""
    if session.anchors is None or session.initial_anchor_rewards is None:
        return Affine(), float("nan")
    assert isinstance(session.judge, VideoJudgeReward)
    scores = anchor_scores(session.judge, session.anchors.held_out)
    rewards = weighted(scores, session.config.reward.weights)
    accuracy = anchor_accuracy(scores, session.anchors.held_out)
    return reanchor(rewards, session.initial_anchor_rewards), accuracy
