"""Clips and prompts that the tests of the hosts share, and what the judge says of them."""

from __future__ import annotations

import pytest
import torch

FPS = 8.0
PROMPTS = ["a red circle moving left", "a blue square moving right", "a green circle moving up"]


def clips(num=3, seed=0):
    """Return random clips [num, 5, 3, 32, 32] in [0, 1]."""
    return torch.rand(num, 5, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def expected(judge, videos=None, prompts=PROMPTS, **how):
    videos = clips() if videos is None else videos
    return pytest.approx(judge(videos, prompts, fps=FPS, **how).rewards.tolist(), abs=1e-5)
