"""What every generator family must pass, whatever its model."""

import torch
from torch.testing import assert_close

from generator_loop.adapters.base import OLD, POLICY, REFERENCE
from generator_loop.objectives import OBJECTIVES
from generator_loop.optim.step import Updater, policies_of
from generator_loop.records import Draw, Prompt
from generator_loop.rewards.advantages import group_advantages
from generator_loop.sampling.rollout import PromptEncoder, rollout
from tests.tiny_wan import randomise_lora
from tests.toy_flow import toy_scores

TEXTS = ["a red ball moves left", "a blue square"]


def noise_generators():
    """Return one stream for each of `TEXTS`."""
    return [torch.Generator().manual_seed(seed) for seed in range(len(TEXTS))]


def check_stock_pipeline_loads_the_lora(generator, pipeline, call, folder):
    """Save a random LoRA, load it in a stock pipeline, and compare samples; without it they must differ."""
    randomise_lora(generator)
    generator.save(folder)
    draw, prompt, steps = Draw(0, 0), Prompt(7, TEXTS[0]), call["num_inference_steps"]
    settings = dict(draw=draw, group_size=2, num_steps=steps, batch_size=2)
    ours = rollout(generator, [prompt], encoder=PromptEncoder(generator), **settings).frames

    def stock():
        streams = [draw.generator(7, sample) for sample in range(2)]
        return pipeline([prompt.text] * 2, generator=streams, guidance_scale=1.0, output_type="pt", **call).frames

    base = stock()
    pipeline.load_lora_weights(folder)
    assert_close(stock(), ours, atol=1e-4, rtol=0)  # rounding of all steps and the decoder; the LoRA itself is below
    assert (ours - base).abs().max() > 0.01


@torch.no_grad()
def check_encoding(generator, *, mean=0.0, std=1.0, scale=1.0):
    """Compare encoded frames with the VAE's own latents, normalised by hand."""
    height, width = generator.size
    frames = torch.rand(1, generator.num_frames, 3, height, width, generator=torch.Generator().manual_seed(0))
    raw = generator.pipeline.vae.encode(frames.transpose(1, 2) * 2 - 1).latent_dist.mode()
    mean, std = (torch.as_tensor(value).view(1, -1, 1, 1, 1) for value in (mean, std))
    assert_close(generator.encode(frames), (raw - mean) * scale / std, atol=1e-5, rtol=1e-5)


def check_objective_trains(generator, name):
    """Take one step with an objective: the policy moves, and its probability ratio was 1 before."""
    objective = OBJECTIVES[name](OBJECTIVES[name].config_class())
    for role in (OLD, REFERENCE):
        generator.set_weights(role, {key: value.clone() for key, value in generator.weights(POLICY).items()})
    kept = dict(tail_span=objective.tail_span, random_steps=objective.random_steps)
    settings = dict(encoder=PromptEncoder(generator), draw=Draw(0, 0), group_size=4, num_steps=3, batch_size=4)
    samples = rollout(generator, [Prompt(0, "a red ball moves left")], **settings, **kept)
    rewards = torch.linspace(0, 1, 4)
    advantages = group_advantages(rewards, group_size=4)
    updater = Updater(generator.trainable_parameters(), lr=1e-3)
    who = policies_of(generator, lambda frames, _prompts: frames.flatten(1).mean(1))
    before = {key: value.clone() for key, value in generator.weights(POLICY).items()}
    plan = objective.plan(samples, toy_scores(rewards), advantages, draw=Draw(0, 0), micro_batch_size=4)
    metrics = updater.step(objective, next(iter(plan)), who)
    assert any(not torch.equal(value, before[key]) for key, value in generator.weights(POLICY).items())
    assert metrics.get("ratio_error", 0.0) < 1e-5


def scheduler_after_first_step(pipeline, **call):
    """Return a stock pipeline's scheduler as its call sets it up; the call is broken off after one step."""

    def stop(running, _step, _timestep, _tensors):
        running._interrupt = True
        return {}

    pipeline(prompt=TEXTS[:1], output_type="latent", callback_on_step_end=stop, **call)
    return pipeline.scheduler
