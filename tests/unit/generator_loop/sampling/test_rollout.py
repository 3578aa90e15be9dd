"""Rollouts: what keys their noise, what they keep, and that batches do not matter."""

import pytest
import torch
from torch.testing import assert_close

from generator_loop.adapters.base import OLD, POLICY
from generator_loop.records import Draw, Prompt
from generator_loop.sampling.rollout import PromptEncoder, rollout, tail_length
from tests.tiny_wan import build_generator, randomise_lora

BALL, SQUARE = Prompt(4, "a red ball moves left"), Prompt(9, "a blue square")


@pytest.fixture(scope="module")
def generator():
    generator = build_generator()
    randomise_lora(generator)
    return generator


def sample(generator, prompts=(BALL, SQUARE), **settings):
    defaults = dict(draw=Draw(seed=0, step=2), group_size=3, num_steps=4, batch_size=6)
    return rollout(generator, prompts, encoder=PromptEncoder(generator), **{**defaults, **settings})


def test_a_rollout_holds_groups_of_each_prompt_in_order(generator):
    found = sample(generator)
    assert found.latents.shape == found.noise.shape == (6, 4, 2, 4, 4)
    assert found.frames.shape == (6, 5, 3, 16, 16) and found.frames.device.type == "cpu"
    expected = generator.encode_prompts([BALL.text]).tensors["positive"]
    assert torch.equal(found.cond.tensors["positive"][:3], expected.expand(3, -1, -1))
    assert found.tail is None and not found.latents.requires_grad


@pytest.mark.parametrize("batch_size", [1, 4])
def test_batches_of_another_size_give_the_same_samples(generator, batch_size):
    whole, parts = sample(generator), sample(generator, batch_size=batch_size)
    assert torch.equal(whole.noise, parts.noise)
    assert_close(whole.latents, parts.latents, atol=1e-5, rtol=0)
    assert_close(whole.frames, parts.frames, atol=1e-5, rtol=0)


def test_a_prompts_samples_do_not_depend_on_its_companions(generator):
    both, alone = sample(generator), sample(generator, prompts=(SQUARE,))
    assert torch.equal(both.noise[3:], alone.noise)
    assert_close(both.latents[3:], alone.latents, atol=1e-5, rtol=0)


def test_samples_differ_within_a_group_and_between_rounds(generator):
    rows = torch.cat([sample(generator).noise, sample(generator, draw=Draw(seed=0, step=3)).noise])
    assert len(rows.flatten(1).unique(dim=0)) == 12


def test_the_named_weights_sample(generator):
    old, policy = sample(generator, policy=OLD), sample(generator, policy=POLICY)
    assert_close(old.latents, sample(build_generator()).latents, atol=1e-5, rtol=0)
    assert not torch.allclose(old.latents, policy.latents, atol=1e-3)


def test_the_kept_tail_leads_to_the_clean_latents(generator):
    found = sample(generator, tail_span=0.7)
    sigmas = generator.sigmas(4)
    num_kept = tail_length(sigmas, 0.7)
    assert 1 < num_kept < 4 and len(found.tail.states) == num_kept
    assert torch.equal(found.tail.sigmas, sigmas[-1 - num_kept :])
    x = found.tail.states[0]
    with torch.no_grad():
        for step in range(num_kept):
            assert torch.equal(x, found.tail.states[step])
            sigma, after = found.tail.sigmas[step : step + 2]
            x = x + (after - sigma) * generator.predict(x, sigma.expand(6), found.cond)
    assert torch.equal(x, found.latents)


@pytest.mark.parametrize(
    ("span", "expected"), [(0.0, 0), (0.005, 1), (0.01, 2), (0.5, 2), (0.6, 2), (0.61, 3), (0.9, 4), (1.0, 4)]
)
def test_the_tail_is_the_smallest_that_covers_the_span(span, expected):
    assert tail_length(torch.tensor([1.0, 0.858, 0.6, 0.0089, 0.0]), span) == expected


def test_a_schedule_that_starts_below_the_span_is_kept_whole():
    assert tail_length(torch.tensor([0.9, 0.3, 0.0]), 1.0) == 2


def test_repeated_prompts_are_refused(generator):
    with pytest.raises(ValueError, match="repeats would draw the same samples"):
        sample(generator, prompts=(BALL, BALL))


def test_each_prompt_is_encoded_once_and_alike_in_any_company(generator):
    class CountingEncoder:
        device, texts = generator.device, []

        def encode_prompts(self, texts):
            self.texts.extend(texts)
            return generator.encode_prompts(texts)

    encoder = PromptEncoder(CountingEncoder(), max_prompts=2)
    both = encoder([BALL, SQUARE, BALL]).tensors["positive"]
    assert CountingEncoder.texts == [BALL.text, SQUARE.text]
    assert torch.equal(both[0], both[2]) and torch.equal(both[:1], PromptEncoder(generator)([BALL]).tensors["positive"])


def test_the_longest_unused_embedding_leaves_first(generator):
    seen = []

    class SeenTexts:
        device = generator.device

        def encode_prompts(self, texts):
            seen.extend(texts)
            return generator.encode_prompts(texts)

    encoder, other = PromptEncoder(SeenTexts(), max_prompts=2), Prompt(1, "a ball")
    for prompt in (BALL, SQUARE, BALL, other, BALL, SQUARE):
        encoder([prompt])
    assert seen == [BALL.text, SQUARE.text, other.text, SQUARE.text]
