"""Probes: how far the policy has moved from the initial one, and how well it still fits clean clips, without a copy of weights."""

from __future__ import annotations

import pytest
import torch

from generator_loop.adapters.base import OLD, POLICY, REFERENCE, predict_with
from generator_loop.evaluation.probes import Probes
from generator_loop.records import Draw, Prompt
from generator_loop.sampling.rollout import PromptEncoder, rollout
from tests.tiny_wan import build_generator, randomise_lora

PROMPTS = (Prompt(3, "a red ball"), Prompt(5, "a blue square"))


@pytest.mark.parametrize("train", ["lora", "full"])
def test_the_difference_is_that_to_the_first_policy_wherever_the_others_go(train: str) -> None:
    generator = build_generator(train=train)
    encoder = PromptEncoder(generator)
    sampled = rollout(generator, PROMPTS, encoder=encoder, draw=Draw(0, 0), group_size=1, num_steps=2, batch_size=2)
    probes = Probes(generator, sampled, clean=None, encoder=encoder, draw=Draw(1, 0))
    assert probes.measure() == {"kl": 0.0}
    latents, sigma, cond, _ = probes._own
    with torch.no_grad():
        before = predict_with(generator, POLICY)(latents, sigma, cond)
    randomise_lora(generator, std=0.1)
    for name in (OLD, REFERENCE):
        generator.set_weights(name, generator.weights(POLICY))
    with torch.no_grad():
        after = predict_with(generator, POLICY)(latents, sigma, cond)
    expected = float((after - before).square().mean())
    assert expected > 1e-6 and probes.measure()["kl"] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match=r"there are \['old', 'policy', 'reference'\]"):
        generator.weights("initial")


def test_the_flow_loss_is_the_velocity_error_on_clean_clips() -> None:
    generator = build_generator()
    encoder = PromptEncoder(generator)
    sampled = rollout(generator, PROMPTS, encoder=encoder, draw=Draw(0, 0), group_size=1, num_steps=2, batch_size=2)
    frames = torch.rand(2, 5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    probes = Probes(generator, sampled, clean=(frames, PROMPTS), encoder=encoder, draw=Draw(1, 0))
    latents, sigma, cond, target = probes._clean
    assert sigma.tolist() == pytest.approx([0.1, 0.9])
    with torch.no_grad():
        error = (generator.predict(latents, sigma, cond) - target).square().mean()
    assert probes.measure()["flow_loss"] == pytest.approx(float(error), rel=1e-5)
