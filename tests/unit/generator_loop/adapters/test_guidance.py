"""Guidance of Wan's second transformer, against the stock pipeline's `guidance_scale_2`."""

import pytest
import torch
from torch.testing import assert_close

from generator_loop.config import GeneratorConfig
from generator_loop.sampling.rollout import sample_path
from tests.tiny_ltx import build_ltx_generator
from tests.tiny_wan import build_generator, build_wan, randomise_lora

TEXTS, NEGATIVE, NUM_STEPS = ["a red ball moves left", "a blue square"], "worst quality", 4


def noise_generators():
    return [torch.Generator().manual_seed(seed) for seed in range(len(TEXTS))]


def build_two(scale, second):
    settings = dict(guidance_scale=scale, guidance_scale_2=second, negative_prompt=NEGATIVE)
    generator = build_generator(pipeline=build_wan(kind="2.2 A14B"), decode_batch_size=2, **settings)
    randomise_lora(generator)
    return generator


@torch.no_grad()
def ours(generator):
    noise, sigmas = generator.init_latents(noise_generators()), generator.sigmas(NUM_STEPS)
    return generator.decode(sample_path(generator, noise, sigmas, generator.encode_prompts(TEXTS))[-1])


def stock(pipeline, scale, second):
    call = dict(height=16, width=16, num_frames=5, num_inference_steps=NUM_STEPS, max_sequence_length=8)
    scales = dict(guidance_scale=scale, guidance_scale_2=second)
    texts = dict(prompt=TEXTS, negative_prompt=NEGATIVE, generator=noise_generators())
    return pipeline(output_type="pt", **texts, **scales, **call).frames


@pytest.mark.parametrize(("scale", "second"), [(4.0, 3.0), (3.0, 1.0), (3.0, None)])
def test_samples_equal_the_stock_pipelines(scale, second):
    generator = build_two(scale, second)
    assert torch.equal(ours(generator), stock(generator.pipeline, scale, second))


def test_without_a_second_scale_the_first_holds_for_both_transformers():
    none, same, other = (ours(build_two(3.0, second)) for second in (None, 3.0, 1.5))
    assert torch.equal(none, same)
    assert (none - other).abs().max() > 1e-3


@torch.no_grad()
def test_rows_on_both_sides_of_the_change_are_guided_each_by_its_own_scale():
    """v = u + s (p - u), with s = 4 at sigma 0.9 and s = 2 at sigma 0.3."""
    generator, plain = build_two(4.0, 2.0), build_two(1.0, None)
    noise, sigma = generator.init_latents(noise_generators()), torch.tensor([0.9, 0.3])
    positive, negative = (
        plain.predict(noise, sigma, plain.encode_prompts(texts)) for texts in (TEXTS, [NEGATIVE] * len(TEXTS))
    )
    scale = torch.tensor([4.0, 2.0]).view(-1, 1, 1, 1, 1)
    found = generator.predict(noise, sigma, generator.encode_prompts(TEXTS))
    assert_close(found, negative + scale * (positive - negative), atol=1e-5, rtol=0)


def test_a_second_scale_without_a_second_transformer_or_without_guidance_is_refused():
    for build, scale in ((build_generator, 3.0), (build_ltx_generator, 3.0)):
        with pytest.raises(ValueError, match=r"generator.guidance_scale_2 .* (wan|ltx) has 1 here"):
            build(guidance_scale=scale, guidance_scale_2=2.0)
    with pytest.raises(ValueError, match="guidance_scale is 1.0"):
        build_two(1.0, 2.0)
    with pytest.raises(ValueError, match=r"generator.guidance_scale_2 must be >= 1 or null, got 0.5"):
        GeneratorConfig(path="toy", num_frames=5, height=16, width=16, fps=8.0, guidance_scale_2=0.5)
