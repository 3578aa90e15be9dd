"""The contract of a pair source: it watches iterations and, when a refresh is due, returns preference pairs.

Shape legend: c latent channels, F latent frames, h, w latent height and width, T pixel frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from generator_loop.records import Prompt, Rollout, Scored
from reward_model.records import VideoPair


@dataclass(frozen=True, kw_only=True)
class PairTools:
    """The parts of a run that a pair source may use."""

    sample: Callable[[Sequence[Prompt]], tuple[Rollout, Scored]]
    """Draws and scores one group for each of this process's prompts with the newest policy."""
    decode: Callable[[Tensor], Tensor]
    """Clean latents [N, c, F, h, w] to frames [N, T, C, H, W] in [0, 1], without gradient."""
    gather: Callable[[list[Any]], list[Any]]
    """Joins the lists of all processes, in the order of their ranks."""
    rank: int
    """This process."""
    num_ranks: int
    """Number of processes."""
    num_prompts: int
    """Most prompts that the pairs may take, over all processes."""
    fps: float
    """Frame rate of every clip, Hz."""


class PairSource(Protocol):
    """One source of pairs; it keeps its own state, which a checkpoint stores and a resumed run restores.

    The class is built with the run's training prompts. All processes call every method at the same time.
    """

    def __init__(self, prompts: Sequence[Prompt]) -> None: ...

    def observe(self, samples: Rollout, scored: Scored, tools: PairTools) -> None:
        """See the samples of one iteration.

        Args:
            samples: this process's groups.
            scored: their rewards.
            tools: the run's parts.
        """
        ...

    def pairs(self, tools: PairTools) -> list[VideoPair]:
        """Return the pairs of a refresh, the same on all processes, and start anew.

        Args:
            tools: the run's parts.

        Returns:
            Pairs in the order in which the refresh draws from them.
        """
        ...

    def state(self) -> Mapping[str, Tensor]:
        """Return everything observed so far as tensors."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the tensors of `state`.

        Args:
            state: tensors by name.
        """
        ...
