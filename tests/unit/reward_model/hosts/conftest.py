"""The two judges that the tests of the hosts share."""

from __future__ import annotations

import pytest

from reward_model.hosts.core import load_judge
from reward_model.video_reward import VideoJudgeReward
from tests.tiny_judge import build_judge


@pytest.fixture(scope="session")
def judge() -> VideoJudgeReward:
    """The embedded judge, as hosts load it."""
    return load_judge("toy", device="cpu")


@pytest.fixture(scope="session")
def mute() -> VideoJudgeReward:
    """A random judge, which puts little probability on its answer words: none of its scores counts."""
    return VideoJudgeReward(build_judge().requires_grad_(False))
