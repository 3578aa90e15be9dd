"""The judge learns from the generator's newest clips, and is put back if it gets worse on labelled anchors.

A refresh mixes pairs of a pair source with labelled anchors and trains the level readout of the role that serves as
reward. Accuracy on held-out anchors decides whether the result is kept; an affine map on the same anchors brings the
rewards of all rounds to one scale.

Source: VQ-Insight (arXiv 2506.18564), stage 3, steps 6 and 7.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from generator_loop.config import RefreshConfig
from generator_loop.refresh.anchors import Affine, Anchors, anchor_accuracy, anchor_scores, reanchor
from generator_loop.refresh.base import PairSource
from generator_loop.rewards.scorer import weighted
from reward_model.records import VideoPair

if TYPE_CHECKING:
    from reward_model.video_reward import VideoJudgeReward

log = logging.getLogger(__name__)


class JudgeRefresher:
    """Trains the rewarding judge's role between rounds and keeps its rewards on the initial scale."""

    def __init__(
        self,
        judge: VideoJudgeReward,
        *,
        initial: VideoJudgeReward,
        source: PairSource,
        anchors: Anchors,
        weights: Mapping[str, float],
        config: RefreshConfig,
    ) -> None:
        """Score the held-out anchors with the initial judge.

        Args:
            judge: the rewarding judge; refreshes change its role's adapter in place.
            initial: frozen view of the judge as it was at the run's start.
            source: of the pairs.
            anchors: labelled clips.
            weights: dimension -> weight of the reward.
            config: steps, rates, when a refresh is due, and the accuracy that may be lost.
        """
        self.judge, self.source, self.num_kept = judge, source, 0
        self._anchors, self._weights, self._config = anchors, weights, config
        self._initial_rewards = weighted(anchor_scores(initial, anchors.held_out), weights)

    def is_due(self, num_rounds: int) -> bool:
        """Return whether the judge is refreshed after `num_rounds` rounds."""
        return num_rounds % self._config.every == 0

    def refresh(
        self, pairs: Sequence[VideoPair], *, seed: int, check: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Train the role on pairs and anchors; restore it if held-out anchor accuracy fell too far.

        Args:
            pairs: preferences of the pair source.
            seed: of the batches; another one for each refresh draws other anchors.
            check: called after each step; it may raise to stop.

        Returns:
            `kept` (0 or 1), `num_pairs`, and unless that is 0 `accuracy_before`, `accuracy_after` and the training's metrics.
        """
        from reward_model.training.methods.refresh import refresh_levels

        if not pairs:
            log.warning("the judge is not refreshed: no prompt has a pair with scores on both sides")
            return {"num_pairs": 0.0, "kept": 0.0}
        assert self.judge.role is not None, "a refresh trains an adapter"
        config, saved, before = self._config, adapter_tensors(self.judge), self._accuracy()
        try:
            metrics = refresh_levels(
                self.judge.judge,
                role=self.judge.role,
                pairs=pairs,
                anchors=self._anchors.train,
                num_steps=config.num_steps,
                learning_rate=config.learning_rate,
                batch_size=config.batch_size,
                seed=seed,
                after_step=check,
            )
        finally:
            self.judge.judge.requires_grad_(False)
        after = self._accuracy()
        kept = after >= before - config.max_accuracy_loss
        if not kept:
            load_adapter_tensors(self.judge, saved)
        self.num_kept += int(kept)
        metrics = {f"judge_{name}": value for name, value in metrics.items() if name not in ("step", "seconds")}
        return {
            **metrics,
            "num_pairs": float(len(pairs)),
            "accuracy_before": before,
            "accuracy_after": after,
            "kept": float(kept),
        }

    def scale(self) -> tuple[Affine, float]:
        """Return the map of the current judge's rewards to the initial scale, and its accuracy on held-out anchors."""
        scores = anchor_scores(self.judge, self._anchors.held_out)
        accuracy = anchor_accuracy(scores, self._anchors.held_out)
        return reanchor(weighted(scores, self._weights), self._initial_rewards), accuracy

    def state(self) -> dict[str, Tensor]:
        """Return everything that refreshes have changed: the role's weights, the source's pairs, and how many were kept."""
        judge = {f"judge.{name}": tensor for name, tensor in adapter_tensors(self.judge).items()}
        pairs = {f"pairs.{name}": tensor for name, tensor in self.source.state().items()}
        return {**judge, **pairs, "num_kept": torch.tensor(self.num_kept)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the tensors of `state`; ValueError if they belong to another adapter."""
        load_adapter_tensors(self.judge, _under("judge.", state))
        self.source.load_state(_under("pairs.", state))
        self.num_kept = int(state["num_kept"])

    def _accuracy(self) -> float:
        return anchor_accuracy(anchor_scores(self.judge, self._anchors.held_out), self._anchors.held_out)


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
        raise RuntimeError(f"role {judge.role!r} of the judge has no weights, so that none would reach it; the run stops")
    if [tuple(p.shape) for p in parameters] != [tuple(tensors[name].shape) for name in sorted(tensors)]:
        raise ValueError(f"the stored judge adapter does not fit role {judge.role!r}; was the judge's folder changed?")
    for parameter, name in zip(parameters, sorted(tensors), strict=True):
        parameter.copy_(tensors[name])
