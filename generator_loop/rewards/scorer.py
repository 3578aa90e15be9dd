"""The reward of a clip: the judge's dimensions and the user's own terms, weighted.

Shape legend: B = prompts x group size, T pixel frames, C = 3 channels, H, W pixels.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from generator_loop.records import Draw, Prompt, Rollout, Scored
from generator_loop.rewards.column import RewardColumn
from reward_model import VideoJudgeClient

if TYPE_CHECKING:
    from reward_model.records import RewardOutput

log = logging.getLogger(__name__)

RewardTerm = Callable[..., Any]
"""term(frames [B, T, C, H, W], prompts, fps=...) -> [B]."""


class ScoringJudge(Protocol):
    """The part of `VideoJudgeReward` that scores."""

    def __call__(
        self,
        videos: Tensor,
        prompts: Sequence[str],
        *,
        fps: float,
        weights: Mapping[str, float] | None = None,
        differentiable: bool = False,
        batch_size: int = 16,
    ) -> RewardOutput: ...


class RemoteJudge:
    """A judge that another process serves; it is shown clips of 8 bits a channel."""

    def __init__(
        self, url: str, *, token: str | None, pause: float = 30.0, before_pause: Callable[[], None] = lambda: None
    ) -> None:
        """Name the server; nothing is sent yet.

        Args:
            url: its http or https address.
            token: bearer token; None sends none.
            pause: seconds between two attempts to reach a server that is gone; the run waits meanwhile.
            before_pause: called before each pause; it may raise to stop the run.
        """
        self._client = VideoJudgeClient(url, token=token)
        self._url, self._pause, self._before_pause = url, pause, before_pause

    def __call__(
        self,
        videos: Tensor,
        prompts: Sequence[str],
        *,
        fps: float,
        weights: Mapping[str, float] | None = None,
        differentiable: bool = False,
        batch_size: int = 16,
    ) -> RewardOutput:
        """Score clips, waiting for a server that is gone; see `ScoringJudge`. ValueError where a gradient is asked for."""
        shown = (videos.detach().clamp(0, 1) * 255).round().to(torch.uint8)
        while True:
            try:
                return self._client.score(
                    shown, prompts, fps=fps, weights=weights, differentiable=differentiable, batch_size=batch_size
                )
            except (OSError, RuntimeError) as error:
                log.warning("the judge at %s does not answer (%s); the run waits for it", self._url, error)
            self._before_pause()
            time.sleep(self._pause)


def load_term(name: str) -> RewardTerm:
    """Import a reward given as `module:function`.

    Args:
        name: importable module and function.

    Returns:
        The function.

    Raises:
        ValueError: no such module or function, or it cannot be called.
    """
    module_name, _, function_name = name.partition(":")
    try:
        term = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"reward term {name!r} cannot be loaded ({error}); it must be an importable function"
        ) from error
    if not callable(term):
        raise ValueError(f"reward term {name!r} is a {type(term).__name__}, not a function")
    return term


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Weighted sum of the judge's dimensions and of further terms."""

    judge: ScoringJudge
    """Scores clips; its gradient reaches the pixels. The scores reported are its own."""
    weights: Mapping[str, float]
    """Dimension of the judge -> weight."""
    terms: Mapping[str, tuple[RewardTerm, float]]
    """Name -> (function, weight)."""
    columns: Mapping[str, tuple[RewardColumn, float]] = field(default_factory=dict)
    """Name -> (column, weight); a column of weight 0 is measured alone."""
    fps: float
    """Frames per second of every clip."""
    batch_size: int
    """Clips per forward pass of the judge."""
    others: Sequence[ScoringJudge] = ()
    """Judges that are asked beside it."""
    pessimism: float = 0.0
    """c of the reward mean - c std over all judges."""

    any_process: Callable[[bool], bool] = bool
    """Whether a flag is set on any process."""

    @torch.no_grad()
    def score(self, rollout: Rollout, *, together: bool = True) -> Scored:
        """Score a rollout; a clip that lacks any of its scores is not valid.

        Args:
            rollout: groups of clips.
            together: all processes score at the same time, so that a term that fails on one is left out on all.

        Returns:
            Rewards and scores; `left_out` names the terms that failed twice.
        """
        texts = [prompt.text for prompt in rollout.prompts for _ in range(rollout.group_size)]
        outs = self._ask(rollout.frames, texts, batch_size=self.batch_size)
        rewards, scores = self._agreed(outs).detach().float().cpu(), dict(outs[0].scores)
        for name, (column, weight) in self.columns.items():
            scores[name] = column.values(rollout).detach().float().cpu()
            # a clip without a value in a column that only chooses pairs keeps its reward
            rewards = rewards + weight * scores[name] if weight else rewards
        left_out: dict[str, str] = {}
        for name, (term, weight) in self.terms.items():
            value, failure = self._term_values(term, rollout.frames, texts)
            if self.any_process(bool(failure)) if together else failure:
                left_out[name] = f"reward term {name!r} is left out: {failure or 'it failed on another process'}"
                log.warning(left_out[name])
                scores[name] = torch.full_like(rewards, torch.nan)
            else:
                rewards, scores[name] = rewards + weight * value, value
        return Scored(
            rewards=rewards,
            valid=rewards.isfinite(),
            scores={name: value.detach().float().cpu() for name, value in scores.items()},
            disagreement=_spread(outs).float().cpu() if self.others else None,
            reasons=_reasons(outs, self._asked),
            left_out=left_out,
        )

    def _term_values(self, term: RewardTerm, frames: Tensor, texts: Sequence[str]) -> tuple[Tensor, str]:
        """Return a term's values [B] and "", or why it has none after two attempts."""
        failure = ""
        for _ in range(2):
            try:
                value = torch.as_tensor(term(frames, texts, fps=self.fps)).detach().float().cpu()
            except Exception as error:  # noqa: BLE001 -- a function of the user's own may raise anything
                failure = f"it raised {type(error).__name__}: {error}"
                continue
            if value.shape == (len(texts),):
                return value, ""
            failure = f"it returned shape {list(value.shape)}, expected [{len(texts)}]"
        return torch.zeros(len(texts)), failure

    def sampled(self, samples: Rollout) -> tuple[Rollout, Scored]:
        """Return the samples with their scores."""
        return samples, self.score(samples, together=False)

    def differentiable(self, frames: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Return the judges' reward [N] of N clips with gradient to the frames; NaN where it is unavailable."""
        texts = [prompt.text for prompt in prompts]
        return self._agreed(self._ask(frames, texts, differentiable=True))

    @property
    def parts(self) -> dict[str, float]:
        """Name -> weight of every score that the reward is a sum of."""
        further = {**self.columns, **self.terms}
        return self._asked | {name: weight for name, (_, weight) in further.items() if weight}

    def _ask(self, frames: Tensor, texts: Sequence[str], **how: Any) -> list[RewardOutput]:
        return [judge(frames, texts, fps=self.fps, weights=self._asked, **how) for judge in (self.judge, *self.others)]

    def _agreed(self, outs: Sequence[RewardOutput]) -> Tensor:
        """Return mean - c std [B] of the judges' rewards; NaN where one of them has none."""
        if len(outs) == 1:
            return outs[0].rewards
        return torch.stack([out.rewards for out in outs]).mean(0) - self.pessimism * _spread(outs)

    @property
    def _asked(self) -> dict[str, float]:
        return {name: weight for name, weight in self.weights.items() if weight}


def _spread(outs: Sequence[RewardOutput]) -> Tensor:
    """Return the standard deviation [B] of the judges' rewards, whose gradient is 0 where they agree."""
    variance = torch.stack([out.rewards for out in outs]).var(0, unbiased=False)
    # the square root has no gradient at 0
    return torch.where(variance > 0, variance, 1.0).sqrt() * (variance > 0)


def _reasons(outs: Sequence[RewardOutput], dimensions: Collection[str]) -> tuple[str, ...]:
    """Return for each of B clips the first reason that a judge gives for a missing score, "" where there is none."""
    given = [out.reasons[name] for out in outs for name in dimensions if name in out.reasons]
    return tuple(next(filter(None, reasons), "") for reasons in zip(*given, strict=True))


def weighted(scores: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the weighted sum [B] of a judge's scores; dimensions of weight 0 need not be there."""
    return torch.stack([weight * scores[name] for name, weight in weights.items() if weight]).sum(0)


def transformed(
    scored: Scored, rollout: Rollout, transform: Literal["none", "shuffle", "negate"], *, draw: Draw
) -> Scored:
    """Return the rewards of a control experiment: each group's rewards permuted, or all negated."""
    if transform == "none":
        return scored
    if transform == "negate":
        return dataclasses.replace(scored, rewards=-scored.rewards)
    size, streams = rollout.group_size, draw.fork("shuffle")
    order = [
        index * size + torch.randperm(size, generator=streams.generator(prompt.prompt_id, 0))
        for index, prompt in enumerate(rollout.prompts)
    ]
    index = torch.cat(order)
    return dataclasses.replace(scored, rewards=scored.rewards[index], valid=scored.valid[index])
