"""Refreshes the comparator of a judge on new pairs and labelled pairs (the judge's side of joint training).

Source: VQ-Insight (arXiv 2506.18564), stage 3, step 7: the pairs "new best beats old loser", mixed with the preference data
of stage 2, continue the comparator's GRPO.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal

from torch import Tensor

from reward_model.judge.model import VideoJudge
from reward_model.records import RatedClip, VideoPair
from reward_model.rewards.choice import choice
from reward_model.training.fit import FitConfig, fit
from reward_model.training.methods.grpo import AnswerGRPOConfig, GRPOSteps
from reward_model.training.methods.refresh import PairDraws
from reward_model.training.methods.sft import example_loss
from reward_model.training.tasks.mixture import clip_planner
from reward_model.training.tasks.rollout_prompts import compare_prompt
from reward_model.training.tasks.supervised import neighbours, pair_example, pair_of, turned

REFERENCE = "refresh_reference"
"""Role that holds the comparator as it was before a refresh by GRPO."""


def labelled_pairs(clips: Sequence[RatedClip]) -> list[VideoPair]:
    """Return the pairs of neighbouring clips that share a prompt and are rated overall, each pair once."""
    pairs = [pair_of(*two) for two in neighbours(clips)]
    return [pair for pair in pairs if "overall" in pair.preference]


def refresh_comparator(
    judge: VideoJudge,
    *,
    role: str,
    pairs: Sequence[VideoPair],
    anchors: Sequence[RatedClip],
    num_steps: int,
    learning_rate: float,
    batch_size: int,
    method: Literal["sft", "grpo"],
    chances: Sequence[float] | None = None,
    seed: int = 0,
    after_step: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Train a role's comparison in place, half of each batch on new pairs and half on pairs of anchors.

    Args:
        judge: the judge.
        role: the adapter that compares.
        pairs: preferences on "overall".
        anchors: rated clips; neighbours of one prompt are the labelled pairs.
        num_steps: optimiser steps.
        learning_rate: peak rate of AdamW.
        batch_size: pairs per step; every second one is shown in the other order.
        method: likelihood of the right answer, or GRPO with a reward of 1 for it, as the paper.
        chances: relative chance of each new pair to be drawn; None draws all alike.
        seed: of the draws.
        after_step: called after each step; it may raise to leave the role as it is then.

    Returns:
        The last step's metrics.

    Raises:
        ValueError: no new pair that can be read, or no labelled one.
    """
    known = labelled_pairs(anchors)
    if not pairs or not known:
        raise ValueError(
            f"a comparator's refresh needs new and labelled pairs, got {len(pairs)} and {len(known)}: neighbouring anchors of "
            "one prompt, rated overall, make labelled pairs"
        )
    half, draws = max(1, batch_size // 2), PairDraws(pairs, chances, clip_planner(judge))

    def drawn(step: int) -> list[VideoPair]:
        """Return the pairs of one step, every second of them swapped."""
        draw = random.Random(f"{seed}/{step}")
        chosen = [*draws(half, draw), *draw.choices(known, k=half)]
        return turned(chosen, draw.randrange(2))

    def after(_num_steps: int) -> bool:
        """Let the caller look in, and go on."""
        if after_step is not None:
            after_step()
        return False

    config = FitConfig(
        num_steps=num_steps, learning_rate=learning_rate, batch_size=batch_size, warmup_steps=max(1, num_steps // 10)
    )
    was_training = judge.training
    judge.train()
    if method == "grpo":
        judge.add_role(REFERENCE, copy_from=role)
    try:
        with judge.use_role(role):
            parameters = judge.train_only(role)
            loss = _LOSSES[method](judge, role, drawn, seed)
            return fit(parameters, loss, config, log_every=max(1, num_steps // 2), after_step=after)
    finally:
        if method == "grpo":
            judge.remove_role(REFERENCE)
        judge.train(was_training)


Draw = Callable[[int], list[VideoPair]]
Loss = Callable[[int], Iterator[tuple[Tensor, Mapping[str, float]]]]


def _supervised(judge: VideoJudge, role: str, drawn: Draw, seed: int) -> Loss:
    planner = clip_planner(judge)

    def loss(step: int) -> Iterator[tuple[Tensor, Mapping[str, float]]]:
        """Yield the likelihood loss of one step."""
        yield example_loss(judge, [pair_example(pair, planner) for pair in drawn(step)], {"compare": 1.0})

    return loss


def _by_rewards(judge: VideoJudge, role: str, drawn: Draw, seed: int) -> Loss:
    planner = clip_planner(judge)
    steps = GRPOSteps(
        judge, {"compare": choice}, AnswerGRPOConfig(), role=role, reference=partial(judge.use_role, REFERENCE)
    )

    def loss(step: int) -> Iterator[tuple[Tensor, Mapping[str, float]]]:
        """Yield the GRPO loss of one step, a few pairs at a time."""
        prompts = [
            compare_prompt(pair, planner, group=place, style=judge.style) for place, pair in enumerate(drawn(step))
        ]
        yield from steps.micro_batches(prompts, step, seed=seed)

    return loss


_LOSSES = {"sft": _supervised, "grpo": _by_rewards}
