"""Compiled blocks predict what the others do, with whatever weights are in use."""

import functools
import os

import pytest
import torch
from torch.testing import assert_close

from generator_loop.adapters.base import OLD, POLICY
from tests.tiny_cogvideox import build_cogvideox_generator
from tests.tiny_hunyuan_video import build_hunyuan_video_generator
from tests.tiny_ltx import build_ltx_generator
from tests.tiny_mochi import build_mochi_generator
from tests.tiny_wan import build_generator, build_wan, randomise_lora


def inputs_of(generator):
    noise = generator.init_latents([torch.Generator().manual_seed(seed) for seed in range(2)])
    return noise, torch.tensor([0.3, 0.9]), generator.encode_prompts(["a red ball", "a blue square"])


def gradients_of(generator, velocity):
    return torch.autograd.grad(velocity.square().mean(), list(generator.trainable_parameters().values()))


@pytest.fixture
def traced(monkeypatch):
    """Compile by tracing forward and backward, without the C++ or GPU code that takes minutes to build."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    yield
    torch.compiler.reset()


def test_weights_that_are_swapped_in_reach_compiled_blocks(traced):
    """A compiled block must read LoRA's weights at each call: a program with the first ones in it would not see a swap."""
    plain, compiled = build_generator(), build_generator(compile=True)
    for generator in (plain, compiled):
        randomise_lora(generator)
    inputs = inputs_of(plain)
    first = compiled.predict(*inputs)
    assert_close(first, plain.predict(*inputs), atol=1e-5, rtol=0)
    for one, other in zip(gradients_of(compiled, first), gradients_of(plain, plain.predict(*inputs)), strict=True):
        assert_close(one, other, atol=1e-5, rtol=0)
    for generator in (plain, compiled):
        with torch.no_grad():
            generator.set_weights(POLICY, {name: 0.5 * value for name, value in generator.weights(POLICY).items()})
    moved = compiled.predict(*inputs)
    assert_close(moved, plain.predict(*inputs), atol=1e-5, rtol=0)
    with compiled.use(OLD), plain.use(OLD):
        old = compiled.predict(*inputs)
        assert_close(old, plain.predict(*inputs), atol=1e-5, rtol=0)
    assert (first - moved).abs().max() > 0.01 and (moved - old).abs().max() > 0.01
    assert_close(compiled.predict(*inputs), moved, atol=0, rtol=0)


@pytest.mark.slow
def test_a_compiled_transformer_predicts_the_same():
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        pytest.skip(f"nothing to compile with: {error}")
    if os.environ.get("ATEN_CPU_CAPABILITY"):
        pytest.skip(
            "torch's compiler does not support a CPU capability other than the machine's: DEFAULT lacks a header"
        )
    targets = ("to_q",)  # few kernels, as each takes seconds to build
    plain, compiled = (build_generator(compile=it, lora_targets=targets) for it in (False, True))
    for generator in (plain, compiled):
        randomise_lora(generator)
    inputs = inputs_of(plain)
    with torch.no_grad():
        found = compiled.predict(*inputs)
        assert_close(found, plain.predict(*inputs), atol=1e-5, rtol=0)
        with compiled.use(OLD):
            assert not torch.allclose(compiled.predict(*inputs), found, atol=0.01)


def compiled_blocks(transformer):
    return [type(part).__name__ for part in transformer.modules() if part._compiled_call_impl is not None]


def test_the_blocks_of_every_transformer_are_compiled_and_nothing_else():
    generator = build_generator(pipeline=build_wan(kind="2.2 A14B"), compile=True)
    for part in (generator.pipeline.transformer, generator.pipeline.transformer_2):
        assert compiled_blocks(part) == ["WanTransformerBlock"] * 2
    assert compiled_blocks(build_ltx_generator(compile=True).pipeline.transformer)
    assert compiled_blocks(build_hunyuan_video_generator(compile=True).pipeline.transformer)
    assert not compiled_blocks(build_generator().pipeline.transformer)


@pytest.mark.parametrize("build", [build_cogvideox_generator, build_mochi_generator])
def test_transformers_whose_blocks_diffusers_does_not_name_are_refused(build):
    with pytest.raises(ValueError, match="generator.compile=true is unavailable for (CogVideoX|Mochi)"):
        build(compile=True)
