"""The parts of one run and its progress."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from generator_loop.adapters.base import POLICY, VideoGenerator
from generator_loop.config import JointConfig
from generator_loop.evaluation import toy_world
from generator_loop.evaluation.columns import AUDIT, CURRENT, Evaluation
from generator_loop.evaluation.held_out import Evaluator
from generator_loop.evaluation.probes import Probes
from generator_loop.guards.base import Watch
from generator_loop.optim.learner import Learner
from generator_loop.processes import gather
from generator_loop.records import Draw, Prompt
from generator_loop.refresh.base import Candidate, PairTools
from generator_loop.refresh.refresh import JudgeRefresher
from generator_loop.rewards.scorer import RemoteJudge, Scorer, weighted
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
    ended: str = ""
    """Why a guard ended the run before its last round."""

    def is_over(self, num_rounds: int) -> bool:
        """Return whether no further round comes, of `num_rounds` in all."""
        return self.round >= num_rounds or bool(self.ended)


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
        world, size = self.config.prompts.world, self.generator.size
        return PairTools(
            sample=lambda prompts: self.scorer.sampled(self.sampler.sample(prompts, self.draw, policy=POLICY)),
            decode=self.generator.decode,
            encode=self.generator.encode,
            scores=self._scores,
            gather=gather,
            draw=self.draw.fork("refresh"),
            rank=self.processes.rank,
            num_ranks=self.processes.count,
            num_prompts=self.config.refresh.num_prompts,
            fps=self.config.generator.fps,
            size=(self.generator.num_frames, *size),
            oracle=toy_world.quality if world else None,
            render=self._rendered if world else None,
        )

    def _scores(self, candidates: Sequence[Candidate]) -> dict[str, Tensor]:
        """Return the rewarding judge's rewards of the newest clips, and the audit judge's; see `PairTools.scores`."""
        scores = {CURRENT: torch.stack([one.rewards for one in candidates])}
        if (audit := self.evaluator.judges.get(AUDIT)) is not None:
            texts = [one.prompt.text for one in candidates for _ in one.frames]
            clips = torch.cat([one.frames for one in candidates])
            out = audit(clips, texts, fps=self.config.generator.fps, batch_size=self.config.judge.batch_size)
            scores[AUDIT] = weighted(out.scores, self.config.reward.weights).float().cpu().view_as(scores[CURRENT])
        return scores

    def _rendered(self, prompts: Sequence[Prompt], draw: Draw) -> Tensor:
        """Return the world's clean clips; see `PairTools.render`."""
        generator = self.generator
        return toy_world.clean_clips(prompts, draw, sample=0, num_frames=generator.num_frames, size=generator.size)

    def round_seconds(self) -> float:
        """Return the wall time of the round under way."""
        return self.progress.seconds + time.monotonic() - self.started
