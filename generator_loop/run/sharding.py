"""How `accelerate launch` asks for the models to be laid out over the processes, and the sharding of a model.

The launcher hands its configuration on as environment variables. DDP needs nothing here: adapters are small, and
`optim.step` sums their gradients itself. FSDP2 and ZeRO-3 spread the frozen weights over the processes, which collect one
block at a time for as long as it computes; LoRA, which is attached afterwards, stays whole on each, with the same arithmetic
as under DDP. ZeRO-2 and ZeRO-3 spread the moments of AdamW (`optim.moments`).
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from generator_loop.config import GeneratorConfig
from generator_loop.optim.moments import Moments, WholeMoments, ZeroMoments
from generator_loop.processes import LOCKSTEP, is_distributed, wait

Kind = Literal["whole", "fsdp2", "zero2", "zero3"]
NAMES: dict[Kind, str] = {"whole": "DDP", "fsdp2": "FSDP2", "zero2": "DeepSpeed ZeRO-2", "zero3": "DeepSpeed ZeRO-3"}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where weights and moments are: whole on every process, or spread over all of them."""

    kind: Kind = "whole"
    """Parts that are spread: none; frozen weights (fsdp2); moments (zero2); both (zero3)."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision of accelerate's config, in which frozen weights are kept; the adapter is float32 always."""
    reshards: bool = True
    """FSDP2: whether a block is given up after its forward pass, to be collected again for the backward one."""
    classes: tuple[str, ...] = ()
    """FSDP2: classes of the blocks; empty takes those that the model names itself."""

    @property
    def is_sharded(self) -> bool:
        """Whether frozen weights are spread over the processes."""
        return self.kind in ("fsdp2", "zero3")

    @property
    def moments(self) -> type[Moments]:
        """Where AdamW keeps its moments."""
        return ZeroMoments if self.kind in ("zero2", "zero3") else WholeMoments

    def check(self) -> None:
        """Refuse (ValueError) to spread anything over a process that is alone."""
        if self.kind != "whole" and not is_distributed():
            raise ValueError(
                f"accelerate asks for {NAMES[self.kind]} but started one process alone: launch it with --num_processes 2 or "
                "more, or without its --config_file"
            )

    def place(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Bring a transformer to the device: whole, or this process's part of it."""
        if self.kind == "fsdp2":
            shard(model, self.blocks(model), device=device, reshards=self.reshards)
        elif self.kind == "zero3":
            model.to(device)
            shard_by_deepspeed(model)
        return model.to(device) if self.kind != "zero3" else model

    def blocks(self, model: Any) -> list[nn.Module]:
        """Return the blocks of a diffusers transformer that are collected one at a time.

        Args:
            model: the transformer.

        Returns:
            Its modules of `classes`, or of those that the model names as its repeated blocks.

        Raises:
            ValueError: it has none.
        """
        own = getattr(model, "_repeated_blocks", None) or getattr(model, "_no_split_modules", None) or ()
        classes = self.classes or tuple(own)
        blocks = [module for module in model.modules() if _class_name(module) in classes]
        if missing := set(self.classes) - {_class_name(module) for module in blocks}:
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
        if self.kind != "fsdp2":
            raise ValueError(
                f"judge.shard=true needs FSDP2, but the processes run by {NAMES[self.kind]}: launch them with --config_file "
                "configs/accelerate/fsdp2.yaml, or set it to false"
            )
        for tower, layers in towers_of(model):
            spread = {
                id(weight) for layer in layers for name, weight in layer.named_parameters() if ".lora_" not in name
            }
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
        if self.precision == "no":
            return config
        if config.dtype not in ("auto", "bfloat16"):
            raise ValueError(
                f"generator.dtype={config.dtype}, but accelerate's mixed_precision is bf16: set generator.dtype=auto, or "
                "mixed_precision: 'no'"
            )
        return replace(config, dtype="bfloat16")


def _class_name(module: nn.Module) -> str:
    """Return the name of a module's class, which FSDP2 puts its own name before."""
    return type(module).__name__.removeprefix("FSDP")


def towers_of(model: Any) -> tuple[tuple[nn.Module, list[nn.Module]], ...]:
    """Return the vision tower and the text model of a judge, each with its layers."""
    visual, text = model.model.visual, model.model.language_model
    return (visual, list(visual.blocks)), (text, list(text.layers))


_REFUSED: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    ("ACCELERATE_USE_MEGATRON_LM", ("false",), "Megatron-LM", "use configs/accelerate/fsdp2.yaml"),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", ("false",), "a parallelism_config", "leave it out"),
    ("ACCELERATE_DYNAMO_BACKEND", ("no",), "a dynamo_config", "set generator.compile=true in the recipe instead"),
    ("FSDP_VERSION", ("2",), "FSDP 1", "set fsdp_version: 2"),
    (
        "FSDP_AUTO_WRAP_POLICY",
        ("transformer_based_wrap",),
        "another fsdp_auto_wrap_policy",
        "set TRANSFORMER_BASED_WRAP",
    ),
    ("FSDP_SHARDING_STRATEGY", ("full_shard", "1"), "another fsdp_sharding_strategy", "leave it out; FSDP2 has none"),
    (
        "FSDP_STATE_DICT_TYPE",
        ("full_state_dict",),
        "sharded checkpoints",
        "set FULL_STATE_DICT; one process can load ours",
    ),
    ("FSDP_OFFLOAD_PARAMS", ("false",), "fsdp_offload_params", "set generator.offload=model in the recipe instead"),
    ("FSDP_FORWARD_PREFETCH", ("false",), "fsdp_forward_prefetch", "leave it out; FSDP2 has none"),
    (
        "FSDP_ACTIVATION_CHECKPOINTING",
        ("false",),
        "fsdp_activation_checkpointing",
        "set generator.checkpoint_transformer=true in the recipe instead",
    ),
    (
        "FSDP_CPU_RAM_EFFICIENT_LOADING",
        ("false",),
        "fsdp_cpu_ram_efficient_loading, by which all processes but one would keep text encoders and judges without weights",
        "set it to false",
    ),
    ("FSDP_IGNORED_MODULES", (), "fsdp_ignored_modules", "leave it out"),
    ("ACCELERATE_DEEPSPEED_CONFIG_FILE", ("none",), "a deepspeed_config_file", "set zero_stage and leave it out"),
    ("ACCELERATE_DEEPSPEED_ZERO_STAGE", ("2", "3"), "another zero_stage than 2 and 3", "set one of these"),
    ("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", ("none",), "offload_optimizer_device", "set it to none"),
    ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", ("none",), "offload_param_device", "set it to none"),
    (
        "ACCELERATE_DEEPSPEED_ZERO3_INIT",
        ("false",),
        "zero3_init_flag, by which text encoders and judges would be spread as well",
        "set it to false",
    ),
    (
        "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL",
        ("false",),
        "zero3_save_16bit_model",
        "set it to false; checkpoints hold the adapter in 32 bits",
    ),
    ("ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES", ("none",), "deepspeed_moe_layer_cls_names", "leave it out"),
    ("ACCELERATE_GRADIENT_CLIPPING", ("none",), "gradient_clipping", "set update.max_grad_norm in the recipe instead"),
    (
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
        ("1",),
        "gradient_accumulation_steps",
        "set update.micro_batch_size in the recipe instead",
    ),
)
"""Variable of the launcher, the values of it that a run follows, the meaning of all others, and what to do instead."""


