"""Our HunyuanVideo sampling against the stock `diffusers.HunyuanVideoPipeline` call, in float32 on the CPU."""

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
from tests.tiny_hunyuan_video import build_hunyuan_video, build_hunyuan_video_generator
from tests.tiny_wan import randomise_lora

pytestmark = pytest.mark.parity

NUM_STEPS = 4
CALL = dict(height=32, width=32, num_frames=5, num_inference_steps=NUM_STEPS, max_sequence_length=16)


@pytest.fixture(scope="module", params=[1.0, 6.0], ids=["guidance 1", "guidance 6"])
def stages(request):
    """Return our generator and what the stock call went through, on the same pipeline object with LoRA in place."""
    generator = build_hunyuan_video_generator(guidance_scale=request.param)
    randomise_lora(generator)
    pipeline, seen = generator.pipeline, {"latents": []}

    def record(_pipeline, _step, _timestep, tensors):
        seen["latents"].append(tensors["latents"])
        return {}

    call = dict(prompt=TEXTS, guidance_scale=request.param, output_type="pt", **CALL)
    call |= dict(callback_on_step_end=record, callback_on_step_end_tensor_inputs=["latents"])
    seen["frames"] = pipeline(generator=noise_generators(), **call).frames
    seen["sigmas"] = pipeline.scheduler.sigmas.clone()
    seen["noise"] = pipeline.prepare_latents(2, 4, 32, 32, 5, torch.float32, torch.device("cpu"), noise_generators())
    return generator, seen


def test_prompt_embeddings_masks_and_pooled_vectors_equal_the_pipelines(stages):
    generator, _ = stages
    text, pooled, mask = generator.pipeline.encode_prompt(TEXTS, max_sequence_length=16)
    cond = generator.encode_prompts(TEXTS).tensors
    assert torch.equal(cond["positive"], text) and torch.equal(cond["positive_pooled"], pooled)
    assert torch.equal(cond["positive_mask"], mask.float()) and len(cond) == 3


def test_initial_latents_and_schedule_equal_the_pipelines(stages):
    generator, seen = stages
    assert torch.equal(generator.init_latents(noise_generators()), seen["noise"])
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


def test_guidance_is_told_to_the_model():
    latents = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    found = []
    for scale in (1.0, 6.0):
        generator = build_hunyuan_video_generator(guidance_scale=scale)
        with torch.no_grad():
            found.append(generator.predict(latents, torch.tensor([0.5]), generator.encode_prompts(TEXTS[:1])))
    assert (found[0] - found[1]).abs().max() > 1e-4


def test_stock_pipeline_with_the_saved_lora_reproduces_our_samples(tmp_path):
    generator = build_hunyuan_video_generator(lora_rank=4, lora_alpha=12)
    check_stock_pipeline_loads_the_lora(generator, build_hunyuan_video(), CALL, tmp_path)
    other = build_hunyuan_video_generator(lora_rank=4, lora_alpha=12, lora_seed=5)
    other.load(tmp_path)
    assert all(torch.equal(value, other.weights(POLICY)[name]) for name, value in generator.weights(POLICY).items())


def test_encoding_scales_as_the_pipeline_does():
    check_encoding(build_hunyuan_video_generator(), scale=0.5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_trains_it_and_the_ratio_is_one_before(name):
    check_objective_trains(build_hunyuan_video_generator(decode_batch_size=4), name)


def test_a_negative_prompt_is_refused():
    with pytest.raises(ValueError, match="negative_prompt is not read"):
        build_hunyuan_video_generator(negative_prompt="worst quality")
