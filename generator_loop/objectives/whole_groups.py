"""The common part of objectives that compare all samples of a prompt under the present policy.

The gradient of a sample then depends on its siblings' errors, by a factor that carries none itself. A batch holds whole groups, so
that no result depends on the size of micro-batches or the number of processes: where the groups are larger than a micro-batch, the
errors are computed without gradient first, and a second pass goes back micro-batch by micro-batch.

Shape legend: B samples of a rollout, N of a batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from generator_loop.flow.path import keyed_noise, noised, uniform_sigmas
from generator_loop.flow.sde import RandomSteps
from generator_loop.objectives.base import ObjectiveConfig, Policies
from generator_loop.records import Conditioning, Draw, Rollout, Scored
from generator_loop.rewards.advantages import Advantages


@dataclass(frozen=True)
class GroupBatch:
    """Whole groups: `latents`, `noise` [N, ...], `sigma`, `advantages` [N], and `group` [N], equal for samples of one prompt.

    `micro_batch_size` is the most samples that one pass with gradient may hold, `num_passes` how many such passes there are.
    """

    latents: Tensor
    noise: Tensor
    sigma: Tensor
    advantages: Tensor
    group: Tensor
    cond: Conditioning
    micro_batch_size: int
    num_passes: int

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.sigma)

    def parts(self) -> list[GroupBatch]:
        """Return the micro-batches, whose groups may be cut."""
        return [self._select(index) for index in torch.arange(len(self)).split(self.micro_batch_size)]

    def _select(self, index: Tensor) -> GroupBatch:
        index = index.to(self.latents.device)
        return GroupBatch(
            latents=self.latents[index],
            noise=self.noise[index],
            sigma=self.sigma[index],
            advantages=self.advantages[index],
            group=self.group[index],
            cond=self.cond.select(index),
            micro_batch_size=self.micro_batch_size,
            num_passes=1,
        )


@dataclass(frozen=True)
class FixedVelocities:
    """Velocities [N, ...] of the policies that do not learn, None where the objective does not ask for one."""

    old: Tensor | None
    reference: Tensor | None


@dataclass(frozen=True)
class Measured:
    """One value [N] of each sample with gradient, by which siblings are compared, and each sample's own penalty [N].

    `metrics` are detached values [N] of each sample.
    """

    values: Tensor
    penalties: Tensor
    metrics: Mapping[str, Tensor]


@dataclass(frozen=True)
class Slopes:
    """Derivative [N] of the summed loss by each sample's value, and `losses` and `metrics` [N] of which each sample has a share."""

    slopes: Tensor
    losses: Tensor
    metrics: Mapping[str, Tensor]


