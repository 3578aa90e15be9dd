"""The judge's gradient through a host's loss, a VAE and a transformer of a tiny diffusers pipeline lowers that loss."""

from __future__ import annotations

from abc import ABC, abstractmethod

import pytest
import torch

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


def test_a_loss_as_vader_uses_it_falls():
    loss_fn = reward_loss("toy", fps=FPS, device="cpu")
    fallen, risen = train(LastStep(), lambda frames: loss_fn(frames.permute(0, 2, 1, 3, 4), PROMPTS))
    assert fallen > 0.025 and risen == pytest.approx(fallen, abs=1e-6)  # overall quality, from 0.065 to 0.106


class HostReward(ABC):
    """The host's base class."""

    @abstractmethod
    def __call__(self, batch_frames, batch_prompt=None): ...

    @abstractmethod
    def get_reward(self, batch_frames, batch_prompt=None): ...


class BackpropJudge(JudgeFrames, HostReward):
    """The class that a user writes into the host's module."""


def test_a_loss_as_videox_fun_uses_it_falls():
    loss_fn = BackpropJudge(
        "toy", FPS, device="cpu", dtype=torch.float32, max_reward=1.0, weights={"visual_quality": 1.0}
    )
    generator = LastStep()
    fallen, risen = train(generator, lambda frames: loss_fn((frames.clamp(-1, 1) / 2 + 0.5).clamp(0, 1), PROMPTS))
    assert fallen > 0.1 and risen == pytest.approx(fallen, abs=1e-6)  # visual quality, from 0.56 to 0.75
