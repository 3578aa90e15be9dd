"""How `accelerate launch` asks for the models to be laid out over the processes, and the sharding of a model by FSDP2.

The launcher hands its configuration on as environment variables. DDP needs nothing here: adapters are small, and
`optim.step` sums their gradients itself. FSDP2 spreads the frozen weights over the processes, which collect one block at a
time for as long as it computes; LoRA, which is attached afterwards, stays whole on each, with the same arithmetic as under DDP.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from generator_loop.config import GeneratorConfig
from generator_loop.processes import LOCKSTEP, wait

Precision = Literal["no", "bf16", "fp16"]
DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
"""Mixed precision of accelerate -> dtype of the frozen weights; the adapter is float32 always."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the weights are: whole on every process, or spread over all of them."""

    is_sharded: bool = False
    """Whether accelerate asks for FSDP2."""
    precision: Precision = "no"
    """Mixed precision of accelerate's config."""
    reshards: bool = True
    """Whether a block is given up after its forward pass, to be collected again for the backward one."""
    classes: tuple[str, ...] = ()
    """Classes of the blocks; empty takes those that the model names itself."""

    def place(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Bring a model to the device: whole, or this process's part of it, block by block."""
        if self.is_sharded:
            shard(model, self._blocks(model), device=device, reshards=self.reshards)
        return model.to(device)

    def _blocks(self, model: Any) -> list[nn.Module]:
        """Return the blocks of a diffusers transformer that are collected one at a time."""
        own = getattr(model, "_repeated_blocks", None) or getattr(model, "_no_split_modules", None) or ()
        classes = self.classes or tuple(own)
        blocks = [module for module in model.modules() if type(module).__name__ in classes]
        if missing := set(self.classes) - {type(module).__name__ for module in blocks}:
            raise ValueError(
                f"fsdp_transformer_layer_cls_to_wrap names {', '.join(sorted(missing))}, of which "
                f"{type(model).__name__} has no module; leave it out, and the model's own blocks are taken"
            )
        if not blocks:
            raise ValueError(f"{type(model).__name__} does not name its blocks; set fsdp_transformer_layer_cls_to_wrap")
        return blocks

    def shard_judge(self, model: Any, device: torch.device) -> None:
        """Spread the layers of a judge's towers over the processes; its embeddings, heads and LoRA stay whole on each.

        Args:
            model: transformers model with a vision tower and a text model, on the device.
            device: where this process's part goes.

        Raises:
            ValueError: accelerate was not asked for FSDP2.
        """
        if not self.is_sharded:
            raise ValueError("judge.shard=true needs FSDP2: launch with --config_file configs/accelerate/fsdp2.yaml, or set it to false")
        for tower, blocks in ((model.model.visual, "blocks"), (model.model.language_model, "layers")):
            layers = list(getattr(tower, blocks))
            spread = {id(weight) for layer in layers for name, weight in layer.named_parameters() if ".lora_" not in name}
            whole = [weight for weight in tower.parameters() if id(weight) not in spread]
            shard(tower, layers, device=device, reshards=self.reshards, whole=whole)

    def with_precision(self, config: GeneratorConfig) -> GeneratorConfig:
        """Return a generator's config with the dtype that accelerate's mixed precision asks for.

        Args:
            config: of the generator.

        Returns:
            The config, whose dtype is changed where it is "auto".

        Raises:
            ValueError: its dtype contradicts accelerate's.
        """
        from dataclasses import replace

        wanted = DTYPES.get(self.precision, config.dtype)
        if config.dtype not in ("auto", wanted):
            raise ValueError(
                f"generator.dtype={config.dtype}, but accelerate's mixed_precision is {self.precision}: set "
                "generator.dtype=auto, or mixed_precision: 'no'"
            )
        return replace(config, dtype=wanted)


def requested(environ: Mapping[str, str]) -> Layout:
    """Return the layout that `accelerate launch` asks for.

    Args:
        environ: the environment of this process.

    Returns:
        The layout; plain processes where nothing was asked for.

    Raises:
        ValueError: it asks for something that a run does not do.
    """
    precision = environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", *DTYPES):
        raise ValueError(f"accelerate's mixed_precision is {precision}; a run knows no, bf16 and fp16")
    for name, meaning, instead in _REFUSED:
        if environ.get(name, "").lower() not in ("", "no", "false", "0", "none", "1" if "STEPS" in name else "no"):
            raise ValueError(f"accelerate asks for {meaning}, which a run does not do: {instead}")
    if not _is_set(environ, "ACCELERATE_USE_FSDP"):
        return Layout(precision=precision)
    return _fsdp_layout(environ, precision)


_REFUSED = (
    ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM", "use configs/accelerate/fsdp2.yaml"),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", "a parallelism_config", "use configs/accelerate/fsdp2.yaml as it is"),
    ("ACCELERATE_DYNAMO_BACKEND", "torch.compile (dynamo_config)", "set generator.compile=true instead"),
    ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "gradient accumulation", "set update.micro_batch_size instead"),
    ("FSDP_OFFLOAD_PARAMS", "weights in the computer's memory (fsdp_offload_params)", "set generator.offload=model instead"),
    ("FSDP_ACTIVATION_CHECKPOINTING", "activation checkpointing", "set generator.checkpoint_transformer=true instead"),
    (
        "FSDP_CPU_RAM_EFFICIENT_LOADING",
        "fsdp_cpu_ram_efficient_loading, with which all processes but one would keep empty text encoders and judges",
        "set it to false; transformers are loaded and spread block by block anyway",
    ),
    ("FSDP_IGNORED_MODULES", "fsdp_ignored_modules", "leave it out"),
)
"""Variable of the launcher, its meaning, and the line that does the same here."""


