"""Frame planner: exact indices, times and kinds."""

import pytest
import torch

from reward_model.media.frame_sampling import FramePolicy, plan_frames, take
from reward_model.records import Video

QWEN = FramePolicy(mode="fps", fps=2.0, min_frames=4, max_frames=16)


def test_uniform_includes_both_ends_and_rounds_half_to_even():
    plan = plan_frames(10, 10.0, FramePolicy(num_frames=3))
    assert plan.indices == (0, 4, 9)  # 4.5 rounds to 4
    assert plan.times == pytest.approx((0.0, 0.4, 0.9))
    assert plan.kinds == ("slow",) * 3
    assert plan.fps == pytest.approx(2 / 0.9)


def test_uniform_on_a_shorter_clip_takes_every_frame_once():
    assert plan_frames(3, 8.0, FramePolicy(num_frames=8)).indices == (0, 1, 2)


def test_a_single_planned_frame_is_the_middle_one():
    assert plan_frames(9, 8.0, FramePolicy(num_frames=1)).indices == (4,)


@pytest.mark.parametrize(
    ("num_frames", "fps", "expected"),
    [(40, 8.0, 10), (9, 8.0, 4), (300, 24.0, 16), (5, 1.0, 4), (3, 8.0, 2), (1, 8.0, 1), (60, 16.0, 6), (48, 24.0, 4)],
)
def test_fps_mode_counts_like_qwen(num_frames, fps, expected):
    # clamp(duration * 2, 4, min(16, frames)) rounded down to even; Qwen itself refuses a one-frame clip.
    assert len(plan_frames(num_frames, fps, QWEN).indices) == expected


def test_fps_mode_picks_the_frames_of_a_float_linspace():
    for num_frames in (30, 61, 97, 126):
        plan = plan_frames(num_frames, 24.0, QWEN)
        expected = torch.linspace(0, num_frames - 1, len(plan.indices), dtype=torch.float64).round().long()
        assert list(plan.indices) == expected.tolist()


def test_all_takes_short_clips_whole_and_thins_long_ones():
    policy = FramePolicy(mode="all", max_frames=9)
    assert plan_frames(9, 8.0, policy).indices == tuple(range(9))
    assert plan_frames(17, 8.0, policy).indices == tuple(range(0, 17, 2))


def test_slowfast_marks_fast_frames_between_slow_ones():
    plan = plan_frames(9, 8.0, FramePolicy(mode="slowfast", num_frames=3, num_fast_frames=5))
    assert plan.indices == (0, 2, 4, 6, 8)
    assert plan.kinds == ("slow", "fast", "slow", "fast", "slow")


def test_slowfast_of_one_frame_is_one_slow_frame():
    assert plan_frames(1, 8.0, FramePolicy(mode="slowfast")).kinds == ("slow",)


def test_no_policy_plans_every_frame():
    assert plan_frames(5, 8.0, None).indices == (0, 1, 2, 3, 4)


def test_variable_rate_takes_the_frame_on_the_screen_at_even_moments():
    # Ten frames in the first second, then one at 4 s: moments 0, 1, 2, 3, 4 show frames 0, 9, 9, 9, 10.
    times = [index / 9 for index in range(10)] + [4.0]
    plan = plan_frames(11, 10 / 4.0, FramePolicy(num_frames=5), times=times)
    assert plan.indices == (0, 9, 9, 9, 10)


def test_times_rounded_by_the_container_still_count_as_constant_rate():
    times = [round(index / 29.97, 3) for index in range(30)]
    plan = plan_frames(30, 29.97, FramePolicy(num_frames=7), times=times)
    assert plan.indices == plan_frames(30, 29.97, FramePolicy(num_frames=7)).indices


def test_policy_survives_its_saved_form():
    policy = FramePolicy(mode="slowfast", num_frames=4, num_fast_frames=12)
    assert FramePolicy.from_dict(policy.to_dict()) == policy


def test_misspelt_field_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match="'num_frame'.*did you mean 'num_frames'"):
        FramePolicy.from_dict({"num_frame": 4})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "random"}, "mode must be one of"),
        ({"num_frames": 0}, "num_frames must be a whole number >= 1"),
        ({"num_frames": 2.5}, "num_frames must be a whole number >= 1"),
        ({"fps": float("nan")}, "fps must be a finite rate"),
        ({"fps": -1.0}, "fps must be a finite rate"),
        ({"min_frames": 20}, "min_frames must be <= max_frames"),
        ({"mode": "fps", "multiple_of": 32}, "multiple_of must be <= max_frames"),
    ],
)
def test_policy_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FramePolicy(**settings)


@pytest.mark.parametrize(
    ("num_frames", "fps", "times", "message"),
    [
        (0, 8.0, None, "num_frames must be >= 1"),
        (4, 0.0, None, "fps must be"),
        (4, 8.0, [0.0], "one value per frame"),
        (3, 8.0, [0.0, 0.2, 0.1], "ascending"),
    ],
)
def test_impossible_clips_are_refused(num_frames, fps, times, message):
    with pytest.raises(ValueError, match=message):
        plan_frames(num_frames, fps, FramePolicy(), times=times)


def test_take_keeps_the_gradient_of_the_chosen_frames_only():
    frames = torch.rand(5, 3, 2, 2, requires_grad=True)
    clip = take(Video(frames=frames, fps=8.0), FramePolicy(num_frames=3))
    clip.frames.sum().backward()
    assert clip.plan.indices == (0, 2, 4)
    assert frames.grad.amax(dim=(1, 2, 3)).tolist() == [1.0, 0.0, 1.0, 0.0, 1.0]
