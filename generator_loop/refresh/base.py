"""The contract of a pair source: when a refresh is due, it makes preference pairs of the round's clips.

Shape legend: c latent channels, F latent frames, h, w latent height and width, T pixel frames, G group size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from generator_loop.records import Draw, Prompt, Rollout, Scored
from reward_model.records import Video, VideoPair


@dataclass(frozen=True)
class Candidate:
    """One prompt's clips at a refresh.

    `place` is the prompt's among those of all processes. `frames` float32 RGB [G, T, C, H, W] in [0, 1] are the newest
    policy's, `rewards` [G] the scores that rank them (`refresh.rank_by`; NaN without one). `rejected` [T, C, H, W] is the worst clip that the policy of the
    round's start drew, None where it drew none with a score.
    """

    place: int
    prompt: Prompt
    frames: Tensor
    rewards: Tensor
    rejected: Tensor | None = None

    @property
    def best(self) -> Tensor | None:
        """The newest clip [T, C, H, W] of the highest reward, None where none has a score."""
        values = torch.where(self.rewards.isfinite(), self.rewards, -torch.inf)
        return self.frames[int(values.argmax())] if bool(values.isfinite().any()) else None


@dataclass(frozen=True, kw_only=True)
class PairTools:
    """The parts of a run that the refresh may use."""

    sample: Callable[[Sequence[Prompt]], tuple[Rollout, Scored]]
    """Draws and scores one group for each of this process's prompts with the newest policy."""
    decode: Callable[[Tensor], Tensor]
    """Clean latents [N, c, F, h, w] to frames [N, T, C, H, W] in [0, 1], without gradient."""
    encode: Callable[[Tensor], Tensor]
    """Frames [N, T, C, H, W] in [0, 1] to clean latents, without gradient."""
    scores: Callable[[Sequence[Candidate]], Mapping[str, Tensor]]
    """Judge -> its rewards [candidates, G] of the newest clips, NaN where one is missing: the rewarding judge and the audit."""
    gather: Callable[[list[Any]], list[Any]]
    """Joins the lists of all processes, in the order of their ranks."""
    draw: Draw
    """Random streams of this refresh."""
    rank: int
    """This process."""
    num_ranks: int
    """Number of processes."""
    num_prompts: int
    """Most prompts of a refresh, over all processes."""
    fps: float
    """Frame rate of every clip, Hz."""
    size: tuple[int, int, int]
    """Frames, height and width of every clip."""
    oracle: Callable[[Tensor, str], float] | None = None
    """Known quality in [0, 1] of a clip [T, C, H, W] of a prompt, where the prompts are a world's."""
    render: Callable[[Sequence[Prompt], Draw], Tensor] | None = None
    """The world's clean clips [N, T, C, H, W] of N prompts."""


@dataclass(frozen=True, kw_only=True)
class PairSourceConfig:
    """Base of every pair source's config, whose first field is `name`."""

    name: str
    """Chooses the source; the key in `refresh.sources` where it is not given."""
    weight: float = 1.0
    """Share of the refresh's pairs that come from this source, relative to the others."""

    @property
    def needs_world(self) -> bool:
        """Whether it needs prompts of a world that can render and judge clips."""
        return False

    def __post_init__(self) -> None:
        """Refuse a weight that draws nothing."""
        if self.weight <= 0:
            raise ValueError(f"weight must be > 0, got {self.weight}; leave the source out instead")


class PairSource(Protocol):
    """One reason why one clip is better than another; all processes call it at the same time."""

    config_class: ClassVar[type[Any]]
    """Its settings, a `PairSourceConfig`."""

    def __init__(self, config: Any) -> None: ...

    def pairs(self, candidates: Sequence[Candidate], tools: PairTools) -> list[tuple[int, VideoPair]]:
        """Return this process's pairs.

        Args:
            candidates: this process's prompts with their clips.
            tools: the run's parts.

        Returns:
            Place of the pair among those of all processes, and the pair. Places decide the order, so that the pairs are the
            same whatever the number of processes.
        """
        ...


def preferred(better: Tensor, worse: Tensor, prompt: Prompt, *, fps: float, source: str) -> VideoPair:
    """Return the pair that says that `better` [T, C, H, W] beats `worse` for a prompt; `source` names its reason."""
    return VideoPair(
        first=Video(frames=better, fps=fps),
        second=Video(frames=worse, fps=fps),
        prompt=prompt.text,
        preference={"overall": 1.0},
        source_id=f"{source}: prompt {prompt.prompt_id}",
    )


def any_clip(candidate: Candidate, draw: Draw) -> Tensor:
    """Return one of the newest clips [T, C, H, W], each with the same chance."""
    generator = draw.generator(candidate.prompt.prompt_id, 0)
    return candidate.frames[int(torch.randint(len(candidate.frames), (), generator=generator))]
