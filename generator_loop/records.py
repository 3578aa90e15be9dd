"""The frozen records that cross file borders in the generator package.

Shape legend: B = prompts x group size, G group size, T pixel frames, latents [B, ...] of any rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One text prompt; `prompt_id` keys the random streams and the text-embedding cache."""

    prompt_id: int
    text: str


@dataclass(frozen=True)
class Conditioning:
    """Named text-conditioning tensors of one family, each with the batch first."""

    tensors: Mapping[str, Tensor]

    def select(self, index: Tensor) -> Conditioning:
        """Return the samples of `index` [N] of every tensor."""
        return Conditioning({name: value[index] for name, value in self.tensors.items()})


Predict = Callable[["Tensor", "Tensor", Conditioning], "Tensor"]
"""predict(x_sigma [B, ...], sigma [B] in [0, 1], cond) -> velocity [B, ...] = eps - x_0."""


@dataclass(frozen=True)
class Rollout:
    """Groups of samples of the old policy; the G samples of one prompt are consecutive.

    `latents` [B, ...] is x_0 in the normalised latent space, `noise` [B, ...] the starting latents at sigma = 1,
    `frames` float32 RGB [B, T, C, H, W] in [0, 1]; `tail` holds the last states and `trajectory` the
    random steps for objectives that ask for them.
    """

    prompts: tuple[Prompt, ...]
    group_size: int
    noise: Tensor
    latents: Tensor
    cond: Conditioning
    frames: Tensor
    tail: TailStates | None = None
    trajectory: Trajectory | None = None


@dataclass(frozen=True)
class Scored:
    """A rollout's rewards: `rewards` [B] (NaN where not `valid`), `valid` bool [B], `scores` dimension -> [B].

    `disagreement` [B] is the standard deviation of several judges' rewards, None where only one was asked. `reasons` [B]
    says why a sample has no reward ("" otherwise); `left_out` maps the user's reward terms that failed, and that the
    rewards of all samples of the iteration therefore lack, to a sentence.
    """

    rewards: Tensor
    valid: Tensor
    scores: Mapping[str, Tensor]
    disagreement: Tensor | None = None
    reasons: Sequence[str] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)

    def by(self, name: str) -> Tensor:
        """Return the rewards or one of the scores [B]."""
        return self.rewards if name == "reward" else self.scores[name]


@dataclass(frozen=True)
class LossOutput:
    """A scalar loss with gradient and detached metrics for the log."""

    loss: Tensor
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Draw:
    """Where random numbers come from: streams keyed by (seed, step, prompt id, sample index), never by rank."""

    seed: int
    step: int

    def generator(self, prompt_id: int, sample: int) -> torch.Generator:
        """Return the CPU generator of one sample."""
        import hashlib

        import torch

        key = f"{self.seed}/{self.step}/{prompt_id}/{sample}".encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:7], "big"))

    def key(self) -> int:
        """Return a seed for code that draws by itself, another one at each step."""
        import hashlib

        return int.from_bytes(hashlib.sha256(f"{self.seed}/{self.step}".encode()).digest()[:7], "big")

    def fork(self, purpose: str) -> Draw:
        """Return streams for another purpose of the same step, independent of these."""
        import hashlib

        key = f"{self.seed}/{purpose}".encode()
        return Draw(seed=int.from_bytes(hashlib.sha256(key).digest()[:7], "big"), step=self.step)


@dataclass(frozen=True)
class TailStates:
    """The last K sampling steps: `states` [K, B, ...] before each step, `sigmas` [K + 1] with the final 0 last."""

    states: Tensor
    sigmas: Tensor


@dataclass(frozen=True)
class Trajectory:
    """Random sampling steps: `states` before and `results` after each of the K `steps` [K, B, ...].

    `log_probs` [K, B] are those of the policy that sampled; `sigmas` [S + 1] is the whole schedule.
    """

    steps: tuple[int, ...]
    states: Tensor
    results: Tensor
    log_probs: Tensor
    sigmas: Tensor
