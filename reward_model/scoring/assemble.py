"""Collects scores, spreads and reasons of a batch and assembles the `RewardOutput` or `Comparison`.

Shapes: B videos (rows), K = 5 levels, O orders of a comparison, N readable pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor

from reward_model.judge.checkpoints.format import JudgeConfig
from reward_model.media.trained_range import unlike_training
from reward_model.records import (
    LEVELS,
    NO_PROMPT,
    Clip,
    Comparison,
    FramePlan,
    LevelReadout,
    ParsedAnswer,
    ParseFailure,
    RewardOutput,
)

MIN_LEVEL_MASS = 0.5
"""Below this probability on the answer words the judge is not answering the question."""


class ScoreSheet:
    """Scores under construction: dimension -> one tensor, spread, reason per row."""

    def __init__(
        self,
        dims: tuple[str, ...],
        num_rows: int,
        config: JudgeConfig,
        device: torch.device,
        *,
        named: tuple[str, ...] = (),
    ) -> None:
        """Take what is scored.

        Args:
            dims: dimensions.
            num_rows: B.
            config: the judge's.
            device: where scores are.
            named: all that a reasoned question names; empty for levels.
        """
        self.named = named
        self.overall_alone = bool(named) and not {"visual_quality", "motion_quality"} & set(named)
        self.dims, self.num_rows, self.config, self.device = dims, num_rows, config, device
        self.levels: dict[tuple[int, str], tuple[Tensor, ...]] = {}
        self.reasons = {name: [""] * num_rows for name in dims}
        self.texts: list[str | None] = [None] * num_rows
        self.prompted = [True] * num_rows
        self.plans: list[FramePlan | None] = [None] * num_rows
        self.warnings: list[tuple[str, ...]] = [()] * num_rows

    def enter(self, row: int, clip: Clip | str, prompt: str | None) -> tuple[str, ...]:
        """Note a row's frames, in what they are unlike training, and why dimensions cannot be had; return those that can."""
        self.prompted[row] = prompt is not None
        if isinstance(clip, Clip):
            self.plans[row] = clip.plan
            self.warnings[row] = unlike_training(clip, self.config.trained_range)
        for name in self.dims:
            if isinstance(clip, str):
                self.reasons[name][row] = clip
            elif prompt is None and name == "text_alignment":
                self.reasons[name][row] = NO_PROMPT
        if isinstance(clip, str):
            return ()
        unprompted = ("text_alignment",) if self.overall_alone else ("text_alignment", "overall")
        return tuple(d for d in self.dims if prompt is not None or d not in unprompted)

    def put_levels(self, row: int, asked: tuple[str, ...], read: LevelReadout) -> None:
        """Enter the level readout of `asked` dimensions."""
        for place, name in enumerate(asked):
            self.levels[row, name] = tuple(t[place] for t in (read.quality, read.level_probs, read.std, read.mass))
            mass = float(read.mass[place].detach())
            if mass < MIN_LEVEL_MASS:
                self.reasons[name][row] = f"only {mass:.2f} of the probability is on the five level words"

    def put_answers(
        self, row: int, asked: tuple[str, ...], texts: Sequence[str], answers: Sequence[ParsedAnswer | ParseFailure]
    ) -> None:
        """Enter one reasoned answer, or the mean and spread of several; their text is the one nearest to the mean.

        Where not more than half can be read, there is no score.
        """
        parsed = [answer for answer in answers if isinstance(answer, ParsedAnswer)]
        failed = [answer.reason for answer in answers if isinstance(answer, ParseFailure)]
        nan = torch.tensor(math.nan, device=self.device)
        self.texts[row] = texts[_most_typical(answers)]
        for name in asked:
            values = torch.tensor([float(a.quality[name]) for a in parsed if name in a.quality], device=self.device)
            if 2 * len(values) > len(answers):
                spread = values.std(correction=0) if len(answers) > 1 else nan
                self.levels[row, name] = (values.mean(), nan.expand(len(LEVELS)), spread, nan)
            else:
                reason = failed[0] if failed else f"the answer names no {name}"
                many = f"only {len(values)} of {len(answers)} answers can be read: " if len(answers) > 1 else ""
                self.reasons[name][row] = many + reason

    def output(self, weights: Mapping[str, float] | None, normalize: str) -> RewardOutput:
        """Assemble the `RewardOutput`."""
        calibration = self.config.calibration
        nan = torch.tensor(math.nan, device=self.device)
        empty = (nan, nan.expand(len(LEVELS)), nan, nan)
        columns = {name: [self.levels.get((row, name), empty) for row in range(self.num_rows)] for name in self.dims}
        stacked = {
            name: [torch.stack(part) for part in zip(*column, strict=True)] if column else [nan.new_zeros(0)] * 4
            for name, column in columns.items()
        }
        good = {name: [not reason for reason in self.reasons[name]] for name in self.dims}
        overall_from: list[tuple[str, ...]] = [("overall",) if "overall" in self.dims else ()] * self.num_rows
        scores = {name: torch.where(self._mask(good[name]), stacked[name][0], nan) for name in self.dims}
        overall = self._overall(scores, good, overall_from)
        if "overall" in self.dims:
            scores["overall"] = overall
        scores = {name: _normalise(value, name, normalize, calibration) for name, value in scores.items()}
        if weights is None:
            rewards = (
                scores["overall"] if "overall" in self.dims else _normalise(overall, "overall", normalize, calibration)
            )
        else:
            rewards = sum((w * scores[name] for name, w in weights.items()), start=overall.new_zeros(self.num_rows))
        return RewardOutput(
            rewards=rewards,
            scores=scores,
            std={name: stacked[name][2] for name in self.dims},
            level_probs={name: stacked[name][1] for name in self.dims},
            level_mass={name: stacked[name][3] for name in self.dims},
            valid={name: self._mask(good[name]) for name in self.dims},
            reasons=self.reasons,
            texts=None if all(text is None for text in self.texts) else [text or "" for text in self.texts],
            frame_plan=self.plans,
            overall_from=overall_from,
            warnings=self.warnings,
        )

    def _mask(self, good: Sequence[bool]) -> Tensor:
        return torch.tensor(list(good), dtype=torch.bool, device=self.device)

    def _overall(
        self, scores: Mapping[str, Tensor], good: dict[str, list[bool]], overall_from: list[tuple[str, ...]]
    ) -> Tensor:
        """Return [B]: the judge's own overall, or without a prompt the mean of the dimensions that can be had."""
        parts = [name for name in self.dims if name != "overall"]
        rows = []
        for row in range(self.num_rows):
            if "overall" in self.dims and (self.prompted[row] or self.overall_alone):
                rows.append(scores["overall"][row])
                continue
            had = tuple(name for name in parts if good[name][row])
            overall_from[row] = had
            if had:
                rows.append(torch.stack([scores[name][row] for name in had]).mean())
            else:
                rows.append(torch.tensor(math.nan, device=self.device))
                if "overall" in self.dims:
                    good["overall"][row] = False
                    reason = next((self.reasons[name][row] for name in parts if self.reasons[name][row]), NO_PROMPT)
                    self.reasons["overall"][row] = self.reasons["overall"][row] or reason
        return torch.stack(rows) if rows else torch.zeros(0, device=self.device)


