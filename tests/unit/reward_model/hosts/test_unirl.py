"""UniRL: a minimal reward service and scorer item of its contracts meet the embedded judge."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from reward_model.hosts.unirl import JudgeBackend, JudgeScorer
from reward_model.media.video_io import encode_video, write_video
from tests.host_clips import FPS, PROMPTS, clips, expected


@dataclass
class Request:
    """The host's request as far as backends of videos read it."""

    prompts: list[str]
    videos: list[torch.Tensor] | None


class RewardBackend(ABC):
    input_kind = "image"

    def __init__(self, model_name="", batch_size=8, timeout=60.0):
        self.model_name, self.batch_size, self.timeout = model_name, batch_size, timeout

    def get_model_name(self):
        return self.model_name

    @property
    def preferred_input_kind(self):
        return str(self.input_kind)

    @abstractmethod
    def compute_rewards(self, request): ...

    @abstractmethod
    def is_available(self): ...


class Backend(JudgeBackend, RewardBackend): ...


def attach(backend, request):
    """The host's service: any flagged sample stops the step."""
    assert backend.get_model_name() and backend.preferred_input_kind == "video" and backend.is_available()
    backend.offload()
    backend.onload()
    response = backend.compute_rewards(request)
    failed = [
        (index, why) for index, (ok, why) in enumerate(zip(response.successes, response.errors, strict=True)) if not ok
    ]
    if failed:
        raise RuntimeError(f"{failed}")
    parts = {name: torch.tensor(values) for name, values in response.component_rewards.items()}
    return torch.tensor(response.rewards), parts


@pytest.mark.parametrize("kind", [JudgeBackend, Backend])
def test_unirl_attaches_rewards_and_components(judge, kind):
    request = Request(PROMPTS, list(clips().permute(0, 2, 1, 3, 4)))  # [C, T, H, W] each
    rewards, parts = attach(kind(judge="toy", fps=FPS, device="cpu"), request)
    assert rewards.tolist() == expected(judge)
    assert set(parts) == {"visual_quality", "motion_quality", "text_alignment", "overall"}


def test_unirl_is_told_which_samples_failed_and_why(mute):
    request = Request(PROMPTS, list(clips().permute(0, 2, 1, 3, 4)))
    response = JudgeBackend(mute, FPS).compute_rewards(request)
    assert all(math.isnan(value) for value in response.rewards) and response.successes == [False] * 3
    assert all("five level words" in why for why in response.errors) and response.compute_time > 0
    with pytest.raises(RuntimeError, match="five level words"):
        attach(Backend(mute, FPS), request)
    with pytest.raises(ValueError, match="the request has no videos"):
        attach(Backend(mute, FPS), Request(PROMPTS, None))


@dataclass(frozen=True)
class ServiceItem:
    """An item of the host's reward service."""

    history: list[tuple[str, Any]]
    videos: tuple[bytes | str | None, ...] | None = None
    metadata: dict[str, Any] | None = None


def test_unirl_service_scores_bytes_and_paths_of_the_last_turn(judge, tmp_path):
    write_video(tmp_path / "clip.mp4", clips(1)[0], FPS)
    items = [
        ServiceItem([("a blue ring", None), (PROMPTS[0], None)], (None, encode_video(clips(1)[0], FPS))),
        ServiceItem([(PROMPTS[0], None)], (str(tmp_path / "clip.mp4"),)),
        ServiceItem([(PROMPTS[0], None)], (b"not a video",)),
    ]
    scorer = JudgeScorer("toy", device="cpu", dtype="float32")
    first, second, broken = scorer.score(items)
    assert first == pytest.approx(second, rel=0, abs=1e-5) and [first["overall"]] == expected(
        judge, [tmp_path / "clip.mp4"], PROMPTS[:1]
    )
    assert tuple(first) == scorer.sub_metric_names and next(iter(first)) == "overall"
    assert all(math.isnan(value) for value in broken.values())
    assert scorer.score([]) == []
    with pytest.raises(ValueError, match=r"a video on the last turn of every item; items \[1\] have none"):
        scorer.score([items[0], ServiceItem([("a", None)])])
    scorer.close()


def test_frames_of_another_range_are_the_reason_of_each_sample(judge):
    signed = [video.transpose(0, 1) * 2 - 1 for video in clips()]
    response = JudgeBackend(judge, FPS).compute_rewards(Request(PROMPTS, signed))
    assert response.successes == [False] * 3 and all("must lie in [0, 1]" in why for why in response.errors)
