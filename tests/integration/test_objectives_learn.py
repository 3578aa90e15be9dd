"""Every objective, through rollout, advantages and optimiser step, on a flow in the plane that fits its data.

The data are two clouds at x = -1 and x = +1, the reward is x: what should happen is that samples move to the right one.
"""

import copy
from contextlib import contextmanager

import pytest
import torch

from generator_loop.adapters.base import OLD, POLICY, REFERENCE
from generator_loop.flow.path import noised
from generator_loop.objectives import OBJECTIVES
from generator_loop.optim.step import Updater, policies_of
from generator_loop.records import Conditioning, Draw, Prompt
from generator_loop.rewards.advantages import group_advantages
from generator_loop.sampling.rollout import PromptEncoder, rollout
from tests.toy_flow import toy_scores

PROMPTS = tuple(Prompt(index, str(index)) for index in range(8))
SETTINGS = {
    "nft": ({}, 3e-3),
    "dpo": ({"beta_mean": 20.0, "anchor": 10.0}, 1e-3),
    "draft": ({}, 3e-3),
    "refl": ({}, 3e-3),
    "flow_grpo": ({"clip_range": 0.2}, 3e-3),
    "rwr": ({"num_updates": 4}, 3e-3),
    "awm": ({"num_updates": 4}, 3e-3),
    "crd": ({"num_updates": 4}, 3e-3),
    "dgpo": ({}, 3e-3),
}


def clouds(num, generator):
    side = torch.randint(2, (num, 1), generator=generator) * 2.0 - 1
    return torch.cat([side, torch.zeros(num, 1)], 1) + 0.2 * torch.randn(num, 2, generator=generator)


class PlaneGenerator:
    """A small network as a generator whose latents and frames are points of the plane."""

    device = torch.device("cpu")

    def __init__(self):
        """Fit the clouds by flow matching."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = [torch.nn.Linear(3, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU()]
            self.network = torch.nn.Sequential(*layers, torch.nn.Linear(64, 2))
        stream, optimizer = torch.Generator().manual_seed(0), torch.optim.Adam(self.network.parameters(), lr=3e-3)
        for _ in range(400):
            noise, sigma = torch.randn(256, 2, generator=stream), torch.rand(256, generator=stream)
            noisy, target = noised(clouds(256, stream), noise, sigma)
            optimizer.zero_grad()
            (self.predict(noisy, sigma, None) - target).square().mean().backward()
            optimizer.step()
        self.named = {POLICY: self.network, **{name: copy.deepcopy(self.network) for name in (OLD, REFERENCE)}}

    def predict(self, latents, sigma, _cond):
        return self.network(torch.cat([latents, sigma[:, None]], 1))

    def encode_prompts(self, texts):
        return Conditioning({"none": torch.zeros(len(texts), 1)})

    def init_latents(self, generators):
        return torch.stack([torch.randn(2, generator=generator) for generator in generators])

    def sigmas(self, num_steps):
        return torch.linspace(1, 0, num_steps + 1)

    def decode(self, latents):
        return latents

    @contextmanager
    def use(self, name):
        former, self.network = self.network, self.named[name]
        with torch.set_grad_enabled(torch.is_grad_enabled() and name == POLICY):
            yield
        self.network = former

    def set_old(self):
        self.named[OLD].load_state_dict(self.named[POLICY].state_dict())


@pytest.fixture(scope="module")
def fitted():
    return PlaneGenerator()


def train(generator, name, *, transform=lambda rewards: rewards, num_rounds=5):
    """Train on a copy; return the mean reward of fresh samples before and after."""
    generator = copy.deepcopy(generator)
    settings, lr = SETTINGS[name]
    objective = OBJECTIVES[name](OBJECTIVES[name].config_class(**settings))
    updater = Updater(dict(generator.network.named_parameters()), lr=lr)
    who = policies_of(generator, lambda frames, _prompts: frames[:, 0])
    sampling = dict(encoder=PromptEncoder(generator), group_size=8, num_steps=8, batch_size=64)

    def evaluate():
        return rollout(generator, PROMPTS, **sampling, draw=Draw(99, 0)).frames[:, 0].mean().item()

    before = evaluate()
    for step in range(num_rounds):
        generator.set_old()
        draw = Draw(0, step)
        kept = {"tail_span": objective.tail_span, "random_steps": objective.random_steps}
        samples = rollout(generator, PROMPTS, **sampling, draw=draw, policy=OLD, **kept)
        rewards = transform(samples.frames[:, 0])
        advantages = group_advantages(rewards, group_size=8)
        for batches in objective.plan(samples, toy_scores(rewards), advantages, draw=draw, micro_batch_size=32):
            updater.step(objective, batches, who)
    return before, evaluate()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_on_the_reward_raises_it(fitted, name):
    before, after = train(fitted, name)
    assert abs(before) < 0.3
    assert after > before + 0.3


@pytest.mark.parametrize("name", ["nft", "dpo", "flow_grpo", "awm", "crd", "dgpo"])
def test_training_on_the_reversed_reward_lowers_it(fitted, name):
    before, after = train(fitted, name, transform=lambda rewards: -rewards)
    assert after < before - 0.3


@pytest.mark.parametrize("name", ["nft", "dpo", "flow_grpo", "awm", "crd", "dgpo"])
def test_training_on_shuffled_rewards_does_little(fitted, name):
    stream = torch.Generator().manual_seed(0)
    before, after = train(fitted, name, transform=lambda rewards: rewards[torch.randperm(64, generator=stream)])
    assert abs(after - before) < 0.3
