"""Adaptive penalty towards the reference, on all samples or on those about which judges disagree.

Shape legend: B samples of an iteration, N of an optimiser step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from generator_loop.flow.path import keyed_noise, logit_normal_sigmas, mean_square, noised
from generator_loop.objectives.base import NoisyBatch, Policies
from generator_loop.records import Draw, Rollout, Scored

SLACK, FACTOR = 1.5, 2.0
"""The coefficient is halved or doubled where the distance leaves the target by this factor (PPO, arXiv 1707.06347, sec. 4)."""

REACH = 2.0**10
"""The coefficient stays within this factor of its first value, so that a policy that leaves the reference after a long time beside
it meets the penalty within ten iterations."""


class AdaptiveKL:
    """Adds coefficient x squared velocity difference to the reference, and moves the coefficient towards a target distance.

    Source: the adaptive penalty of PPO (arXiv 1707.06347, section 4); GARDO (arXiv 2512.24138) for penalising the samples
    of the largest disagreement alone.
    """

    metrics: tuple[str, ...] = ("held_distance",)

    def __init__(
        self, *, target: float, coefficient: float, fraction: float, batch_size: int, rank: int = 0, num_ranks: int = 1
    ) -> None:
        """Start with a coefficient.

        Args:
            target: mean squared velocity difference that the penalty aims at.
            coefficient: its first value.
            fraction: share of an iteration's samples that it holds, those of the largest disagreement; 1 holds all.
            batch_size: samples of one optimiser step over all processes.
            rank: this process.
            num_ranks: number of processes.
        """
        self.coefficient, self._target, self._fraction = coefficient, target, fraction
        self._least, self._most = coefficient / REACH, coefficient * REACH
        self._num = len(range(rank, batch_size, num_ranks))
        self._samples: Rollout | None = None
        self._held = torch.zeros(0, dtype=torch.long)

    def prepare(self, samples: Rollout, scored: Scored) -> None:
        """Choose the samples that are held.

        Args:
            samples: this process's groups.
            scored: their rewards, with the judges' disagreement where `fraction` is below 1.
        """
        self._samples, self._held = samples, held_samples(scored, self._fraction, num=len(samples.latents))

    def batches(self, draw: Draw) -> Iterator[NoisyBatch]:
        """Yield held samples, unless there are none; see `Regulariser.batches`."""
        samples = self._samples
        assert samples is not None, "prepare comes first"
        draw = draw.fork("held")
        shuffle = draw.generator(samples.prompts[0].prompt_id, 0)
        index = self._held[torch.randperm(len(self._held), generator=shuffle)[: self._num]]
        if not len(index):
            return
        size = samples.group_size
        keys = [(samples.prompts[place // size].prompt_id, place % size) for place in index.tolist()]
        latents, cond = samples.latents[index], samples.cond.select(index.to(samples.latents.device))
        sigma = logit_normal_sigmas(draw, keys).to(latents.device)
        yield NoisyBatch(latents, keyed_noise(draw, keys, latents), sigma, cond)

    def backward(self, batch: NoisyBatch, policies: Policies, *, scale: float) -> Mapping[str, float]:
        """Add the gradient of scale x coefficient x mean distance; see `Regulariser.backward`."""
        noisy, _ = noised(batch.latents, batch.noise, batch.sigma)
        policy, reference = (
            predict(noisy, batch.sigma, batch.cond) for predict in (policies.policy, policies.reference)
        )
        difference = policy - reference
        distance = mean_square(difference).mean()
        (scale * self.coefficient * distance).backward()
        return {"held_distance": float(distance.detach())}

    def adapt(self, metrics: Mapping[str, float]) -> None:
        """Double the coefficient where the iteration's mean distance is too large, halve it where it is small."""
        distance = metrics["held_distance"]
        if distance > self._target * SLACK:
            self.coefficient = min(self.coefficient * FACTOR, self._most)
        elif distance < self._target / SLACK:
            self.coefficient = max(self.coefficient / FACTOR, self._least)

    def state(self) -> Mapping[str, float]:
        """Return the coefficient."""
        return {"coefficient": self.coefficient}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Continue with a coefficient."""
        self.coefficient = state["coefficient"]


def held_samples(scored: Scored, fraction: float, *, num: int) -> Tensor:
    """Return the places of the samples that a penalty holds.

    Args:
        scored: with the judges' disagreement [B] where `fraction` is below 1.
        fraction: share of the samples.
        num: B.

    Returns:
        Ascending places; at least one. A sample that a judge could not score counts as the most uncertain.
    """
    if fraction >= 1:
        return torch.arange(num)
    assert scored.disagreement is not None, "a fraction is held by the disagreement of several judges"
    doubt = torch.where(scored.disagreement.isfinite(), scored.disagreement, torch.inf)
    return doubt.argsort(descending=True, stable=True)[: max(1, round(fraction * num))].sort().values
