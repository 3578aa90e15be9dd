"""Full fine-tuning: every weight of a pipeline's transformers is trained.

Trained weights are 32-bit whatever the transformer computes in: an optimiser's steps are smaller than the gaps between 16-bit numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from generator_loop.adapters.base import POLICY
from generator_loop.adapters.named_weights import Copies, NamedWeights, prefixes
from reward_model.weights import check_weight_files, read_json, read_tensors, refuse_difference

if TYPE_CHECKING:
    from diffusers import ModelMixin

STEM = "diffusion_pytorch_model"
"""Name of the weight file that `save_pretrained` of diffusers writes, without its suffix."""


class FullWeights(NamedWeights):
    """All weights of one pipeline's transformers and their named copies."""

    advice = "check that they are of this transformer"

    def __init__(self, models: Mapping[str, ModelMixin], *, copies: Copies = "device") -> None:
        """Let all weights learn.

        Args:
            models: component of the pipeline -> diffusers model.
            copies: where named copies wait.

        Raises:
            ValueError: a weight is not 32-bit, or not whole.
        """
        names = prefixes(models)
        parameters = {
            names[component] + name: parameter
            for component, model in models.items()
            for name, parameter in model.named_parameters()
        }
        if any(isinstance(parameter, DTensor) or not parameter.numel() for parameter in parameters.values()):
            raise ValueError(
                "generator.train=full needs the whole transformer on every process, and this one is spread over them: launch with "
                "configs/accelerate/ddp.yaml, or set generator.train=lora"
            )
        for name, parameter in parameters.items():
            if parameter.dtype != torch.float32:
                raise ValueError(
                    f"generator.train=full trains 32-bit weights, but {name} is {str(parameter.dtype).removeprefix('torch.')}: "
                    "load the transformer in float32, or set generator.train=lora"
                )
            parameter.requires_grad_(True)
        super().__init__(models, parameters, copies)

    def _check_reach(self) -> None:
        """Refuse (RuntimeError) models that hold other parameters than the trained ones."""
        live = {id(parameter) for model in self._models.values() for parameter in model.parameters()}
        missed = [name for name, parameter in self._parameters.items() if id(parameter) not in live]
        if missed:
            raise RuntimeError(
                f"{len(missed)} of {len(self._parameters)} trained tensors are not those of the model: {', '.join(missed[:3])}; "
                "the run stops"
            )

    def save(self, pipeline: Any, folders: Mapping[str, Path]) -> None:
        """Write each transformer as a folder that its class in diffusers loads."""
        with self.use(POLICY):
            for component, folder in folders.items():
                model: Any = self._models[component]
                model.save_pretrained(folder, safe_serialization=True)

    def read(self, folders: Mapping[str, Path]) -> dict[str, Tensor]:
        """Read the folders that `save` wrote; ValueError also where a configuration or shape is not the transformer's own."""
        return {
            self._prefixes[component] + name: tensor
            for component, folder in folders.items()
            for name, tensor in _read(folder, self._models[component]).items()
        }


def _read(folder: Path, model: Any) -> dict[str, Tensor]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing")
    file = check_weight_files(folder, STEM)
    written, own = read_json(folder / "config.json"), json.loads(model.to_json_string())
    for key in own.keys() | written.keys():
        if (key == "_class_name" or not key.startswith("_")) and written.get(key) != own.get(key):
            raise ValueError(
                f"{folder / 'config.json'} has {key}={written.get(key)!r}, the transformer in use {own.get(key)!r}; it is the "
                "folder of another model"
            )
    tensors = _tensors_of(file)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    refuse_difference(file, {name: tuple(value.shape) for name, value in model.state_dict().items()}, shapes)
    return {name: tensors[name] for name, _ in model.named_parameters()}


def _tensors_of(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file, or of all files that an index names."""
    if file.suffix != ".json":
        return read_tensors(file)
    parts = sorted(set(read_json(file)["weight_map"].values()))
    return {name: tensor for part in parts for name, tensor in read_tensors(file.parent / part).items()}
