"""Frame plans at the edges of their settings: slow rates, uneven times, widths of feature vectors."""

from __future__ import annotations

import pytest
import torch

from reward_model.media.frame_sampling import FramePolicy, plan_frames
from reward_model.media.motion import TemporalDifferences
from reward_model.media.perturbations import jitter


@pytest.mark.parametrize(("fps", "expected"), [(0.5, 4), (0.25, 2), (1.0, 8)])
def test_fewer_than_one_frame_a_second_may_be_asked_for(fps: float, expected: int) -> None:
    policy = FramePolicy(mode="fps", fps=fps, min_frames=1, max_frames=16, multiple_of=2)
    assert len(plan_frames(64, 8.0, policy).indices) == expected


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(fps: float) -> None:
    with pytest.raises(ValueError, match="frame_policy.fps must be a finite rate > 0"):
        FramePolicy(mode="fps", fps=fps)


def test_frames_of_uneven_times_are_those_on_screen_at_even_moments() -> None:
    times = (1.0, 1.1, 1.2, 1.3, 5.0)
    plan = plan_frames(5, 5 / 4, FramePolicy(mode="uniform", num_frames=3), times=times)
    # moments 1, 3 and 5 s: the fourth frame stands from 1.3 to 5 s
    assert plan.indices == (0, 3, 4) and plan.times == (1.0, 1.3, 5.0)


@pytest.mark.parametrize("num_frames", [1, 2, 9, 20])
def test_the_motion_tokens_are_as_wide_as_the_encoder_says(num_frames: int) -> None:
    encoder = TemporalDifferences()
    frames = torch.rand(num_frames, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert encoder.encode(frames, 8.0).shape[1] == encoder.feature_size


def test_a_motion_token_stands_for_one_second_by_default() -> None:
    encoder = TemporalDifferences()
    assert [len(encoder.encode(torch.rand(num, 3, 16, 16), 8.0)) for num in (8, 16, 32)] == [1, 2, 4]


@pytest.mark.parametrize("num_frames", [2, 3, 9])
def test_jittered_frames_stay_within_the_clip_at_both_ends(num_frames: int) -> None:
    orders = [jitter(num_frames, torch.Generator().manual_seed(seed)).tolist() for seed in range(40)]
    assert {order[0] for order in orders} == {0, 1}
    assert {order[-1] for order in orders} == {num_frames - 2, num_frames - 1}
