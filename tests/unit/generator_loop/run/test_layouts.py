"""Requests of accelerate's configurations: followed, or refused with one sentence."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from generator_loop.config import GeneratorConfig
from generator_loop.optim.moments import WholeMoments, ZeroMoments
from generator_loop.run.launch import start_processes
from generator_loop.run.sharding import Layout, requested
from tests.tiny_wan import build_wan

ROOT = Path(__file__).resolve().parents[4]
CONFIGS = ROOT / "configs" / "accelerate"
EXPECTED = {"ddp": "whole", "nodes": "whole", "fsdp2": "fsdp2", "zero2": "zero2", "zero3": "zero3"}


@pytest.fixture(autouse=True)
def with_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let DeepSpeed seem installed: reading its settings does not need it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find("yaml" if name == "deepspeed" else name))


def exported(path: Path, *options: str) -> dict[str, str]:
    """Return the variables that accelerate's own launcher exports for a configuration."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    arguments = ["--config_file", str(path), "--main_process_port", "0", *options, "joint_train.py"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    if not args.use_deepspeed:
        return prepare_multi_gpu_env(args)
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    return prepare_deepspeed_cmd_env(args)[1]


@pytest.mark.parametrize("name", EXPECTED)
def test_each_configuration_is_read_by_accelerate_and_followed(name: str) -> None:
    options = ["--main_process_ip", "127.0.0.1"] if name == "nodes" else []
    layout = requested(exported(CONFIGS / f"{name}.yaml", *options))
    assert layout == Layout(kind=EXPECTED[name], precision="bf16")
    assert layout.is_sharded == (name in ("fsdp2", "zero3"))
    assert layout.moments is (ZeroMoments if name.startswith("zero") else WholeMoments)


def test_every_configuration_is_tested() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == EXPECTED.keys()


def test_what_fsdp2_may_choose_is_followed(tmp_path: Path) -> None:
    changes = {"fsdp_reshard_after_forward": False, "fsdp_transformer_layer_cls_to_wrap": "WanTransformerBlock"}
    layout = requested(exported(changed(tmp_path, "fsdp2", fsdp_config=changes), "--mixed_precision", "no"))
    assert layout == Layout(kind="fsdp2", reshards=False, classes=("WanTransformerBlock",))


def changed(folder: Path, name: str, **changes: Any) -> Path:
    """Write a configuration with other settings, nested ones one by one."""
    settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    for key, value in changes.items():
        settings[key] = settings.get(key, {}) | value if isinstance(value, dict) else value
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


REFUSED = [
    ("fsdp2", {"fsdp_config": {"fsdp_version": 1}}, "FSDP 1"),
    ("fsdp2", {"fsdp_config": {"fsdp_offload_params": True}}, "generator.offload=model"),
    ("fsdp2", {"fsdp_config": {"fsdp_activation_checkpointing": True}}, "generator.checkpoint_transformer=true"),
    (
        "fsdp2",
        {"fsdp_config": {"fsdp_cpu_ram_efficient_loading": True}},
        "keep text encoders and judges without weights",
    ),
    ("fsdp2", {"fsdp_config": {"fsdp_state_dict_type": "SHARDED_STATE_DICT"}}, "sharded checkpoints"),
    ("fsdp2", {"fsdp_config": {"fsdp_auto_wrap_policy": "SIZE_BASED_WRAP"}}, "another fsdp_auto_wrap_policy"),
    ("fsdp2", {"fsdp_config": {"fsdp_auto_wrap_policy": "NO_WRAP"}}, "another fsdp_auto_wrap_policy"),
    ("fsdp2", {"fsdp_config": {"fsdp_ignored_modules": "blocks.0"}}, "fsdp_ignored_modules"),
    ("fsdp2", {"fsdp_config": {"fsdp_forward_prefetch": True}}, "fsdp_forward_prefetch"),
    ("fsdp2", {"fsdp_config": {"fsdp_sharding_strategy": "HYBRID_SHARD"}}, "another fsdp_sharding_strategy"),
    ("fsdp2", {"mixed_precision": "fp16"}, "mixed_precision is fp16"),
    ("ddp", {"mixed_precision": "fp16"}, "mixed_precision is fp16"),
    ("ddp", {"dynamo_config": {"dynamo_backend": "INDUCTOR"}}, "generator.compile=true"),
    ("zero2", {"deepspeed_config": {"zero_stage": 1}}, "another zero_stage"),
    ("zero2", {"deepspeed_config": {"zero_stage": 0}}, "another zero_stage"),
    ("zero2", {"deepspeed_config": {"gradient_clipping": 1.0}}, "update.max_grad_norm"),
    ("zero2", {"deepspeed_config": {"gradient_accumulation_steps": 4}}, "update.micro_batch_size"),
    ("zero2", {"deepspeed_config": {"offload_optimizer_device": "cpu"}}, "offload_optimizer_device"),
    ("zero3", {"deepspeed_config": {"offload_param_device": "cpu"}}, "offload_param_device"),
    ("zero3", {"deepspeed_config": {"offload_param_device": "nvme"}}, "offload_param_device"),
    ("zero3", {"deepspeed_config": {"zero3_init_flag": True}}, "zero3_init_flag"),
    ("zero3", {"deepspeed_config": {"zero3_save_16bit_model": True}}, "zero3_save_16bit_model"),
    ("zero3", {"deepspeed_config": {"deepspeed_config_file": "ds.json"}}, "deepspeed_config_file"),
    ("ddp", {"distributed_type": "MEGATRON_LM", "megatron_lm_config": {}}, "Megatron-LM"),
]