def _most_typical(answers: Sequence[ParsedAnswer | ParseFailure]) -> int:
    """Return which answer is nearest to the mean of those that can be read; the first where there is none."""
    parsed = {place: answer.quality for place, answer in enumerate(answers) if isinstance(answer, ParsedAnswer)}
    if not parsed:
        return 0
    names = sorted({name for quality in parsed.values() for name in quality})
    means = {name: fmean(q[name] for q in parsed.values() if name in q) for name in names}
    return min(parsed, key=lambda place: sum(abs(parsed[place].get(name, 2.0) - means[name]) for name in names))


def _normalise(quality: Tensor, name: str, normalize: str, calibration: Mapping[str, Mapping[str, float]]) -> Tensor:
    if normalize == "unit":
        return quality
    if normalize == "raw":
        return 1 + 4 * quality
    if normalize != "z":
        raise ValueError(f"normalize must be 'unit', 'raw' or 'z', got {normalize!r}")
    if name not in calibration:
        raise ValueError(
            f"this judge has no calibration constants for {name!r}; use normalize='unit' or 'raw', "
            "or write some by `video-judge calibrate`"
        )
    return (quality - calibration[name]["mean"]) / calibration[name]["std"]


def comparison(orders: Tensor, rows: Sequence[int], reasons: list[str]) -> Comparison:
    """Average both orders; `orders` [O, N, 4] holds P(a), P(b), P(tie), mass as seen from a."""
    num, index = len(reasons), torch.tensor(rows, dtype=torch.long, device=orders.device)
    mean = orders.mean(dim=0)
    for place, row in enumerate(rows):
        mass = float(orders[:, place, 3].min())
        if mass < MIN_LEVEL_MASS:
            reasons[row] = f"only {mass:.2f} of the probability is on the answer words"
    valid = torch.tensor([not reason for reason in reasons], dtype=torch.bool, device=orders.device)

    def spread(values: Tensor) -> Tensor:
        """Return [N] with `values` where a pair could be compared, NaN elsewhere."""
        full = torch.full((num,), math.nan, device=orders.device)
        full[index] = values
        return torch.where(valid, full, torch.nan)

    first_wins = orders[..., 0] > orders[..., 1]
    consistent = torch.zeros(num, dtype=torch.bool, device=orders.device)
    consistent[index] = (first_wins == first_wins[0]).all(dim=0)
    return Comparison(
        p_first=spread(mean[:, 0]),
        p_tie=spread(mean[:, 2]),
        margin=spread(mean[:, 0] - mean[:, 1]),
        valid=valid,
        reasons=reasons,
        consistent=consistent & valid,
    )
