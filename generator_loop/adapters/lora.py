"""LoRA on one or several diffusers models, with named copies of its weights that can be swapped in.

All copies share the frozen base. A swap exchanges parameter storage and never touches requires_grad, so the policy
stays trainable and the base stays frozen whatever happens inside.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from generator_loop.adapters.base import OLD, POLICY, REFERENCE
from reward_model.weights import read_tensors, refuse_pickles, tensor_notes

if TYPE_CHECKING:
    from diffusers import ModelMixin

ADAPTER = "default"
"""The adapter's name in peft; the only one that diffusers' own savers look for."""

_PREFIX = "transformer."
"""Begins the names in a saved file, whichever transformer it is of."""


class LoraWeights:
    """The trained parameters of one pipeline's models and their named copies.

    Parameters are named as in their model's saved file; those of all models but the first have its name before theirs.
    """

    def __init__(
        self, models: Mapping[str, ModelMixin], *, rank: int, alpha: int, targets: Sequence[str], seed: int
    ) -> None:
        """Attach LoRA whose first state changes nothing (Gaussian A, zero B).

        Args:
            models: component of the pipeline -> frozen diffusers model.
            rank: inner dimension.
            alpha: the update is scaled by alpha / rank.
            targets: endings of module names; each must match a module of every model.
            seed: seed of A.

        Raises:
            ValueError: if a target matches no module.
        """
        from peft import LoraConfig

        if not targets:
            raise ValueError("LoRA needs at least one target module")
        for model in models.values():
            names = [name for name, _ in model.named_modules()]
            for target in targets:
                if not any(name == target or name.endswith(f".{target}") for name in names):
                    raise ValueError(f"LoRA target {target!r} matches no module of {type(model).__name__}")
        config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=sorted(targets))
        self._models, self._prefixes = dict(models), _prefixes(models)
        for model in models.values():
            model.add_adapter(config, ADAPTER)
        self._lock = threading.RLock()
        self._active = POLICY
        self._parameters = {
            self._prefixes[component] + name.replace(f".{ADAPTER}", ""): parameter
            for component, model in models.items()
            for name, parameter in model.named_parameters()
            if f".{ADAPTER}." in name
        }
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self._parameters.items():
            start = torch.zeros(parameter.shape)
            if "lora_A" in name:
                start.normal_(std=1 / rank, generator=generator)
            # 32-bit beside a 16-bit base: small updates would be lost to rounding
            parameter.data = start.to(parameter.device)
        self._stored = {name: _copy(self._tensors()) for name in (OLD, REFERENCE)}

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
            Parameter name to tensor.
        """
        with self._lock:
            return self._tensors() if name == self._active else self._known(name)

    def set_weights(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Copy weights into a named set.

        Args:
            name: `policy`, a stored copy or a new name.
            weights: every parameter by name.

        Raises:
            ValueError: if names or shapes differ from the parameters'.
            RuntimeError: if a layer does not compute with the trained LoRA, so that the weights would not reach it.
        """
        self._check_reach()
        shapes = {key: parameter.shape for key, parameter in self._parameters.items()}
        if {key: value.shape for key, value in weights.items()} != shapes:
            differing = sorted(weights.keys() ^ shapes.keys())[:3] or "the same names with other shapes"
            raise ValueError(f"weights for {name!r} do not fit the attached LoRA: {differing}; check rank and targets")
        with self._lock:
            if name not in (self._active, POLICY):
                self._stored.setdefault(name, _copy(self._tensors()))
            for key, tensor in self.weights(name).items():
                tensor.copy_(weights[key])

    def to_peft(self, component: str) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Return one model's policy in peft's naming and the adapter's settings, alpha among them.

        Args:
            component: name of a model of the pipeline.

        Returns:
            Tensors by name, and settings that JSON can hold.
        """
        settings = self._models[component].peft_config[ADAPTER].to_dict()
        settings = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
        named = self.weights(POLICY).items()
        return {
            self._own_name(name): t.contiguous() for name, t in named if self._component_of(name) == component
        }, settings

    def read(self, paths: Mapping[str, Path]) -> dict[str, Tensor]:
        """Read the files that diffusers wrote from `to_peft` as one set of weights.

        Args:
            paths: component of the pipeline -> its LoRA file.

        Returns:
            Parameter name to tensor.

        Raises:
            ValueError: if a file is missing, cut or malformed, or its rank, alpha, names or shapes are not the attached LoRA's.
        """
        return {
            self._prefixes[component] + name: tensor
            for component, path in paths.items()
            for name, tensor in _read(path, *self.to_peft(component)).items()
        }

    def _check_reach(self) -> None:
        """Refuse (RuntimeError) models of which a layer does not compute with the trained parameters."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        reached = {
            id(parameter)
            for model in self._models.values()
            for layer in model.modules()
            if isinstance(layer, BaseTunerLayer) and _computes(layer)
            for parameter in layer.parameters()
        }
        missed = [name for name, parameter in self._parameters.items() if id(parameter) not in reached]
        if missed or not self._parameters:
            num = len(self._parameters)
            raise RuntimeError(
                f"LoRA weights reach {num - len(missed)} of {num} tensors of the model, so that it would go on with others: "
                f"{', '.join(missed[:3])}; the run stops"
            )

    def _component_of(self, name: str) -> str:
        first, *others = self._prefixes
        return next((component for component in others if name.startswith(self._prefixes[component])), first)

    def _own_name(self, name: str) -> str:
        return name.removeprefix(self._prefixes[self._component_of(name)])

    def _known(self, name: str) -> dict[str, Tensor]:
        if name not in self._stored:
            raise ValueError(f"no weights named {name!r}; there are {sorted({POLICY, *self._stored})}")
        return self._stored[name]

    def _activate(self, name: str) -> None:
        if name == self._active:
            return
        incoming = self._known(name)
        self._stored[self._active] = self._tensors()
        for key, parameter in self._parameters.items():
            parameter.data = incoming[key]
        self._active = name

    def _tensors(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._parameters.items()}


def _prefixes(models: Mapping[str, object]) -> dict[str, str]:
    """Return the prefix of each model's parameter names: none for the first."""
    return {component: "" if place == 0 else f"{component}." for place, component in enumerate(models)}


def _read(path: Path, fitting: Mapping[str, Tensor], settings: Mapping[str, object]) -> dict[str, Tensor]:
    """Return the tensors of one model's file, which has the names and shapes of `fitting`; ValueError otherwise."""
    if path.parent.is_dir():
        refuse_pickles(path.parent)
    try:
        written = json.loads(tensor_notes(path).get("lora_adapter_metadata", "{}"))
        ranks = {key: written.get(f"{_PREFIX}{key}") for key in ("r", "lora_alpha")}
    except (ValueError, AttributeError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} has malformed settings in its metadata: {error}") from error
    for key, value in ranks.items():
        if value != settings[key]:
            raise ValueError(
                f"{path} has lora {key} {value}, the attached one has {settings[key]}; set generator.lora_rank and "
                "generator.lora_alpha to the file's"
            )
    wanted = {f"{_PREFIX}{name}": tensor.shape for name, tensor in fitting.items()}
    return {name.removeprefix(_PREFIX): tensor for name, tensor in read_tensors(path, wanted).items()}


def _computes(layer: Any) -> bool:
    """Return whether a layer adds its adapter to what the base computes."""
    return ADAPTER in layer.active_adapters and not layer.disable_adapters and not layer.merged


def _copy(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in weights.items()}
