"""Full fine-tuning: all weights learn, copies are exact wherever they wait, and what is saved is read back exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from generator_loop.adapters import named_weights
from generator_loop.adapters.base import OLD, POLICY, REFERENCE, predict_with
from generator_loop.adapters.wan import WanGenerator
from generator_loop.config import GeneratorConfig
from generator_loop.optim.ema import follow
from tests.tiny_wan import build_generator, build_wan, randomise_lora

FILE = "diffusion_pytorch_model.safetensors"
SETTINGS = dict(path="", num_frames=5, height=16, width=16, fps=8.0)


def full(**settings: Any) -> WanGenerator:
    return build_generator(**{"train": "full", **settings})


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let copies that wait in the computer's memory be other tensors than those in use, as on a GPU."""
    monkeypatch.setattr(named_weights, "brought", lambda tensor, _device: tensor.clone())


def inputs(generator: WanGenerator) -> tuple[Any, ...]:
    latents = torch.randn(2, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    return latents, torch.tensor([0.3, 0.9]), generator.encode_prompts(["a red ball", "a blue square"])


def test_every_weight_of_the_transformer_learns_and_no_other() -> None:
    generator = full()
    trained = generator.trainable_parameters()
    assert trained == dict(generator.pipeline.transformer.named_parameters())
    assert all(parameter.requires_grad for parameter in trained.values())
    for frozen in (generator.pipeline.vae, generator.pipeline.text_encoder):
        assert not any(parameter.requires_grad for parameter in frozen.parameters())
    loss = generator.predict(*inputs(generator)).square().mean()
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    assert sum(gradient is not None and bool(gradient.any()) for gradient in gradients) > 0.9 * len(trained)


def test_the_first_policy_is_the_base_exactly() -> None:
    generator = full()
    latents, sigma, cond = inputs(generator)
    with torch.no_grad():
        expected = build_wan().transformer(latents, sigma * 1000, cond.tensors["positive"], return_dict=False)[0]
    for name in (POLICY, OLD, REFERENCE):
        assert torch.equal(predict_with(generator, name)(latents, sigma, cond), expected)


@pytest.mark.parametrize("train", ["full", "lora"])
@pytest.mark.parametrize("copies", ["device", "cpu"])
def test_copies_are_exact_wherever_they_wait(train: str, copies: str, apart: None) -> None:
    generator = build_generator(train=train, copies=copies)
    given = inputs(generator)
    first = predict_with(generator, REFERENCE)(*given)
    randomise_lora(generator, std=0.1)
    parameters = list(generator.trainable_parameters().values())
    expected = torch.autograd.grad(generator.predict(*given).square().mean(), parameters, allow_unused=True)
    policy = generator.predict(*given)
    loss = policy.square().mean()
    with generator.use(OLD), generator.use(REFERENCE), generator.use(POLICY):
        assert torch.equal(generator.predict(*given), policy)
    assert torch.equal(predict_with(generator, OLD)(*given), first) and not torch.allclose(policy, first)
    after = torch.autograd.grad(loss, parameters, allow_unused=True)
    assert all(one is other is None or torch.equal(one, other) for one, other in zip(expected, after, strict=True))
    assert all(parameter.requires_grad for parameter in parameters)


@pytest.mark.parametrize("copies", ["device", "cpu"])
def test_a_copy_that_is_set_while_in_use_is_predicted_with(copies: str, apart: None) -> None:
    generator = full(copies=copies)
    given = inputs(generator)
    randomise_lora(generator, std=0.1)
    policy = generator.predict(*given)
    with generator.use(OLD):
        generator.set_weights(OLD, generator.weights(POLICY))
        assert torch.equal(generator.predict(*given), policy)
    assert torch.equal(predict_with(generator, OLD)(*given), policy)


@pytest.mark.parametrize("copies", ["device", "cpu"])
def test_the_policy_can_be_set_while_a_copy_is_in_use(copies: str, apart: None) -> None:
    generator, other = full(copies=copies), full()
    randomise_lora(other, std=0.1)
    given = inputs(generator)
    with generator.use(REFERENCE):
        before = generator.predict(*given)
        generator.set_weights(POLICY, other.weights(POLICY))
        assert torch.equal(generator.predict(*given), before)
    assert torch.equal(generator.predict(*given), other.predict(*given))


def test_copies_move_in_place_and_stay_where_they_wait(apart: None) -> None:
    generator = full(copies="cpu")
    before = {name: tensor.data_ptr() for name, tensor in generator.weights(OLD).items()}
    randomise_lora(generator, std=0.1)
    follow(generator.weights(OLD), generator.weights(POLICY), decay=0.0)
    given = inputs(generator)
    assert torch.equal(predict_with(generator, OLD)(*given), generator.predict(*given))
    assert {name: tensor.data_ptr() for name, tensor in generator.weights(OLD).items()} == before


@pytest.mark.parametrize("kind", ["2.1", "2.2 A14B"])
def test_what_is_saved_is_read_exactly(kind: str, tmp_path: Path) -> None:
    generator = full(pipeline=build_wan(kind=kind))
    randomise_lora(generator, std=0.1)
    with generator.use(REFERENCE):
        generator.save(tmp_path)  # the policy, whatever is in place
    other = full(pipeline=build_wan(kind=kind, seed=5))
    other.load(tmp_path)
    saved, loaded = generator.weights(POLICY), other.weights(POLICY)
    assert saved.keys() == loaded.keys() and all(torch.equal(saved[name], loaded[name]) for name in saved)
    assert (tmp_path / "transformer_2").is_dir() == (kind == "2.2 A14B")


def test_a_model_in_several_files_is_read_exactly(tmp_path: Path) -> None:
    generator = full()
    generator.pipeline.transformer.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    other = full(pipeline=build_wan(seed=5))
    other.load(tmp_path)
    assert all(torch.equal(value, other.weights(POLICY)[name]) for name, value in generator.weights(POLICY).items())


def rewritten(folder: Path, change: Any) -> None:
    tensors = load_file(folder / FILE)
    save_file(change(tensors), folder / FILE, metadata={"format": "pt"})


CHANGES = {
    "a key less": (lambda t: dict(list(t.items())[1:]), "is missing"),
    "a key more": (lambda t: {**t, "more": torch.zeros(1)}, "more is unexpected"),
    "another shape": (lambda t: {**t, "proj_out.bias": torch.zeros(3)}, r"proj_out.bias has the shape \[3\]"),
    "not finite": (lambda t: {**t, "proj_out.bias": t["proj_out.bias"] * torch.nan}, "not finite"),
    "whole numbers": (lambda t: {**t, "proj_out.bias": t["proj_out.bias"].int()}, "expected floating numbers"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_refused_with_file_and_key(change: str, tmp_path: Path) -> None:
    generator = full()
    generator.save(tmp_path)
    rewritten(tmp_path, CHANGES[change][0])
    before = {name: value.clone() for name, value in generator.weights(POLICY).items()}
    with pytest.raises(ValueError, match=f"{FILE}.*{CHANGES[change][1]}"):
        generator.load(tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in generator.weights(POLICY).items())


def test_cut_missing_and_foreign_folders_are_refused_by_name(tmp_path: Path) -> None:
    generator = full()
    with pytest.raises(ValueError, match="nowhere is missing"):
        generator.load(tmp_path / "nowhere")
    generator.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "cross_attn_norm": False}))
    with pytest.raises(ValueError, match="config.json has cross_attn_norm=False, the transformer in use True"):
        generator.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": "LTXVideoTransformer3DModel"}))
    with pytest.raises(ValueError, match="_class_name='LTXVideoTransformer3DModel'"):
        generator.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{FILE} is no whole safetensors file"):
        generator.load(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(ValueError, match=f"{FILE} is missing"):
        generator.load(tmp_path)


def test_a_lora_is_no_full_model_nor_the_reverse(tmp_path: Path) -> None:
    build_generator().save(tmp_path / "lora")
    with pytest.raises(ValueError, match="config.json is missing"):
        full().load(tmp_path / "lora")
    full().save(tmp_path / "full")
    with pytest.raises(ValueError, match="pytorch_lora_weights.safetensors is missing"):
        build_generator().load(tmp_path / "full")


def test_weights_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit the trained ones: .*; check that they are of this transformer"):
        full().set_weights(OLD, build_generator().weights(POLICY))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_that_are_not_32_bit_are_refused(dtype: torch.dtype) -> None:
    pipeline = build_wan()
    pipeline.transformer.to(dtype)
    with pytest.raises(ValueError, match=f"trains 32-bit weights, but .* is {str(dtype)[6:]}: .*generator.train=lora"):
        full(pipeline=pipeline)


def test_a_transformer_that_is_spread_over_processes_is_refused(tmp_path: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    emptied = build_wan()
    emptied.transformer.proj_out.weight.data = torch.empty(0)  # as DeepSpeed leaves a weight that is spread
    with pytest.raises(ValueError, match="needs the whole transformer on every process.*ddp.yaml"):
        full(pipeline=emptied)
    sharded = build_wan()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        fully_shard(sharded.transformer, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match="needs the whole transformer on every process.*ddp.yaml"):
            full(pipeline=sharded)
    finally:
        torch.distributed.destroy_process_group()


def test_half_precision_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="generator.train=full cannot compute in generator.dtype=float16"):
        GeneratorConfig(**SETTINGS, train="full", dtype="float16")
    assert GeneratorConfig(**SETTINGS, train="lora", dtype="float16").train == "lora"


@pytest.mark.parametrize(("dtype", "weights"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_pipeline_is_loaded_with_32_bit_transformers(dtype: str, weights: torch.dtype, tmp_path: Path) -> None:
    build_wan(kind="2.2 A14B").save_pretrained(tmp_path)
    settings = {**SETTINGS, "path": str(tmp_path), "dtype": dtype}
    generator = WanGenerator.from_pretrained(GeneratorConfig(**settings, train="full"))
    for transformer in (generator.pipeline.transformer, generator.pipeline.transformer_2):
        assert {parameter.dtype for parameter in transformer.parameters()} == {torch.float32}
    assert generator.pipeline.text_encoder.dtype == weights
    adapted = WanGenerator.from_pretrained(GeneratorConfig(**settings))
    assert adapted.pipeline.transformer.patch_embedding.weight.dtype == weights


def test_bfloat16_computes_in_16_bits_and_learns_in_32() -> None:
    exact, fast = full(), full(dtype="bfloat16")
    given = inputs(exact)
    velocity = fast.predict(*given)
    assert velocity.dtype == torch.float32
    expected = exact.predict(*given).detach()
    gap = (velocity.detach() - expected).abs().max() / expected.abs().max()
    assert 1e-4 < float(gap) < 0.1
    velocity.square().mean().backward()
    parameters = fast.trainable_parameters().values()
    assert {parameter.grad.dtype for parameter in parameters if parameter.grad is not None} == {torch.float32}
    assert all(parameter.dtype == torch.float32 for parameter in parameters)
    seen = []
    fast.pipeline.transformer.blocks[0].attn1.to_q.register_forward_hook(
        lambda _m, _i, output: seen.append(output.dtype)
    )
    fast.predict(*given)
    assert seen == [torch.bfloat16]
