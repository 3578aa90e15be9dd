"""The judge learns from the generator's newest clips, and is put back if it gets worse on labelled anchors.

A refresh mixes pairs of the pair sources with labelled anchors and trains the readouts that serve as reward. Accuracy on held-out anchors decides whether the result is kept; an affine map on the same anchors brings the
rewards of all rounds to one scale.

Source: VQ-Insight (arXiv 2506.18564), stage 3, steps 6 and 7.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from generator_loop.config import RefreshConfig
from generator_loop.refresh.anchors import Affine, Anchors, anchor_accuracy, anchor_scores, reanchor
from generator_loop.refresh.pairs import PairCollector, WeightedPairs
from generator_loop.refresh.trainees import READOUTS, Trainee
from generator_loop.rewards.scorer import weighted

if TYPE_CHECKING:
    from reward_model.video_reward import VideoJudgeReward

log = logging.getLogger(__name__)


class JudgeRefresher:
    """Trains readouts of the judge between rounds and keeps its rewards on the initial scale."""

    def __init__(
        self,
        judge: VideoJudgeReward,
        *,
        initial: VideoJudgeReward,
        collector: PairCollector,
        anchors: Anchors,
        weights: Mapping[str, float],
        config: RefreshConfig,
    ) -> None:
        """Score the held-out anchors with the initial judge.

        Args:
            judge: the rewarding judge; refreshes change adapters in place.
            initial: frozen view of the judge as it was at the run's start.
            collector: of the pairs.
            anchors: labelled clips.
            weights: dimension -> weight of the reward.
            config: readouts, steps, rates, when a refresh is due, and the accuracy that may be lost.

        Raises:
            ValueError: the config names a role that the judge lacks, or a readout for which the anchors hold no pair.
        """
        for name in config.readouts:
            READOUTS[name].refuse_unpaired(anchors)
        self.judge, self.collector, self.num_kept = judge, collector, 0
        self._anchors, self._weights, self._config = anchors, weights, config
        self._initial_rewards = weighted(anchor_scores(initial, anchors.held_out), weights)
        self._trainees = [
            Trainee(name, judge.with_role(config.comparator_role) if READOUTS[name].compares else judge, READOUTS[name])
            for name in config.readouts
        ]

    def is_due(self, num_rounds: int) -> bool:
        """Return whether the judge is refreshed after `num_rounds` rounds."""
        return self._config.every > 0 and num_rounds % self._config.every == 0

    def refresh(
        self, collected: WeightedPairs, *, seed: int, check: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Train every readout on pairs and anchors; restore those whose held-out anchor accuracy fell too far.

        Args:
            collected: preferences of the pair sources.
            seed: of the batches; another one for each refresh draws other anchors.
            check: called after each step; it may raise to stop.

        Returns:
            `kept` (the share of readouts that were), `num_pairs`, and unless that is 0 `accuracy_before`, `accuracy_after` and the
            training's metrics; those of a comparator begin with `comparator_`.
        """
        metrics = {**collected.metrics, "num_pairs": float(len(collected.pairs))}
        if not collected.pairs:
            log.warning("the judge is not refreshed: no source of pairs has one")
            return metrics | {"kept": 0.0}
        outcomes = []
        for trainee in self._trainees:
            outcome = self._train(trainee, collected, seed=seed, check=check)
            outcomes.append(outcome["kept"])
            metrics |= (
                {f"comparator_{name}": value for name, value in outcome.items()}
                if trainee.readout.compares
                else outcome
            )
        return metrics | {"kept": sum(outcomes) / len(outcomes)}

    def _train(
        self, trainee: Trainee, collected: WeightedPairs, *, seed: int, check: Callable[[], None]
    ) -> dict[str, float]:
        """Train one readout and keep it or put it back."""
        from reward_model.training.methods.refresh import NoReadablePairError

        view, config = trainee.view, self._config
        assert view.role is not None, "a refresh trains an adapter"
        saved, before = adapter_tensors(view), trainee.readout.accuracy(view, self._anchors.held_out)
        try:
            metrics = trainee.readout.train(
                view.judge,
                role=view.role,
                pairs=collected.pairs,
                chances=collected.chances,
                anchors=self._anchors.train,
                num_steps=config.num_steps,
                learning_rate=config.learning_rate,
                batch_size=config.batch_size,
                seed=seed,
                after_step=check,
            )
        except NoReadablePairError as error:
            log.warning("the judge is not refreshed: %s", error)
            load_adapter_tensors(view, saved)
            return {"accuracy_before": float(before), "accuracy_after": float(before), "kept": 0.0}
        finally:
            view.judge.requires_grad_(False)
        after = trainee.readout.accuracy(view, self._anchors.held_out)
        # as written in the config: 0.1 is one tenth, not the binary number next to it
        kept = after >= before - Fraction(str(config.max_accuracy_loss))
        if not kept:
            load_adapter_tensors(view, saved)
        self.num_kept += int(kept)
        metrics = {f"judge_{name}": value for name, value in metrics.items() if name not in ("step", "seconds")}
        return {**metrics, "accuracy_before": float(before), "accuracy_after": float(after), "kept": float(kept)}

    def scale(self) -> tuple[Affine, float]:
        """Return the map of the current judge's rewards to the initial scale, and its accuracy on held-out anchors."""
        scores = anchor_scores(self.judge, self._anchors.held_out)
        accuracy = anchor_accuracy(scores, self._anchors.held_out)
        return reanchor(weighted(scores, self._weights), self._initial_rewards), accuracy

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the adapters that refreshes change."""
        return {
            f"judge.{trainee.name}.{name}": tensor
            for trainee in self._trainees
            for name, tensor in adapter_tensors(trainee.view).items()
        }

    def state(self) -> dict[str, Tensor]:
        """Return everything that refreshes have changed: the roles' weights, the pairs, and how many readouts were kept."""
        pairs = {f"pairs.{name}": tensor for name, tensor in self.collector.state().items()}
        return {**self.weights(), **pairs, "num_kept": torch.tensor(self.num_kept)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the tensors of `state`; ValueError if they belong to another adapter."""
        for trainee in self._trainees:
            load_adapter_tensors(trainee.view, _under(f"judge.{trainee.name}.", state))
        self.collector.load_state(_under("pairs.", state))
        self.num_kept = int(state["num_kept"])


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def adapter_tensors(judge: VideoJudgeReward) -> dict[str, Tensor]:
    """Return copies of the role's weights, numbered in the judge's own order; the judge stays as it is."""
    parameters = judge.judge.role_parameters(judge.role)
    return {f"{place:04d}": parameter.detach().clone() for place, parameter in enumerate(parameters)}


@torch.no_grad()
def load_adapter_tensors(judge: VideoJudgeReward, tensors: Mapping[str, Tensor]) -> None:
    """Put back the weights that `adapter_tensors` returned.

    Args:
        judge: the judge whose role is restored.
        tensors: number to tensor.

    Raises:
        ValueError: the tensors belong to another adapter.
        RuntimeError: the role has no weights.
    """
    parameters = judge.judge.role_parameters(judge.role)
    if not parameters:
        raise RuntimeError(
            f"role {judge.role!r} of the judge has no weights, so that none would reach it; the run stops"
        )
    if [tuple(p.shape) for p in parameters] != [tuple(tensors[name].shape) for name in sorted(tensors)]:
        raise ValueError(f"the stored judge adapter does not fit role {judge.role!r}; was the judge's folder changed?")
    for parameter, name in zip(parameters, sorted(tensors), strict=True):
        parameter.copy_(tensors[name])
