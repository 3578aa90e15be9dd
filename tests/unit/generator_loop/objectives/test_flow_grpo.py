"""Flow-GRPO's loss, by hand and on a real generator."""

import dataclasses

import pytest
import torch

from generator_loop.adapters.base import OLD, POLICY, REFERENCE
from generator_loop.objectives.flow_grpo import FlowGRPO, FlowGRPOConfig, StepBatch
from generator_loop.optim.step import policies_of
from generator_loop.records import Conditioning, Draw, Prompt
from generator_loop.rewards.advantages import group_advantages
from generator_loop.sampling.rollout import PromptEncoder, rollout
from tests.tiny_wan import build_generator, randomise_lora
from tests.toy_flow import LinearField, policies, toy_scores

REWARDS = torch.tensor([0.1, 0.9, 0.4, 0.4, 0.5, float("nan"), 0.5, 0.5])


def batch_of(field, objective, *, log_prob_shift=0.0, num=4):
    """Return one step drawn from a field, with log-probabilities that are off by a shift."""
    stream = torch.Generator().manual_seed(3)
    states, cond = torch.randn(num, 3, generator=stream), Conditioning({"text": torch.zeros(num, 3)})
    with torch.no_grad():
        velocity = field(states, torch.full((num,), 0.6), cond)
        step = objective.kernel.transition(states, velocity, 0.6, 0.4, ceiling=0.9)
        results = step.mean + step.std * torch.randn(num, 3, generator=stream)
        log_probs = objective.kernel.log_prob(step, results) - log_prob_shift
    advantages = torch.tensor([1.0, -1.0, 2.0, -0.5])[:num]
    return StepBatch(states, results, 0.6, 0.4, 0.9, 1.0, log_probs, advantages, cond)


def test_before_the_first_update_the_ratio_is_one_and_the_gradient_is_the_policy_gradient():
    field, objective = LinearField(), FlowGRPO(FlowGRPOConfig())
    batch = batch_of(field, objective)
    output = objective.loss(batch, policies(field))
    assert output.metrics["ratio_error"] < 1e-6 and output.metrics["clip_fraction"] == 0
    found = torch.autograd.grad(output.loss, field.weight)[0]
    velocity = field(batch.states, torch.full((4,), 0.6), batch.cond)
    step = objective.kernel.transition(batch.states, velocity, 0.6, 0.4, ceiling=0.9)
    plain = -(batch.advantages * objective.kernel.log_prob(step, batch.results)).mean()
    torch.testing.assert_close(found, torch.autograd.grad(plain, field.weight)[0])


def test_the_weight_scales_the_gradient():
    field, objective = LinearField(), FlowGRPO(FlowGRPOConfig())
    batch = batch_of(field, objective)
    one, three = (
        torch.autograd.grad(objective.loss(dataclasses.replace(batch, weight=w), policies(field)).loss, field.weight)[0]
        for w in (1.0, 3.0)
    )
    torch.testing.assert_close(three, 3 * one)


def test_ratios_outside_the_range_stop_counting_where_they_would_gain():
    field, objective = LinearField(), FlowGRPO(FlowGRPOConfig(clip_range=0.1))
    # ratio e^0.5 = 1.649: clipped for good samples (1, 2), kept for bad ones (-1, -0.5)
    output = objective.loss(batch_of(field, objective, log_prob_shift=0.5), policies(field))
    ratio = 2.718281828**0.5
    expected = -(1.0 * 1.1 - ratio + 2.0 * 1.1 - 0.5 * ratio) / 4
    assert float(output.loss) == pytest.approx(expected, rel=1e-4)
    assert output.metrics["clip_fraction"] == 1.0


def test_the_penalty_has_a_gradient_of_its_own():
    field, reference = LinearField(), LinearField(seed=1)
    losses = [
        FlowGRPO(FlowGRPOConfig(kl_coef=weight)).loss(
            dataclasses.replace(batch_of(field, FlowGRPO(FlowGRPOConfig())), advantages=torch.zeros(4)),
            policies(field, reference=reference),
        )
        for weight in (0.0, 0.5)
    ]
    assert float(losses[1].loss) == pytest.approx(0.5 * losses[1].metrics["kl"]) and losses[1].metrics["kl"] > 0
    assert torch.autograd.grad(losses[1].loss, field.weight)[0].norm() > 0
    assert losses[0].metrics["kl"] == 0


