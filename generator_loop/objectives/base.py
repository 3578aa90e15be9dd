"""What every training objective is to the loop, so that no caller needs to know which one it has.

An objective turns a scored rollout into optimiser steps (`plan`) and adds the gradient of one micro-batch to the
policy (`backward`). Objectives that learn from samples put their formula into a pure `loss`; the gradient objective
trajectories the sampler backwards. Random numbers are keyed by prompt and sample, so that ranks with disjoint prompts
together draw what one process would draw.

Shape legend: B rollout rows, N micro-batch rows, F latent frames, T pixel frames.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from generator_loop.flow.sde import RandomSteps
from generator_loop.records import Draw, LossOutput, Predict, Prompt, Rollout, Scored
from generator_loop.rewards.advantages import Advantages

PixelReward = Callable[[Tensor, Sequence[Prompt]], Tensor]
"""reward(frames [N, T, C, H, W], N prompts) -> [N] with gradient to the frames, NaN where it could not be had."""


class Decode(Protocol):
    """decode(latents [N, c, F, h, w], run of latent frames or None for all) -> frames [N, T, C, H, W]."""

    def __call__(self, latents: Tensor, run: range | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Policies:
    """What an objective may call: the three policies, the decoder and the differentiable reward.

    Only `policy` carries gradient to the trained parameters; `decode` and `reward` carry it to their input.
    """

    policy: Predict
    old: Predict
    reference: Predict
    decode: Decode
    reward: PixelReward

    def frames(self, latents: Tensor, run: range | None) -> Tensor:
        """Decode latents, or those of a run alone; a decoder that knows no runs serves where none is asked for."""
        return self.decode(latents) if run is None else self.decode(latents, run)


class Batch(Protocol):
    """A micro-batch of one objective's own kind; its length is the number of rows that the loss averages."""

    def __len__(self) -> int: ...


BatchT = TypeVar("BatchT", bound=Batch)


class Objective(Protocol[BatchT]):
    """One way to learn from a rollout.

    Attributes:
        metrics: names of the metrics that `backward` returns, the same on every rank.
        num_updates: optimiser steps that one rollout gives.
        tail_span: span of sigma whose states the rollout must keep; 0 keeps none.
        random_steps: steps of the rollout that are drawn at random and kept; None samples the ODE.
    """

    metrics: tuple[str, ...]
    num_updates: int
    tail_span: float
    random_steps: RandomSteps | None

    def plan(
        self, rollout: Rollout, scored: Scored, advantages: Advantages, *, draw: Draw, micro_batch_size: int
    ) -> Iterator[Iterator[BatchT]]:
        """Lay out the optimiser steps of one rollout.

        Args:
            rollout: samples of the old policy.
            scored: their rewards.
            advantages: their group-relative advantages.
            draw: random streams of this round.
            micro_batch_size: most rows in one micro-batch; it does not change the result.

        Returns:
            Exactly `num_updates` optimiser steps, each a lazy and possibly empty sequence of micro-batches.
        """
        ...

    def backward(self, batch: BatchT, policies: Policies, *, scale: float) -> Mapping[str, float]:
        """Add the gradient of scale x (mean loss of the rows) to the policy's parameters.

        Args:
            batch: one micro-batch of `plan`.
            policies: what the objective may call.
            scale: factor on the mean loss.

        Returns:
            Every name of `metrics`, as means over the rows.
        """
        ...


class LossObjective(ABC, Generic[BatchT]):
    """What objectives with a loss over samples of the ODE share; a family fills in `metrics`, `plan` and `loss`."""

    tail_span = 0.0
    random_steps: RandomSteps | None = None

    def __init__(self, config: Any) -> None:
        """Keep the settings.

        Args:
            config: settings of the objective, with `num_updates`.
        """
        self.config = config
        self.num_updates: int = config.num_updates

    @abstractmethod
    def loss(self, batch: BatchT, policies: Policies) -> LossOutput:
        """Compute the loss of one micro-batch."""

    def backward(self, batch: BatchT, policies: Policies, *, scale: float) -> Mapping[str, float]:
        """Add the gradient of one micro-batch; see `Objective.backward`."""
        return backward_of(self.loss(batch, policies), scale=scale)


def backward_of(output: LossOutput, *, scale: float) -> Mapping[str, float]:
    """Run backward through a scaled loss.

    Args:
        output: a loss with gradient and its metrics.
        scale: factor on the loss.

    Returns:
        The metrics, with the unscaled `loss` among them.
    """
    (output.loss * scale).backward()
    return {"loss": float(output.loss.detach()), **output.metrics}


def drawn_run(num_latent_frames: int | None, latents: Tensor, draw: Draw) -> range | None:
    """Draw which latent frames are decoded: one run for all samples of an optimiser step, on every rank.

    Args:
        num_latent_frames: length of the run; None decodes all frames.
        latents: clips [B, c, F, h, w].
        draw: random streams of the optimiser step.

    Returns:
        The run, each place of it as likely as any other; None for all frames.

    Raises:
        ValueError: if the clips are shorter.
    """
    if num_latent_frames is None:
        return None
    num_places = latents.shape[2] - num_latent_frames + 1
    if num_places < 1:
        raise ValueError(
            f"objective.decode_latent_frames must be at most the clip's {latents.shape[2]} latent frames, got "
            f"{num_latent_frames}; set it to null to decode all"
        )
    start = int(torch.randint(num_places, (), generator=draw.fork("decode").generator(0, 0)))
    return range(start, start + num_latent_frames)


def check_decoded(num_latent_frames: int | None) -> None:
    """Refuse (ValueError) a setting of fewer than one decoded latent frame."""
    if num_latent_frames is not None and num_latent_frames < 1:
        raise ValueError(f"objective.decode_latent_frames must be >= 1 or null, got {num_latent_frames}")
