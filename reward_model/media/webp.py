"""Animated WebP: FFmpeg decodes its parts one by one, which are laid over each other here as the file says.

Shapes: H, W pixels of the canvas; pictures are 8-bit RGBA [H, W, 4].

Source: the extended format of developers.google.com/speed/webp/docs/riff_container.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reward_model.media.containers import Bytes
from reward_model.records import VideoError

Canvas = NDArray[np.uint8]

BRIEFEST, USUAL = 11, 100
"""Milliseconds: browsers show a picture whose duration is below the first for the second."""

_STRIP = 64
"""Lines that are blended at a time, which bounds memory."""


@dataclass(frozen=True)
class WebpPart:
    """One picture of the file: its rectangle on the canvas, the milliseconds that it stays, and the place of its chunks.

    `blends` says that the canvas shows through where it is transparent, `is_cleared` that its rectangle is emptied after it.
    """

    left: int
    top: int
    width: int
    height: int
    duration: int
    blends: bool
    is_cleared: bool
    start: int
    end: int


@dataclass(frozen=True)
class Animation:
    """Size of the canvas, parts in the order in which they are shown, and whether the file is as long as it says."""

    width: int
    height: int
    parts: tuple[WebpPart, ...]
    is_whole: bool

    @property
    def times(self) -> tuple[float, ...]:
        """Return the seconds at which the parts are shown, from the first."""
        shown = (part.duration if part.duration >= BRIEFEST else USUAL for part in self.parts)
        return tuple(start / 1000 for start in accumulate(shown, initial=0))[:-1]


def read_animation(source: str | Path | bytes) -> Animation:
    """Read the parts of an animated WebP without decoding them.

    Args:
        source: path or bytes of a file that `is_animated_webp` knows.

    Returns:
        The parts that the file holds in full.

    Raises:
        VideoError: a part leaves the canvas.
    """
    with _opened(source) as data:
        width, height = _number(data, 24, 3) + 1, _number(data, 27, 3) + 1
        parts, place, end = [], 12, 8 + _number(data, 4, 4)
        while place + 8 <= min(end, len(data)):
            name, size = data[place : place + 4], _number(data, place + 4, 4)
            if name == b"ANMF" and size >= 16 and place + 8 + size <= len(data):
                parts.append(_part(data, place + 8, size))
            place += 8 + size + size % 2
        is_whole = end <= len(data)
    for number, part in enumerate(parts):
        if part.left + part.width > width or part.top + part.height > height:
            raise VideoError(f"damaged: picture {number} leaves the canvas of {width}x{height}")
    return Animation(width, height, tuple(parts), is_whole)


def composed(source: str | Path | bytes, animation: Animation, *, skip_errors: bool) -> Iterator[Canvas | None]:
    """Decode the parts and lay each over those before.

    Args:
        source: path or bytes of the file.
        animation: its parts.
        skip_errors: leave out parts that cannot be decoded.

    Yields:
        The canvas [H, W, 4] after each part, which the next part changes; None for a part left out.

    Raises:
        VideoError: a part cannot be decoded.
    """
    canvas = np.zeros((animation.height, animation.width, 4), np.uint8)
    with _opened(source) as data:
        for number, part in enumerate(animation.parts):
            try:
                picture = _decoded(data[part.start : part.end], part)
            except VideoError as error:
                if not skip_errors:
                    raise VideoError(f"damaged: picture {number}: {error}") from error
                yield None
                continue
            place = canvas[part.top : part.top + part.height, part.left : part.left + part.width]
            _lay(picture, place, blends=part.blends)
            yield canvas
            if part.is_cleared:
                place[:] = 0


@contextmanager
def _opened(source: str | Path | bytes) -> Iterator[Bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _number(data: Bytes, place: int, length: int) -> int:
    return int.from_bytes(data[place : place + length], "little")


def _part(data: Bytes, place: int, size: int) -> WebpPart:
    left, top, width, height, duration = (_number(data, place + 3 * field, 3) for field in range(5))
    flags = data[place + 15]
    return WebpPart(
        left=2 * left,
        top=2 * top,
        width=width + 1,
        height=height + 1,
        duration=duration,
        blends=not flags & 2,
        is_cleared=bool(flags & 1),
        start=place + 16,
        end=place + size,
    )


def _decoded(chunks: bytes, part: WebpPart) -> Canvas:
    """Return a part's pixels, decoded as a file of its own."""
    import av

    has_alpha = chunks[:4] == b"ALPH"  # codespell:ignore alph
    size = (part.width - 1).to_bytes(3, "little") + (part.height - 1).to_bytes(3, "little")
    head = b"VP8X" + (10).to_bytes(4, "little") + bytes([0x10 * has_alpha, 0, 0, 0]) + size
    body = b"WEBP" + (head if has_alpha else b"") + chunks
    decoder = av.CodecContext.create("webp", "r")
    # FFmpeg pads the sides before it compares
    decoder.options = {"max_pixels": str(2 * (part.width + 64) * (part.height + 64))}
    decoder.thread_count = 1
    try:
        frames = decoder.decode(av.Packet(b"RIFF" + len(body).to_bytes(4, "little") + body))
    except av.FFmpegError as error:
        raise VideoError(str(error.strerror)) from error
    if len(frames) != 1 or (frames[0].width, frames[0].height) != (part.width, part.height):
        raise VideoError(f"not of the size {part.width}x{part.height} that its header names")
    return np.asarray(frames[0].to_ndarray(format="rgba", threads=1), np.uint8)


def _lay(picture: Canvas, place: Canvas, *, blends: bool) -> None:
    """Write a picture [h, w, 4] over its place on the canvas, by alpha over what is there."""
    if not blends or picture[..., 3].min() == 255:
        place[:] = picture
        return
    for start in range(0, len(picture), _STRIP):
        above, below = (one[start : start + _STRIP].astype(np.float32) for one in (picture, place))
        alpha = above[..., 3:] / 255
        rest = below[..., 3:] / 255 * (1 - alpha)
        colour = (above[..., :3] * alpha + below[..., :3] * rest) / np.maximum(alpha + rest, 1e-6)
        mixed = np.concatenate([colour, 255 * (alpha + rest)], axis=-1)
        place[start : start + _STRIP] = mixed.round().astype(np.uint8)
