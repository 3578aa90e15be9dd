"""Assembly of a batch's scores, spreads and reasons into a `RewardOutput`, and of preferences into a `Comparison`.

Shapes: B clips (or pairs), K = 5 levels, O orders of a comparison, N readable pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import fmean

import torch
from torch import Tensor

from reward_model.dimensions import OVERALL, needs_prompt
from reward_model.judge.checkpoints.format import JudgeConfig
from reward_model.judge.engine.readouts import MIN_LEVEL_MASS
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
    PreferenceReadout,
    RewardOutput,
)


@dataclass(frozen=True)
class OverallScores:
    """Overall quality of B clips.

    `sources` holds the dimensions that each value is the mean of, ("overall",) where the judge gave it; `reasons` the cause
    of each missing value, empty otherwise.
    """

    quality: Tensor
    sources: list[tuple[str, ...]]
    reasons: list[str]


class ScoreAssembler:
    """Scores under construction: a readout, or the reason for its absence, per clip and dimension."""

    def __init__(
        self,
        dims: tuple[str, ...],
        num_clips: int,
        config: JudgeConfig,
        device: torch.device,
        *,
        named: tuple[str, ...] = (),
    ) -> None:
        """Start without scores.

        Args:
            dims: dimensions to score.
            num_clips: B.
            config: of the judge.
            device: device of the scores.
            named: dimensions that the reasoned question names; empty for the level readout.
        """
        self.named = named
        self.overall_alone = bool(named) and all(name == OVERALL or needs_prompt(name) for name in named)
        self.dims, self.num_clips, self.config, self.device = dims, num_clips, config, device
        self.readouts: dict[tuple[int, str], LevelReadout] = {}
        self.reasons = {name: [""] * num_clips for name in dims}
        self.texts: list[str | None] = [None] * num_clips
        self.prompted = [True] * num_clips
        self.plans: list[FramePlan | None] = [None] * num_clips
        self.warnings: list[tuple[str, ...]] = [()] * num_clips

    def _asked_in(self) -> tuple[str, ...]:
        """Return a remark that names the words of a reasoned question, where the judge's configuration does."""
        source = self.config.wording.get("source", "")
        return (f"asked in {source}",) if source and self.named else ()

    def add_clip(self, index: int, clip: Clip | str, prompt: str | None) -> tuple[str, ...]:
        """Record a clip's frame plan and warnings, mark unavailable dimensions with reasons, and return those to ask for."""
        self.prompted[index] = prompt is not None
        if isinstance(clip, str):
            for name in self.dims:
                self.reasons[name][index] = clip
            return ()
        self.plans[index] = clip.plan
        self.warnings[index] = clip.remarks + unlike_training(clip, self.config.trained_range) + self._asked_in()
        if prompt is not None:
            return self.dims
        for name in filter(needs_prompt, self.dims):
            self.reasons[name][index] = NO_PROMPT
        return tuple(name for name in self.dims if self._asked_without_prompt(name))

    def _asked_without_prompt(self, name: str) -> bool:
        if name == OVERALL:
            return self.overall_alone
        return not needs_prompt(name)

    def add_levels(self, index: int, asked: tuple[str, ...], readout: LevelReadout) -> None:
        """Record a clip's level readout, of one input per dimension in `asked`."""
        for place, name in enumerate(asked):
            self.readouts[index, name] = _one_of(readout, place)
            mass = float(readout.mass[place].detach())
            if mass < MIN_LEVEL_MASS:
                self.reasons[name][index] = f"only {mass:.2f} of the probability is on the five level words"

    def add_answers(
        self, index: int, asked: tuple[str, ...], texts: Sequence[str], answers: Sequence[ParsedAnswer | ParseFailure]
    ) -> None:
        """Record one reasoned answer, or the mean and spread of several; their text is the one nearest to the mean.

        A score needs more than half of the answers to be well-formed.
        """
        parsed = [answer for answer in answers if isinstance(answer, ParsedAnswer)]
        failed = [answer.reason for answer in answers if isinstance(answer, ParseFailure)]
        nothing = self._no_readout()
        self.texts[index] = texts[_most_typical(answers)]
        for name in asked:
            values = torch.tensor([float(a.quality[name]) for a in parsed if name in a.quality], device=self.device)
            if 2 * len(values) > len(answers):
                spread = values.std(correction=0) if len(answers) > 1 else nothing.std
                self.readouts[index, name] = LevelReadout(values.mean(), nothing.level_probs, spread, nothing.mass)
            else:
                reason = failed[0] if failed else f"the answer names no {name}"
                many = f"only {len(values)} of {len(answers)} answers can be read: " if len(answers) > 1 else ""
                self.reasons[name][index] = many + reason

    def output(self, weights: Mapping[str, float] | None, normalize: str) -> RewardOutput:
        """Assemble the `RewardOutput`.

        Args:
            weights: dimension -> weight of the reward; None for the overall score.
            normalize: unit of the scores: "unit", "raw" or "z".

        Returns:
            Scores, rewards and reasons of B clips.

        Raises:
            ValueError: an unknown unit, or "z" without calibration constants.
        """
        readouts = {name: self._stacked(name) for name in self.dims}
        nan = torch.tensor(math.nan, device=self.device)
        scores = {name: torch.where(self._valid(self.reasons[name]), readouts[name].quality, nan) for name in self.dims}
        overall = self._overall(scores)
        reasons = dict(self.reasons)
        if OVERALL in self.dims:
            scores[OVERALL], reasons[OVERALL] = overall.quality, overall.reasons
        calibration = self.config.calibration
        scores = {name: _normalise(value, name, normalize, calibration) for name, value in scores.items()}
        if weights is not None:
            rewards = sum(
                (w * scores[name] for name, w in weights.items()), start=overall.quality.new_zeros(self.num_clips)
            )
        elif OVERALL in self.dims:
            rewards = scores[OVERALL]
        else:
            rewards = _normalise(overall.quality, OVERALL, normalize, calibration)
        return RewardOutput(
            rewards=rewards,
            scores=scores,
            std={name: readout.std for name, readout in readouts.items()},
            level_probs={name: readout.level_probs for name, readout in readouts.items()},
            level_mass={name: readout.mass for name, readout in readouts.items()},
            valid={name: self._valid(reasons[name]) for name in self.dims},
            reasons=reasons,
            texts=None if all(text is None for text in self.texts) else [text or "" for text in self.texts],
            frame_plan=self.plans,
            overall_from=overall.sources,
            warnings=self.warnings,
        )

    def _no_readout(self) -> LevelReadout:
        nan = torch.tensor(math.nan, device=self.device)
        return LevelReadout(quality=nan, level_probs=nan.expand(len(LEVELS)), std=nan, mass=nan)

    def _stacked(self, name: str) -> LevelReadout:
        """Return the readouts of all clips on one dimension; NaN for those without."""
        nothing = self._no_readout()
        if not self.num_clips:
            empty = nothing.quality.new_zeros(0)
            return LevelReadout(quality=empty, level_probs=empty, std=empty, mass=empty)
        column = [self.readouts.get((index, name), nothing) for index in range(self.num_clips)]
        return LevelReadout(
            quality=torch.stack([readout.quality for readout in column]),
            level_probs=torch.stack([readout.level_probs for readout in column]),
            std=torch.stack([readout.std for readout in column]),
            mass=torch.stack([readout.mass for readout in column]),
        )

    def _valid(self, reasons: Sequence[str]) -> Tensor:
        return torch.tensor([not reason for reason in reasons], dtype=torch.bool, device=self.device)

    def _overall(self, scores: Mapping[str, Tensor]) -> OverallScores:
        """Return the judge's own overall quality, or else the mean of each clip's available dimensions."""
        others = [name for name in self.dims if name != OVERALL]
        quality: list[Tensor] = []
        sources: list[tuple[str, ...]] = []
        reasons: list[str] = []
        for index in range(self.num_clips):
            reason = self.reasons[OVERALL][index] if OVERALL in self.dims else ""
            available = tuple(name for name in others if not self.reasons[name][index])
            if OVERALL in self.dims and (self.prompted[index] or self.overall_alone):
                value, available = scores[OVERALL][index], (OVERALL,)
            elif available:
                value = torch.stack([scores[name][index] for name in available]).mean()
            else:
                value = torch.tensor(math.nan, device=self.device)
                causes = (self.reasons[name][index] for name in others)
                reason = reason or next(filter(None, causes), NO_PROMPT)
            quality.append(value)
            sources.append(available)
            reasons.append(reason)
        return OverallScores(torch.stack(quality) if quality else torch.zeros(0, device=self.device), sources, reasons)


