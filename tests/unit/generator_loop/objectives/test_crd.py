"""CRD's misfit by hand and against automatic differentiation of the published loss, where it stops, and its gradient's sign."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from generator_loop.objectives.crd import CRD, CRDConfig, crd_loss
from generator_loop.objectives.whole_groups import GroupBatch
from generator_loop.records import Draw
from generator_loop.rewards.advantages import group_advantages
from tests.toy_flow import LinearField, policies, toy_rollout, toy_scores


def planned(rewards: torch.Tensor, *, micro_batch_size: int = 100, **settings) -> tuple[CRD, GroupBatch]:
    objective, rollout = CRD(CRDConfig(**settings)), toy_rollout()
    advantages = group_advantages(rewards, group_size=4)
    steps = objective.plan(rollout, toy_scores(rewards), advantages, draw=Draw(0, 0), micro_batch_size=micro_batch_size)
    (batch,) = next(iter(steps))
    return objective, batch


def gradient(policy: LinearField) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])


def velocity(field: LinearField, batch: GroupBatch) -> torch.Tensor:
    level = batch.sigma[:, None]
    return field((1 - level) * batch.latents + level * batch.noise, batch.sigma, batch.cond)


def test_misfit_and_slope_have_their_closed_form() -> None:
    implicit, rewards = torch.tensor([0.5, -0.5]), torch.tensor([0.25, -0.25])
    losses, slopes = crd_loss(implicit, rewards, beta=2.0, scale=5.0)
    # misfits are 1 - 1/4 and its negative
    assert_close(losses, torch.full((2,), 5 / 2 * 0.5625))
    assert_close(slopes, torch.tensor([7.5, -7.5]))


@pytest.mark.parametrize("baseline", ["old", "reference"])
@pytest.mark.parametrize("weight_errors", [True, False])
def test_the_gradient_is_that_of_centred_reward_matching(baseline: str, weight_errors: bool) -> None:
    rewards = torch.tensor([0.1, 0.9, 0.5, 0.4, 0.0, 0.2, float("nan"), 1.0])
    settings = {"baseline": baseline, "weight_errors": weight_errors, "beta": 0.5, "kl_coef": 0.0}
    objective, batch = planned(rewards, advantage_clip=1.5, **settings)
    policy, old, reference = (LinearField(seed=seed) for seed in (1, 2, 3))
    metrics = objective.backward(batch, policies(policy, old, reference), scale=2.0)
    target, base = batch.noise - batch.latents, {"old": old, "reference": reference}[baseline]

    def error(field: LinearField) -> torch.Tensor:
        difference = velocity(field, batch) - target
        weight = difference.detach().abs().mean(1).clamp(min=1e-5) if weight_errors else 1.0
        return difference.square().mean(1) / weight

    implicit = -(error(policy) - error(base).detach())
    scaled = (batch.advantages / 1.5).clamp(-1, 1) / 2 + 0.5
    losses = []
    for number in (0, 1):
        mine = batch.group == number
        # with gradient through the mean, which the published form centres by
        misfit = 0.5 * (implicit[mine] - implicit[mine].mean()) - (scaled[mine] - scaled[mine].mean())
        losses.append(1.5 / 0.5 * misfit.square())
    loss = torch.cat(losses).mean()
    expected = torch.autograd.grad(2.0 * loss, list(policy.parameters()))
    assert_close(gradient(policy), torch.cat([one.flatten() for one in expected]), atol=1e-5, rtol=1e-4)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_a_step_from_the_old_policy_fits_the_rewards_better() -> None:
    objective, batch = planned(torch.linspace(0, 1, 8), kl_coef=0.0)
    policy, old = LinearField(), LinearField()
    before = objective.backward(batch, policies(policy, old), scale=1.0)
    target = batch.noise - batch.latents
    errors = [(velocity(policy, batch) - target).square().mean(1).detach()]
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter -= 1e-3 * parameter.grad
    errors.append((velocity(policy, batch) - target).square().mean(1).detach())
    after = objective.backward(batch, policies(policy, old), scale=1.0)
    assert before["implicit_spread"] == pytest.approx(0, abs=1e-6)
    assert after["loss"] < before["loss"]
    gain = (errors[0] - errors[1]).view(2, 4)
    assert bool((gain[:, -1] > gain[:, 0]).all())  # the best sample's error falls against the worst one's


def test_equal_rewards_leave_the_old_policy_as_it_is() -> None:
    objective, batch = planned(torch.full((8,), 0.5), kl_coef=0.0)
    policy = LinearField()
    objective.backward(batch, policies(policy, LinearField()), scale=1.0)
    assert gradient(policy).abs().max() < 1e-6


def test_a_group_of_one_teaches_nothing() -> None:
    nan = float("nan")
    objective, batch = planned(torch.tensor([0.1, nan, nan, nan, nan, nan, nan, nan]), kl_coef=0.0)
    policy = LinearField(seed=1)
    assert len(batch) == 1
    objective.backward(batch, policies(policy, LinearField(seed=2)), scale=1.0)
    assert gradient(policy).abs().max() == 0


@pytest.mark.parametrize(("adaptive", "weights"), [(True, (1e-4, 0.25 + 0.5e-4, 0.5)), (False, (0.5, 0.5, 0.5))])
def test_the_penalty_rises_with_the_reward(adaptive: bool, weights: tuple[float, float, float]) -> None:
    gradients = []
    for kl_coef in (0.0, 0.5):
        objective, batch = planned(torch.linspace(0, 1, 8), kl_coef=kl_coef, adaptive_kl=adaptive, advantage_clip=1.0)
        batch.advantages.copy_(torch.tensor([-2.0, 0.0, 1.0, 3.0] * 2))
        policy, old, reference = (LinearField(seed=seed) for seed in (1, 2, 3))
        objective.backward(batch, policies(policy, old, reference), scale=1.0)
        gradients.append(gradient(policy))
    gap = (velocity(policy, batch) - velocity(reference, batch).detach()).square().mean(1)
    low, middle, high = weights
    penalty = (torch.tensor([low, middle, high, high] * 2) * gap).mean()
    expected = torch.autograd.grad(penalty, list(policy.parameters()))
    assert_close(gradients[1] - gradients[0], torch.cat([one.flatten() for one in expected]), atol=1e-5, rtol=1e-4)


def test_a_penalty_below_the_least_one_is_that_of_all_samples() -> None:
    objective, batch = planned(torch.linspace(0, 1, 8), kl_coef=1e-5)
    assert_close(objective._kl_coef(batch), torch.full((8,), 1e-5))


def test_samples_of_a_prompt_share_their_sigma_and_not_their_noise() -> None:
    _, batch = planned(torch.linspace(0, 1, 8))
    assert torch.equal(batch.sigma[:4], batch.sigma[:1].expand(4)) and batch.sigma[0] != batch.sigma[4]
    assert len(batch.noise.flatten().unique()) == batch.noise.numel()


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_policies_that_are_not_asked_for_are_not_run(kl_coef: float) -> None:
    objective, batch = planned(torch.linspace(0, 1, 8), kl_coef=kl_coef, baseline="reference")
    who = policies(LinearField(seed=1), LinearField(seed=2), LinearField(seed=3))

    def never(*_given):
        raise AssertionError("the old policy has no part in this loss")

    objective.backward(batch, type(who)(**{**vars(who), "old": never}), scale=1.0)
    free, batch = planned(torch.linspace(0, 1, 8), kl_coef=0.0)
    free.backward(batch, type(who)(**{**vars(who), "reference": never}), scale=1.0)


@pytest.mark.parametrize(
    "setting",
    [
        {"beta": 0.0},
        {"advantage_clip": -1.0},
        {"kl_coef": -0.1},
        {"num_updates": 0},
        {"sigma_range": (0.5, 1.5)},
        {"sigma_shift": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(setting: dict) -> None:
    with pytest.raises(ValueError, match=f"objective.{next(iter(setting))}"):
        CRDConfig(**setting)
