"""The protocol of training objectives, by which the loop uses every one of them alike.

An objective turns a scored rollout into optimiser steps (`plan`) and adds the gradient of one micro-batch to the
policy (`backward`). Objectives that learn from samples put their formula into a pure `loss`; the gradient objective
trajectories the sampler backwards. Random numbers are keyed by prompt and sample, so that ranks with disjoint prompts
together draw the same numbers as one process.

Shape legend: B samples of a rollout, N of a micro-batch, F latent frames, T pixel frames.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from generator_loop.flow.sde import RandomSteps
from generator_loop.records import Conditioning, Draw, LossOutput, Predict, Prompt, Rollout, Scored
from generator_loop.rewards.advantages import Advantages

PixelReward = Callable[[Tensor, Sequence[Prompt]], Tensor]
"""reward(frames [N, T, C, H, W], N prompts) -> [N] with gradient to the frames, NaN where it is unavailable."""


class Decode(Protocol):
    """decode(latents [N, c, F, h, w], excerpt of latent frames or None for all) -> frames [N, T, C, H, W]."""

    def __call__(self, latents: Tensor, excerpt: range | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Policies:
    """The functions that an objective may call: the three policies, the decoder and the differentiable reward.

    Only `policy` carries gradient to the trained parameters; `decode` and `reward` carry it to their input.
    """

    policy: Predict
    old: Predict
    reference: Predict
    decode: Decode
    reward: PixelReward

    def frames(self, latents: Tensor, excerpt: range | None) -> Tensor:
        """Decode latents, or those of an excerpt alone; a decoder that knows no excerpts serves where none is asked for."""
        return self.decode(latents) if excerpt is None else self.decode(latents, excerpt)


class Batch(Protocol):
    """A micro-batch of one objective's own kind; its length is the number of samples that the loss averages."""

    def __len__(self) -> int: ...


BatchT = TypeVar("BatchT", bound=Batch)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Base of every objective's config, whose first field is `name`."""

    differentiates: ClassVar[bool] = False
    """Whether the objective needs the gradient of the reward, which only judges that are loaded here have."""


class Objective(Protocol[BatchT]):
    """One way to learn from a rollout.

    Attributes:
        config_class: its config dataclass, which tells whether it differentiates the reward.
        metrics: names of the metrics that `backward` returns, the same on every rank.
        num_updates: optimiser steps that one rollout gives.
        tail_span: span of sigma whose states the rollout must keep; 0 keeps none.
        random_steps: steps of the rollout that are drawn at random and kept; None samples the ODE.
    """

    config_class: ClassVar[type[ObjectiveConfig]]
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
            micro_batch_size: most samples in one micro-batch; it does not change the result.

        Returns:
            Exactly `num_updates` optimiser steps, each a lazy and possibly empty sequence of micro-batches.
        """
        ...

    def backward(self, batch: BatchT, policies: Policies, *, scale: float) -> Mapping[str, float]:
        """Add the gradient of scale x (mean loss of the samples) to the policy's parameters.

        Args:
            batch: one micro-batch of `plan`.
            policies: the functions that the objective may call.
            scale: factor on the mean loss.

        Returns:
            Every name of `metrics`, as means over the samples.
        """
        ...


@dataclass(frozen=True)
class NoisyBatch:
    """Clean latents [N, ...] with the noise [N, ...] and sigma [N] at which a regulariser looks at them."""

    latents: Tensor
    noise: Tensor
    sigma: Tensor
    cond: Conditioning


class Regulariser(Protocol):
    """A loss beside any objective, in every optimiser step.

    Attributes:
        metrics: names of the metrics that `backward` returns.
    """

    metrics: tuple[str, ...]

    def prepare(self, samples: Rollout, scored: Scored) -> None:
        """Look at this process's samples of an iteration before its optimiser steps.

        Args:
            samples: the groups.
            scored: their rewards.
        """
        ...

    def batches(self, draw: Draw) -> Iterator[NoisyBatch]:
        """Return this process's share of one optimiser step.

        Args:
            draw: random streams of the optimiser step.

        Returns:
            One batch, or none.
        """
        ...

    def backward(self, batch: NoisyBatch, policies: Policies, *, scale: float) -> Mapping[str, float]:
        """Add the gradient of scale x (mean loss) to the policy's parameters.

        Args:
            batch: one of `batches`.
            policies: the functions that it may call.
            scale: factor on the mean loss.

        Returns:
            Every name of `metrics`.
        """
        ...

    def adapt(self, metrics: Mapping[str, float]) -> None:
        """Adapt to the iteration's metrics, which are the same on all processes.

        Args:
            metrics: means over the optimiser steps.
        """
        ...

    def state(self) -> Mapping[str, float]:
        """Return everything that `adapt` has changed."""
        ...

    def load_state(self, state: Mapping[str, float]) -> None:
        """Continue from a state.

        Args:
            state: numbers that `state` returned.
        """
        ...


class LossObjective(ABC, Generic[BatchT]):
    """Base of objectives with a loss over samples of the ODE; each fills in `config_class`, `metrics`, `plan` and `loss`."""

    config_class: ClassVar[type[ObjectiveConfig]]
    tail_span = 0.0
    random_steps: RandomSteps | None = None

    def __init__(self, config: Any) -> None:
        """Keep the config.

        Args:
            config: of the objective, with `num_updates`.
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


def drawn_excerpt(num_latent_frames: int | None, latents: Tensor, draw: Draw) -> range | None:
    """Draw which latent frames are decoded: one excerpt for all samples of an optimiser step, on every rank.

    Args:
        num_latent_frames: length of the excerpt; None decodes all frames.
        latents: clips [B, c, F, h, w].
        draw: random streams of the optimiser step.

    Returns:
        The excerpt, each place of it as likely as any other; None for all frames.

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
