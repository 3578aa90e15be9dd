"""`video-judge bench`: which files it times, which it names as unreadable, and its units."""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reward_model.commands import bench
from reward_model.media.video_io import write_video


@pytest.mark.parametrize(("platform", "peak"), [("linux", 2048.0), ("darwin", 2.0)])
def test_peak_memory_is_in_mebibytes_on_either_system(
    monkeypatch: pytest.MonkeyPatch, platform: str, peak: float
) -> None:
    """Linux counts KiB, macOS bytes."""
    monkeypatch.setattr(bench.sys, "platform", platform)
    monkeypatch.setattr(bench.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=2**21))
    sizes = []

    def judge(videos: list[int], prompts: list[None], *, readout: str, batch_size: int) -> Any:
        sizes.append((len(videos), batch_size, readout))
        return SimpleNamespace(rewards=torch.zeros(len(videos)))

    judge.judge = SimpleNamespace(device=torch.device("cpu"))  # type: ignore[attr-defined]
    args = argparse.Namespace(readout="level", repeats=2)
    speed = bench._measure(judge, [1, 2, 3, 4, 5], [None] * 5, 2, args)  # type: ignore[list-item]
    assert (speed.batch_size, speed.peak_mib) == (2, peak)
    assert sizes == [(2, 2, "level"), (5, 2, "level"), (5, 2, "level")]  # one call to warm up
    assert speed.clips_per_second == pytest.approx(5 / speed.seconds)


def test_unreadable_files_are_named_and_counted(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "a.mp4", torch.rand(6, 3, 32, 32), 8.0)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    args = argparse.Namespace(inputs=[str(tmp_path)], prompt="a dog", allow_damaged=False)
    videos, prompts, failed = bench._read(args, SimpleNamespace(frame_policy=None))
    assert (len(videos), prompts, failed) == (1, ["a dog"], 1)
    assert f"video-judge bench: {tmp_path / 'b.mp4'}: damaged or not a video" in capsys.readouterr().err