class GroupObjective(ABC):
    """Base of objectives over whole groups; each fills in `config_class`, `metrics`, `fixed`, `measure` and `compare`.

    Its config has `num_updates`, `sigma_range` and `sigma_shift`. All samples of a group share one noise level.
    """

    config_class: ClassVar[type[ObjectiveConfig]]
    metrics: tuple[str, ...]
    shares_noise: ClassVar[bool]
    """Whether all samples of a group share their noise too."""
    tail_span = 0.0
    random_steps: RandomSteps | None = None

    def __init__(self, config: Any) -> None:
        """Keep the config.

        Args:
            config: of the objective.
        """
        self.config = config
        self.num_updates: int = config.num_updates

    def plan(
        self, rollout: Rollout, scored: Scored, advantages: Advantages, *, draw: Draw, micro_batch_size: int
    ) -> Iterator[Iterator[GroupBatch]]:
        """Yield optimiser steps over all groups, each with fresh noise and sigmas; see `Objective.plan`.

        A batch holds as many whole groups as fit into a micro-batch, and one where none does.
        """
        for update in range(self.num_updates):
            yield self._batches(rollout, advantages, draw.fork(f"{self.config.name} {update}"), micro_batch_size)

    def _batches(
        self, rollout: Rollout, advantages: Advantages, draw: Draw, micro_batch_size: int
    ) -> Iterator[GroupBatch]:
        size, device = rollout.group_size, rollout.latents.device
        usable = rearrange(advantages.usable, "(b g) -> b g", g=size)
        groups = [size * place + group.nonzero().flatten() for place, group in enumerate(usable) if bool(group.any())]
        for samples in _packed(groups, micro_batch_size):
            keys = [(rollout.prompts[sample // size].prompt_id, sample % size) for sample in samples.tolist()]
            shared = [(prompt_id, 0) for prompt_id, _ in keys]
            sigma = uniform_sigmas(draw, shared, between=self.config.sigma_range, shift=self.config.sigma_shift)
            index = samples.to(device)
            yield GroupBatch(
                latents=rollout.latents[index],
                noise=keyed_noise(draw, shared if self.shares_noise else keys, rollout.latents),
                sigma=sigma.to(device),
                advantages=advantages.values[samples].to(device),
                group=(samples // size).to(device),
                cond=rollout.cond.select(index),
                micro_batch_size=micro_batch_size,
                num_passes=math.ceil(size / micro_batch_size),
            )

    @abstractmethod
    def fixed(self, noisy: Tensor, batch: GroupBatch, policies: Policies) -> FixedVelocities:
        """Return the velocities at `noisy` [N, ...] of the policies that do not learn."""

    @abstractmethod
    def measure(self, velocity: Tensor, target: Tensor, fixed: FixedVelocities, batch: GroupBatch) -> Measured:
        """Return each sample's value, penalty and metrics by the policy's velocity [N, ...] and its target eps - x_0."""

    @abstractmethod
    def compare(self, values: Tensor, batch: GroupBatch) -> Slopes:
        """Return the slopes and losses of samples from the detached values [N] of whole groups."""

    def backward(self, batch: GroupBatch, policies: Policies, *, scale: float) -> Mapping[str, float]:
        """Add the gradient of whole groups; see `Objective.backward`."""
        parts = batch.parts()
        paths = [noised(part.latents, part.noise, part.sigma) for part in parts]
        fixed = [self.fixed(noisy, part, policies) for (noisy, _), part in zip(paths, parts, strict=True)]

        def measured(place: int) -> Measured:
            """Measure one micro-batch."""
            (noisy, target), part = paths[place], parts[place]
            return self.measure(policies.policy(noisy, part.sigma, part.cond), target, fixed[place], part)

        if len(parts) == 1:
            ready = [measured(0)]
        else:
            with torch.no_grad():
                ready = [measured(place) for place in range(len(parts))]
        compared = self.compare(torch.cat([one.values.detach() for one in ready]), batch)
        slopes = compared.slopes.split([len(part) for part in parts])
        for place, slope in enumerate(slopes):
            one = ready[place] if len(parts) == 1 else measured(place)
            ((slope * one.values + one.penalties).sum() * (scale / len(batch))).backward()
        for _ in range(batch.num_passes - len(parts)):
            # samples are missing: models that are sharded over processes need as many passes on each of them
            (0 * measured(0).values.sum()).backward()
        penalties = torch.cat([one.penalties.detach() for one in ready])
        own = {name: torch.cat([one.metrics[name] for one in ready]) for name in ready[0].metrics}
        means = {"loss": compared.losses + penalties, **compared.metrics, **own}
        return {name: float(value.mean()) for name, value in means.items()}


def group_mean(values: Tensor, group: Tensor) -> Tensor:
    """Return the mean over each sample's group.

    Args:
        values: [N].
        group: number of each sample's group [N].

    Returns:
        [N], equal within a group.
    """
    # adding by index has no fixed order on a GPU, and a matrix product may be rounded there
    siblings = (group[:, None] == group[None, :]).to(values.dtype)
    return (siblings * values).sum(dim=1) / siblings.sum(dim=1)


def _packed(groups: list[Tensor], most: int) -> Iterator[Tensor]:
    """Yield the samples of as many groups as fit into `most`, at least one."""
    waiting: list[Tensor] = []
    for group in groups:
        if waiting and sum(map(len, waiting)) + len(group) > most:
            yield torch.cat(waiting)
            waiting = []
        waiting.append(group)
    if waiting:
        yield torch.cat(waiting)