def requested(environ: Mapping[str, str]) -> Layout:
    """Return the layout that `accelerate launch` asks for.

    Args:
        environ: the environment of this process.

    Returns:
        The layout; whole models where nothing was asked for.

    Raises:
        ValueError: it asks for something that a run does not do.
    """
    precision = environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16"):
        raise ValueError(
            f"accelerate's mixed_precision is {precision}, but a run knows no and bf16 alone: set one of these"
        )
    for name, followed, meaning, instead in _REFUSED:
        value = environ.get(name, "").lower()
        if value and value not in followed:
            raise ValueError(f"accelerate asks for {meaning}, which a run does not do: {instead}")
    kind: Kind = "whole"
    if environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        kind = "fsdp2" if "FSDP_VERSION" in environ else "whole"
        if kind == "whole":
            raise ValueError("accelerate asks for FSDP 1, which a run does not do: set fsdp_version: 2")
    if environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        kind = "zero3" if environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3" else "zero2"
        if importlib.util.find_spec("deepspeed") is None:
            raise ValueError("accelerate asks for DeepSpeed, which is not installed: pip install deepspeed")
    classes = environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "")
    return Layout(
        kind=kind,
        precision="bf16" if precision == "bf16" else "no",
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
        parts[0]._get_fsdp_state()._lazy_init()  # otherwise done by the first call
        for part in parts:
            part.unshard()
            if reshards:
                part.reshard()

    LOCKSTEP.add(model, join)


def shard_by_deepspeed(model: nn.Module) -> None:
    """Spread a frozen model's weights over all processes by DeepSpeed's ZeRO-3; they then call it in step.

    Args:
        model: changed in place, on its device.
    """
    import deepspeed  # type: ignore[import-not-found]

    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {
            "stage": 3,
            "stage3_param_persistence_threshold": 0,
            "memory_efficient_linear": False,  # it would take the place of torch's linear layers everywhere
        },
    }
    model.requires_grad_(False)
    # without mixed precision of its own, DeepSpeed would turn 16-bit weights into 32-bit ones
    model.float = lambda: model  # type: ignore[method-assign]
    deepspeed.initialize(model=model, config=config)
    del model.float
    last: list[Any] = []

    def note(_model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Remember the inputs of the last call."""
        last[:] = tree_map_only(Tensor, Tensor.detach, [inputs, named])

    def join() -> None:
        """Take part in a call of the others by repeating this process's last one."""
        if not last:
            raise RuntimeError("a process has to join a call of a sharded model that it has never called itself")
        with torch.no_grad():
            model(*last[0], **last[1])

    model.register_forward_pre_hook(note, with_kwargs=True)
    LOCKSTEP.add(model, join)


def collected(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights as whole tensors, on the CPU where they are spread; all processes call this together.

    Args:
        weights: name to tensor, the same names on every process.

    Returns:
        The same names.
    """
    from torch.distributed.tensor import DTensor

    wait()
    return {name: value.full_tensor().cpu() if isinstance(value, DTensor) else value for name, value in weights.items()}
