"""Reward column: how many of its siblings a clip beats, by the judge's comparator.

Source: VQ-Insight (arXiv 2506.18564), stage 3, step 2: all N (N - 1) / 2 pairs of a prompt's candidates, counting wins.

Shape legend: B = prompts x group size, G group size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from generator_loop.records import Rollout
from generator_loop.rewards.column import ColumnConfig

if TYPE_CHECKING:
    from reward_model.video_reward import VideoJudgeReward

Margins = Callable[[Sequence[tuple[int, int]]], Sequence[float]]
"""margins(pairs) -> lead in [-1, 1] of the first of each pair of clips over the second, 0 for a tie; NaN without an answer."""


@dataclass(frozen=True, kw_only=True)
class ComparatorConfig(ColumnConfig):
    """Config of the comparator."""

    name: Literal["comparator"] = "comparator"
    """Chooses this column."""
    role: str = "comparator"
    """Adapter of the judge that compares."""
    schedule: Literal["round_robin", "knockout"] = "round_robin"
    """round_robin asks all G (G - 1) / 2 pairs, as the paper; knockout finds the best and the worst clip with at most 3 G / 2,
    and says of the others only how far they came."""
    both_orders: bool = True
    """Ask every pair in both orders, which removes the position bias and costs twice as much; the paper asks once."""


class Comparator:
    """Compares the clips of each prompt."""

    config_class: ClassVar[type[Any]] = ComparatorConfig

    def __init__(self, config: Any, judge: VideoJudgeReward, *, fps: float, batch_size: int) -> None:
        """Take the judge; ValueError if it has no such role."""
        self._config, self._judge = config, judge.with_role(config.role)
        self._fps, self._batch_size = fps, batch_size

    def values(self, samples: Rollout) -> Tensor:
        """Return the standing [B] in [0, 1] of each clip among its siblings; see `RewardColumn.values`."""
        groups = samples.frames.unflatten(0, (-1, samples.group_size))
        schedule = SCHEDULES[self._config.schedule]
        return torch.cat(
            [
                schedule(samples.group_size, self._margins(clips, prompt.text))
                for clips, prompt in zip(groups, samples.prompts, strict=True)
            ]
        )

    def _margins(self, clips: Tensor, prompt: str) -> Margins:
        def margins(pairs: Sequence[tuple[int, int]]) -> list[float]:
            """Return the judge's margins."""
            first, second = (clips[[pair[side] for pair in pairs]] for side in (0, 1))
            outcome = self._judge.compare(
                first,
                second,
                [prompt] * len(pairs),
                swap=self._config.both_orders,
                fps=self._fps,
                batch_size=self._batch_size,
            )
            return torch.where(outcome.valid, outcome.margin, torch.nan).tolist()

        return margins


def round_robin(num: int, margins: Margins) -> Tensor:
    """Compare every clip with every other one.

    Args:
        num: G clips, at least 2.
        margins: compares pairs.

    Returns:
        Share [G] of its comparisons that each clip won, ties counting half; clips of equal shares differ by their mean margin, by
        less than half a win. NaN for a clip without any answer.
    """
    table = torch.full((num, num), torch.nan, dtype=torch.float64)
    pairs = list(combinations(range(num), 2))
    for (a, b), margin in zip(pairs, margins(pairs), strict=True):
        table[a, b], table[b, a] = margin, -margin
    known = table.isfinite()
    count = known.sum(1)
    wins = torch.where(known, (table.sign() + 1) / 2, 0.0).sum(1) / count
    # the margin's mean lies in [-1, 1] and a tie is worth half a win, so that this overturns neither
    finer = torch.where(known, table, 0.0).sum(1) / count / (5 * (num - 1))
    return torch.where(count > 0, wins + finer, torch.nan).float()


def knockout(num: int, margins: Margins) -> Tensor:
    """Find the best and the worst clip: the winners of the first comparisons play on for the best, the losers for the worst.

    Args:
        num: G clips, at least 2.
        margins: compares pairs; a pair without an answer leaves both of its clips out.

    Returns:
        [G]: 1 for the best, 0 for the worst, else nearer to .5 the earlier a clip left. NaN for clips left out. At most
        3 G / 2 pairs are asked.
    """
    values = torch.full((num,), torch.nan)
    first = [(place, place + 1) for place in range(0, num - 1, 2)]
    winners, losers = _split(first, margins(first))
    odd = [num - 1] if num % 2 else []
    beaters = _play([*winners, *odd], margins, values, up=True)
    # a clip without a first opponent may be the best, or the worst if it beat none
    unbeaten = {clip for clip in odd if clip not in beaters and values[clip] < 1}
    _play([*losers, *unbeaten], margins, values, up=False)
    return values


def _split(pairs: Sequence[tuple[int, int]], leads: Sequence[float]) -> tuple[list[int], list[int]]:
    """Return winners and losers of the pairs that have an answer; a tie goes to the first."""
    decided = [(pair if lead >= 0 else pair[::-1]) for pair, lead in zip(pairs, leads, strict=True) if lead == lead]
    return [a for a, _ in decided], [b for _, b in decided]


def _play(clips: list[int], margins: Margins, values: Tensor, *, up: bool) -> set[int]:
    """Play rounds until one clip is left, and return the clips that beat another.

    Values rise (or fall) from .5 with the rounds that a clip survived; clips of a pair without an answer lose theirs.
    """
    standing, sign, beaters = 1, 1 if up else -1, set[int]()
    while clips:
        level = 1 - 2.0**-standing
        for clip in clips:
            values[clip] = 0.5 + sign * level / 2
        if len(clips) == 1:
            values[clips[0]] = 0.5 + sign / 2
            break
        pairs = [(clips[place], clips[place + 1]) for place in range(0, len(clips) - 1, 2)]
        winners, losers = _split(pairs, margins(pairs))
        values[sorted({clip for pair in pairs for clip in pair} - {*winners, *losers})] = torch.nan
        odd = [clips[-1]] if len(clips) % 2 else []
        clips, standing = (winners if up else losers) + odd, standing + 1
        beaters.update(winners)
    return beaters


SCHEDULES: dict[str, Callable[[int, Margins], Tensor]] = {"round_robin": round_robin, "knockout": knockout}
"""Name, as in `schedule`, to the function that turns comparisons into standings."""
