"""Losses beside the objective: on real clips, and towards the reference with a coefficient that adapts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from generator_loop.flow.path import keyed_noise, logit_normal_sigmas, mean_square, noised
from generator_loop.objectives.nft import NFT, NFTConfig
from generator_loop.optim.adaptive_kl import AdaptiveKL, held_samples
from generator_loop.optim.data_loss import DataLoss, FileClips
from generator_loop.optim.step import Updater
from generator_loop.real_clips import RealClips
from generator_loop.records import Conditioning, Draw, Prompt, Scored
from generator_loop.rewards.advantages import group_advantages
from reward_model import write_video
from tests.toy_flow import LinearField, policies, toy_rollout, toy_scores

DRAW = Draw(seed=5, step=2)
PROMPTS = tuple(Prompt(number, f"p{number}") for number in range(4))


def text(prompts: Sequence[Prompt]) -> Conditioning:
    """Return conditioning of three numbers a prompt."""
    return Conditioning({"text": torch.stack([torch.full((3,), float(prompt.prompt_id)) for prompt in prompts])})


ALL = slice(None)


def clips(num: int, draw: Draw, share: slice = ALL) -> tuple[Sequence[Prompt], Tensor]:
    """Return the first prompts with fixed latents."""
    return PROMPTS[:num][share], torch.arange(3.0 * num).view(num, 3)[share] / 10


def beside(regulariser: Any, who: Any, *, scale: float) -> dict[str, float]:
    """Add a regulariser's gradient of one optimiser step, and return its metrics."""
    (batch,) = regulariser.batches(DRAW)
    return dict(regulariser.backward(batch, who, scale=scale))


def gradient(field: LinearField) -> Tensor:
    """Return the gradients end to end."""
    return torch.cat([p.grad.flatten() for p in field.parameters() if p.grad is not None])


def test_the_data_loss_is_the_weighted_flow_loss_on_real_clips() -> None:
    field, naive = LinearField(), LinearField()
    loss = DataLoss(clips, text, weight=0.5, batch_size=4)
    metrics = beside(loss, policies(field), scale=3.0)
    prompts, latents = clips(4, DRAW)
    draw, keys = DRAW.fork("data"), [(prompt.prompt_id, 0) for prompt in prompts]
    sigma = logit_normal_sigmas(draw, keys)
    noisy, target = noised(latents, keyed_noise(draw, keys, latents), sigma)
    expected = mean_square(naive(noisy, sigma, text(prompts)) - target).mean()
    (3.0 * 0.5 * expected).backward()
    torch.testing.assert_close(gradient(field), gradient(naive))
    assert metrics == {"data_loss": pytest.approx(float(expected))}
    assert loss.state() == {}


def test_the_data_loss_shares_clips_among_processes_and_goes_without_where_there_are_none() -> None:
    asked: list[int] = []

    def noted(num: int, draw: Draw, share: slice) -> tuple[Sequence[Prompt], Tensor]:
        asked.append(len(range(num)[share]))
        return (), torch.zeros(0)

    for rank in range(5):
        loss = DataLoss(noted, text, weight=1.0, batch_size=4, rank=rank, num_ranks=5 if rank > 2 else 3)
        assert list(loss.batches(DRAW)) == []
    assert asked == [2, 1, 1, 1]


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_several_processes_learn_the_clips_and_noises_of_one(tmp_path: Path, num_ranks: int) -> None:
    (tmp_path / "c.csv").write_text("video,prompt\n" + "".join(f"{n}.mp4,{n}\n" for n in range(50)))
    generator: Any = SimpleNamespace(num_frames=5, size=(16, 16), fps=8.0)
    listed = FileClips(RealClips(tmp_path / "c.csv"), generator)
    listed._latents = lambda prompt, path: torch.full((1,), float(prompt.text))  # type: ignore[method-assign]

    def batch(rank: int, num: int) -> Any:
        (one,) = DataLoss(listed, text, weight=1.0, batch_size=8, rank=rank, num_ranks=num).batches(DRAW)
        return one

    whole, shares = batch(0, 1), [batch(rank, num_ranks) for rank in range(num_ranks)]
    for name in ("latents", "noise", "sigma"):
        joined = torch.stack([getattr(share, name) for share in shares], 1).flatten(0, 1)
        torch.testing.assert_close(joined, getattr(whole, name), rtol=0, atol=0)


def test_training_on_the_data_loss_fits_the_clips() -> None:
    field = LinearField()
    optimizer = torch.optim.Adam(field.parameters(), lr=0.05)
    loss, values = DataLoss(clips, text, weight=1.0, batch_size=4), []
    for _ in range(60):
        optimizer.zero_grad()
        values.append(beside(loss, policies(field), scale=1.0)["data_loss"])
        optimizer.step()
    assert values[-1] < 0.5 * values[0]


def test_clips_of_a_file_are_encoded_once_and_unreadable_ones_left_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", torch.full((8, 3, 32, 32), 0.5), fps=8.0)
    (tmp_path / "broken.mp4").write_bytes(b"none")
    (tmp_path / "c.csv").write_text("video,prompt\na.mp4,x\nbroken.mp4,y\nb.mp4,z\n")
    encoded: list[tuple[int, ...]] = []

    def encode(frames: Tensor) -> Tensor:
        encoded.append(tuple(frames.shape))
        return frames.mean((1, 2, 3, 4))[:, None]

    generator: Any = SimpleNamespace(num_frames=5, size=(16, 16), fps=8.0, encode=encode)
    source = FileClips(RealClips(tmp_path / "c.csv"), generator)
    for _ in range(2):
        prompts, latents = source(3, DRAW, ALL)
        assert sorted(prompt.text for prompt in prompts) == ["x", "z"] and latents.shape == (2, 1)
    assert encoded == [(1, 5, 3, 16, 16)] * 2
    small = FileClips(RealClips(tmp_path / "c.csv"), generator, max_kept=1)
    small(3, DRAW, ALL)
    assert len(small._kept) == 1


