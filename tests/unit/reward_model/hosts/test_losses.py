"""Hosts that train through the reward's gradient: VADER, TRL's DDPO and AlignProp, pyiqa's losses."""

from __future__ import annotations

import pytest
import torch

from reward_model.hosts.ddpo import tuple_reward
from reward_model.hosts.pyiqa import create_judge, list_judges
from reward_model.hosts.vader import reward_loss
from reward_model.media.video_io import write_video
from tests.host_clips import FPS

PROMPTS = ["a red circle moving left", "a blue square moving right"]


def clips(num=2):
    return torch.rand(num, 5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def gradient(value, frames):
    (found,) = torch.autograd.grad(value, frames)
    return found


def test_vader_trains_on_signed_videos(judge):
    frames = (clips() * 2 - 1).requires_grad_(True)
    loss, reward = reward_loss(judge, fps=FPS)(frames, PROMPTS)
    rewards = judge(clips(), PROMPTS, fps=FPS).rewards
    torch.testing.assert_close(reward, rewards.mean(), rtol=0, atol=1e-5)
    torch.testing.assert_close(loss, -rewards.mean(), rtol=0, atol=1e-5)
    assert loss.ndim == 0 and not reward.requires_grad
    unit = clips().requires_grad_(True)
    direct = gradient(-judge(unit, PROMPTS, fps=FPS, differentiable=True).rewards.mean(), unit)
    torch.testing.assert_close(gradient(loss, frames), direct / 2)


def test_vader_takes_one_video_with_its_prompt_and_stills_with_theirs(judge):
    loss_fn = reward_loss(judge, fps=FPS, target=1.0, scale=10.0)
    loss, reward = loss_fn(clips()[0] * 2 - 1, PROMPTS[0])
    alone = judge(clips()[:1], PROMPTS[:1], fps=FPS).rewards
    torch.testing.assert_close(reward, alone[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(loss, 10 * (1 - alone[0]), rtol=0, atol=1e-4)
    _, reward = loss_fn(clips()[:, 0] * 2 - 1, PROMPTS)
    stills = judge(clips()[:, :1], PROMPTS, fps=FPS).rewards
    torch.testing.assert_close(reward, stills.mean(), rtol=0, atol=1e-5)


def test_vader_hears_of_bytes_and_of_missing_rewards(judge, mute):
    with pytest.raises(ValueError, match=r"frames must lie in \[-1, 1\], got video 0 \[0, 255\]"):
        reward_loss(judge, fps=FPS)(torch.tensor([0.0, 255.0]).expand(1, 2, 3, 32, 2), PROMPTS[0])
    with pytest.raises(RuntimeError, match="2 of 2 rewards"):
        reward_loss(mute, fps=FPS)(clips(), PROMPTS)


def train_video_crafter(loss_fns, samples, prompts, *, reward_fn, decode_frame):
    """VADER-VideoCrafter's step on decoded samples [B, 1, C, F, H, W]: which frames which reward gets."""
    loss_fn = loss_fns[reward_fn]
    if reward_fn in ("actpred", "vidclip"):
        assert decode_frame in ("fml", "all", "alt") and len(prompts) == 1 and samples.shape[1] == 1
        loss, rewards = loss_fn(samples.squeeze(1).permute(0, 2, 1, 3, 4), prompts[0])
    else:
        assert decode_frame not in ("fml", "all", "alt")
        frames = samples.permute(1, 0, 3, 2, 4, 5).squeeze(0)
        assert frames.shape[1] == 1
        loss, rewards = loss_fn(frames.squeeze(1), prompts)
    return loss, loss.repeat(len(prompts)).mean().item(), rewards.detach().item()


def test_vader_of_video_crafter_passes_the_clip_under_one_name_alone(judge):
    loss_fns = dict.fromkeys(("vidclip", "hps"), reward_loss(judge, fps=FPS, device="cpu"))
    samples = (clips(1) * 2 - 1).permute(0, 2, 1, 3, 4).unsqueeze(1).requires_grad_(True)  # [1, 1, C, F, H, W]
    step = {"reward_fn": "vidclip", "decode_frame": "all"}
    loss, logged, reward = train_video_crafter(loss_fns, samples, PROMPTS[:1], **step)
    alone = judge(clips(1), PROMPTS[:1], fps=FPS).rewards.item()
    assert (logged, reward) == pytest.approx((-alone, alone), abs=1e-5)
    assert (gradient(loss, samples).abs().amax(dim=(0, 1, 2, 4, 5)) > 0).all()  # every frame has a part in it
    with pytest.raises(AssertionError):
        train_video_crafter(loss_fns, samples, PROMPTS[:1], reward_fn="hps", decode_frame="all")


def test_vader_of_model_scope_passes_a_list_of_frames(judge):
    frames = [frame.requires_grad_(True) for frame in clips(1)[0] * 2 - 1]  # F of [C, H, W]
    loss, reward = reward_loss(judge, fps=FPS, device="cpu")(frames, PROMPTS[0])
    alone = judge(clips(1), PROMPTS[:1], fps=FPS).rewards.item()
    assert (loss.item(), reward.item()) == pytest.approx((-alone, alone), abs=1e-5)
    assert all(slope.abs().amax() > 0 for slope in torch.autograd.grad(loss, frames))
    for wrong, prompts in ((frames, PROMPTS), ([frames[0], frames[1][:, :8]], PROMPTS[0]), (["a"], "a"), ([], "a")):
        with pytest.raises(ValueError, match="a list must hold the frames"):
            reward_loss(judge, fps=FPS)(wrong, prompts)


def test_ddpo_gets_a_tuple_without_gradient_and_align_prop_one_with_it(judge):
    frames = clips().requires_grad_(True)
    rewards, parts = tuple_reward(judge, fps=FPS)(frames, tuple(PROMPTS), [{}, {}])
    torch.testing.assert_close(rewards, judge(clips(), PROMPTS, fps=FPS).rewards, rtol=0, atol=1e-5)
    assert not rewards.requires_grad and len(parts["motion_quality"]) == 2
    kept, _ = tuple_reward(judge, fps=FPS, differentiable=True)(frames, PROMPTS, {})
    assert gradient(10 - kept.mean(), frames).abs().sum() > 0


def test_ddpo_takes_stills_and_hears_of_missing_rewards(judge, mute):
    stills = clips()[:, 0]
    rewards, _ = tuple_reward(judge, fps=FPS, weights={"visual_quality": 1.0})(stills, PROMPTS, {})
    expected = judge(stills[:, None], PROMPTS, fps=FPS).scores["visual_quality"]
    torch.testing.assert_close(rewards, expected, rtol=0, atol=1e-5)
    with pytest.raises(RuntimeError, match="2 of 2 rewards are unavailable"):
        tuple_reward(mute, fps=FPS)(stills, PROMPTS, {})


def test_pyiqa_lists_judges_that_can_be_created():
    assert list_judges() == ["toy", "toy_audit"]
    families = {create_judge(name, device="cpu").judge.judge.config.family for name in list_judges()}
    assert families == {"qwen2_5_vl", "qwen3_vl"}


def test_pyiqa_metric_says_what_it_is_and_scores(judge, tmp_path):
    metric = create_judge("toy", device="cpu", fps=FPS, dimension="motion_quality")
    assert (metric.lower_better, metric.metric_mode, metric.score_range) == (False, "NR", "0, 1")
    expected = judge(clips(), PROMPTS, fps=FPS).scores["motion_quality"]
    found = metric(clips().requires_grad_(True), prompts=PROMPTS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert not found.requires_grad and not metric.as_loss
    write_video(tmp_path / "clip.mp4", clips(1)[0], FPS)
    (tmp_path / "notes.mp4").write_text("not a video")
    assert metric(tmp_path / "clip.mp4").isfinite().tolist() == [True]
    assert metric([str(tmp_path / "clip.mp4"), str(tmp_path / "notes.mp4")]).isfinite().tolist() == [True, False]
    with pytest.raises(ValueError, match="needs no reference"):
        metric(clips(), clips())


def test_pyiqa_loss_falls_where_the_score_rises(judge):
    frames = clips().requires_grad_(True)
    loss_fn = create_judge("toy", as_loss=True, device="cpu", fps=FPS, loss_weight=-3.0)
    loss = loss_fn(frames, prompts=PROMPTS)
    score = judge(frames, PROMPTS, fps=FPS, differentiable=True).rewards.mean()
    torch.testing.assert_close(loss, -3 * score, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient(loss, frames), -3 * gradient(score, frames))
    assert loss_fn.as_loss
