"""Clips in the small form that waits for the judge: 8-bit pixels, no larger than the judge shows them.

Memory holds many of these at a time, and of a source only the picture that is being decoded. The arithmetic is the judge's
own: it sees the same 8-bit pixels as if it had been given the whole frames.

Shapes: T frames, C = 3 channels, H, W pixels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from reward_model.judge.families.base import VisionFamily, shrink_whole
from reward_model.media.decoders import Fit
from reward_model.media.intake import MOTION_SIDE
from reward_model.records import Clip, VideoError

SHOWN_BYTES = 40
"""Bytes for each pixel that the judge is shown: 8-bit pixels, the same in float32, and its patches twice."""

SOURCE_BYTES = 32
"""Bytes for each pixel of a source's frame while a file is read: the decoder's reference pictures and two in RGB."""

DENSE_BYTES = 16
"""Bytes for each pixel of all frames that a motion encoder gets: in float32, in 8 bits until then, and its luma."""

ENCODED_FRAMES = 32
"""Frames that a motion encoder works on at a time, in float32 once more."""


class Shrinker:
    """Shrinks the frames of one video, and remembers their size before."""

    def __init__(self, family: VisionFamily) -> None:
        """Take the judge's family, which decides the size."""
        self._family = family
        self.source_size: tuple[int, int] | None = None

    def fit(self, num_frames: int) -> Fit:
        """Return what shrinks each of `num_frames` decoded pictures."""

        def shrink(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
            """Return the picture [H, W, C] as it is shown, or as it is where that is no smaller."""
            planar = rearrange(torch.from_numpy(picture), "h w c -> 1 c h w").contiguous()
            return np.ascontiguousarray(rearrange(self._shrunk(planar, num_frames), "1 c h w -> h w c").numpy())

        return shrink

    def clip(self, clip: Clip) -> Clip:
        """Return a clip of float or 8-bit frames with 8-bit frames that are no larger than they are shown."""
        frames = clip.frames.detach()
        if frames.dtype != torch.uint8:
            frames = frames.clamp(0, 1).mul_(255).round_().to(torch.uint8)
        if self.source_size is None:
            frames = self._shrunk(frames, len(frames))
        return replace(clip, frames=frames, source_size=self.source_size)

    def _shrunk(self, pixels: Tensor, num_frames: int) -> Tensor:
        height, width = pixels.shape[-2:]
        shown = shown_size(self._family, num_frames, height, width)
        if shown[0] * shown[1] >= height * width:
            return pixels
        self.source_size = height, width
        return shrink_whole(pixels, shown)


def shown_size(family: VisionFamily, num_frames: int, height: int, width: int) -> tuple[int, int]:
    """Return the size that frames are shown at; VideoError for frames that the family cannot take."""
    try:
        return family.size(num_frames, height, width)
    except ValueError as error:
        raise VideoError(str(error)) from error


def motion_bytes(num_frames: int, height: int, width: int) -> int:
    """Return the bytes that reading a file's motion takes: all frames, of at most `MOTION_SIDE` pixels a side."""
    shrink = min(1.0, MOTION_SIDE / max(height, width, 1))
    return (num_frames + min(num_frames, ENCODED_FRAMES)) * round(height * width * shrink**2) * DENSE_BYTES


def sent_bytes(frames: Tensor, num_planned: int, *, moves: bool) -> int:
    """Return the bytes that reading frames [T, C, H, W] takes which came as pixels.

    Args:
        frames: as they came, of which the body's bytes and the tensor are copies.
        num_planned: frames that the judge sees.
        moves: a motion encoder gets all frames as well.

    Returns:
        The bytes beside those of the clip that is kept.
    """
    pixels, planned = frames.numel() // frames.shape[1], num_planned * frames.shape[-2] * frames.shape[-1]
    copies = 2 * frames.numel() * frames.element_size()
    if frames.dtype == torch.uint8 and not moves:
        return copies + 15 * planned  # the chosen ones, and the same in float32 while they shrink
    encoded = min(len(frames), ENCODED_FRAMES) * frames.shape[-2] * frames.shape[-1] * DENSE_BYTES if moves else 0
    # float32 with a mask of finite numbers; the chosen ones twice more, and in 8 bits
    return copies + 15 * pixels + 27 * planned + encoded


def as_float(clip: Clip) -> Clip:
    """Return a clip with float32 frames in [0, 1], the form that the judge takes."""
    return replace(clip, frames=clip.frames.float().div_(255)) if clip.frames.dtype == torch.uint8 else clip
