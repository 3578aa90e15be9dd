"""Refreshes the level readout of one role on new pairs and labelled anchors (the judge's side of joint training).

Shapes: P pairs of a batch, N anchor clips, K = 5 levels.

Source: VQ-Insight (arXiv 2506.18564), stage 3: the new generator's best sample beats the old loser, mixed with the
judge's labelled data. There the comparator is trained by GRPO; here the level readout, which serves as the reward,
learns the same pairs through the fidelity loss of VQAThinker (Thurstone's model with the readout's own spread).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from reward_model.judge.engine import readouts
from reward_model.judge.model import VideoJudge
from reward_model.language.requests import score_request
from reward_model.records import LevelReadout, RatedClip, Video, VideoError, VideoPair
from reward_model.training.fit import FitConfig, fit
from reward_model.training.methods.sft import example_loss
from reward_model.training.tasks.mixture import clip_planner
from reward_model.training.tasks.supervised import ToClip, clip_example

log = logging.getLogger(__name__)

MIN_SPREAD = 0.05
"""Floor of a rating's standard deviation in quality units, so that a sure judge still has a gradient."""


def preference_probability(first: LevelReadout, second: LevelReadout) -> Tensor:
    """Return P(first better) [P] = Phi((q1 - q2) / sqrt(s1^2 + s2^2)); the spreads carry no gradient.

    Source: Thurstone's model as in VQAThinker (arXiv 2508.06051), pairwise ranking reward.
    """
    variance = first.std.detach().clamp_min(MIN_SPREAD) ** 2 + second.std.detach().clamp_min(MIN_SPREAD) ** 2
    return 0.5 * (1 + torch.erf((first.quality - second.quality) / (2 * variance).sqrt()))


def fidelity_loss(probability: Tensor, target: Tensor) -> Tensor:
    """Return 1 - sqrt(p t) - sqrt((1 - p)(1 - t)) elementwise, in [0, 1]; 0 where p equals t.

    Source: Tsai et al., FRank (SIGIR 2007), eq. 5.
    """
    p = probability.clamp(1e-6, 1 - 1e-6)
    # roots apart: the root of a product that is 0 has no gradient, and targets are often 0 or 1
    return 1 - p.sqrt() * target.sqrt() - (1 - p).sqrt() * (1 - target).sqrt()


class NoReadablePairError(ValueError):
    """No pair of a refresh has videos that can be read."""


class PairDraws:
    """Draws pairs by their chances; one whose video cannot be read is named once and never drawn again."""

    def __init__(self, pairs: Sequence[VideoPair], chances: Sequence[float] | None, planner: ToClip) -> None:
        """Start with all pairs.

        Args:
            pairs: videos in memory or files.
            chances: relative chance of each; None draws all alike.
            planner: reads a video.
        """
        self._pairs, self._planner = tuple(pairs), planner
        self._chances = list(chances) if chances is not None else [1.0] * len(self._pairs)
        self._read = {place for place, pair in enumerate(pairs) if isinstance(pair.first, Video)}

    def __call__(self, num: int, draw: random.Random) -> list[VideoPair]:
        """Return `num` pairs, with replacement; NoReadablePairError where none is left."""
        chosen: list[int] = []
        while len(chosen) < num:
            if not any(self._chances):
                raise NoReadablePairError("no pair has videos that can be read")
            places = draw.choices(range(len(self._pairs)), weights=self._chances, k=num - len(chosen))
            chosen += [place for place in places if self._is_readable(place)]
        return [self._pairs[place] for place in chosen]

    def _is_readable(self, place: int) -> bool:
        pair = self._pairs[place]
        if place not in self._read and self._chances[place]:
            try:
                for video in (pair.first, pair.second):
                    self._planner(video)
            except VideoError as error:
                log.warning("pair left out: %s: %s", pair.place or pair.source_id, error)
                self._chances[place] = 0.0
            else:
                self._read.add(place)
        return place in self._read


def refresh_levels(
    judge: VideoJudge,
    *,
    role: str,
    pairs: Sequence[VideoPair],
    anchors: Sequence[RatedClip],
    num_steps: int,
    learning_rate: float,
    batch_size: int,
    chances: Sequence[float] | None = None,
    pair_weight: float = 1.0,
    seed: int = 0,
    after_step: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Train one role's level readout in place on pairs (fidelity loss) and anchors (soft level labels).

    Args:
        judge: the judge.
        role: the adapter that is trained; it must be the one whose levels serve as reward.
        pairs: preferences on "overall"; their videos are in memory or files.
        anchors: labelled clips that keep the scale.
        num_steps: optimiser steps.
        learning_rate: peak rate of AdamW.
        batch_size: pairs and anchors per step, half and half.
        chances: relative chance of each pair to be drawn; None draws all alike.
        pair_weight: weight of the pair loss against the anchor loss.
        seed: seed of the draws.
        after_step: called after each step; it may raise to leave the role as it is then.

    Returns:
        Last metrics: "nll_rate" of the anchors, "fidelity" and "pair_accuracy" of the pairs.

    Raises:
        ValueError: no pairs or no anchors, or no pair that can be read.
    """
    if not pairs or not anchors:
        raise ValueError(f"a refresh needs pairs and anchors, got {len(pairs)} and {len(anchors)}")
    planner = clip_planner(judge)
    half, draws = max(1, batch_size // 2), PairDraws(pairs, chances, planner)
    config = FitConfig(
        num_steps=num_steps, learning_rate=learning_rate, batch_size=batch_size, warmup_steps=max(1, num_steps // 10)
    )
    was_training = judge.training
    judge.train()

    def loss(step: int) -> list[tuple[Tensor, Mapping[str, float]]]:
        """Return the loss of one step: ratings of anchors and order of pairs, half a batch each."""
        draw = random.Random(f"{seed}/{step}")
        examples = [clip_example(clip, planner, ["rate"]) for clip in draw.choices(anchors, k=half)]
        anchor_loss, metrics = example_loss(judge, examples, {"rate": 1.0})
        chosen = draws(half, draw)
        first, second = (_overall(judge, planner, side, chosen) for side in ("first", "second"))
        probability = preference_probability(first, second)
        target = torch.tensor([pair.preference["overall"] for pair in chosen], device=probability.device)
        fidelity = fidelity_loss(probability, target).mean()
        accuracy = ((probability.detach() > 0.5) == (target > 0.5)).float().mean()
        metrics |= {"fidelity": float(fidelity.detach()), "pair_accuracy": float(accuracy)}
        return [(anchor_loss + pair_weight * fidelity, metrics)]

    def after(_num_steps: int) -> bool:
        """Let the caller look in, and go on."""
        if after_step is not None:
            after_step()
        return False

    try:
        with judge.use_role(role):
            parameters = judge.train_only(role)
            return fit(parameters, loss, config, log_every=max(1, num_steps // 2), after_step=after)
    finally:
        judge.train(was_training)


def _overall(judge: VideoJudge, planner: ToClip, side: str, pairs: Sequence[VideoPair]) -> LevelReadout:
    requests = []
    for pair in pairs:
        video = pair.first if side == "first" else pair.second
        requests.append(score_request(planner(video), pair.prompt, ("overall",)))
    return readouts.read_levels(torch.cat(judge.next_token_logits(requests)), judge.level_ids)
