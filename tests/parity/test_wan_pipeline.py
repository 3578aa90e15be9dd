"""Our Wan sampling against the stock `diffusers.WanPipeline` call, stage by stage, in float32 on the CPU."""

import pytest
import torch
from torch.testing import assert_close

from generator_loop.adapters.base import POLICY
from generator_loop.records import Draw, Prompt
from generator_loop.sampling.rollout import PromptEncoder, rollout, sample_path
from tests.family_checks import scheduler_after_first_step
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


def unipc(**settings):
    """Return the scheduler of the published Wan checkpoints."""
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, **settings)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [3.0, 5.0, 12.0])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 25, 50])
def test_schedule_of_a_unipc_checkpoint_is_its_own_grid(kind, shift, num_steps):
    generator = build_generator(pipeline=build_wan(kind=kind, scheduler=unipc(flow_shift=shift)))
    sigmas, stock = generator.sigmas(num_steps), first_step(generator.pipeline, num_steps)
    assert sigmas[0] == 1 and abs(float(stock.sigmas[0]) - 1) <= 2e-6  # UniPC takes 1e-6 from its first sigma alone
    assert torch.equal(sigmas[1:], stock.sigmas[1:])
    late = 1000 * sigmas[:-1].double() - stock.timesteps  # the whole number below 1000 sigma, and 999 for the first
    assert late.min() >= -1e-4 and late.max() <= 1


def test_schedule_of_a_unipc_checkpoint_by_hand():
    """Of two steps at shift 3: u = 1 and (1 + .001) / 2, and 3 u / (1 + 2 u)."""
    generator = build_generator(pipeline=build_wan(scheduler=unipc(flow_shift=3.0)))
    assert_close(generator.sigmas(2), torch.tensor([1.0, 3 * 0.5005 / (1 + 2 * 0.5005), 0.0]))


@pytest.mark.parametrize("num_steps", [1, 3, 25])
@pytest.mark.parametrize("settings", [{"shift": 3.0}, {"shift": 5.0}, {"shift": 3.0, "use_karras_sigmas": True}])
def test_schedule_of_an_euler_checkpoint_is_its_own_grid(settings, num_steps):
    from diffusers import FlowMatchEulerDiscreteScheduler

    generator = build_generator(pipeline=build_wan(scheduler=FlowMatchEulerDiscreteScheduler(**settings)))
    assert torch.equal(generator.sigmas(num_steps), first_step(generator.pipeline, num_steps).sigmas)


def test_sigmas_that_do_not_reach_zero_are_refused():
    generator = build_generator(pipeline=build_wan(scheduler=unipc(flow_shift=3.0, final_sigmas_type="sigma_min")))
    with pytest.raises(ValueError, match="must fall from sigma 1 to 0"):
        generator.sigmas(NUM_STEPS)


def test_a_scheduler_without_flow_times_is_refused():
    from diffusers import UniPCMultistepScheduler

    with pytest.raises(ValueError, match="UniPCMultistepScheduler is not a flow-matching scheduler"):
        build_generator(pipeline=build_wan(scheduler=UniPCMultistepScheduler()))


def test_reading_the_schedule_leaves_the_pipelines_own_alone():
    generator = build_generator(pipeline=build_wan(scheduler=unipc(flow_shift=3.0)))
    generator.pipeline.scheduler.set_timesteps(9)
    generator.sigmas(4)
    assert len(generator.pipeline.scheduler.sigmas) == 10


def first_step(pipeline, num_steps):
    """Return the pipeline's scheduler as a stock call of `num_steps` sets it; the call stops after its first step."""
    return scheduler_after_first_step(pipeline, height=16, width=16, num_frames=5, num_inference_steps=num_steps)
