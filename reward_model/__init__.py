"""A video judge: it scores, compares and explains generated or natural video.

The names below are the public ones. They load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reward_model.config import load_config
    from reward_model.datasets.base import read_manifest, read_pairs, read_records
    from reward_model.evaluation.metrics import bootstrap_interval, pair_accuracy, pairs_within_groups, srcc
    from reward_model.media.distortions import distort
    from reward_model.media.video_io import read_video, write_video
    from reward_model.serving.client import VideoJudgeClient
    from reward_model.toy_world import moving_shapes, oracle
    from reward_model.video_reward import VideoJudgeReward

    __version__: str

__all__ = [
    "__version__",
    "VideoJudgeClient",
    "VideoJudgeReward",
    "bootstrap_interval",
    "distort",
    "load_config",
    "moving_shapes",
    "oracle",
    "pair_accuracy",
    "pairs_within_groups",
    "read_manifest",
    "read_pairs",
    "read_records",
    "read_video",
    "srcc",
    "write_video",
]

_HOMES = {
    "VideoJudgeClient": "reward_model.serving.client",
    "VideoJudgeReward": "reward_model.video_reward",
    "bootstrap_interval": "reward_model.evaluation.metrics",
    "distort": "reward_model.media.distortions",
    "load_config": "reward_model.config",
    "pair_accuracy": "reward_model.evaluation.metrics",
    "pairs_within_groups": "reward_model.evaluation.metrics",
    "read_manifest": "reward_model.datasets.base",
    "read_pairs": "reward_model.datasets.base",
    "read_records": "reward_model.datasets.base",
    "read_video": "reward_model.media.video_io",
    "srcc": "reward_model.evaluation.metrics",
    "write_video": "reward_model.media.video_io",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if name in ("moving_shapes", "oracle"):
        return import_module(f"reward_model.toy_world.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'reward_model' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def _version() -> str:
    """Return the version of the installed package; the source tree alone has none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("video-judge")
    except PackageNotFoundError:
        return "unknown (not installed)"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