def _one_of(readout: LevelReadout, place: int) -> LevelReadout:
    """Return the readout of a single input."""
    return LevelReadout(
        quality=readout.quality[place],
        level_probs=readout.level_probs[place],
        std=readout.std[place],
        mass=readout.mass[place],
    )


def _most_typical(answers: Sequence[ParsedAnswer | ParseFailure]) -> int:
    """Return the index of the answer nearest to the mean of the well-formed ones; 0 if there are none."""
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


def average_orders(orders: Sequence[PreferenceReadout], readable: Sequence[int], reasons: Sequence[str]) -> Comparison:
    """Average the readouts of a comparison over the orders in which its clips were shown.

    Args:
        orders: O readouts of the N readable pairs, all as seen from the first clip.
        readable: [N], indices of these pairs among the B pairs.
        reasons: [B], why a pair is unreadable; empty for readable ones.

    Returns:
        The outcome of the B pairs; NaN for unreadable ones and for those that the judge does not answer.
    """
    p_first, p_second, p_tie, mass = (
        torch.stack([getattr(order, field.name) for order in orders]) for field in fields(PreferenceReadout)
    )  # [O, N] each
    reasons = list(reasons)
    for index, least in zip(readable, mass.amin(dim=0).tolist(), strict=True):
        if least < MIN_LEVEL_MASS:
            reasons[index] = f"only {least:.2f} of the probability is on the answer words"
    device, num = p_first.device, len(reasons)
    places = torch.tensor(readable, dtype=torch.long, device=device)
    valid = torch.tensor([not reason for reason in reasons], dtype=torch.bool, device=device)

    def spread(values: Tensor) -> Tensor:
        """Return [B] with `values` [N] at the comparable pairs, NaN elsewhere."""
        full = torch.full((num,), math.nan, device=device)
        full[places] = values
        return torch.where(valid, full, torch.nan)

    first_wins = p_first > p_second
    consistent = torch.zeros(num, dtype=torch.bool, device=device)
    consistent[places] = (first_wins == first_wins[0]).all(dim=0)
    return Comparison(
        p_first=spread(p_first.mean(dim=0)),
        p_tie=spread(p_tie.mean(dim=0)),
        margin=spread(p_first.mean(dim=0) - p_second.mean(dim=0)),
        valid=valid,
        reasons=reasons,
        consistent=consistent & valid,
    )