def kl(**changes: Any) -> AdaptiveKL:
    """Return a penalty of coefficient 2."""
    return AdaptiveKL(**{"target": 0.1, "coefficient": 2.0, "fraction": 1.0, "batch_size": 4, **changes})


def test_the_coefficient_comes_back_soon_after_any_time_beside_the_reference() -> None:
    penalty = kl(coefficient=2.0)
    for _ in range(3000):
        penalty.adapt({"held_distance": 0.0})
    assert penalty.coefficient == 2.0 / 1024
    for _ in range(10):
        penalty.adapt({"held_distance": 1.0})
    assert penalty.coefficient == 2.0
    for _ in range(3000):
        penalty.adapt({"held_distance": 1.0})
    assert penalty.coefficient == 2048.0


def test_the_penalty_is_the_weighted_distance_to_the_reference_on_the_samples() -> None:
    rollout, field, naive, reference = (
        toy_rollout(num_prompts=1),
        LinearField(seed=1),
        LinearField(seed=1),
        LinearField(seed=2),
    )
    penalty = kl()
    penalty.prepare(rollout, toy_scores(torch.zeros(4)))
    metrics = beside(penalty, policies(field, reference=reference), scale=3.0)
    draw, keys = DRAW.fork("held"), [(rollout.prompts[0].prompt_id, place) for place in range(4)]
    sigma = logit_normal_sigmas(draw, keys)
    noisy, _ = noised(rollout.latents, keyed_noise(draw, keys, rollout.latents), sigma)
    with torch.no_grad():
        far = reference(noisy, sigma, rollout.cond)
    expected = mean_square(naive(noisy, sigma, rollout.cond) - far).mean()
    (3.0 * 2.0 * expected).backward()
    torch.testing.assert_close(gradient(field), gradient(naive))
    assert metrics == {"held_distance": pytest.approx(float(expected))}


@pytest.mark.parametrize(
    ("distance", "coefficient"),
    [(0.1, 2.0), (0.149, 2.0), (0.151, 4.0), (9.0, 4.0), (0.067, 2.0), (0.066, 1.0), (0.0, 1.0)],
)
def test_the_coefficient_doubles_far_from_the_reference_and_halves_near_it(distance: float, coefficient: float) -> None:
    penalty = kl()
    penalty.adapt({"held_distance": distance})
    assert penalty.coefficient == coefficient
    other = kl()
    other.load_state(penalty.state())
    assert other.coefficient == coefficient


def test_the_samples_of_the_largest_disagreement_are_held() -> None:
    scored = dataclasses.replace(
        toy_scores(torch.zeros(5)), disagreement=torch.tensor([0.1, 0.5, float("nan"), 0.2, 0.4])
    )
    assert held_samples(scored, 1.0, num=5).tolist() == [0, 1, 2, 3, 4]
    assert held_samples(scored, 0.4, num=5).tolist() == [1, 2]
    assert held_samples(scored, 0.01, num=5).tolist() == [2]
    rollout = toy_rollout(num_prompts=1)
    penalty, seen = kl(fraction=0.25, batch_size=9), []
    penalty.prepare(
        rollout, dataclasses.replace(toy_scores(torch.zeros(4)), disagreement=torch.tensor([0.0, 3.0, 1.0, 2.0]))
    )
    field = LinearField()
    who = dataclasses.replace(
        policies(field), policy=lambda x, sigma, cond: (seen.append(len(x)), field(x, sigma, cond))[1]
    )
    beside(penalty, who, scale=1.0)
    assert seen == [1]


def test_an_optimiser_step_adds_regularisers_to_the_mean_over_samples() -> None:
    """Whatever the number of samples, the gradient is the objective's mean plus weight x the regulariser's."""
    rollout = toy_rollout(num_prompts=2)
    rewards = torch.tensor([0.1, 0.9, 0.5, 0.4, 0.0, 0.2, 0.6, 1.0])
    objective = NFT(NFTConfig(num_updates=1))
    scored: Scored = toy_scores(rewards)

    def stepped(*, with_data: bool) -> tuple[Tensor, dict[str, float]]:
        field = LinearField()
        updater = Updater(dict(field.named_parameters()), lr=0.0, max_grad_norm=1e9)
        advantages = group_advantages(rewards, group_size=4)
        (batches,) = objective.plan(rollout, scored, advantages, draw=DRAW, micro_batch_size=3)
        further = [DataLoss(clips, text, weight=0.5, batch_size=4)] if with_data else []
        metrics = updater.step(objective, batches, policies(field), regularisers=further, draw=DRAW)
        return gradient(field), metrics

    alone = LinearField()
    beside(DataLoss(clips, text, weight=0.5, batch_size=4), policies(alone), scale=1.0)
    (plain, _), (both, metrics) = stepped(with_data=False), stepped(with_data=True)
    torch.testing.assert_close(both, plain + gradient(alone))
    assert metrics["data_loss"] > 0 and metrics["num_samples"] == 8
