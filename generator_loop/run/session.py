"""The parts of one run and its progress."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from generator_loop.adapters.base import POLICY, VideoGenerator
from generator_loop.config import JointConfig
from generator_loop.evaluation.columns import Evaluation
from generator_loop.evaluation.held_out import Evaluator
from generator_loop.evaluation.probes import Probes
from generator_loop.guards.base import Watch
from generator_loop.optim.learner import Learner
from generator_loop.processes import gather
from generator_loop.records import Draw
from generator_loop.refresh.base import PairTools
from generator_loop.refresh.refresh import JudgeRefresher
from generator_loop.rewards.scorer import RemoteJudge, Scorer
from generator_loop.run.launch import Processes
from generator_loop.sampling.sampler import Sampler
from generator_loop.tracking.metric_log import MetricLog, ProgressBar
from reward_model import VideoJudgeReward

RewardingJudge = VideoJudgeReward | RemoteJudge


@dataclass
class Progress:
    """Counters and measurements of a run; a checkpoint stores them beside the weights."""

    round: int = 0
    """Rounds finished."""
    iteration: int = 0
    """Iterations finished in the round under way."""
    seconds: float = 0.0
    """Wall time of the round under way, before the last resume."""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """Entries of the summary."""
    before: Evaluation | None = None
    """Measured before any update."""
    after: Evaluation | None = None
    """Measured at the end."""
    alarms: list[str] = field(default_factory=list)
    """Sentences of the guards."""


@dataclass
class Session:
    """The parts of one run, one for each step of an iteration or round; `run.build` makes them."""

    config: JointConfig
    output: Path
    processes: Processes
    generator: VideoGenerator
    judge: RewardingJudge
    sampler: Sampler
    scorer: Scorer
    learner: Learner
    refresher: JudgeRefresher | None
    watch: Watch
    evaluator: Evaluator
    probes: Probes
    renderer: dict[str, float] | None
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

    @property
    def pair_tools(self) -> PairTools:
        """The parts that a pair source may use now."""
        return PairTools(
            sample=lambda prompts: self.scorer.sampled(self.sampler.sample(prompts, self.draw, policy=POLICY)),
            decode=self.generator.decode,
            gather=gather,
            rank=self.processes.rank,
            num_ranks=self.processes.count,
            num_prompts=self.config.refresh.num_prompts,
            fps=self.config.generator.fps,
        )

    def round_seconds(self) -> float:
        """Return the wall time of the round under way."""
        return self.progress.seconds + time.monotonic() - self.started
