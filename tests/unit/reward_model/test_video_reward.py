"""VideoJudgeReward on a tiny random judge whose level words are made likely, so that its scores count as valid."""

from __future__ import annotations

import math
import threading

import av
import pytest
import torch

from reward_model.media import intake
from reward_model.media.frame_sampling import FramePolicy
from reward_model.media.video_io import write_video
from reward_model.records import DIMENSIONS
from reward_model.video_reward import VideoJudgeReward
from tests.tiny_judge import build_judge

PROMPT = "a red circle moving left"


@pytest.fixture(scope="module")
def reward():
    """A reward whose judge puts nearly all probability on its answer words."""
    judge = build_judge("qwen2_5_vl")
    plain = judge.next_token_logits
    lifts = {
        compares: torch.zeros(judge.model.lm_head.weight.shape[0]).index_fill(0, torch.tensor(ids), 50.0)
        for compares, ids in ((False, judge.level_ids), (True, judge.preference_ids))
    }

    def lifted(requests, **options):
        return [x + lifts[len(r.clips) == 2] for r, x in zip(requests, plain(requests, **options), strict=True)]

    judge.next_token_logits = lifted
    return VideoJudgeReward(judge.requires_grad_(False))


def clips(num, seed=0, frames=4, size=32):
    return torch.rand(num, frames, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_scores_have_every_dimension_and_lie_in_the_unit_interval(reward):
    out = reward(clips(2), PROMPT, fps=8.0)
    assert set(out.scores) == set(DIMENSIONS)
    for name in DIMENSIONS:
        assert out.valid[name].all()
        assert ((out.scores[name] >= 0) & (out.scores[name] <= 1)).all()
        torch.testing.assert_close(out.level_probs[name].sum(-1), torch.ones(2))
    torch.testing.assert_close(out.rewards, out.scores["overall"])


def test_scores_do_not_depend_on_batch_size_or_order(reward):
    videos = clips(5)
    whole = reward(videos, PROMPT, fps=8.0).rewards
    single = torch.cat([reward(videos[i : i + 1], PROMPT, fps=8.0).rewards for i in range(5)])
    torch.testing.assert_close(whole, single, rtol=0, atol=1e-5)
    turned = reward(videos.flip(0), PROMPT, fps=8.0, batch_size=2).rewards.flip(0)
    torch.testing.assert_close(whole, turned, rtol=0, atol=1e-5)


def test_without_a_prompt_alignment_is_missing_and_overall_is_the_mean_of_the_rest(reward):
    out = reward(clips(1), fps=8.0)
    assert math.isnan(out.scores["text_alignment"].item()) and not out.valid["text_alignment"].item()
    assert out.reasons["text_alignment"] == ["no prompt"]
    assert out.overall_from == [("visual_quality", "motion_quality")]
    expected = (out.scores["visual_quality"] + out.scores["motion_quality"]) / 2
    torch.testing.assert_close(out.rewards, expected)


def test_an_unreadable_file_is_invalid_with_its_reason_and_spares_the_others(reward, tmp_path):
    broken = tmp_path / "notes.mp4"
    broken.write_text("not a video")
    out = reward([clips(1)[0], str(broken)], PROMPT, fps=8.0, layout="TCHW")
    assert out.valid["overall"].tolist() == [True, False]
    assert out.rewards[0].isfinite() and out.rewards[1].isnan()
    assert all(out.reasons[name][1] for name in DIMENSIONS) and not out.reasons["overall"][0]
    assert out.frame_plan[1] is None


def test_gradient_reaches_every_judged_frame_only_when_asked(reward):
    videos = clips(1).requires_grad_(True)
    assert not reward(videos, PROMPT, fps=8.0).rewards.requires_grad
    reward(videos, PROMPT, fps=8.0, differentiable=True).rewards.sum().backward()
    assert (videos.grad.abs().sum(dim=(0, 2, 3, 4)) > 0).all()
    assert all(p.grad is None for p in reward.judge.parameters())


def test_loss_is_minus_the_scaled_reward_or_its_distance_to_a_target(reward):
    videos = clips(2)
    rewards = reward(videos, PROMPT, fps=8.0).rewards
    loss, detached = reward.as_loss(scale=2.0)(videos, PROMPT, fps=8.0)
    torch.testing.assert_close(loss, -2 * rewards.mean())
    torch.testing.assert_close(detached, rewards)
    loss, _ = reward.as_loss(target=1.0)(videos, PROMPT, fps=8.0)
    torch.testing.assert_close(loss, (1 - rewards).mean())
    loss, _ = reward.as_loss(space="logit")(videos, PROMPT, fps=8.0)
    torch.testing.assert_close(loss, -(rewards / (1 - rewards)).log().mean())


def test_log_odds_of_a_weighted_sum_are_refused(reward):
    with pytest.raises(ValueError, match="log-odds"):
        reward.as_loss(space="logit", weights={"visual_quality": 2.0})


def test_weights_sum_the_named_dimensions(reward):
    out = reward(clips(2), PROMPT, fps=8.0, weights={"visual_quality": 2.0, "motion_quality": -1.0})
    torch.testing.assert_close(out.rewards, 2 * out.scores["visual_quality"] - out.scores["motion_quality"])


def test_layouts_and_bytes_give_the_same_scores(reward):
    videos = (clips(2) * 255).round() / 255
    expected = reward(videos, PROMPT, fps=8.0).rewards
    other = reward(videos.permute(0, 2, 1, 3, 4), PROMPT, fps=8.0, layout="BCTHW").rewards
    torch.testing.assert_close(other, expected)
    in_bytes = reward((videos * 255).round().to(torch.uint8), PROMPT, fps=8.0).rewards
    torch.testing.assert_close(in_bytes, expected, rtol=0, atol=1e-6)


def test_raw_is_one_to_five_and_z_needs_constants(reward):
    unit = reward(clips(1), PROMPT, fps=8.0).rewards
    torch.testing.assert_close(reward(clips(1), PROMPT, fps=8.0, normalize="raw").rewards, 1 + 4 * unit)
    with pytest.raises(ValueError, match="calibration"):
        reward(clips(1), PROMPT, fps=8.0, normalize="z")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": None}, "fps is required"),
        ({"videos": clips(1)[:, :, :1]}, "3 channels"),
        ({"layout": "BTCH"}, "layout"),
        ({"dimensions": ["beauty"]}, "unknown dimension"),
        ({"readout": "anchors"}, "readout"),
        ({"readout": "reason", "differentiable": True}, "no gradient"),
        ({"prompts": ["a", "b"]}, "one each"),
        ({"normalize": "percent"}, "normalize"),
    ],
)
def test_wrong_input_is_refused_with_the_reason(reward, change, message):
    arguments = {"videos": clips(1), "prompts": PROMPT, "fps": 8.0} | change
    videos, prompts = arguments.pop("videos"), arguments.pop("prompts")
    with pytest.raises(ValueError, match=message):
        reward(videos, prompts, **arguments)


