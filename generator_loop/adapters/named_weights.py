"""The trained parameters of a generator, with named copies that can be swapped in.

The policy's tensors stay on the device. Copies wait there too, where a swap exchanges storage and costs nothing, or in the
computer's memory, where it costs a transfer. A swap never touches requires_grad, so the policy stays trainable whatever happens inside.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from generator_loop.adapters.base import OLD, POLICY, REFERENCE

Copies = Literal["device", "cpu"]
"""Where the copies of the trained weights wait: beside the policy, or in the computer's memory."""


class NamedWeights(ABC):
    """The trained parameters of one pipeline's models and their named copies.

    Parameters are named as in their model's saved file; those of all models but the first have its name before theirs.
    """

    advice: str
    """Advice for weights that do not fit: which settings to compare."""

    def __init__(self, models: Mapping[str, nn.Module], parameters: Mapping[str, nn.Parameter], copies: Copies) -> None:
        """Copy the policy, as it is, to `old` and `reference`.

        Args:
            models: component of the pipeline -> model.
            parameters: trained parameters by name.
            copies: where named copies wait.
        """
        self._models, self._prefixes = dict(models), prefixes(models)
        self._parameters, self._copies = dict(parameters), copies
        self._lock = threading.RLock()
        self._active = POLICY
        self._policy: dict[str, Tensor] = {}  # the policy's tensors while a copy is in place
        self._stored = {name: self._copy_of(self._tensors()) for name in (OLD, REFERENCE)}

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name."""
        return dict(self._parameters)

    @contextmanager
    def use(self, name: str) -> Iterator[None]:
        """Put the named weights in place inside the context, and the former ones back after it.

        Args:
            name: `policy` or a stored copy, which runs without gradient.

        Yields:
            Nothing.
        """
        with self._lock, torch.set_grad_enabled(torch.is_grad_enabled() and name == POLICY):
            former = self._active
            self._activate(name)
            try:
                yield
            finally:
                self._activate(former)

    def weights(self, name: str) -> dict[str, Tensor]:
        """Return the named weights, detached and not copied.

        Args:
            name: `policy` or a stored copy.

        Returns:
            Parameter name to tensor; those of a copy lie where copies wait.

        Raises:
            RuntimeError: if the model does not compute with the policy that training changes.
        """
        with self._lock:
            if name == POLICY:
                self._check_reach()
                return self._tensors() if self._active == POLICY else dict(self._policy)
            return dict(self._known(name))

    def set_weights(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Copy weights into a named set.

        Args:
            name: `policy`, a stored copy or a new name.
            weights: every parameter by name.

        Raises:
            ValueError: if names or shapes differ from the parameters'.
            RuntimeError: if a layer does not compute with the trained parameters, so that the weights would not reach it.
        """
        self._check_reach()
        shapes = {key: parameter.shape for key, parameter in self._parameters.items()}
        if {key: value.shape for key, value in weights.items()} != shapes:
            differing = sorted(weights.keys() ^ shapes.keys())[:3] or "the same names with other shapes"
            raise ValueError(f"weights for {name!r} do not fit the trained ones: {differing}; {self.advice}")
        with self._lock:
            if name != POLICY and name not in self._stored:
                self._stored[name] = self._copy_of(self._tensors())
            for key, tensor in self.weights(name).items():
                tensor.copy_(weights[key])
            if name == self._active != POLICY:
                self._put_in_place(name)

    @abstractmethod
    def _check_reach(self) -> None:
        """Refuse (RuntimeError) models that do not compute with the trained parameters."""

    @abstractmethod
    def save(self, pipeline: Any, folders: Mapping[str, Path]) -> None:
        """Write the policy as stock diffusers loads it.

        Args:
            pipeline: that the models belong to.
            folders: component of the pipeline -> folder of its files.
        """

    @abstractmethod
    def read(self, folders: Mapping[str, Path]) -> dict[str, Tensor]:
        """Read the files that `save` wrote as one set of weights.

        Args:
            folders: component of the pipeline -> folder of its files.

        Returns:
            Parameter name to tensor.

        Raises:
            ValueError: if a file is missing, cut or malformed, or of another model.
        """

    def _own(self, component: str) -> dict[str, Tensor]:
        """Return one model's policy by its own names."""
        prefix = self._prefixes[component]
        others = tuple(other for other in self._prefixes.values() if other)
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.weights(POLICY).items()
            if (name.startswith(prefix) if prefix else not name.startswith(others))
        }

    def _known(self, name: str) -> dict[str, Tensor]:
        if name not in self._stored:
            raise ValueError(f"no weights named {name!r}; there are {sorted({POLICY, *self._stored})}")
        return self._stored[name]

    def _activate(self, name: str) -> None:
        if name == self._active:
            return
        if name != POLICY:
            self._known(name)
        if self._active == POLICY:
            self._policy = self._tensors()
        self._put_in_place(name)
        self._active = name
        if name == POLICY:
            self._policy = {}

    def _put_in_place(self, name: str) -> None:
        incoming = self._policy if name == POLICY else self._stored[name]
        for key, parameter in self._parameters.items():
            parameter.data = brought(incoming[key], parameter.device)

    def _copy_of(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: tensor.detach().clone() if self._copies == "device" else sent(tensor.detach())
            for name, tensor in weights.items()
        }

    def _tensors(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._parameters.items()}


def brought(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a waiting tensor on a device: the tensor itself where it waits there."""
    return tensor.to(device)


def sent(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor in the computer's memory."""
    return tensor.to("cpu", copy=True)


def prefixes(models: Mapping[str, object]) -> dict[str, str]:
    """Return the prefix of each model's parameter names: none for the first."""
    return {component: "" if place == 0 else f"{component}." for place, component in enumerate(models)}
