"""Positions of vLLM and SGLang against those of transformers: a copy of their rule by hand, and where both agree."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from reward_model.judge.engine.batching import clip_grid
from reward_model.judge.engine.readouts import read_levels
from reward_model.judge.exchange import servers
from reward_model.judge.families.base import merged
from reward_model.judge.model import VideoJudge
from reward_model.language.requests import askable, score_request
from reward_model.media.frame_sampling import FramePolicy, take
from reward_model.records import Clip, Video
from tests.tiny_judge import build_judge

CLIPS = list(itertools.product((1, 4, 9, 17), ((32, 32), (48, 96)), (2.0, 3.0, 8.0)))
POLICY = FramePolicy(mode="fps", fps=2.0, min_frames=4, max_frames=12)


def by_server(is_video, grids, factors):
    """Return the positions [3, L] as both servers count them: text goes on one behind the largest position so far."""
    pieces, place, flags = [], 0, list(is_video)
    for (groups, lines, columns), factor in zip(grids, factors, strict=True):
        start = flags.index(True, place)
        first = int(max((piece.max() for piece in pieces), default=-1)) + 1
        pieces.append(np.broadcast_to(np.arange(start - place), (3, start - place)) + first)
        axes = np.indices((groups, lines, columns))
        axes[0] = (axes[0].astype(np.float32) * np.float32(factor)).astype(np.int64)
        pieces.append(axes.reshape(3, -1) + first + start - place)
        place = start + groups * lines * columns
        pieces = [piece for piece in pieces if piece.size]
    first = int(max((piece.max() for piece in pieces), default=-1)) + 1
    rest = len(flags) - place
    pieces.append(np.broadcast_to(np.arange(rest), (3, rest)) + first)
    return torch.from_numpy(np.concatenate(pieces, axis=1))


def shown_clip(num_frames, size, fps):
    """Return a clip planned from that many frames."""
    return take(Video(frames=torch.rand(num_frames, 3, *size), fps=fps), POLICY)


def positions_of(judge, family, clip):
    """Return token ids [L] and positions [3, L] of a prefix with the clip and text on both sides."""
    grid = clip_grid(clip, family)
    text = f"user\nA clip: {family.placeholder(clip.plan, grid)} how good is it?"
    ids, positions, _ = judge._texts.prefix(text, family.video_spans(clip.plan, grid), family.facts.video_token_id)
    return ids, positions


def by_library(judge, ids, clip):
    """Return the positions [3, L] of the installed transformers."""
    is_video = ids == judge.family.facts.video_token_id
    rest = {}
    if judge.config.family == "qwen2_5_vl":
        rate = clip.plan.sampled_fps or clip.plan.fps
        rest["second_per_grid_ts"] = torch.tensor([judge.family.facts.temporal_patch_size / rate])
    grid = torch.tensor([clip_grid(clip, judge.family)])
    return judge.model.model.get_rope_index(ids[None], is_video[None].int() * 2, video_grid_thw=grid, **rest)[0][:, 0]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
def test_the_servers_rule_is_theirs_and_agrees_with_transformers_where_it_is_said_to(family):
    judge = build_judge(family)
    server, agreed = servers.server_family(judge.family), []
    for case in CLIPS:
        clip = shown_clip(*case)
        ids, own = positions_of(judge, judge.family, clip)
        assert torch.equal(own, by_library(judge, ids, clip))
        grid, rate = clip_grid(clip, judge.family), clip.plan.sampled_fps or clip.plan.fps
        seconds = judge.family.facts.temporal_patch_size / rate
        factor = judge.family.tokens_per_second * np.float32(seconds) if family == "qwen2_5_vl" else 1.0
        is_video = (ids == judge.family.facts.video_token_id).tolist()
        copied = by_server(is_video, [merged(grid, judge.family.facts)], [factor])
        served_ids, served = positions_of(judge, server, clip)
        assert torch.equal(served_ids, ids) and torch.equal(served, copied)
        alike = servers.is_served_alike(judge.family, clip.plan, grid)
        assert alike == torch.equal(own, copied)
        agreed.append(alike)
    assert len(set(agreed)) == 2  # both kinds are among the cases


def test_qwen3_frame_groups_have_the_same_positions_on_servers_but_vllm_drops_the_tokens_around_them():
    judge = build_judge("qwen3_vl")
    server = servers.server_family(judge.family)
    for case in CLIPS:
        clip = shown_clip(*case)
        grid = clip_grid(clip, judge.family)
        groups, lines, columns = merged(grid, judge.family.facts)
        for family in (judge.family, server):
            ids, own = positions_of(judge, family, clip)
            is_video = (ids == family.facts.video_token_id).tolist()
            assert torch.equal(own, by_server(is_video, [(1, lines, columns)] * groups, [1.0] * groups))
        assert not servers.is_served_alike(judge.family, clip.plan, grid)
        assert servers.is_served_alike(server, clip.plan, grid)


def test_the_shortest_clip_that_differs_is_the_one_by_hand():
    judge = build_judge()
    judge.configure(frame_policy={"mode": "all", "max_frames": 400}, trained_range={"fps": (2.0, 8.0)})
    # 8 Hz, 4 ticks a second, 2 frames a group: a tick a group; 32 x 32 is 2 x 2 tokens of 16 pixels, so the third group, whose
    # time is 2, is the first behind the longer side; 48 x 96 is 3 x 6, and the seventh group begins with frame 13
    assert servers.first_differences(judge.config, judge.family, [(32, 32), (48, 96)]) == {
        (32, 32): 5 / 8,
        (48, 96): 13 / 8,
    }
    judge.configure(frame_policy={"mode": "uniform", "num_frames": 2})
    assert servers.first_differences(judge.config, judge.family, [(32, 32)]) == {(32, 32): None}
    assert servers.score_change(judge, None) is None


@torch.no_grad()
def test_the_change_of_scores_is_that_between_two_judges_of_the_same_weights_and_leaves_the_judge_alone():
    judge = build_judge()
    judge.configure(frame_policy={"mode": "all", "max_frames": 9}, trained_range={"fps": (8.0, 8.0), "frames": (4, 9)})
    change = servers.score_change(judge, None, num_clips=2)
    assert judge.family.position_rule == judge.config.position_rule == judge.family.position_rules[0]
    assert (change.seconds, change.height, change.width) == (9 / 8, 32, 32)
    plan = take(Video(frames=torch.zeros(9, 3, 32, 32), fps=8.0), FramePolicy(mode="all", max_frames=9)).plan
    asked = [
        score_request(Clip(servers._noise(9, 32, seed), plan), None, askable(judge.config.dimensions, None))
        for seed in range(2)
    ]
    scores = []
    for rule in (judge.config.position_rule, judge.family.server_rule):
        judge.configure(position_rule=rule)
        again = VideoJudge(judge.model, judge.tokenizer, judge.config)
        scores.append(read_levels(torch.cat(again.next_token_logits(asked)), again.level_ids).quality)
    difference = (scores[1] - scores[0]).abs()
    assert change.mean == pytest.approx(float(difference.mean()), abs=1e-6) and change.mean > 1e-4
    assert change.most == pytest.approx(float(difference.max()), abs=1e-6)


def test_a_judge_under_the_servers_rule_differs_nowhere():
    judge = build_judge("qwen2_vl")
    judge.configure(position_rule=judge.family.server_rule)
    assert not any(servers.first_differences(judge.config, judge.family).values())


def test_a_family_without_a_rule_of_servers_is_refused(monkeypatch):
    judge = build_judge()
    monkeypatch.setattr(type(judge.family), "position_rules", judge.family.position_rules[:1])
    with pytest.raises(ValueError, match="Qwen2.5-VL has no position rule of servers among mrope_sampled_seconds"):
        servers.server_family(judge.family)