def test_little_mass_on_the_level_words_is_no_score():
    bare = VideoJudgeReward(build_judge("qwen2_5_vl"))
    out = bare(clips(1), PROMPT, fps=8.0)
    assert float(out.level_mass["overall"]) < 0.5
    assert not out.valid["overall"].item() and out.rewards.isnan().all()
    assert "five level words" in out.reasons["overall"][0]


def test_unparsable_reasoning_is_no_score(reward):
    out = reward(clips(1), PROMPT, fps=8.0, readout="reason", dimensions=["visual_quality", "overall"])
    assert out.rewards.isnan().all() and not out.valid["overall"].item()
    assert out.reasons["overall"][0] and out.texts is not None


def said(quality):
    scores = ",".join(f'"{name}":{1 + 4 * quality:.2f}' for name in ("visual_quality", "overall"))
    return f"<think>so</think><answer>{{{scores}}}</answer>"


@pytest.mark.parametrize(
    ("answers", "score", "spread", "typical", "reason"),
    [
        ([said(0.5), "?", said(1.0), said(0.6)], 0.7, 0.2160, 3, ""),
        ([said(0.5), "?", "?", said(1.0)], math.nan, math.nan, 0, "only 2 of 4 answers can be read: not of the form"),
        ([said(0.25)], 0.25, math.nan, 0, ""),
    ],
)
def test_several_reasoned_answers_are_averaged(answers, score, spread, typical, reason, monkeypatch):
    judge = VideoJudgeReward(build_judge())
    asked = {}
    monkeypatch.setattr(judge.judge, "generate", lambda requests, **rest: asked.update(rest) or [[answers]])
    dimensions, num = ["visual_quality", "overall"], len(answers)
    out = judge(clips(1), PROMPT, fps=8.0, readout="reason", num_samples=num, dimensions=dimensions)
    assert out.rewards.tolist() == pytest.approx([score], nan_ok=True)
    assert out.std["overall"].tolist() == pytest.approx([spread], abs=1e-4, nan_ok=True)
    assert out.texts[0] == answers[typical] and out.reasons["overall"][0].startswith(reason)
    assert asked["num_samples"] == num and asked["temperature"] == (1.0 if num > 1 else 0.0)


def test_several_answers_are_for_reasoning_only(reward):
    with pytest.raises(ValueError, match="num_samples must be >= 1, and 1 for readout='level', got 4"):
        reward(clips(1), PROMPT, fps=8.0, num_samples=4)


def test_swapped_comparison_is_antisymmetric(reward):
    a, b = clips(3), clips(3, seed=1)
    forth, back = (reward.compare(*pair, PROMPT, fps=8.0) for pair in ((a, b), (b, a)))
    assert forth.valid.all()
    torch.testing.assert_close(forth.margin, -back.margin, rtol=0, atol=1e-5)
    torch.testing.assert_close(forth.p_tie, back.p_tie, rtol=0, atol=1e-5)


