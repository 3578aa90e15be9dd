"""Planned clips that are asked for again and again: as many as fit in a number of bytes stay, the others are read again.

Shapes: T frames, C = 3 channels, H, W pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from reward_model.records import Clip

MAX_SHELF_BYTES = 2**29
"""Bytes of the clips that stay, at 3 a pixel where they were 8-bit: about 2,700 frames of 256x256."""

Read = Callable[[], Clip | str]
"""Reads one video: its clip, or the reason why it is unreadable."""


class ClipShelf:
    """B clips by their place; memory holds at most `max_bytes` of them, and the one that is asked for."""

    def __init__(self, readers: Sequence[Read], *, max_bytes: int = MAX_SHELF_BYTES) -> None:
        """Start with nothing read.

        Args:
            readers: one for each clip, called again where its clip did not stay.
            max_bytes: of the clips that stay; those not asked for longest go first.
        """
        self._readers, self._max_bytes = list(readers), max_bytes
        self._kept: OrderedDict[int, Clip | str] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        """Return B."""
        return len(self._readers)

    def __getitem__(self, place: int) -> Clip | str:
        """Return the clip at a place, float frames in [0, 1], or the reason why it is unreadable."""
        if place in self._kept:
            self._kept.move_to_end(place)
            return _unpacked(self._kept[place])
        clip = self._readers[place]()
        self._keep(place, _packed(clip))
        return clip

    def __iter__(self) -> Iterator[Clip | str]:
        """Yield all clips in order."""
        return (self[place] for place in range(len(self)))

    def _keep(self, place: int, clip: Clip | str) -> None:
        self._kept[place] = clip
        self.num_bytes += _size(clip)
        while self.num_bytes > self._max_bytes:
            _, gone = self._kept.popitem(last=False)
            self.num_bytes -= _size(gone)


def _size(clip: Clip | str) -> int:
    if isinstance(clip, str):
        return 0
    tensors = (clip.frames,) if clip.motion is None else (clip.frames, clip.motion)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _packed(clip: Clip | str) -> Clip | str:
    """Return the clip with 8-bit frames where that loses nothing."""
    if isinstance(clip, str):
        return clip
    pixels = in_8_bits(clip.frames.detach())
    return clip if pixels is None else replace(clip, frames=pixels)


def in_8_bits(frames: Tensor) -> Tensor | None:
    """Return float32 frames [T, C, H, W] in 8 bits, None where they would not be the same again."""
    if frames.dtype != torch.float32:
        return None
    pixels = torch.empty(frames.shape, dtype=torch.uint8, device=frames.device)
    for target, frame in zip(pixels, frames, strict=True):
        target.copy_(frame.mul(255).round_())
        if not torch.equal(as_float(target), frame):
            return None
    return pixels


def _unpacked(clip: Clip | str) -> Clip | str:
    if isinstance(clip, str) or clip.frames.dtype != torch.uint8:
        return clip
    return replace(clip, frames=as_float(clip.frames))


def as_float(pixels: Tensor) -> Tensor:
    """Return 8-bit pixels in [0, 1], exactly as files are read."""
    return pixels.float().div_(255)
