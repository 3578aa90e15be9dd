"""Stored clips come back with their labels, their frames to within half a level of 8 bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reward_model.datasets.stored import load_clips, store_clips, to_bytes
from reward_model.records import RatedClip, Video


def clip(number: int, side: int = 4) -> RatedClip:
    """Return a clip of random frames."""
    frames = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(number))
    return RatedClip(Video(frames=frames, fps=8.0 + number), f"dog {number}", {"overall": 0.25}, str(number), {"n": 1})


def test_stored_clips_come_back_with_their_labels(tmp_path: Path) -> None:
    clips = [clip(0), clip(1)]
    store_clips(tmp_path / "clips.safetensors", clips)
    for stored, given in zip(load_clips(tmp_path / "clips.safetensors"), clips, strict=True):
        assert isinstance(stored.video, Video) and isinstance(given.video, Video)
        assert stored.video.fps == given.video.fps and stored.video.source == str(tmp_path / "clips.safetensors")
        torch.testing.assert_close(stored.video.frames, given.video.frames, atol=0.5001 / 255, rtol=0)
        assert (stored.prompt, stored.quality, stored.source_id, stored.facts) == (
            given.prompt,
            given.quality,
            given.source_id,
            given.facts,
        )


def test_frames_are_rounded_to_the_nearest_of_256_levels() -> None:
    assert to_bytes(torch.tensor([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 0.25, 1.0, 2.0])).tolist() == [
        0,
        0,
        0,
        1,
        64,
        255,
        255,
    ]


def test_clips_of_two_sizes_or_of_files_are_not_stored(tmp_path: Path) -> None:
    file = RatedClip(tmp_path / "a.mp4", None, {}, "a")
    for clips in ([clip(0), clip(1, side=8)], [clip(0), file], [file]):
        with pytest.raises(ValueError, match="in memory, all of one shape"):
            store_clips(tmp_path / "clips.safetensors", clips)
    assert not (tmp_path / "clips.safetensors").exists()