def test_a_ranked_group_follows_its_comparisons_and_leaves_out_what_cannot_be_read(reward, tmp_path):
    from reward_model.media.video_io import write_video

    (tmp_path / "empty.mp4").write_bytes(b"")
    paths = [tmp_path / "empty.mp4"]
    for number in range(3):
        paths.append(tmp_path / f"{number}.mp4")
        write_video(paths[-1], clips(1, seed=number)[0], 8.0)
    found = reward.rank(paths, PROMPT)
    assert sorted(found.order) == [1, 2, 3] and found.num_compared in (2, 3)
    assert found.reasons[0] and not any(found.reasons[1:])
    first, second, third = (paths[place] for place in found.order)
    assert (reward.compare([first, second], [second, third], PROMPT).margin >= 0).all()


def test_a_judge_that_does_not_compare_does_not_rank():
    with pytest.raises(RuntimeError, match="the judge does not compare: only 0"):
        VideoJudgeReward(build_judge()).rank(clips(2), PROMPT, fps=8.0)


def test_explanation_shares_saliency_over_the_frames(reward):
    found = reward.explain(clips(1)[0], PROMPT, fps=8.0)
    assert set(found.saliency) == set(DIMENSIONS)
    for share in found.saliency.values():
        torch.testing.assert_close(share.sum(), torch.tensor(1.0))
    assert found.reason and all(math.isnan(value) for value in found.quality.values())


def test_video_align_call_returns_its_four_keys(reward, tmp_path):
    from reward_model.media.video_io import write_video

    path = tmp_path / "clip.mp4"
    write_video(path, clips(1)[0], 8.0)
    (row,) = reward.reward([str(path)], [PROMPT], use_norm=False)
    assert list(row) == ["VQ", "MQ", "TA", "Overall"]
    assert row["Overall"] == pytest.approx(row["VQ"] + row["MQ"] + row["TA"])
    with pytest.raises(ValueError, match="exclude"):
        reward.reward([str(path)], [PROMPT], fps=2.0, num_frames=4)


def test_a_damaged_file_is_judged_by_what_is_left_only_where_that_is_asked_for(reward, tmp_path):
    with av.open(str(tmp_path / "whole.mkv"), "w") as file:  # unlike mp4, this names its streams at the start
        stream = file.add_stream("libx264", rate=8)
        stream.width = stream.height = 32
        for frame in (clips(1, frames=24)[0] * 255).byte().permute(0, 2, 3, 1).contiguous().numpy():
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    whole = (tmp_path / "whole.mkv").read_bytes()
    cut = whole[: int(0.8 * len(whole))]
    refused = reward([cut], PROMPT)
    assert not refused.valid["overall"].item() and math.isnan(refused.rewards.item())
    lenient = VideoJudgeReward(reward.judge, allow_damaged=True).with_role(None)
    out = lenient([cut], PROMPT)
    assert out.valid["overall"].item(), out.reasons
    assert 0 < len(out.frame_plan[0].indices) < len(reward([whole], PROMPT).frame_plan[0].indices)


def test_clips_of_like_size_share_a_batch_and_results_keep_their_places(reward, monkeypatch):
    seen = []
    plain = reward.judge.next_token_logits
    sizes = lambda requests: [request.clips[0].frames.shape[-1] for request in requests]  # noqa: E731
    monkeypatch.setattr(
        reward.judge,
        "next_token_logits",
        lambda requests, **how: seen.append(sizes(requests)) or plain(requests, **how),
    )
    shown = [
        torch.rand(4, 3, 32, side, generator=torch.Generator().manual_seed(n)) for n, side in enumerate((64, 32) * 3)
    ]
    together = reward(shown, "a dog", fps=8, batch_size=3)
    assert seen == [[32, 32, 32], [64, 64, 64]]
    for row, clip in enumerate(shown):
        alone = reward([clip], "a dog", fps=8)
        torch.testing.assert_close(together.rewards[row], alone.rewards[0], rtol=0, atol=1e-5)


def test_files_are_read_in_a_thread_where_the_caller_waits_for_a_device(tmp_path, monkeypatch):
    paths = []
    for number in range(5):
        paths.append(tmp_path / f"{number}.mp4")
        write_video(paths[-1], torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(number)), fps=8)
    main, readers = threading.get_ident(), set()
    plain = intake.plan_clip
    monkeypatch.setattr(
        intake, "plan_clip", lambda *how, **more: readers.add(threading.get_ident()) or plain(*how, **more)
    )
    policy = FramePolicy(mode="all", max_frames=8)
    expected = intake.to_clips(paths, policy=policy)
    assert readers == {main}
    for read_ahead in (False, True):
        readers.clear()
        num, parts = intake.clips_ahead(paths, 2, read_ahead=read_ahead, policy=policy)
        parts = list(parts)
        assert num == 5 and [len(part) for part in parts] == [2, 2, 1]
        for clip, other in zip([clip for part in parts for clip in part], expected, strict=True):
            assert torch.equal(clip.frames, other.frames) and clip.plan == other.plan
        assert len(readers) == 1 and (main in readers) != read_ahead


def test_weights_of_nothing_are_refused(reward):
    with pytest.raises(ValueError, match="weights must name at least one dimension"):
        reward(clips(1), PROMPT, fps=8.0, weights={})
