"""Our LTX-Video sampling against the stock `diffusers.LTXPipeline` call, stage by stage, in float32 on the CPU."""

import pytest
import torch
from torch.testing import assert_close

from generator_loop.adapters.base import POLICY
from generator_loop.objectives import OBJECTIVES
from generator_loop.sampling.rollout import sample_path
from tests.family_checks import (
    TEXTS,
    check_encoding,
    check_objective_trains,
    check_stock_pipeline_loads_the_lora,
    noise_generators,
)
from tests.tiny_ltx import build_ltx, build_ltx_generator
from tests.tiny_wan import randomise_lora

pytestmark = pytest.mark.parity

NUM_STEPS = 4
CALL = dict(height=32, width=32, num_frames=5, frame_rate=8.0, num_inference_steps=NUM_STEPS, max_sequence_length=8)


@pytest.fixture(scope="module", params=[1.0, 3.0], ids=["no guidance", "guidance 3"])
def stages(request):
    """Return our generator and what the stock call went through, on the same pipeline object with LoRA in place."""
    generator = build_ltx_generator(guidance_scale=request.param, negative_prompt="worst quality")
    randomise_lora(generator)
    pipeline, seen = generator.pipeline, {"latents": []}

    def record(_pipeline, _step, _timestep, tensors):
        seen["latents"].append(unpacked(generator, tensors["latents"]))
        return {}

    call = dict(prompt=TEXTS, negative_prompt=["worst quality"] * 2, guidance_scale=request.param, **CALL)
    call |= dict(callback_on_step_end=record, callback_on_step_end_tensor_inputs=["latents"])
    seen["frames"] = pipeline(generator=noise_generators(), output_type="pt", **call).frames
    seen["sigmas"] = pipeline.scheduler.sigmas.clone()
    packed = pipeline.prepare_latents(2, 4, 32, 32, 5, torch.float32, torch.device("cpu"), noise_generators())
    seen["noise"] = unpacked(generator, packed)
    return generator, seen


def unpacked(generator, latents):
    return generator.pipeline._unpack_latents(latents, 2, 8, 8)


def test_prompt_embeddings_and_masks_equal_the_pipelines(stages):
    generator, _ = stages
    guided = generator.guidance_scale > 1
    stock = generator.pipeline.encode_prompt(TEXTS, ["worst quality"] * 2, guided, max_sequence_length=8)
    cond = generator.encode_prompts(TEXTS)
    assert list(cond.tensors) == ["positive", "positive_mask", "negative", "negative_mask"][: 4 if guided else 2]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(cond.tensors.values(), stock, strict=False))


def test_initial_latents_equal_the_pipelines(stages):
    generator, seen = stages
    assert torch.equal(generator.init_latents(noise_generators()), seen["noise"])


def test_schedule_equals_the_pipelines(stages):
    generator, seen = stages
    assert torch.equal(generator.sigmas(NUM_STEPS), seen["sigmas"])


@torch.no_grad()
def test_one_step_and_the_whole_loop_equal_the_pipelines(stages):
    generator, seen = stages
    cond, sigmas = generator.encode_prompts(TEXTS), generator.sigmas(NUM_STEPS)
    path = sample_path(generator, seen["noise"], sigmas, cond, num_kept=NUM_STEPS)
    assert_close(path, torch.stack([seen["noise"], *seen["latents"]]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_decoded_frames_equal_the_pipelines(stages):
    generator, seen = stages
    assert_close(generator.decode(seen["latents"][-1]), seen["frames"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_decoder_with_a_time_is_given_the_pipelines_default():
    generator = build_ltx_generator(pipeline=build_ltx(timestep_conditioning=True))
    stock = generator.pipeline(TEXTS, generator=noise_generators(), guidance_scale=1.0, output_type="pt", **CALL).frames
    path = sample_path(
        generator,
        generator.init_latents(noise_generators()),
        generator.sigmas(NUM_STEPS),
        generator.encode_prompts(TEXTS),
    )
    assert_close(generator.decode(path[-1]), stock, atol=1e-5, rtol=0)


def test_stock_pipeline_with_the_saved_lora_reproduces_our_samples(tmp_path):
    generator = build_ltx_generator(lora_rank=4, lora_alpha=12)
    check_stock_pipeline_loads_the_lora(generator, build_ltx(), CALL, tmp_path)
    other = build_ltx_generator(lora_rank=4, lora_alpha=12, lora_seed=5)
    other.load(tmp_path)
    assert all(torch.equal(value, other.weights(POLICY)[name]) for name, value in generator.weights(POLICY).items())


def test_encoding_scales_as_the_pipeline_does():
    check_encoding(build_ltx_generator(), mean=[0.1, -0.2, 0.3, 0.0], std=[1.5, 0.7, 1.0, 2.0])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_trains_it_and_the_ratio_is_one_before(name):
    check_objective_trains(build_ltx_generator(decode_batch_size=4), name)


@pytest.mark.parametrize(("setting", "message"), [({"num_frames": 6}, "multiple of 4"), ({"size": (32, 34)}, "pixels")])
def test_clips_that_do_not_fit_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        build_ltx_generator(**setting)
