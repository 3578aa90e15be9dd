"""Real clips with captions, from a user's file, in the generator's own size and rate.

Shapes: T frames, H, W pixels of the generator's clips.
"""

from __future__ import annotations

import logging
import random
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from generator_loop.records import Draw, Prompt
from reward_model import read_records, read_video
from reward_model.records import VideoError

log = logging.getLogger(__name__)

FIRST_ID = 1_000_000_000
"""Prompt id of the file's first caption, far from those of training prompts."""


class RealClips:
    """The clips that a file lists."""

    def __init__(self, path: str | Path) -> None:
        """Read the list; the clips are read when they are asked for.

        Args:
            path: CSV or JSONL with the columns `video` (relative to its folder) and `prompt`.

        Raises:
            ValueError: it lacks a column, or a line lacks a value or has one too many.
        """
        self._path = path = Path(path)
        self._clips: list[tuple[Prompt, Path]] = []
        for number, record in enumerate(read_records(path)):
            video, text = (str(record.get(name) or "").strip() for name in ("video", "prompt"))
            if not video or not text:
                raise ValueError(f"{path}: entry {number + 1} needs a video and a prompt (columns video and prompt)")
            self._clips.append((Prompt(FIRST_ID + number, text), path.parent / video))

    def refuse_unusable(self, *, size: tuple[int, int, int], fps: float) -> None:
        """Refuse a list of which no clip can be used.

        Args:
            size: T, H and W.
            fps: rate in Hz.

        Raises:
            ValueError: none can; the log says why.
        """
        if all(self.read(path, size=size, fps=fps) is None for _, path in self._clips):
            raise ValueError(
                f"{self._path}: none of its {len(self._clips)} clips can be read with {size[0]} frames at {fps:g} Hz"
            )

    def choose(self, num: int, draw: Draw) -> list[tuple[Prompt, Path]]:
        """Return up to `num` distinct clips with their captions, the same for the same `draw`."""
        return random.Random(draw.key()).sample(self._clips, min(num, len(self._clips)))

    def read(self, path: Path, *, size: tuple[int, int, int], fps: float) -> Tensor | None:
        """Return the beginning of a clip, or None where it cannot be used; the log says why.

        Args:
            path: one of the clips.
            size: T, H and W.
            fps: rate in Hz.

        Returns:
            Float32 RGB [T, 3, H, W] in [0, 1]: the frame on screen at each moment, shrunk to cover the size and cut to its middle.
        """
        num, height, width = size
        try:
            video, _ = read_video(path, max_side=4 * max(height, width))
        except VideoError as error:
            log.warning("%s is left out: %s", path, error)
            return None
        times = video.times or tuple(index / video.fps for index in range(len(video.frames)))
        moments = [times[0] + index / fps for index in range(num)]
        if times[-1] + 1 / video.fps <= moments[-1] + 1e-6:
            log.warning("%s is left out: it is shorter than %d frames at %g Hz", path, num, fps)
            return None
        shown = [max(place for place, time in enumerate(times) if time <= moment + 1e-6) for moment in moments]
        return _covering(video.frames[shown], height, width)


def _covering(frames: Tensor, height: int, width: int) -> Tensor:
    """Return frames [T, 3, H, W] resized so that they cover the size, and cut to their middle."""
    factor = max(height / frames.shape[-2], width / frames.shape[-1])
    size = [max(want, round(side * factor)) for side, want in zip(frames.shape[-2:], (height, width), strict=True)]
    resized = F.interpolate(frames, size=size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return resized[..., top : top + height, left : left + width].contiguous()
