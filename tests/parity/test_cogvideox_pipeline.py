"""Our CogVideoX sampling against the stock `diffusers.CogVideoXPipeline` call with DDIM, in float32 on the CPU."""

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
from tests.tiny_cogvideox import build_cogvideox, build_cogvideox_generator
from tests.tiny_wan import randomise_lora

pytestmark = pytest.mark.parity

NUM_STEPS = 4
CALL = dict(height=32, width=32, num_frames=5, num_inference_steps=NUM_STEPS, max_sequence_length=8)


@pytest.fixture(scope="module", params=[(1.0, False), (3.0, True)], ids=["2B, no guidance", "5B, guidance 3"])
def stages(request):
    """Return our generator and what the stock call went through, on the same pipeline object with LoRA in place."""
    scale, rotary = request.param
    pipeline = build_cogvideox(rotary=rotary)
    generator = build_cogvideox_generator(pipeline=pipeline, guidance_scale=scale, negative_prompt="worst quality")
    randomise_lora(generator)
    seen = {"latents": []}

    def record(_pipeline, _step, _timestep, tensors):
        seen["latents"].append(tensors["latents"].transpose(1, 2))
        return {}

    call = dict(prompt=TEXTS, negative_prompt=["worst quality"] * 2, guidance_scale=scale, **CALL)
    call |= dict(callback_on_step_end=record, callback_on_step_end_tensor_inputs=["latents"])
    seen["frames"] = pipeline(generator=noise_generators(), output_type="pt", **call).frames
    noise = pipeline.prepare_latents(2, 4, 5, 32, 32, torch.float32, torch.device("cpu"), noise_generators())
    return generator, {**seen, "noise": noise.transpose(1, 2)}


def test_prompt_embeddings_equal_the_pipelines(stages):
    generator, _ = stages
    guided = generator.guidance_scale > 1
    stock = generator.pipeline.encode_prompt(TEXTS, ["worst quality"] * 2, guided, max_sequence_length=8)
    cond = generator.encode_prompts(TEXTS)
    assert list(cond.tensors) == ["positive", "negative"][: 2 if guided else 1]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(cond.tensors.values(), stock, strict=False))


def test_initial_latents_equal_the_pipelines(stages):
    generator, seen = stages
    assert torch.equal(generator.init_latents(noise_generators()), seen["noise"])


def test_the_schedule_stands_at_the_pipelines_times(stages):
    generator, _ = stages
    sigmas = generator.sigmas(NUM_STEPS)
    generator.pipeline.scheduler.set_timesteps(NUM_STEPS)
    assert torch.equal(generator._time(sigmas[:-1]).long(), generator.pipeline.scheduler.timesteps)
    assert sigmas[0] == 1 and sigmas[-1] == 0 and bool((sigmas.diff() < 0).all())


@torch.no_grad()
def test_euler_steps_in_sigma_are_the_pipelines_ddim_steps(stages):
    generator, seen = stages
    cond, sigmas = generator.encode_prompts(TEXTS), generator.sigmas(NUM_STEPS)
    path = sample_path(generator, seen["noise"], sigmas, cond, num_kept=NUM_STEPS)
    scale = (sigmas**2 + (1 - sigmas) ** 2).rsqrt().view(-1, 1, 1, 1, 1, 1)
    assert_close(scale * path, torch.stack([seen["noise"], *seen["latents"]]), atol=2e-5, rtol=0)


@torch.no_grad()
def test_decoded_frames_equal_the_pipelines(stages):
    generator, seen = stages
    assert_close(generator.decode(seen["latents"][-1]), seen["frames"], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("sigma", [1.0, 0.7, 0.31, 0.05])
def test_velocity_and_latents_give_back_the_models_clean_sample(sigma):
    """x_0 = x_sigma - sigma velocity must be alpha x_t - s v of the model's own parametrisation."""
    generator = build_cogvideox_generator()
    cond = generator.encode_prompts(TEXTS[:1])
    latents, level = generator.init_latents(noise_generators()[:1]), torch.tensor([sigma])
    ours = latents - sigma * generator.predict(latents, level, cond)
    size = (sigma**2 + (1 - sigma) ** 2) ** 0.5
    alpha, noise = (1 - sigma) / size, sigma / size
    own = latents / size
    v = generator.pipeline.transformer(
        hidden_states=own.transpose(1, 2),
        encoder_hidden_states=cond.tensors["positive"],
        timestep=generator._time(level),
        return_dict=False,
    )[0].transpose(1, 2)
    assert_close(ours, alpha * own - noise * v, atol=1e-5, rtol=0)


def test_times_between_integers_follow_the_noise_level():
    generator = build_cogvideox_generator()
    levels = generator._levels()
    middle = ((levels[500] + levels[501]) / 2).float()[None]
    assert generator._time(middle).item() == pytest.approx(500.5, abs=0.01)
    assert generator._time(torch.tensor([0.0, 1.0])).tolist() == [0.0, 999.0]


def test_stock_pipeline_with_the_saved_lora_reproduces_our_samples(tmp_path):
    generator = build_cogvideox_generator(lora_rank=4, lora_alpha=12)
    check_stock_pipeline_loads_the_lora(generator, build_cogvideox(), CALL, tmp_path)
    other = build_cogvideox_generator(lora_rank=4, lora_alpha=12, lora_seed=5)
    other.load(tmp_path)
    assert all(torch.equal(value, other.weights(POLICY)[name]) for name, value in generator.weights(POLICY).items())


def test_encoding_scales_as_the_pipeline_does():
    check_encoding(build_cogvideox_generator(), scale=0.7)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_trains_it_and_the_ratio_is_one_before(name):
    check_objective_trains(build_cogvideox_generator(decode_batch_size=4), name)


def test_other_versions_and_predictions_are_refused():
    pipeline = build_cogvideox()
    pipeline.scheduler.register_to_config(prediction_type="epsilon")
    with pytest.raises(ValueError, match="does not predict v"):
        build_cogvideox_generator(pipeline=pipeline)
    pipeline = build_cogvideox()
    pipeline.transformer.register_to_config(patch_size_t=2)
    with pytest.raises(ValueError, match="CogVideoX 1.5"):
        build_cogvideox_generator(pipeline=pipeline)
