"""Random sampling steps: their marginals, probabilities and gradients."""

import math
from itertools import pairwise

import pytest
import torch

from generator_loop.flow.sde import Kernel, RandomSteps, step_weights
from generator_loop.records import Draw, Prompt
from generator_loop.sampling.rollout import PromptEncoder, rollout
from tests.tiny_wan import build_generator, randomise_lora

FLOW, DANCE, CPS = Kernel("flow", 0.7), Kernel("dance", 0.3), Kernel("cps", 0.7)


def schedule(num_steps, shift):
    level = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    return shift * level / (1 + (shift - 1) * level)


def exact_velocity(x, t, mean=1.5, std=0.5):
    """Return E[eps - x_0 | x_t] where x_0 ~ N(mean, std^2)."""
    variance = (1 - t) ** 2 * std**2 + t**2
    centred = x - (1 - t) * mean
    clean = mean + (1 - t) * std**2 / variance * centred
    noise = t / variance * centred
    return noise - clean


def terminal(kernel, num_steps, num=200_000):
    """Return mean and deviation of samples that walk with the exact velocity, the last step without noise."""
    stream = torch.Generator().manual_seed(0)
    sigmas = schedule(num_steps, 3.0).tolist()
    x = torch.randn(num, generator=stream)
    for place, (t, after) in enumerate(pairwise(sigmas)):
        velocity = exact_velocity(x, t)
        if kernel is None or place == num_steps - 1:
            x = x + (after - t) * velocity
            continue
        step = kernel.transition(x[:, None], velocity[:, None], t, after, ceiling=sigmas[1])
        x = (step.mean + step.std * torch.randn(num, 1, generator=stream))[:, 0]
    return float(x.mean()), float(x.std())


@pytest.mark.parametrize(("kernel", "std"), [(None, 0.5), (FLOW, 0.5), (DANCE, 0.5)])
def test_flow_and_dance_keep_the_marginal(kernel, std):
    mean, found = terminal(kernel, 400, num=50_000)
    assert mean == pytest.approx(1.5, abs=0.02) and found == pytest.approx(std, abs=0.012)


def test_cps_keeps_the_coefficients_and_not_the_marginal():
    assert terminal(CPS, 400, num=50_000)[1] < 0.45


@pytest.mark.parametrize(
    ("num_steps", "shift", "first", "last"),
    [
        (10, 3, [0.051, 0.069, 0.113, None, 0.219], 0.87),
        (20, 5, [0.015, 0.019, 0.029, None, 0.049], 0.92),
        (20, 8, [0.009, 0.012, 0.019, None, 0.031], 0.79),
        (50, 8, [0.004, 0.005, 0.007, None, 0.010], 1.02),
    ],
)
def test_gradient_coefficients_have_the_published_spread(num_steps, shift, first, last):
    """The table holds steps 0, 1, 2 and 4 and the last one that leaves noise."""
    sigmas = schedule(num_steps, shift).tolist()
    pairs = list(pairwise(sigmas))
    found = [FLOW.coefficient(t, after, ceiling=sigmas[1]) for t, after in pairs]
    closed = [(1 / 0.7 + 0.35) * math.sqrt((t - after) * (1 - t) / t) for t, after in pairs]
    assert found[1:] == pytest.approx(closed[1:])
    for value, expected in zip(found, first, strict=False):
        assert expected is None or value == pytest.approx(expected, abs=0.0016)
    assert found[-2] == pytest.approx(last, abs=0.01)


@pytest.mark.parametrize("kernel", [FLOW, DANCE, CPS])
@pytest.mark.parametrize(("t", "after"), [(1.0, 0.9), (0.8, 0.6), (0.3, 0.1)])
def test_the_coefficient_is_the_derivative_of_the_log_probability(kernel, t, after):
    stream = torch.Generator().manual_seed(0)
    x, noise = torch.randn(1, 6, generator=stream), torch.randn(1, 6, generator=stream)
    velocity = torch.randn(1, 6, generator=stream, requires_grad=True)
    step = kernel.transition(x, velocity, t, after, ceiling=0.9)
    result = (step.mean + step.std * noise).detach()
    (gradient,) = torch.autograd.grad(kernel.log_prob(step, result).sum() * 6, velocity)
    coefficient = kernel.coefficient(t, after, ceiling=0.9)
    torch.testing.assert_close(gradient.abs(), coefficient * noise.abs(), rtol=1e-3, atol=1e-5)


def test_the_first_steps_noise_has_deviation_a():
    assert FLOW.transition(torch.zeros(1, 2), torch.zeros(1, 2), 1.0, 0.9, ceiling=0.9).std == pytest.approx(0.7)


def test_weights_make_all_steps_pull_alike():
    sigmas = schedule(10, 5.0)
    weights, levels = step_weights(FLOW, sigmas), sigmas.tolist()
    pull = [
        weight * FLOW.coefficient(levels[place], levels[place + 1], ceiling=levels[1])
        for place, weight in enumerate(weights)
    ]
    assert len(weights) == 9 and sum(weights) == pytest.approx(9) and max(pull) == pytest.approx(min(pull))


@pytest.mark.parametrize(("window", "size"), [(4, 4), (0, 9), (99, 9)])
def test_windows_lie_anywhere_but_on_the_last_step(window, size):
    steps = RandomSteps(FLOW, window)
    chosen = {steps.choose(10, torch.Generator().manual_seed(seed)) for seed in range(60)}
    assert all(len(one) == size and one.stop <= 9 for one in chosen)
    assert len(chosen) == 10 - size
    with pytest.raises(ValueError, match="at least 2 sampling steps"):
        steps.choose(1, torch.Generator())


@pytest.fixture
def generator():
    found = build_generator()
    randomise_lora(found)
    return found


PROMPTS = (Prompt(0, "a red ball"), Prompt(1, "a blue square"))


def sample(generator, prompts=PROMPTS, step=0, **changes):
    settings = dict(encoder=PromptEncoder(generator), group_size=2, num_steps=5, batch_size=3)
    return rollout(generator, prompts, **{**settings, **changes}, draw=Draw(0, step), random_steps=RandomSteps(FLOW, 2))


def test_a_walk_holds_what_was_drawn(generator):
    found = sample(generator)
    walk, levels = found.trajectory, generator.sigmas(5).tolist()
    assert len(walk.steps) == 2 and walk.states.shape[:2] == walk.results.shape[:2] == walk.log_probs.shape == (2, 4)
    assert torch.equal(walk.results[0], walk.states[1])
    with torch.no_grad():
        for place, number in enumerate(walk.steps):
            sigma = torch.full((4,), levels[number])
            velocity = generator.predict(walk.states[place], sigma, found.cond)
            step = FLOW.transition(
                velocity=velocity,
                latents=walk.states[place],
                sigma=levels[number],
                sigma_next=levels[number + 1],
                ceiling=levels[1],
            )
            torch.testing.assert_close(
                FLOW.log_prob(step, walk.results[place]), walk.log_probs[place], atol=1e-5, rtol=0
            )
            noise = (walk.results[place] - step.mean) / step.std
            assert 0.8 < float(noise.std()) < 1.2


def test_a_prompts_walk_does_not_depend_on_its_company(generator):
    together, alone = sample(generator), sample(generator, prompts=(Prompt(1, "a blue square"),))
    assert together.trajectory.steps == alone.trajectory.steps
    torch.testing.assert_close(together.trajectory.results[:, 2:], alone.trajectory.results, atol=1e-4, rtol=0)
    assert not torch.allclose(sample(generator, step=1).trajectory.results, together.trajectory.results, atol=1e-2)