@pytest.mark.parametrize(("name", "changes", "reason"), REFUSED)
def test_what_a_run_does_not_do_is_refused_with_one_sentence(
    name: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    environ = exported(changed(tmp_path, name, **changes))
    if name == "ddp" and "megatron_lm_config" in changes:
        environ |= {
            "ACCELERATE_USE_MEGATRON_LM": "true"
        }  # which accelerate's parser sets where Megatron-LM is installed
    with pytest.raises(ValueError, match=reason) as refusal:
        requested(environ)
    assert str(refusal.value).startswith("accelerate") and "\n" not in str(refusal.value)


def test_fsdp_of_an_old_launcher_which_names_no_version_is_refused() -> None:
    with pytest.raises(ValueError, match="FSDP 1"):
        requested({"ACCELERATE_USE_FSDP": "true"})


def test_deepspeed_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match="pip install deepspeed"):
        requested({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"})


@pytest.mark.parametrize("name", ["fsdp2", "zero2", "zero3"])
def test_one_process_alone_cannot_share_anything(name: str) -> None:
    environ = {key: value for key, value in exported(CONFIGS / f"{name}.yaml").items() if key not in os.environ}
    with pytest.raises(ValueError, match="started one process alone"):
        start_processes("cpu", environ)


def test_mixed_precision_decides_the_dtype_of_frozen_weights_unless_the_recipe_contradicts() -> None:
    def config(dtype: Any) -> GeneratorConfig:
        return GeneratorConfig(path="", num_frames=5, height=16, width=16, fps=8.0, dtype=dtype)

    layout = Layout(precision="bf16")
    assert layout.with_precision(config("auto")).dtype == "bfloat16"
    assert layout.with_precision(config("bfloat16")).dtype == "bfloat16"
    assert Layout().with_precision(config("float16")).dtype == "float16"
    assert Layout().with_precision(config("auto")).dtype == "auto"
    for dtype in ("float32", "float16"):
        with pytest.raises(ValueError, match=f"generator.dtype={dtype}, but accelerate's mixed_precision is bf16"):
            layout.with_precision(config(dtype))


@pytest.mark.parametrize("kind", ["whole", "zero2", "zero3"])
def test_a_judge_is_shared_by_fsdp2_alone(kind: Any) -> None:
    with pytest.raises(ValueError, match="judge.shard=true needs FSDP2"):
        Layout(kind=kind).shard_judge(None, torch.device("cpu"))


def test_blocks_that_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="names MochiBlock, of which WanTransformer3DModel has no module"):
        Layout(kind="fsdp2", classes=("WanTransformerBlock", "MochiBlock")).place(
            build_wan().transformer, torch.device("cpu")
        )
    with pytest.raises(ValueError, match="Linear does not name its blocks"):
        Layout(kind="fsdp2").place(torch.nn.Linear(2, 2), torch.device("cpu"))
