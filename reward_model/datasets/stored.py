"""Storage of clips of one size in one safetensors file, with their labels as metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from reward_model.records import RatedClip, Video


def store_clips(path: str | Path, clips: Sequence[RatedClip]) -> None:
    """Write clips of one size to `path` (safetensors, 8 bits a channel) with their labels as metadata.

    Args:
        path: file to write.
        clips: with their videos in memory, all of one shape.

    Raises:
        ValueError: A clip is a path or differs in shape.
    """
    from safetensors.torch import save_file

    videos = [clip.video for clip in clips]
    frames = [video.frames for video in videos if isinstance(video, Video)]
    if len(frames) != len(clips) or len({f.shape for f in frames}) != 1:
        raise ValueError("store_clips needs clips in memory, all of one shape")
    labels = [
        {"prompt": c.prompt, "quality": dict(c.quality), "source_id": c.source_id, "facts": dict(c.facts), "fps": v.fps}
        for c, v in zip(clips, videos, strict=True)
        if isinstance(v, Video)
    ]
    save_file({"frames": to_bytes(torch.stack(frames))}, str(path), metadata={"rows": json.dumps(labels)})


def load_clips(path: str | Path) -> list[RatedClip]:
    """Read what `store_clips` wrote; frames are float32 [T, C, H, W] in [0, 1]."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        frames = file.get_tensor("frames")  # [N, T, C, H, W] uint8
        labels = json.loads(file.metadata()["rows"])
    return [
        RatedClip(
            video=Video(frames=frame.float() / 255, fps=label.pop("fps"), source=str(path)),
            **label,
        )
        for frame, label in zip(frames, labels, strict=True)
    ]


def to_bytes(frames: Tensor) -> Tensor:
    """Return `frames` in [0, 1] rounded to uint8."""
    return (frames.clamp(0, 1) * 255).round().to(torch.uint8)
