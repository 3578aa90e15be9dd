"""Measurement on held-out prompts: the same noise each time, judges that learn and judges that do not, and the oracle.

Shape legend: N = prompts x seeds clips, clips of one prompt consecutive; T pixel frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from generator_loop.adapters.base import VideoGenerator
from generator_loop.evaluation.columns import CURRENT, INITIAL, SPREAD, UNCERTAINTY, Evaluation, Measure
from generator_loop.processes import gather
from generator_loop.records import Draw, Prompt, Rollout
from generator_loop.rewards.scorer import ScoringJudge, weighted
from generator_loop.sampling.rollout import PromptEncoder, rollout


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Samples the held-out prompts and lets every judge and measure look at each clip."""

    prompts: tuple[Prompt, ...]
    """Held-out prompts, in the order of the evaluation's clips."""
    judges: Mapping[str, ScoringJudge]
    """`initial`, `current` and, where there is one, `audit`."""
    measures: Mapping[str, Measure]
    """Source -> measure; the moving-shapes world gives `oracle` and `open`."""
    weights: Mapping[str, float]
    """Dimension -> weight of the reward."""
    encoder: PromptEncoder
    """Text embeddings."""
    draw: Draw
    """The evaluation's own random streams."""
    num_seeds: int
    """Clips per prompt."""
    num_steps: int
    """Sampler steps."""
    batch_size: int
    """Clips per forward pass of the generator."""
    judge_batch_size: int
    """Clips per forward pass of a judge."""
    rank: int = 0
    """This process."""
    num_ranks: int = 1
    """Number of processes; each evaluates every num_ranks-th prompt."""

    def evaluate(
        self,
        generator: VideoGenerator,
        num_prompts: int,
        *,
        judge_is_initial: bool = False,
        keep: Callable[[Prompt, Tensor], None] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Evaluation:
        """Measure the policy on the first `num_prompts` held-out prompts.

        Args:
            generator: sampled with its live weights.
            num_prompts: how many prompts; all processes pass the same number.
            judge_is_initial: the current judge still is the initial one, whose scores then serve for both.
            keep: receives each of this process's prompts with its first clip [T, C, H, W], to write it as video.
            check: called before each batch of clips, equally often on all processes; it may raise to stop.

        Returns:
            The measurement, the same on all processes.
        """
        prompts = self.prompts[:num_prompts]
        measured: list[tuple[int, dict[str, float]]] = []
        for places in self._batches(len(prompts)):
            check()
            if not places:
                continue
            drawn = rollout(
                generator,
                [prompts[place] for place in places],
                encoder=self.encoder,
                draw=self.draw,
                group_size=self.num_seeds,
                num_steps=self.num_steps,
                batch_size=self.batch_size,
            )
            clips = [place * self.num_seeds + seed for place in places for seed in range(self.num_seeds)]
            measured += zip(clips, self._look(drawn, generator.fps, judge_is_initial), strict=True)
            if keep is not None:
                for index, prompt in enumerate(drawn.prompts):
                    keep(prompt, drawn.frames[index * self.num_seeds])
        return self._gather(prompts, measured)

    def _batches(self, num_prompts: int) -> list[list[int]]:
        """Return this process's prompts in batches, as many batches on every process, so the last may be empty."""
        size = max(1, self.batch_size // self.num_seeds)
        own, most = range(self.rank, num_prompts, self.num_ranks), len(range(0, num_prompts, self.num_ranks))
        return [list(own[start : start + size]) for start in range(0, most, size)]

    @torch.no_grad()
    def _look(self, drawn: Rollout, fps: float, judge_is_initial: bool) -> list[dict[str, float]]:
        """Return one dict of named numbers for each clip."""
        texts = [prompt.text for prompt in drawn.prompts for _ in range(drawn.group_size)]
        numbers: list[dict[str, float]] = [{} for _ in texts]
        for source, judge in self.judges.items():
            if source == CURRENT and judge_is_initial:
                continue
            out = judge(drawn.frames, texts, fps=fps, batch_size=self.judge_batch_size)
            columns = {f"{source}/{name}": values for name, values in out.scores.items()}
            columns |= {f"{source}/reward": weighted(out.scores, self.weights)}
            columns |= {f"{UNCERTAINTY}/{source}": weighted(out.std, self.weights)}
            if source == INITIAL and judge_is_initial:
                columns |= {name.replace(INITIAL, CURRENT): values for name, values in columns.items()}
            for name, values in columns.items():
                for clip, value in zip(numbers, values.tolist(), strict=True):
                    clip[name] = value
        for source, measure in self.measures.items():
            for clip, frames, text in zip(numbers, drawn.frames, texts, strict=True):
                clip |= {f"{source}/{name}": float(value) for name, value in measure(frames, text).items()}
        groups = rearrange(drawn.latents, "(b g) ... -> b g ...", g=drawn.group_size)
        spread = groups.std(dim=1, correction=0).flatten(1).mean(1)
        for clip, value in zip(numbers, spread.repeat_interleave(drawn.group_size).tolist(), strict=True):
            clip[SPREAD] = value
        return numbers

    def _gather(self, prompts: Sequence[Prompt], measured: Sequence[tuple[int, Mapping[str, float]]]) -> Evaluation:
        """Put the clips of all processes in the order of the prompts."""
        table = dict(gather(list(measured)))
        names = sorted({name for numbers in table.values() for name in numbers})
        columns = {name: tuple(table[place].get(name, math.nan) for place in sorted(table)) for name in names}
        return Evaluation(tuple(p.prompt_id for p in prompts for _ in range(self.num_seeds)), columns)
