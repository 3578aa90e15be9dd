"""The protocol of text-to-video generators, by which the loop uses every family alike.

Shape legend: B batch, T pixel frames, F latent frames, c latent channels, h, w latent height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from generator_loop.records import Conditioning, Predict

POLICY, OLD, REFERENCE = "policy", "old", "reference"
"""The live weights, those that drew the last samples, and those that the policy must stay near."""


class VideoGenerator(Protocol):
    """A text-to-video model in the vocabulary of the loop: sigma, velocity and normalised latents.

    Named weights are copies of the trained parameters: `policy` is live, `old` and `reference` start equal to it.
    The first policy is the base model itself, with LoRA that changes nothing where an adapter is trained, and so is the reference.
    """

    name: str
    pipeline_name: ClassVar[str]
    """Class of diffusers that loads the model and what `save` wrote; the model card names it."""
    fps: float
    num_frames: int
    size: tuple[int, int]
    device: torch.device

    def encode_prompts(self, texts: Sequence[str]) -> Conditioning:
        """Encode prompts without gradient.

        Args:
            texts: B prompts.

        Returns:
            Conditioning of B samples on the generator's device.
        """
        ...

    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw unit Gaussian noise, one sample from each CPU generator.

        Args:
            generators: B CPU generators, each advanced by one sample.

        Returns:
            Float32 latents [B, c, F, h, w] on the generator's device.
        """
        ...

    def sigmas(self, num_steps: int) -> Tensor:
        """Return the sampling schedule: the grid of the checkpoint's own scheduler, along which the loop takes first-order steps.

        Args:
            num_steps: number S of solver steps.

        Returns:
            Float32 sigmas [S + 1], falling from 1 to 0, on the generator's device.
        """
        ...

    def predict(self, latents: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Predict the velocity eps - x_0 with the weights in use; differentiable in `latents` and in the policy.

        Args:
            latents: noisy latents [B, c, F, h, w].
            sigma: [B] in [0, 1].
            cond: conditioning of B samples.

        Returns:
            Float32 velocity [B, c, F, h, w].
        """
        ...

    def decode(self, latents: Tensor, excerpt: range | None = None) -> Tensor:
        """Decode clean latents; differentiable where `latents` carry gradient, and in an excerpt's own latent frames alone.

        The frames of an excerpt equal those of the whole clip. Where the decoder is causal, latent frames after the excerpt are left
        out, and those before it cost no memory for the backward pass.

        Args:
            latents: x_0 [B, c, F, h, w], normalised.
            excerpt: consecutive latent frames whose pixel frames are wanted; None decodes all.

        Returns:
            Float32 RGB frames [B, T, 3, H, W] in [0, 1], those of `frames_of(excerpt)` alone where an excerpt is given.
        """
        ...

    def frames_of(self, excerpt: range) -> slice:
        """Return the pixel frames that an excerpt of latent frames becomes.

        Args:
            excerpt: consecutive latent frames.

        Returns:
            Slice of the clip's T frames.
        """
        ...

    def encode(self, frames: Tensor) -> Tensor:
        """Encode frames to the mode of their latents, without gradient.

        Args:
            frames: RGB [B, T, 3, H, W] in [0, 1].

        Returns:
            Float32 normalised latents [B, c, F, h, w].
        """
        ...

    def trainable_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters that training updates, by name, in a fixed order."""
        ...

    def models(self) -> dict[str, torch.nn.Module]:
        """Return the models of the pipeline by name; the names of transformers begin with "transformer"."""
        ...

    def use(self, name: str) -> AbstractContextManager[None]:
        """Predict with the named weights inside the context; all but the policy are used without gradient.

        Args:
            name: `policy` or a name given to `set_weights`.

        Returns:
            A context that restores the weights in use before it, also after an error.
        """
        ...

    def weights(self, name: str) -> dict[str, Tensor]:
        """Return the named weights, detached and not copied.

        Args:
            name: `policy` or a name given to `set_weights`.

        Returns:
            Parameter name to tensor; copies may wait on another device than the policy.
        """
        ...

    def set_weights(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Copy `weights` into the named set, creating it if it is new.

        Args:
            name: `policy` or any other name.
            weights: parameter name to tensor, complete.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the policy so that the stock pipeline loads it.

        Args:
            folder: an existing or new folder.
        """
        ...

    def load(self, folder: Path) -> None:
        """Read a policy that `save` wrote, exactly.

        Args:
            folder: the folder given to `save`.
        """
        ...


def predict_with(generator: VideoGenerator, name: str) -> Predict:
    """Bind a generator to one of its named weights.

    Args:
        generator: the generator.
        name: `policy`, `old`, `reference` or another name of its weights.

    Returns:
        predict(x_sigma, sigma, cond), without gradient unless `name` is the policy.
    """

    def predict(latents: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Return the velocity at x_sigma by the named weights."""
        with generator.use(name):
            return generator.predict(latents, sigma, cond)

    return predict
