"""Motion tokens: features of all frames in slots behind a clip's frames."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from reward_model.datasets.readers import DataConfig
from reward_model.judge.model import VideoJudge
from reward_model.language.requests import compare_request, score_request
from reward_model.media.intake import plan_clip
from reward_model.media.motion_encoders import MotionConfig, build_encoder, encoder_of
from reward_model.media.video_io import write_video
from reward_model.records import DIMENSIONS, Video
from reward_model.training.fit import FitConfig
from reward_model.training.recipe import LoraConfig, RecipeConfig, StageConfig
from reward_model.training.stages import run_recipe
from reward_model.video_reward import VideoJudgeReward
from tests.tiny_judge import FAMILIES, build_judge, make_clip

SIZE = 6


def moving(seed=0, num=2, **rest):
    features = torch.randn(num, SIZE, generator=torch.Generator().manual_seed(seed))
    return dataclasses.replace(make_clip(seed=seed, **rest), motion=features)


def still(clip):
    return dataclasses.replace(clip, motion=None)


def build(family="qwen2_5_vl"):
    """Return a judge whose projector is large enough to be noticed."""
    judge = build_judge(family)
    judge.add_motion({"encoder": "temporal_differences", "feature_size": SIZE})
    for parameter in judge.motion.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
    return judge


def logits(judge, *clips, prompt="a red circle"):
    return judge.next_token_logits([score_request(clip, prompt, DIMENSIONS) for clip in clips])


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_seen_and_only_where_they_belong(family):
    judge, one, other = build(family), moving(0), moving(1, num=3)
    with torch.no_grad():
        alone, changed = logits(judge, one)[0], logits(judge, dataclasses.replace(one, motion=-one.motion))[0]
        assert (alone - changed).abs().max() > 1e-3
        together = logits(judge, one, other, still(one))
        assert_close(together[0], alone, atol=1e-5, rtol=0)
        assert_close(together[1], logits(judge, other)[0], atol=1e-5, rtol=0)
        assert_close(together[2], logits(build_judge(family), still(one))[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_features_stand_at_their_slots(family):
    """Projected features equal to the slot token's own embedding change nothing."""
    judge, clip = build(family), moving(0)
    slot = judge.tokenizer.convert_tokens_to_ids("<|vision_pad|>")
    own = judge.model.get_input_embeddings().weight[slot].detach()
    judge.motion.outer.weight.data.zero_()
    judge.motion.outer.bias.data.copy_(own)
    plain = build_judge(family)
    request = score_request(clip, "a red circle", DIMENSIONS)
    text = request.prefix[2]
    shown = dataclasses.replace(request, clips=(still(clip),))
    shown = dataclasses.replace(shown, prefix=(request.prefix[0], 0, f"Motion:<|vision_pad|><|vision_pad|>{text}"))
    with torch.no_grad():
        assert_close(judge.next_token_logits([request])[0], plain.next_token_logits([shown])[0], atol=1e-5, rtol=0)


def test_both_clips_of_a_pair_bring_their_own(tmp_path):
    judge = build()
    pair = compare_request(moving(0), moving(1, num=3), "a red circle")
    swapped = compare_request(dataclasses.replace(moving(0), motion=moving(2).motion), moving(1, num=3), "a red circle")
    with torch.no_grad():
        together = judge.next_token_logits([pair, swapped])
        assert_close(together[0], judge.next_token_logits([pair])[0], atol=1e-5, rtol=0)
        assert (together[0] - together[1]).abs().max() > 1e-3


def test_a_saved_projector_comes_back(tmp_path):
    judge, clip = build(), moving(0)
    judge.save_pretrained(tmp_path)
    found = VideoJudge.from_pretrained(tmp_path, device="cpu")
    assert found.config.motion == judge.config.motion
    assert torch.equal(logits(found, clip)[0], logits(judge, clip)[0])


def test_gradients_reach_the_projector():
    judge = build()
    judge.add_role("natural", rank=2, alpha=4)
    for trained in (judge.train_only(None), judge.train_only("natural", motion=True)):
        assert {id(p) for p in judge.motion.parameters()} <= {id(p) for p in trained}
        gradients = torch.autograd.grad(logits(judge, moving(0))[0].square().sum(), list(judge.motion.parameters()))
        assert all(float(gradient.abs().max()) > 0 for gradient in gradients)
    assert not {id(p) for p in judge.motion.parameters()} & {id(p) for p in judge.train_only("natural")}


@pytest.mark.parametrize("features", [torch.zeros(2, SIZE + 1), torch.zeros(0, SIZE), torch.full((1, SIZE), torch.nan)])
def test_features_of_another_kind_are_refused(features):
    with pytest.raises(ValueError, match=r"motion features must be finite \[N, 6\]"):
        logits(build(), dataclasses.replace(make_clip(), motion=features))


def test_a_judge_without_motion_tokens_ignores_features_and_trains_none():
    judge, clip = build_judge(), moving(0)
    assert torch.equal(logits(judge, clip)[0], logits(judge, still(clip))[0])
    with pytest.raises(ValueError, match="no motion tokens to train"):
        judge.train_only(None, motion=True)


def test_all_frames_of_a_file_are_encoded_and_kept_by_content(tmp_path):
    frames = torch.rand(12, 3, 48, 48)
    write_video(tmp_path / "clip.mp4", frames, fps=6)
    config = MotionConfig(segment_seconds=0.5, cache=str(tmp_path / "cache"))
    encoder = build_encoder(config)
    clip = plan_clip(tmp_path / "clip.mp4", None, motion=encoder)
    assert clip.motion.shape == (4, encoder.feature_size)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    decoded = Video(clip.frames, 6.0)
    assert_close(plan_clip(decoded, None, motion=encoder).motion, clip.motion)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_an_encoder_of_another_size_is_refused():
    assert encoder_of({}) is None
    with pytest.raises(ValueError, match="the judge takes 3"):
        encoder_of({"encoder": "temporal_differences", "feature_size": 3})
    with pytest.raises(ValueError, match="checkpoint of slowfast_r50"):
        MotionConfig(encoder="slowfast_r50")


def test_a_recipe_teaches_motion_tokens_that_scoring_uses(tmp_path):
    stock = build_judge()
    stock.save_pretrained(tmp_path / "base")
    stage = StageConfig(
        role="natural",
        train_motion=True,
        data=[DataConfig(kind="moving_shapes")],
        tasks={"rate": 1.0},
        lora=LoraConfig(rank=2, alpha=4),
        num_held_out=4,
        fit=FitConfig(num_steps=3, learning_rate=1e-2, batch_size=4, warmup_steps=0),
    )
    config = RecipeConfig(
        name="judge",
        base=str(tmp_path / "base"),
        output=str(tmp_path / "out"),
        motion=MotionConfig(),
        stages={"score": stage},
        trained_on="noise",
    )
    judge = VideoJudge.from_pretrained(run_recipe(config), device="cpu")
    fresh = build_judge()
    fresh.add_motion(judge.config.motion)
    assert not torch.equal(fresh.motion.inner.weight, judge.motion.inner.weight)
    seen = []
    plain = judge.next_token_logits
    judge.next_token_logits = lambda requests, **rest: seen.extend(requests) or plain(requests, **rest)
    VideoJudgeReward(judge, role="natural")(torch.rand(1, 6, 3, 32, 32), "a red circle", fps=6.0)
    assert seen[0].clips[0].motion.shape == (1, judge.config.motion["feature_size"])