def test_only_samples_that_differ_from_their_group_are_learned_from():
    generator, objective = build_generator(), FlowGRPO(FlowGRPOConfig(window=2))
    randomise_lora(generator)
    for name in (OLD, REFERENCE):
        generator.set_weights(name, {key: value.clone() for key, value in generator.weights(POLICY).items()})
    prompts = (Prompt(0, "a red ball"), Prompt(1, "a blue square"))
    settings = dict(encoder=PromptEncoder(generator), group_size=4, num_steps=4, batch_size=8, draw=Draw(0, 0))
    samples = rollout(generator, prompts, **settings, policy=OLD, random_steps=objective.random_steps)
    advantages = group_advantages(REWARDS, group_size=4)
    (batches,) = objective.plan(samples, toy_scores(REWARDS), advantages, draw=Draw(0, 0), micro_batch_size=3)
    batches = list(batches)
    assert sum(len(batch) for batch in batches) == 2 * 4  # the second group is flat but for one without reward
    who = policies_of(generator, lambda frames, _prompts: frames.flatten(1).mean(1))
    for batch in batches:
        assert objective.loss(batch, who).metrics["ratio_error"] < 1e-5


def test_the_guarded_ratio_is_that_of_the_paper_and_one_at_the_start():
    """ratio = exp(s [log p - log p_old + mean|mu - mu_old|^2 / (2 s^2)]), s the step's deviation."""
    field, old = LinearField(), LinearField(seed=1)
    objective = FlowGRPO(FlowGRPOConfig(balance="guard", clip_range=100.0))
    batch = dataclasses.replace(batch_of(old, objective), weight=1 / 0.2)
    sigma, means = torch.full((4,), 0.6), {}
    for name, one in (("new", field), ("old", old)):
        velocity = one(batch.states, sigma, batch.cond).detach()
        means[name] = objective.kernel.transition(batch.states, velocity, 0.6, 0.4, ceiling=0.9)
    new, before = means["new"], means["old"]
    drift = (new.mean - before.mean).square().mean(1) / (2 * new.std**2)
    gap = objective.kernel.log_prob(new, batch.results) - objective.kernel.log_prob(before, batch.results)
    expected = -(batch.advantages * (new.std * (gap + drift)).exp()).mean() / 0.2
    found = objective.loss(batch, policies(field, old=old))
    torch.testing.assert_close(found.loss.detach(), expected)
    assert found.metrics["ratio_error"] > 1e-3
    assert objective.loss(batch_of(field, objective), policies(field, old=field)).metrics["ratio_error"] < 1e-6


@pytest.mark.parametrize("kernel", ["flow", "dance"])
def test_with_the_guard_all_steps_pull_alike(kernel):
    """Times dt, d(ratio)/d(velocity) is mean(z) (1 + rate^2 (1 - t) / (2 t)): of one order for all steps."""
    sizes = {}
    for balance in ("guard", "none"):
        objective = FlowGRPO(FlowGRPOConfig(balance=balance, kernel=kernel))
        sigmas = torch.tensor([1.0, 0.96, 0.9, 0.8, 0.6, 0.3, 0.0])
        pulls = []
        for step, weight in enumerate(objective._weights(sigmas)):
            t, after = float(sigmas[step]), float(sigmas[step + 1])
            states, velocity = torch.ones(1, 4), torch.zeros(1, 4, requires_grad=True)
            taken = objective.kernel.transition(states, velocity, t, after, ceiling=0.96)
            noise = torch.ones(1, 4)
            results = taken.mean.detach() + taken.std * noise
            if balance == "guard":
                value = weight * (noise * taken.mean).mean()
            else:
                value = weight * objective.kernel.log_prob(taken, results).mean()
            pulls.append(float(torch.autograd.grad(value, velocity)[0].norm()))
        sizes[balance] = max(pulls) / min(pulls)
    assert sizes["guard"] < 2 and sizes["none"] > 1.5 * sizes["guard"]


@pytest.mark.parametrize(
    "setting",
    [
        {"kernel": "cps", "balance": "guard"},
        {"noise_level": 0.0},
        {"kernel": "cps", "noise_level": 1.1},
        {"clip_range": 0.0},
        {"window": -1},
    ],
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match="objective"):
        FlowGRPOConfig(**setting)
