"""Text encoders and VAE that wait in the computer's memory while they are not in use.

The transformers stay where they are. Text encoders go when the transformer or the VAE is called next, so that prompts
encoded one after another move them once; the VAE goes at once, or, where its input carries gradient, when the backward pass has
come through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

Offloading = Literal["none", "model"]
"""Keep every model on the device, or those that are not in use in the computer's memory."""

CPU = torch.device("cpu")


class Offload:
    """Moves the text encoders and the VAE of a pipeline to the device for as long as they are needed."""

    def __init__(self, text_encoders: Sequence[nn.Module], vae: nn.Module, device: torch.device) -> None:
        """Move all to the computer's memory.

        Args:
            text_encoders: models that encode prompts.
            vae: model that decodes and encodes frames.
            device: where they work.
        """
        self._text_encoders, self._vae, self._device = text_encoders, vae, device
        self._num_graphs = 0
        self._move(text_encoders, CPU)
        self._text_is_here = False
        self._move([vae], CPU)

    def begin_text(self) -> None:
        """Bring the text encoders."""
        if not self._text_is_here:
            self._move(self._text_encoders, self._device)
            self._text_is_here = True

    def end_text(self) -> None:
        """Send the text encoders away if they are here."""
        if self._text_is_here:
            self._move(self._text_encoders, CPU)
            self._text_is_here = False

    @contextmanager
    def vae(self, inputs: Tensor) -> Iterator[Tensor]:
        """Bring the VAE inside the context, and until the backward pass is through it where `inputs` carry gradient.

        A graph that is never gone through backwards leaves the VAE on the device.

        Args:
            inputs: the VAE's input, of any shape.

        Yields:
            The same values; where they carry gradient, these must be used.
        """
        self.end_text()
        self._move([self._vae], self._device)
        try:
            if torch.is_grad_enabled() and inputs.requires_grad:
                self._num_graphs += 1
                inputs = _AfterBackward.apply(inputs, self._end_graph)
            yield inputs
        finally:
            self._end_vae()

    def _end_graph(self) -> None:
        self._num_graphs -= 1
        self._end_vae()

    def _end_vae(self) -> None:
        if not self._num_graphs:
            self._move([self._vae], CPU)

    @staticmethod
    def _move(models: Sequence[nn.Module], device: torch.device) -> None:
        for model in models:
            model.to(device)


def offload_of(pipeline: Any, offload: Offloading) -> Offload | None:
    """Return the offload of a pipeline, None for `none`; ValueError on a CPU, which has nothing to spare."""
    if offload == "none":
        return None
    device = pipeline.transformer.device
    if device.type == "cpu":
        raise ValueError(
            "generator.offload=model spares the memory of a device, but all models are on the CPU; set generator.offload=none"
        )
    models = pipeline.components.items()
    text_encoders = [model for name, model in models if name.startswith("text_encoder") and model is not None]
    return Offload(text_encoders, pipeline.vae, device)


class _AfterBackward(torch.autograd.Function):
    """The identity; calls `action` when the gradient of all that follows has been computed."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, action: Callable[[], None]) -> Tensor:
        """Pass the values on."""
        ctx.action = action
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient on."""
        ctx.action()
        return gradient, None
