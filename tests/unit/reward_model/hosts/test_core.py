"""The parts that all hosts share, and the micro-batcher, on judges whose scores are read off the pixels."""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import SimpleNamespace

import pytest
import torch

from reward_model.hosts.core import (
    HostScores,
    TrainingStop,
    from_signed,
    in_thread,
    load_judge,
    score,
    stopping,
    with_time,
)
from reward_model.hosts.micro_batcher import MicroBatcher
from reward_model.video_reward import VideoJudgeReward
from tests.tiny_judge import build_judge

PROMPT = "a red circle moving left"


class BlackFailsJudge:
    """A judge whose overall is the mean pixel; black clips have none and clips of one frame are an error."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.entered, self.go_on = Event(), Event()

    def __call__(self, videos, prompts, *, fps, layout, weights):
        self.batches.append(len(videos))
        self.entered.set()
        assert self.go_on.wait(10)
        if any(len(video) == 1 for video in videos):
            raise ValueError("one frame")
        values = torch.tensor([float(video.mean()) or math.nan for video in videos])
        reasons = ["" if value > 0 else "black" for value in values.tolist()]
        return SimpleNamespace(rewards=values, scores={"overall": values}, reasons={"overall": reasons})


def test_a_judge_is_loaded_once_and_stays_what_it_is():
    assert load_judge("toy", device="cpu") is load_judge("toy", device=torch.device("cpu"))
    own = VideoJudgeReward(build_judge())
    assert load_judge(own, device="cuda") is own


def test_scores_are_those_of_the_judge():
    judge, clips = load_judge("toy"), torch.rand(2, 5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    out = judge(clips, PROMPT, fps=8.0)
    found = score(judge, clips, PROMPT, fps=8.0)
    assert found.rewards == pytest.approx(out.rewards.tolist(), abs=1e-6)
    assert found.scores["motion_quality"] == pytest.approx(out.scores["motion_quality"].tolist(), abs=1e-6)
    assert found.reasons == ["", ""] and found.or_raise() is found


def test_a_missing_score_keeps_the_reason_of_what_was_weighed(tmp_path):
    judge = load_judge("toy")
    (tmp_path / "notes.mp4").write_text("not a video")
    clip = torch.rand(5, 3, 32, 32)
    found = score(judge, [clip, tmp_path / "notes.mp4"], None, fps=8.0, weights={"text_alignment": 1.0})
    assert all(math.isnan(value) for value in found.rewards)
    assert found.reasons[0] == "no prompt" and found.reasons[1] not in ("", "no prompt")
    assert score(judge, [clip], None, fps=8.0).reasons == [""]
    mute = VideoJudgeReward(build_judge())
    assert "five level words" in score(mute, [clip], None, fps=8.0).reasons[0]
    assert score(mute, [clip], None, fps=8.0, weights={"text_alignment": 1.0}).reasons == ["no prompt"]
    with pytest.raises(RuntimeError, match="2 of 2 rewards are unavailable: video 0: no prompt; video 1: .*. Look"):
        found.or_raise("Look there.")


GAP = HostScores([0.5, math.nan], {"overall": [0.5, math.nan]}, ["", "too narrow"])
SENTENCE = "1 of 2 rewards are unavailable: video 1: too narrow. Look there."


def test_a_missing_reward_is_kept_raised_or_ends_the_process_as_the_host_needs_it():
    with pytest.warns(UserWarning, match=SENTENCE):
        assert GAP.checked("nan", "Look there.") is GAP
    with pytest.raises(RuntimeError, match=SENTENCE):
        GAP.checked("raise", "Look there.")
    with pytest.raises(SystemExit) as stopped:
        try:
            GAP.checked("stop", "Look there.")
        except Exception:  # noqa: BLE001  # as a host does
            pytest.fail("a host would go on")
    assert stopped.value.code == SENTENCE  # Python prints a text and exits with status 1
    whole = HostScores([0.5], {"overall": [0.5]}, [""])
    assert all(whole.checked(how) is whole for how in ("nan", "raise", "stop"))
    with pytest.raises(ValueError, match="on_missing must be one of nan, raise, stop, got 'zero'"):
        whole.checked("zero")


def test_an_exception_that_a_host_would_score_ends_the_process():
    def reward(paths, *, fps):
        raise ValueError(f"{paths} at {fps} Hz")

    with pytest.raises(TrainingStop, match=r"(?s)the reward failed: a.mp4 at 8 Hz\nTraceback .*in reward"):
        stopping(reward)("a.mp4", fps=8)
    assert stopping(len)([1, 2]) == 2


def test_stills_are_clips_of_one_frame():
    stills = torch.rand(2, 3, 32, 32)
    assert with_time(stills).shape == (2, 1, 3, 32, 32)
    judge = load_judge("toy")
    expected = judge(stills[:, None], PROMPT, fps=8.0).rewards.tolist()
    assert score(judge, stills, PROMPT, fps=8.0).rewards == pytest.approx(expected, abs=1e-6)


def test_signed_frames_become_unit_ones_and_overshoot_is_clamped():
    frames = torch.tensor([-1.2, -1.0, 0.0, 0.5, 1.0, 1.4], requires_grad=True)
    unit = from_signed(frames)
    torch.testing.assert_close(unit, torch.tensor([0.0, 0.0, 0.5, 0.75, 1.0, 1.0]))
    unit.sum().backward()
    assert frames.grad[3] == 0.5 and frames.grad[0] == frames.grad[5] == 0


@pytest.mark.parametrize("frames", [[0.0, 255.0], [-3.0, 0.0], [0.0, math.nan]])
def test_frames_of_another_range_are_refused(frames):
    with pytest.raises(ValueError, match=r"frames must lie in \[-1, 1\], got"):
        from_signed(torch.tensor(frames))


def test_a_function_in_a_thread_is_a_coroutine_function_of_the_same_name():
    def half(value, *, of=1.0):
        return value * of / 2

    assert asyncio.iscoroutinefunction(in_thread(half)) and in_thread(half).__name__ == "half"
    assert asyncio.run(in_thread(half)(3.0, of=2.0)) == 3.0


def ask_together(judge, clips):
    """Ask for all clips from threads of their own, the first of which holds the judge until all others wait."""
    batcher = MicroBatcher(judge, 8.0, None, None)
    with ThreadPoolExecutor(len(clips)) as threads:
        first = threads.submit(batcher.score, clips[0], PROMPT)
        assert judge.entered.wait(10)
        rest = [threads.submit(batcher.score, clip, PROMPT) for clip in clips[1:]]
        while batcher.num_queued < len(rest):
            time.sleep(0.001)
        judge.go_on.set()
    return [first, *rest]


def test_requests_that_wait_are_scored_together_and_each_gets_its_own():
    judge = BlackFailsJudge()
    clips = [torch.full((2, 3, 4, 4), value) for value in (0.25, 0.5, 0.0, 0.75)]
    found = [one.result() for one in ask_together(judge, clips)]
    assert judge.batches == [1, 3]
    assert [one.rewards[0] for one in found] == pytest.approx([0.25, 0.5, math.nan, 0.75], nan_ok=True)
    assert [one.reasons for one in found] == [[""], [""], ["black"], [""]]
    assert found[3] == HostScores([0.75], {"overall": [0.75]}, [""])


def test_a_request_that_fails_spares_those_that_waited_with_it():
    judge = BlackFailsJudge()
    clips = [torch.full((size, 3, 4, 4), 0.5) for size in (2, 2, 2, 1)]
    errors = [one.exception() for one in ask_together(judge, clips)]
    assert [type(error) for error in errors] == [type(None), type(None), type(None), ValueError]
