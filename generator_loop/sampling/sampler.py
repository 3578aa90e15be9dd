"""The sampler of a run: which prompts an iteration takes, and groups of clips of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from generator_loop.adapters.base import OLD, VideoGenerator
from generator_loop.config import SamplingConfig
from generator_loop.flow.sde import RandomSteps
from generator_loop.records import Draw, Prompt, Rollout
from generator_loop.sampling.prompts import draw_prompts
from generator_loop.sampling.rollout import PromptEncoder, decoded, rollout

Known = tuple[Tensor, Tensor]
"""Noise and clean latents of clips."""


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Draws training prompts and groups of clips, as the config and the objective ask for."""

    generator: VideoGenerator
    """Samples with the weights that a call names."""
    encoder: PromptEncoder
    """Text embeddings."""
    prompts: tuple[Prompt, ...]
    """All training prompts."""
    config: SamplingConfig
    """Sizes of groups and batches, number of steps."""
    seed: int
    """Seed of the run; it decides the order of the prompts."""
    rank: int
    """This process."""
    num_ranks: int
    """Number of processes."""
    tail_span: float
    """Span of sigma whose last states the objective needs; 0 keeps none."""
    random_steps: RandomSteps | None
    """Random steps that the objective needs; None samples the ODE."""

    def choose_prompts(self, step: int) -> tuple[Prompt, ...]:
        """Return this process's share of the prompts of iteration `step`."""
        return draw_prompts(
            self.prompts,
            num_prompts=self.config.num_prompts,
            seed=self.seed,
            round_index=step,
            rank=self.rank,
            num_ranks=self.num_ranks,
        )

    def sample(
        self, prompts: Sequence[Prompt], draw: Draw, *, policy: str = OLD, known: Known | None = None
    ) -> Rollout:
        """Draw a group of clips for each prompt.

        Args:
            prompts: distinct prompts.
            draw: random streams.
            policy: name of the weights that sample; by default the policy as of the last iteration's end.
            known: noise and latents [B, c, F, h, w] of these clips if they were sampled before; they are only decoded.

        Returns:
            The groups, with the states that the objective needs.
        """
        if known is not None:
            return decoded(
                self.generator,
                prompts,
                *known,
                encoder=self.encoder,
                group_size=self.config.group_size,
                batch_size=self.config.batch_size,
            )
        return rollout(
            self.generator,
            prompts,
            encoder=self.encoder,
            draw=draw,
            group_size=self.config.group_size,
            num_steps=self.config.num_steps,
            batch_size=self.config.batch_size,
            policy=policy,
            tail_span=self.tail_span,
            random_steps=self.random_steps,
        )
