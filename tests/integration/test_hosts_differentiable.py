"""The judge's gradient through a host's loss, a VAE and a transformer of a tiny diffusers pipeline lowers that loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial

import pytest
import torch

from reward_model.hosts.core import load_judge
from reward_model.hosts.vader import reward_loss
from reward_model.hosts.videox_fun import JudgeFrames
from tests.tiny_wan import build_wan

pytestmark = pytest.mark.slow

PROMPTS = ["a red ball moves left", "a blue square moves right"]
FPS = 8.0
SIGMA = 0.8
NUM_STEPS = 12


class LastStep:
    """The last denoising step of a Wan pipeline and its decoder, with LoRA on the transformer."""

    def __init__(self):
        from peft import LoraConfig

        self.pipeline = build_wan()
        for module in (self.pipeline.text_encoder, self.pipeline.vae, self.pipeline.transformer):
            module.requires_grad_(False)
        torch.manual_seed(0)
        self.pipeline.transformer.add_adapter(
            LoraConfig(r=4, lora_alpha=8, target_modules=["to_v", "to_out.0", "proj_out"])
        )
        self.lora = [p for p in self.pipeline.transformer.parameters() if p.requires_grad]
        self.text, _ = self.pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False, max_sequence_length=8)
        self.noise = torch.randn(2, 4, 2, 4, 4, generator=torch.Generator().manual_seed(1))

    def decode(self):
        """Return frames [B, C, T, H, W] in [-1, 1], as the decoder gives them."""
        times = torch.full((2,), 1000 * SIGMA)
        velocity = self.pipeline.transformer(self.noise, times, self.text, return_dict=False)[0]
        config = self.pipeline.vae.config
        mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
        return self.pipeline.vae.decode((self.noise - SIGMA * velocity) * std + mean, return_dict=False)[0]


@pytest.fixture
def judge(monkeypatch):
    """Return the embedded judge without the rounding of pixels to 8 bits.

    The rounding makes a staircase of the loss: its slope is no finite difference, and where a training run goes depends
    on the last bit of the arithmetic.
    """
    judge = load_judge("toy", device="cpu")
    exact = partial(judge.judge.next_token_logits, quantise=False)
    monkeypatch.setattr(judge.judge, "next_token_logits", exact)
    return judge


def check_slope(generator, loss_of):
    """Compare the gradient with a central difference along itself, over a step that moves the loss by 1e-4 or more."""
    loss, _ = loss_of(generator.decode())
    gradients = torch.autograd.grad(loss, generator.lora)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    start, step, values = [p.detach().clone() for p in generator.lora], 3e-3, []
    with torch.no_grad():
        for signed in (step, -step):
            for parameter, value, gradient in zip(generator.lora, start, gradients, strict=True):
                parameter.copy_(value + signed * gradient / norm)
            values.append(loss_of(generator.decode())[0].item())
        for parameter, value in zip(generator.lora, start, strict=True):
            parameter.copy_(value)
    # both losses are off by a few units of 6e-8, their difference by less than 1 %; the curvature adds 0.1 %
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(norm, rel=0.02)


def train(generator, loss_of):
    """Return how far the loss has fallen and the reward has risen at the best of the last three steps."""
    optimizer, losses, rewards = torch.optim.AdamW(generator.lora, lr=2e-2), [], []
    for _ in range(NUM_STEPS):
        loss, reward = loss_of(generator.decode())
        assert loss.ndim == reward.ndim == 0 and not reward.requires_grad
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        rewards.append(reward.item())
    return losses[0] - min(losses[-3:]), max(rewards[-3:]) - rewards[0]


# Each run is to go a quarter of its way. Without rounding, the way is the same to 1 % whichever kernels compute it.


def test_a_loss_as_vader_uses_it_falls(judge):
    loss_fn = reward_loss(judge, fps=FPS, device="cpu")
    loss_of, generator = (lambda frames: loss_fn(frames.permute(0, 2, 1, 3, 4), PROMPTS)), LastStep()
    check_slope(generator, loss_of)
    fallen, risen = train(generator, loss_of)
    assert fallen > 0.011 and risen == pytest.approx(fallen, abs=1e-6)  # overall quality, from 0.065 to 0.108


class HostReward(ABC):
    """The host's base class."""

    @abstractmethod
    def __call__(self, batch_frames, batch_prompt=None): ...

    @abstractmethod
    def get_reward(self, batch_frames, batch_prompt=None): ...


class BackpropJudge(JudgeFrames, HostReward):
    """The class that a user writes into the host's module."""


def test_a_loss_as_videox_fun_uses_it_falls(judge):
    loss_fn = BackpropJudge(
        judge,
        FPS,
        device="cpu",
        dtype=torch.float32,
        max_reward=1.0,
        weights={"visual_quality": 1.0},
        validation_frames=5,
    )
    loss_of, generator = (lambda frames: loss_fn((frames.clamp(-1, 1) / 2 + 0.5).clamp(0, 1), PROMPTS)), LastStep()
    check_slope(generator, loss_of)
    fallen, risen = train(generator, loss_of)
    assert fallen > 0.045 and risen == pytest.approx(fallen, abs=1e-6)  # visual quality, from 0.56 to 0.75