def _is_set(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "false").lower() in ("true", "1", "yes")


def _fsdp_layout(environ: Mapping[str, str], precision: Any) -> Layout:
    if environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError("accelerate asks for FSDP 1, which a run does not do: set fsdp_version: 2 in its fsdp_config")
    if environ.get("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP").upper() != "TRANSFORMER_BASED_WRAP":
        raise ValueError("accelerate asks for another fsdp_auto_wrap_policy than TRANSFORMER_BASED_WRAP: set this one")
    classes = environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "")
    return Layout(
        is_sharded=True,
        precision=precision,
        reshards=environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false",
        classes=tuple(name.strip() for name in classes.split(",") if name.strip()),
    )


def shard(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    *,
    device: torch.device,
    reshards: bool = True,
    whole: Sequence[nn.Parameter] = (),
) -> None:
    """Spread a model's weights over all processes, which then call it in step.

    Args:
        model: changed in place; called as a whole, with its blocks in the order of `blocks`.
        blocks: parts that are collected one at a time.
        device: where this process's part goes.
        reshards: give a block up after its forward pass.
        whole: parameters that every process keeps.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # no result is changed in place: velocities and hidden states are inputs of new tensors everywhere
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for part in (*blocks, model):
        fully_shard(part, mesh=mesh, reshard_after_forward=reshards, ignored_params=set(whole))
    parts: list[Any] = [model, *blocks]

    def join() -> None:
        """Take part in a call of the others: collect each part of the model, and give it up again."""
        model._get_fsdp_state()._lazy_init()  # otherwise done by the first call
        for part in parts:
            part.unshard()
            if reshards:
                part.reshard()

    LOCKSTEP.add(model, join)


def whole_base(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a judge's base, without adapters, collected from all processes, which call this together."""
    from torch.distributed.tensor import DTensor

    from reward_model.judge.modules.roles import base_state

    wait()
    return {
        name: value.full_tensor().cpu() if isinstance(value, DTensor) else value
        for name, value in base_state(model).items()
    }
