"""Readouts against numbers worked out by hand."""

import math

import torch

from reward_model.judge.engine.readouts import read_levels, read_preference

LEVEL_IDS = (5, 1, 2, 3, 0)


def test_level_readout_is_the_expectation_over_the_renormalised_words():
    probs = torch.tensor([[0.1, 0.05, 0.15, 0.2, 0.3, 0.2]])  # id 4 is no level
    read = read_levels(probs.log(), LEVEL_IDS)
    levels = [0.2 / 0.7, 0.05 / 0.7, 0.15 / 0.7, 0.2 / 0.7, 0.1 / 0.7]
    quality = sum(p * k / 4 for k, p in enumerate(levels))
    spread = math.sqrt(sum(p * (k / 4 - quality) ** 2 for k, p in enumerate(levels)))
    torch.testing.assert_close(read.level_probs, torch.tensor([levels]))
    torch.testing.assert_close(read.quality, torch.tensor([quality]))
    torch.testing.assert_close(read.std, torch.tensor([spread]))
    torch.testing.assert_close(read.mass, torch.tensor([0.7]))


def test_level_readout_has_a_finite_gradient_also_where_one_level_has_all_mass():
    logits = torch.full((1, 6), -200.0)
    logits[0, 0] = 200.0
    logits.requires_grad_()
    read = read_levels(logits, LEVEL_IDS)
    (read.quality + read.std + read.mass).sum().backward()
    assert read.quality.item() == 1.0
    assert torch.isfinite(logits.grad).all()


def test_preference_readout_renormalises_the_three_answers():
    probs = torch.tensor([[0.3, 0.1, 0.1, 0.5], [0.0625, 0.5, 0.4375, 1e-9]])
    p_first, p_tie, mass = read_preference(probs.log(), (0, 1, 2))
    torch.testing.assert_close(p_first, torch.tensor([0.6, 0.0625]))
    torch.testing.assert_close(p_tie, torch.tensor([0.2, 0.4375]))
    torch.testing.assert_close(mass, torch.tensor([0.5, 1.0]))
