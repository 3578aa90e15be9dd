"""The readouts of the judge that a refresh can train, each with its training and its accuracy on labelled anchors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch

from generator_loop.refresh.anchors import Anchors, anchor_scores, exact_accuracy
from reward_model.records import DIMENSIONS, RatedClip, VideoPair

if TYPE_CHECKING:
    from reward_model.video_reward import VideoJudgeReward


@dataclass(frozen=True)
class Readout:
    """One readout that pairs can train.

    `train(judge, role=..., pairs=..., ...)` changes a role in place and returns metrics; `accuracy(judge view, clips)` in [0, 1] is
    that of the readout on labelled clips. `compares` says whether the role is the comparator's.
    """

    train: Callable[..., dict[str, float]]
    accuracy: Callable[[VideoJudgeReward, Sequence[RatedClip]], Fraction]
    compares: bool = False

    def refuse_unpaired(self, anchors: Anchors) -> None:
        """Refuse anchors of which no two make a pair that this readout could learn from or be measured by (ValueError)."""
        if not self.compares:
            exact_accuracy({name: torch.zeros(len(anchors.held_out)) for name in DIMENSIONS}, anchors.held_out)
            return
        for part, clips in vars(anchors).items():
            if not decided_pairs(clips):
                raise ValueError(
                    f"the {part.replace('_', '-')} anchors hold no two neighbours of one prompt whose overall quality differs, "
                    "which a comparator needs: order refresh.anchors.path by prompt, or raise their number"
                )


@dataclass(frozen=True)
class Trainee:
    """A readout of one judge: `view` is the judge in the role that learns."""

    name: str
    view: VideoJudgeReward
    readout: Readout


def _train_levels(judge: Any, **settings: Any) -> dict[str, float]:
    from reward_model.training.methods import refresh

    return refresh.refresh_levels(judge, **settings)


def _train_comparator(method: str) -> Callable[..., dict[str, float]]:
    def train(judge: Any, **settings: Any) -> dict[str, float]:
        """Train the comparator in place."""
        from reward_model.training.methods.refresh_comparator import refresh_comparator

        return refresh_comparator(judge, method=method, **settings)  # type: ignore[arg-type]

    return train


def level_accuracy(judge: VideoJudgeReward, clips: Sequence[RatedClip]) -> Fraction:
    """Return the share of anchor pairs that the judge's scores order rightly."""
    return exact_accuracy(anchor_scores(judge, clips), clips)


def decided_pairs(clips: Sequence[RatedClip]) -> list[VideoPair]:
    """Return the pairs of neighbouring clips of one prompt of which one is better overall."""
    from reward_model.training.methods.refresh_comparator import labelled_pairs

    return [pair for pair in labelled_pairs(clips) if pair.preference["overall"] != 0.5]


def comparator_accuracy(judge: VideoJudgeReward, clips: Sequence[RatedClip]) -> Fraction:
    """Return the share of labelled pairs of anchors, ties left out, whose winner the comparator names, asked in both orders.

    Args:
        judge: in the role that compares.
        clips: rated clips, of which neighbours of one prompt are pairs.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ValueError: no two neighbouring anchors share a prompt and differ overall.
    """
    pairs = decided_pairs(clips)
    if not pairs:
        raise ValueError("the held-out anchors hold no two neighbours of one prompt whose overall quality differs")
    outcome = judge.compare([pair.first for pair in pairs], [pair.second for pair in pairs], [p.prompt for p in pairs])
    wanted = torch.tensor([pair.preference["overall"] - 0.5 for pair in pairs])
    right = int((outcome.margin.cpu() * wanted > 0).sum())
    return Fraction(right, len(pairs))


READOUTS: Mapping[str, Readout] = {
    "levels": Readout(_train_levels, level_accuracy),
    "comparator_sft": Readout(_train_comparator("sft"), comparator_accuracy, compares=True),
    "comparator_grpo": Readout(_train_comparator("grpo"), comparator_accuracy, compares=True),
}
"""Name, as in `refresh.readouts`, to the readout."""
