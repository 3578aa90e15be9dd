"""LoRA on one or several diffusers models, all on their frozen bases."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from generator_loop.adapters.folders import state_checksums
from generator_loop.adapters.named_weights import Copies, NamedWeights, prefixes
from reward_model.weights import read_tensors, refuse_pickles, tensor_notes

if TYPE_CHECKING:
    from diffusers import ModelMixin

LORA_FILE = "pytorch_lora_weights.safetensors"
"""Name by which `load_lora_weights` finds the file in a folder."""

ADAPTER = "default"
"""The adapter's name in peft; the only one that diffusers' own savers look for."""

_PREFIX = "transformer."
"""Begins the names in a saved file, whichever transformer it is of."""


class LoraWeights(NamedWeights):
    """The LoRA parameters of one pipeline's models and their named copies."""

    advice = "check rank and targets"

    def __init__(
        self,
        models: Mapping[str, ModelMixin],
        *,
        rank: int,
        alpha: int,
        targets: Sequence[str],
        seed: int,
        copies: Copies = "device",
    ) -> None:
        """Attach LoRA whose first state changes nothing (Gaussian A, zero B).

        Args:
            models: component of the pipeline -> frozen diffusers model.
            rank: inner dimension.
            alpha: the update is scaled by alpha / rank.
            targets: endings of module names; each must match a module of every model.
            seed: seed of A.
            copies: where named copies wait.

        Raises:
            ValueError: if a target matches no module.
        """
        from peft import LoraConfig

        _refuse_unmatched(models, targets)
        config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=sorted(targets))
        for model in models.values():
            model.add_adapter(config, ADAPTER)
        names = prefixes(models)
        parameters = {
            names[component] + name.replace(f".{ADAPTER}", ""): parameter
            for component, model in models.items()
            for name, parameter in model.named_parameters()
            if f".{ADAPTER}." in name
        }
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in parameters.items():
            start = torch.zeros(parameter.shape)
            if "lora_A" in name:
                start.normal_(std=1 / rank, generator=generator)
            # 32-bit beside a 16-bit base: small updates would be lost to rounding
            parameter.data = start.to(parameter.device)
        super().__init__(models, parameters, copies)

    def save(self, pipeline: Any, folders: Mapping[str, Path]) -> None:
        """Write the policy as diffusers LoRA folders; alpha is kept in the files' metadata."""
        for component, folder in folders.items():
            pipeline.save_lora_weights(
                folder,
                transformer_lora_layers={name: tensor.contiguous() for name, tensor in self._own(component).items()},
                weight_name=LORA_FILE,
                transformer_lora_adapter_metadata=self._settings(component),
            )
            state_checksums(folder / LORA_FILE)

    def read(self, folders: Mapping[str, Path]) -> dict[str, Tensor]:
        """Read the folders that `save` wrote; ValueError also where rank, alpha, names or shapes are not the attached LoRA's."""
        return {
            self._prefixes[component] + name: tensor
            for component, folder in folders.items()
            for name, tensor in _read(folder / LORA_FILE, self._own(component), self._settings(component)).items()
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

    def _settings(self, component: str) -> dict[str, object]:
        """Return the adapter's settings, alpha among them, as JSON can hold them."""
        model: Any = self._models[component]
        settings = model.peft_config[ADAPTER].to_dict()
        return {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}


def _refuse_unmatched(models: Mapping[str, ModelMixin], targets: Sequence[str]) -> None:
    if not targets:
        raise ValueError("LoRA needs at least one target module")
    for model in models.values():
        names = [name for name, _ in model.named_modules()]
        for target in targets:
            if not any(name == target or name.endswith(f".{target}") for name in names):
                raise ValueError(f"LoRA target {target!r} matches no module of {type(model).__name__}")


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
