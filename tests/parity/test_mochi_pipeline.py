"""Our Mochi sampling against the stock `diffusers.MochiPipeline` call, stage by stage, in float32 on the CPU."""

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
from tests.tiny_mochi import build_mochi, build_mochi_generator
from tests.tiny_wan import randomise_lora

pytestmark = pytest.mark.parity

NUM_STEPS = 4
CALL = dict(height=32, width=32, num_frames=7, num_inference_steps=NUM_STEPS, max_sequence_length=8)


@pytest.fixture(scope="module", params=[1.0, 3.0], ids=["no guidance", "guidance 3"])
def stages(request):
    """Return our generator and what the stock call went through, on the same pipeline object with LoRA in place."""
    generator = build_mochi_generator(guidance_scale=request.param, negative_prompt="worst quality")
    randomise_lora(generator)
    pipeline, seen = generator.pipeline, {"latents": []}

    def record(_pipeline, _step, _timestep, tensors):
        seen["latents"].append(tensors["latents"].clone())
        return {}

    call = dict(prompt=TEXTS, negative_prompt=["worst quality"] * 2, guidance_scale=request.param, **CALL)
    call |= dict(callback_on_step_end=record, callback_on_step_end_tensor_inputs=["latents"])
    seen["frames"] = pipeline(generator=noise_generators(), output_type="pt", **call).frames
    seen["sigmas"] = pipeline.scheduler.sigmas.clone()
    seen["noise"] = pipeline.prepare_latents(2, 12, 32, 32, 7, torch.float32, torch.device("cpu"), noise_generators())
    return generator, seen


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
    sigmas = generator.sigmas(NUM_STEPS)
    assert torch.equal(sigmas, 1 - seen["sigmas"]) and sigmas[0] == 1 and sigmas[-1] == 0


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


def test_stock_pipeline_with_the_saved_lora_reproduces_our_samples(tmp_path):
    generator = build_mochi_generator(lora_rank=4, lora_alpha=12)
    check_stock_pipeline_loads_the_lora(generator, build_mochi(), CALL, tmp_path)
    other = build_mochi_generator(lora_rank=4, lora_alpha=12, lora_seed=5)
    other.load(tmp_path)
    assert all(torch.equal(value, other.weights(POLICY)[name]) for name, value in generator.weights(POLICY).items())


def test_encoding_scales_as_the_pipeline_does():
    generator = build_mochi_generator()
    config = generator.pipeline.vae.config
    check_encoding(generator, mean=config.latents_mean, std=config.latents_std, scale=0.8)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_trains_it_and_the_ratio_is_one_before(name):
    check_objective_trains(build_mochi_generator(decode_batch_size=4), name)


@pytest.mark.parametrize(("setting", "message"), [({"num_frames": 8}, "multiple of 6"), ({"size": (32, 40)}, "pixels")])
def test_clips_that_do_not_fit_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        build_mochi_generator(**setting)


def test_a_scheduler_of_the_usual_direction_is_refused():
    pipeline = build_mochi()
    pipeline.scheduler.register_to_config(invert_sigmas=False)
    with pytest.raises(ValueError, match="does not run its time the other way"):
        build_mochi_generator(pipeline=pipeline)
