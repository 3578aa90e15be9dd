"""Clips that are seen once: what is remembered, and when nothing may be."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from reward_model.language.requests import describe_request, score_request
from reward_model.scoring.compare import rank_clips
from tests.tiny_judge import build_judge, make_clip


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl"])
def judge(request):
    return build_judge(request.param).requires_grad_(False)


def ask(judge, *clips):
    requests = [score_request(clip, "a dog", ("overall", "visual_quality")) for clip in clips]
    return torch.cat(judge.next_token_logits(requests))


def count_encodings(judge, monkeypatch):
    seen = []
    plain = judge._clips._encode
    monkeypatch.setattr(
        judge._clips, "_encode", lambda clips, *a, **k: seen.append(len(clips)) or plain(clips, *a, **k)
    )
    return seen


def test_each_clip_is_encoded_once_and_everything_stays_as_it_was(judge, monkeypatch):
    one, two, three = (make_clip(4, 32, side, seed=seed) for seed, side in enumerate((32, 64, 32)))
    expected = [ask(judge, one, two), ask(judge, two, three), ask(judge, three, one)]
    seen = count_encodings(judge, monkeypatch)
    with judge.remember_clips():
        found = [ask(judge, one, two), ask(judge, two, three), ask(judge, three, one)]
    assert seen == [2, 1]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    ask(judge, one)
    assert seen == [2, 1, 1]  # forgotten


def test_equal_pixels_are_one_clip_and_other_times_are_another(judge, monkeypatch):
    clip, seen = make_clip(4, 32, 32), count_encodings(judge, monkeypatch)
    with judge.remember_clips():
        ask(judge, clip)
        ask(judge, dataclasses.replace(clip, frames=clip.frames.clone()))
        assert seen == [1]
        ask(judge, dataclasses.replace(clip, plan=dataclasses.replace(clip.plan, fps=clip.plan.fps * 2)))
    assert seen == [1, 1]


def test_with_room_for_two_the_one_not_asked_for_longest_is_dropped(judge, monkeypatch):
    one, two, three = (make_clip(4, 32, 32, seed=seed) for seed in range(3))
    seen = count_encodings(judge, monkeypatch)
    with judge.remember_clips(2):
        for clip in (one, two, one, three, one, two):
            ask(judge, clip)
        assert seen == [1, 1, 1, 1]  # one, two, three and, dropped in between, two again
        ask(judge, one, two, three)  # more than there is room for
    assert seen == [1, 1, 1, 1, 1]


def test_a_clip_at_another_size_or_rounding_is_another(judge, monkeypatch):
    clip, seen = make_clip(4, 64, 64), count_encodings(judge, monkeypatch)
    request = [describe_request(clip)]
    with judge.remember_clips():
        judge.next_token_logits(request)
        judge.next_token_logits(request, quantise=False)
        with judge.pixel_cap(1100):
            judge.next_token_logits(request)
        judge.next_token_logits(request)
    assert seen == [1, 1, 1]


def test_pixels_with_a_gradient_get_it(judge):
    clip = make_clip(4, 32, 32)
    with judge.remember_clips():
        ask(judge, clip)
        frames = clip.frames.clone().requires_grad_(True)
        ask(judge, dataclasses.replace(clip, frames=frames)).sum().backward()
    assert float(frames.grad.abs().sum()) > 0


@pytest.mark.parametrize("how", ["trained", "vision", "merger"])
def test_a_tower_that_changes_is_asked_every_time(judge, monkeypatch, how):
    if how == "trained":
        judge.train_only(None)
    else:
        judge.add_role("seer", rank=2, alpha=4, targets=("text", how))
    clip, seen = make_clip(4, 32, 32), count_encodings(judge, monkeypatch)
    with judge.remember_clips():
        ask(judge, clip)
        ask(judge, clip)
    assert seen == [1, 1]


def test_a_ranking_sees_each_clip_once(judge, monkeypatch):
    judge.requires_grad_(True)  # as it is after loading
    sure = lambda logits, _ids: (logits[:, 0].sigmoid(), torch.zeros(len(logits)), torch.ones(len(logits)))  # noqa: E731
    monkeypatch.setattr("reward_model.judge.engine.readouts.read_preference", sure)  # random weights name no winner
    clips, seen = [make_clip(4, 32, 32, seed=seed) for seed in range(5)], count_encodings(judge, monkeypatch)
    rank_clips(judge, None, clips, "a dog", batch_size=4)
    assert sum(seen) == 5


def test_clips_encoded_in_parts_are_the_same(judge, monkeypatch):
    clips = [make_clip(4, 32, side, seed=seed) for seed, side in enumerate((32, 64, 32, 32))]
    whole = ask(judge, *clips)
    passes, plain = [], type(judge.family).encode
    monkeypatch.setattr("reward_model.judge.engine.clip_encoder.CACHED_PATCHES", 1)
    monkeypatch.setattr(type(judge.family), "encode", lambda *how: passes.append(1) or plain(*how))
    torch.testing.assert_close(ask(judge, *clips), whole, rtol=0, atol=1e-5)
    assert len(passes) == 4
