"""Our Wan sampling against the stock `diffusers.WanPipeline` call, stage by stage, in float32 on the CPU."""

import pytest
import torch
from torch.testing import assert_close

from generator_loop.adapters.base import POLICY
from generator_loop.records import Draw, Prompt
from generator_loop.sampling.rollout import PromptEncoder, rollout, sample_path
from tests.tiny_wan import KINDS, build_generator, build_wan, randomise_lora

pytestmark = pytest.mark.parity

TEXTS = ["a red ball moves left", "a blue square"]
NEGATIVE = "worst quality"
NUM_STEPS = 4


CASES = [(kind, guidance) for kind in KINDS for guidance in (1.0, 3.0)]


@pytest.fixture(scope="module", params=CASES, ids=[f"{kind}, guidance {guidance:g}" for kind, guidance in CASES])
def stages(request):
    """Return our generator and what the stock call went through, on the same pipeline object with LoRA in place."""
    kind, guidance = request.param
    generator = build_generator(
        pipeline=build_wan(kind=kind), guidance_scale=guidance, negative_prompt=NEGATIVE, decode_batch_size=len(TEXTS)
    )
    randomise_lora(generator)
    seen = {"latents": []}

    def record(_pipeline, _step, _timestep, tensors):
        seen["latents"].append(tensors["latents"])
        seen["positive"], seen["negative"] = tensors["prompt_embeds"], tensors["negative_prompt_embeds"]
        return {}

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    call = dict(
        prompt=TEXTS,
        negative_prompt=NEGATIVE,
        height=16,
        width=16,
        num_frames=5,
        num_inference_steps=NUM_STEPS,
        guidance_scale=guidance,
        max_sequence_length=8,
        callback_on_step_end=record,
        callback_on_step_end_tensor_inputs=names,
    )
    pipeline = generator.pipeline
    seen["frames"] = pipeline(generator=noise_generators(), output_type="pt", **call).frames
    shape = (len(TEXTS), 4, 16, 16, 5, torch.float32, torch.device("cpu"))
    seen["noise"] = pipeline.prepare_latents(*shape, generator=noise_generators())
    return generator, seen


def noise_generators():
    return [torch.Generator().manual_seed(seed) for seed in range(len(TEXTS))]


def test_prompt_embeddings_equal_the_pipelines(stages):
    generator, seen = stages
    cond = generator.encode_prompts(TEXTS)
    assert torch.equal(cond.tensors["positive"], seen["positive"])
    if generator.config.guidance_scale > 1:
        assert torch.equal(cond.tensors["negative"], seen["negative"])
    else:
        assert "negative" not in cond.tensors


def test_initial_latents_equal_the_pipelines(stages):
    generator, seen = stages
    assert torch.equal(generator.init_latents(noise_generators()), seen["noise"])


def test_schedule_equals_the_pipelines(stages):
    generator, _ = stages
    generator.pipeline.scheduler.set_timesteps(NUM_STEPS)
    assert torch.equal(generator.sigmas(NUM_STEPS), generator.pipeline.scheduler.sigmas)


@torch.no_grad()
def test_one_step_equals_the_pipelines(stages):
    generator, seen = stages
    sigmas, noise = generator.sigmas(NUM_STEPS), seen["noise"]
    velocity = generator.predict(noise, sigmas[0].expand(2), generator.encode_prompts(TEXTS))
    assert torch.equal(noise + (sigmas[1] - sigmas[0]) * velocity, seen["latents"][0])


@torch.no_grad()
def test_whole_loop_equals_the_pipelines(stages):
    generator, seen = stages
    cond, sigmas = generator.encode_prompts(TEXTS), generator.sigmas(NUM_STEPS)
    path = sample_path(generator, seen["noise"], sigmas, cond, num_kept=NUM_STEPS)
    assert torch.equal(path, torch.stack([seen["noise"], *seen["latents"]]))


@torch.no_grad()
def test_decoded_frames_equal_the_pipelines(stages):
    generator, seen = stages
    assert torch.equal(generator.decode(seen["latents"][-1]), seen["frames"])


@torch.no_grad()
def test_rows_of_different_noise_levels_are_predicted_as_if_alone(stages):
    generator, seen = stages
    cond, sigma = generator.encode_prompts(TEXTS), torch.tensor([0.9, 0.3])  # on both sides of the two transformers
    both = generator.predict(seen["noise"], sigma, cond)
    for row in range(2):
        index = torch.tensor([row])
        alone = generator.predict(seen["noise"][index], sigma[index], cond.select(index))
        assert_close(both[index], alone, atol=1e-5, rtol=0)


def test_rollout_equals_a_stock_call_with_the_same_noise(stages):
    generator, _ = stages
    draw, prompts = Draw(seed=3, step=1), (Prompt(0, TEXTS[0]), Prompt(1, TEXTS[1]))
    ours = rollout(
        generator,
        prompts,
        encoder=PromptEncoder(generator),
        draw=draw,
        group_size=2,
        num_steps=NUM_STEPS,
        batch_size=4,
        policy=POLICY,
    )
    theirs = generator.pipeline(
        prompt=[prompt.text for prompt in prompts for _ in range(2)],
        negative_prompt=NEGATIVE,
        height=16,
        width=16,
        num_frames=5,
        num_inference_steps=NUM_STEPS,
        guidance_scale=generator.config.guidance_scale,
        max_sequence_length=8,
        generator=[draw.generator(prompt.prompt_id, sample) for prompt in prompts for sample in range(2)],
        output_type="pt",
    ).frames
    assert_close(ours.frames, theirs, atol=1e-5, rtol=0)


def test_a_unipc_checkpoint_gives_its_shift_to_the_euler_schedule():
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    generator = build_generator(pipeline=build_wan(scheduler=scheduler))
    expected = FlowMatchEulerDiscreteScheduler(shift=5.0)
    expected.set_timesteps(NUM_STEPS)
    assert torch.equal(generator.sigmas(NUM_STEPS), expected.sigmas)
