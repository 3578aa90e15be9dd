"""DRaFT's stepwise backward pass against plain back-propagation through time."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from generator_loop.objectives.draft import Draft, DraftBatch, DraftConfig
from generator_loop.records import Draw, TailStates
from generator_loop.rewards.advantages import group_advantages
from tests.toy_flow import LinearField, policies, toy_rollout, toy_scores

NUM_KEPT = 3


def decode(latents):
    return torch.tanh(latents)


def reward(frames, _prompts):
    return (frames * torch.tensor([1.0, -2.0, 0.5])).sum(1) + frames.prod(1)


def walk(policy, start, sigmas, cond, *, detach_input=False, reference=None):
    """Walk the tail with every graph kept; return x_0 and the mean squared difference to a constant reference."""
    x, kl = start, 0.0
    for step in range(len(sigmas) - 1):
        seen, sigma = x.detach() if detach_input else x, sigmas[step].expand(len(x))
        velocity = policy(seen, sigma, cond)
        if reference is not None:
            kl = kl + (velocity - reference(seen.detach(), sigma, cond).detach()).square().mean() / (len(sigmas) - 1)
        x = x + (sigmas[step + 1] - sigmas[step]) * velocity
    return x, kl


def batch_of(policy, num=4):
    """Return samples whose tail the policy itself walked, as a rollout stores them."""
    rollout = toy_rollout(num_prompts=1, group_size=num)
    sigmas, states = torch.tensor([0.9, 0.5, 0.2, 0.0]), []
    with torch.no_grad():
        x = rollout.noise
        for step in range(NUM_KEPT):
            states.append(x)
            x = x + (sigmas[step + 1] - sigmas[step]) * policy(x, sigmas[step].expand(num), rollout.cond)
    return DraftBatch(
        prompts=rollout.prompts * num, latents=x, tail=TailStates(torch.stack(states), sigmas), cond=rollout.cond
    )


@pytest.mark.parametrize("detach_input", [False, True], ids=["DRaFT", "DRTune"])
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_gradient_equals_back_propagation_through_time(detach_input, kl_coef):
    policy, reference = LinearField(curve=0.1), LinearField(seed=5, curve=0.1)
    batch = batch_of(policy)
    x, kl = walk(
        policy, batch.tail.states[0], batch.tail.sigmas, batch.cond, detach_input=detach_input, reference=reference
    )
    loss = -reward(decode(x), None).mean() + kl_coef * kl
    expected = torch.autograd.grad(loss, list(policy.parameters()))
    objective = Draft(DraftConfig(detach_input=detach_input, kl_coef=kl_coef))
    who = policies(policy, reference=reference, decode=decode, reward=reward)
    metrics = objective.backward(batch, who, scale=1.0)
    for parameter, gradient in zip(policy.parameters(), expected, strict=True):
        assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-5)
        assert gradient.abs().max() > 0.01
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_drtune_and_draft_differ():
    found = []
    for detach_input in (False, True):
        policy = LinearField(curve=0.1)
        objective = Draft(DraftConfig(detach_input=detach_input))
        objective.backward(batch_of(policy), policies(policy, decode=decode, reward=reward), scale=1.0)
        found.append(policy.weight.grad)
    assert not torch.allclose(*found, rtol=0.01)


def test_scale_multiplies_the_gradient():
    found = []
    for scale in (1.0, 8.0):
        policy, reference = LinearField(), LinearField(seed=5)
        who = policies(policy, reference=reference, decode=decode, reward=reward)
        Draft(DraftConfig(kl_coef=0.3)).backward(batch_of(policy), who, scale=scale)
        found.append(policy.weight.grad)
    assert_close(8 * found[0], found[1])


def test_following_the_gradient_raises_the_reward():
    policy = LinearField()
    who = policies(policy, decode=decode, reward=reward)
    optimizer, rewards = torch.optim.Adam(policy.parameters(), lr=0.03), []
    for _ in range(20):
        optimizer.zero_grad()
        rewards.append(Draft(DraftConfig()).backward(batch_of(policy), who, scale=1.0)["reward"])
        optimizer.step()
    assert rewards[-1] > rewards[0] + 0.2


def test_a_sample_without_reward_adds_nothing():
    policy = LinearField()
    batch = batch_of(policy, num=2)

    def half(frames, prompts):
        return torch.where(torch.tensor([True, False]), reward(frames, prompts), float("nan"))

    metrics = Draft(DraftConfig()).backward(batch, policies(policy, decode=decode, reward=half), scale=2.0)
    found = policy.weight.grad.clone()
    policy.zero_grad()
    first = DraftBatch(
        prompts=batch.prompts[:1],
        latents=batch.latents[:1],
        tail=TailStates(batch.tail.states[:, :1], batch.tail.sigmas),
        cond=batch.cond.select(torch.tensor([0])),
    )
    Draft(DraftConfig()).backward(first, policies(policy, decode=decode, reward=reward), scale=1.0)
    assert_close(found, policy.weight.grad)
    assert metrics["valid"] == 0.5


def test_only_one_step_of_the_sampler_is_in_the_graph_at_a_time():
    policy, alive, most = LinearField(), set(), []

    def watched(x, sigma, cond):
        velocity = policy(x, sigma, cond)
        key = object()
        alive.add(key)
        most.append(len(alive))
        velocity.register_hook(lambda _gradient: alive.discard(key))
        return velocity

    who = policies(policy, decode=decode, reward=reward)
    who = type(who)(watched, who.old, who.reference, who.decode, who.reward)
    Draft(DraftConfig()).backward(batch_of(policy), who, scale=1.0)
    assert most == [1] * NUM_KEPT


def test_plan_is_one_step_over_the_usable_samples_with_their_own_tails():
    rollout = toy_rollout(num_prompts=2, group_size=2, num_kept=2)
    rewards = torch.tensor([0.1, float("nan"), 0.3, 0.4])
    advantages = group_advantages(rewards, group_size=2)
    steps = Draft(DraftConfig()).plan(rollout, toy_scores(rewards), advantages, draw=Draw(0, 0), micro_batch_size=2)
    (batches,) = [list(step) for step in steps]
    assert [len(batch) for batch in batches] == [2, 1]
    assert [prompt.prompt_id for batch in batches for prompt in batch.prompts] == [0, 1, 1]
    assert torch.equal(torch.cat([batch.tail.states for batch in batches], dim=1), rollout.tail.states[:, [0, 2, 3]])


def planned_excerpts(config, *, draw=None, num_latent_frames=6, micro_batch_size=3):
    """Return the excerpt of each micro-batch of one optimiser step over eight clips."""
    rollout = toy_rollout(num_kept=2)
    rollout = dataclasses.replace(rollout, latents=torch.zeros(8, 1, num_latent_frames, 1, 1))
    rewards = torch.linspace(0, 1, 8)
    advantages, size = group_advantages(rewards, group_size=4), micro_batch_size
    steps = Draft(config).plan(rollout, toy_scores(rewards), advantages, draw=draw or Draw(0, 0), micro_batch_size=size)
    (batches,) = [list(step) for step in steps]
    return [batch.excerpt for batch in batches]


def test_all_clips_of_a_step_are_decoded_at_one_place_drawn_for_the_step():
    config = DraftConfig(decode_latent_frames=2)
    drawn = [planned_excerpts(config, draw=Draw(seed=0, step=step)) for step in range(60)]
    assert all(len(excerpts) == 3 and len(set(excerpts)) == 1 for excerpts in drawn)
    places = [excerpts[0] for excerpts in drawn]
    assert {(excerpt.start, excerpt.stop) for excerpt in places} == {(0, 2), (1, 3), (2, 4), (3, 5), (4, 6)}
    assert planned_excerpts(config, draw=Draw(0, 7), micro_batch_size=8) == [places[7]]
    assert planned_excerpts(DraftConfig(decode_latent_frames=6)) == [range(6)] * 3
    assert planned_excerpts(DraftConfig()) == [None] * 3


def test_more_latent_frames_than_the_clip_has_are_refused():
    with pytest.raises(ValueError, match="objective.decode_latent_frames must be at most the clip's 6 .* got 7"):
        planned_excerpts(DraftConfig(decode_latent_frames=7))


def test_the_reward_sees_the_frames_of_the_run_and_teaches_its_latent_frames_alone():
    """Frame t is latent frame t, so that r = sum of frames 1 and 2 has the gradient (0, -1, -1, 0) / N."""
    seen = []

    def some(latents, excerpt=None):
        seen.append(excerpt)
        return latents[:, :, slice(excerpt.start, excerpt.stop)]

    def flat_reward(frames, _prompts):
        assert frames.shape[2] == 2
        return frames.flatten(1).sum(1)

    velocity = torch.nn.Parameter(torch.zeros(2, 1, 4, 1, 1))
    who = dataclasses.replace(
        policies(LinearField(), decode=some, reward=flat_reward), policy=lambda _x, _sigma, _cond: velocity + 0
    )
    tail = TailStates(torch.zeros(1, 2, 1, 4, 1, 1), torch.tensor([0.5, 0.0]))
    batch = DraftBatch(toy_rollout().prompts, torch.zeros(2, 1, 4, 1, 1), tail, toy_rollout().cond, excerpt=range(1, 3))
    Draft(DraftConfig(detach_input=True)).backward(batch, who, scale=1.0)
    assert seen == [range(1, 3)]
    # x_0 = x - 0.5 velocity, two clips
    assert velocity.grad[0].flatten().tolist() == [0.0, 0.25, 0.25, 0.0]


@pytest.mark.parametrize(
    "setting", [{"tail_span": 0.0}, {"tail_span": 1.1}, {"kl_coef": -0.1}, {"decode_latent_frames": 0}]
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=f"objective.{next(iter(setting))} must be"):
        DraftConfig(**setting)


@pytest.mark.parametrize("num_decoded", [None, 1])
def test_gradient_of_a_real_generator_equals_back_propagation_through_sampler_and_decoder(num_decoded):
    from generator_loop.adapters.base import POLICY
    from generator_loop.optim.step import policies_of
    from generator_loop.records import Prompt
    from generator_loop.sampling.rollout import PromptEncoder, rollout
    from tests.tiny_wan import build_generator, randomise_lora

    generator = build_generator(decode_batch_size=2, num_frames=9)
    randomise_lora(generator)
    draw = Draw(0, 1)
    settings = dict(encoder=PromptEncoder(generator), group_size=2, num_steps=4, batch_size=2, policy=POLICY)
    samples = rollout(generator, [Prompt(0, "a red ball")], draw=draw, tail_span=0.9, **settings)
    assert len(samples.tail.states) > 2
    x, _ = walk(generator.predict, samples.tail.states[0], samples.tail.sigmas, samples.cond)
    parameters = list(generator.trainable_parameters().values())
    rewards = torch.zeros(2)
    advantages = group_advantages(rewards, group_size=2)
    objective = Draft(DraftConfig(decode_latent_frames=num_decoded))
    frames = generator.decode(x)
    if num_decoded:
        (batch,) = next(objective.plan(samples, toy_scores(rewards), advantages, draw=draw, micro_batch_size=2))
        assert batch.excerpt.start > 0
        before, inside, after = x.split((batch.excerpt.start, 1, 2 - batch.excerpt.start), dim=2)
        held = torch.cat([before.detach(), inside, after], dim=2)
        frames = generator.decode(held)[:, 4 * batch.excerpt.start - 3 : 4 * batch.excerpt.start + 1]
    expected = torch.autograd.grad(-frames.square().mean(), parameters)
    who = policies_of(generator, lambda frames, _prompts: frames.square().flatten(1).mean(1))
    for batches in objective.plan(samples, toy_scores(rewards), advantages, draw=draw, micro_batch_size=1):
        for batch in batches:
            objective.backward(batch, who, scale=0.5)
    scale = max(gradient.abs().max() for gradient in expected)
    assert scale > 0
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert_close(parameter.grad / scale, gradient / scale, atol=1e-5, rtol=0)
