"""Interchangeable decoders: each returns the wanted frames of one video as upright 8-bit RGB pictures [H, W, C].

PyAV carries its own FFmpeg and reports damage; decord and torchcodec are optional and see missing frames only.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from reward_model.media.containers import check_index, is_animated_webp
from reward_model.media.webp import composed, read_animation
from reward_model.records import VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Source = str | Path | bytes
Picture = NDArray[np.uint8]
Pictures = dict[int, Picture]
Fit = Callable[[Picture], Picture]
"""Resizes one upright picture [H, W, C]; VideoError for a size that cannot be shown."""

Turn = tuple[bool, bool, bool]
"""Moves that set a picture upright, in this order: swap its axes, mirror left to right, mirror top to bottom."""

UPRIGHT: Turn = (False, False, False)

TRANSPARENCY = "transparency is ignored"

CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif,ivf,h264,hevc,m4v,mp3,wav,apng,png_pipe,jpeg_pipe"
"""Demuxers that may open an input. Playlists and scripts, which would open further files, are not among them."""

STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}
"""Makes FFmpeg check what it can (such as picture hashes in HEVC) and stop at errors that it would conceal."""

SEEKABLE = {"mov", "matroska", "avi", "flv"}
"""Demuxers of files with an index of key frames."""

SAME_PICTURE = 8
"""Mean difference of 8-bit values up to which two decoders' pictures are one; those of two resize filters differ by less."""


@dataclass(frozen=True)
class Target:
    """Frames to decode: their numbers, the number of frames in the file, sizes (width, height) as stored and kept.

    `start` is the time stamp of the first picture that can be decoded, where the file begins between such pictures; `plain` says
    that every packet is a picture, one tick after the other. No picture may have more than `max_frame_pixels`.
    """

    wanted: frozenset[int]
    num_frames: int
    stored_size: tuple[int, int]
    size: tuple[int, int]
    start: int | None = None
    plain: bool = True
    max_frame_pixels: int = 2**25
    fit: Fit | None = None
    """Applied to each kept picture as soon as it is decoded, so that memory never holds all of them in full size."""


@dataclass(frozen=True)
class Decoded:
    """Frame number to picture, and remarks about what the pictures do not show."""

    pictures: Pictures
    remarks: tuple[str, ...] = ()


@contextmanager
def open_video(source: Source) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a path or bytes at its video stream; the cover image of an audio file is no video.

    Args:
        source: path of a file, or the file's bytes.

    Yields:
        The open container and its first video stream.

    Raises:
        VideoError: the file's header declares an oversized index, FFmpeg cannot read it, now or while the context is open, or it
            holds no video.
    """
    import av
    from av.stream import Disposition

    check_index(source)
    # The file: prefix keeps names such as "concat:a|b" from being read as protocols.
    handle = io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}"
    try:
        with av.open(handle, options={"format_whitelist": CONTAINERS}, metadata_errors="replace") as container:
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                raise VideoError("no video stream in the file")
            if streams[0].codec_context is None:
                raise VideoError("damaged or not a video: its codec is unknown")
            # One thread: callers decode several files at a time, and errors stay with the frame that caused them.
            streams[0].codec_context.thread_count = 1
            yield container, streams[0]
    except av.error.EOFError as error:
        raise VideoError("damaged: the file ends too early") from error
    except av.FFmpegError as error:
        raise VideoError(f"damaged or not a video: {error.strerror}") from error


def decode_pyav(source: Source, target: Target, *, allow_damaged: bool) -> Decoded:
    """Decode from the first frame to the last, keep the wanted ones and refuse damage found anywhere.

    Pictures of another size than the first are scaled to it, and all are turned as the first one, as by ffmpeg's command line.

    Args:
        source: path or bytes.
        target: frames to keep.
        allow_damaged: carry on past errors and keep damaged frames; a lost frame shifts the numbers after it.

    Returns:
        The pictures.

    Raises:
        VideoError: if a frame is damaged, missing or too large, or the first is of another size than the header says.
    """
    if is_animated_webp(source):
        return _decode_webp(source, target, allow_damaged=allow_damaged)
    pictures: Pictures = {}
    damaged: list[int] = []
    remarks: dict[str, None] = {}
    count, turn = 0, UPRIGHT
    # FFmpeg pads the sides before it compares
    bound = {"max_pixels": str(2 * target.max_frame_pixels)}
    with open_video(source) as (container, stream):
        stream.codec_context.options = bound if allow_damaged else {**STRICT, **bound}
        for frame in _frames(container, stream, skip_errors=allow_damaged, start=target.start):
            size = frame.width, frame.height
            if frame.width * frame.height > target.max_frame_pixels:
                raise VideoError(f"too large: frame {count} is {size[0]}x{size[1]}")
            if count == 0:
                _check_first_size(size, target, allow_damaged=allow_damaged)
                turn = turn_of(frame)
                remarks |= dict.fromkeys(_alpha_remarks(frame))
            elif size != target.stored_size:
                remarks["frames of another size were scaled to that of the first"] = None
            if frame.is_corrupt:
                damaged.append(count)
            if count in target.wanted:
                pictures[count] = _picture(frame, target.size, turn, target.fit)
            count += 1
    if damaged and not allow_damaged:
        raise VideoError(
            f"damaged: the decoder marks {len(damaged)} of {count} frames, the first is number {damaged[0]}"
        )
    if count < target.num_frames and not allow_damaged:
        raise VideoError(f"damaged: only {count} of {target.num_frames} frames could be decoded")
    return Decoded(pictures, tuple(remarks))


def _decode_webp(source: Source, target: Target, *, allow_damaged: bool) -> Decoded:
    """Decode an animated WebP; same contract as `decode_pyav`, but a lost picture shifts no numbers."""
    import av

    pictures: Pictures = {}
    remarks: tuple[str, ...] = ()
    for number, canvas in enumerate(composed(source, read_animation(source), skip_errors=allow_damaged)):
        if canvas is None or number not in target.wanted:
            continue
        if canvas[..., 3].min() < 255:
            remarks = (TRANSPARENCY,)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(canvas[..., :3]), format="rgb24")
        pictures[number] = _picture(frame, target.size, UPRIGHT, target.fit)
    return Decoded(pictures, remarks)


def first_shown(source: Source) -> int | None:
    """Return the time stamp of the first whole picture of a file that may begin between pictures; None if it has none."""
    with open_video(source) as (container, stream):
        for frame in _frames(container, stream, skip_errors=True, from_key=True):
            if not frame.is_corrupt:
                return frame.pts
    return None


def shown_stamps(source: Source) -> list[int | None]:
    """Return the time stamps of the pictures that a decoder makes of an undamaged file; damage raises VideoError."""
    with open_video(source) as (container, stream):
        stream.codec_context.options = STRICT
        return [frame.pts for frame in _frames(container, stream, skip_errors=False)]


def decode_decord(source: Source, target: Target, *, allow_damaged: bool) -> Decoded:
    """Decode with decord; same contract as `decode_pyav`, but concealed damage goes unseen.

    Files in which decord 0.6 is known to count other frames are refused: it loses those that precede a key frame.
    """
    import decord
    from decord._ffi.base import DECORDError

    first, remarks = _check_seekable(source, target)
    handle = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    try:
        # decord 0.6 cannot resize to most widths
        reader = decord.VideoReader(handle, ctx=decord.cpu(0), num_threads=1)
        wanted = _present(target, len(reader), allow_damaged=allow_damaged)
        begin, *pictures = (_resized(reader.get_batch([index]).asnumpy()[0], target.size) for index in (0, *wanted))
    except (DECORDError, RuntimeError) as error:
        raise VideoError(f"damaged or not readable by decord: {_first_line(error)}") from error
    if begin.shape != first.shape or np.abs(begin.astype(np.int16) - first).mean() > SAME_PICTURE:
        raise VideoError("decord begins at another frame than the first; use the pyav decoder")
    return Decoded(dict(zip(wanted, pictures, strict=True)), remarks)


def _resized(picture: Picture, size: tuple[int, int]) -> Picture:
    import av

    return _picture(av.VideoFrame.from_ndarray(picture, format="rgb24"), size, UPRIGHT, None)


def _check_seekable(source: Source, target: Target) -> tuple[Picture, tuple[str, ...]]:
    """Refuse files that decord distorts or miscounts, and return the first picture as it must be."""
    with open_video(source) as (container, stream):
        if not set(container.format.name.split(",")) & SEEKABLE:
            raise VideoError(f"decord loses frames of {container.format.name} files; use the pyav decoder")
        key = None
        for packet in container.demux(stream):
            if packet.is_keyframe:
                key = packet.pts
            elif key is not None and packet.pts is not None and packet.pts < key:
                raise VideoError("decord loses frames that precede a key frame; use the pyav decoder")
    if not target.plain:
        raise VideoError("decord counts packets that show nothing as frames; use the pyav decoder")
    with open_video(source) as (container, stream):
        frame = next(_frames(container, stream, skip_errors=True), None)
        if frame is None:
            raise VideoError("damaged: none of the wanted frames could be decoded")
        turn = turn_of(frame)
        if turn[0]:
            # decord 0.6 turns the picture, then stretches it back to the size before the turn.
            raise VideoError("decord distorts clips that are stored on their side; use the pyav decoder")
        if turn[1] != turn[2]:
            raise VideoError("decord shows mirrored clips as they are stored; use the pyav decoder")
        return _picture(frame, target.size, turn, None), _alpha_remarks(frame)


def decode_torchcodec(source: Source, target: Target, *, allow_damaged: bool) -> Decoded:
    """Decode with torchcodec; same contract as `decode_pyav`, but concealed damage goes unseen."""
    import torch
    from torchcodec.decoders import VideoDecoder

    if not target.plain:
        raise VideoError("some packets of the file show nothing; use the pyav decoder")
    try:
        reader = VideoDecoder(source if isinstance(source, bytes) else str(source), dimension_order="NHWC")
        wanted = _present(target, len(reader), allow_damaged=allow_damaged)
        pictures = reader.get_frames_at(wanted).data  # [N, H, W, C]
    except (RuntimeError, ValueError, IndexError) as error:
        raise VideoError(f"damaged or not readable by torchcodec: {_first_line(error)}") from error
    if target.size != target.stored_size:
        planar = rearrange(pictures, "n h w c -> n c h w").float()
        planar = torch.nn.functional.interpolate(planar, target.size[::-1], mode="bilinear", antialias=True)
        pictures = rearrange(planar.round().to(torch.uint8), "n c h w -> n h w c")
    return Decoded(dict(zip(wanted, pictures.numpy(), strict=True)))


DECODERS: dict[str, Callable[..., Decoded]] = {
    "pyav": decode_pyav,
    "decord": decode_decord,
    "torchcodec": decode_torchcodec,
}


def turn_of(frame: VideoFrame) -> Turn:
    """Return the moves that set a frame upright, by its display matrix.

    Source: ffmpeg's command line, which takes the nearest of the eight orientations but for odd angles.
    """
    from av.sidedata.sidedata import Type

    sides: Any = frame.side_data  # PyAV's types name its keys wrongly
    side = sides.get(Type.DISPLAYMATRIX)
    matrix = b"" if side is None else bytes(side)
    if len(matrix) < 36:
        return False, False, False
    # (x, y) as stored is shown at (a x + c y, b x + d y)
    a, b, _, c, d = struct.unpack("=5i", matrix[:20])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def _frames(
    container: InputContainer,
    stream: VideoStream,
    *,
    skip_errors: bool,
    start: int | None = None,
    from_key: bool = False,
) -> Iterator[VideoFrame]:
    import av

    waits = from_key or start is not None
    for packet in container.demux(stream):
        waits = waits and not packet.is_keyframe and packet.size > 0
        if waits or (start is not None and packet.pts is not None and packet.pts < start):
            continue
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            if not skip_errors:
                raise


def _picture(frame: VideoFrame, size: tuple[int, int], turn: Turn, fit: Fit | None) -> Picture:
    # One thread: by default each conversion would start as many as there are cores.
    if (frame.width, frame.height) != size:
        frame = frame.reformat(width=size[0], height=size[1], format="rgb24", interpolation="AREA", threads=1)
    picture = np.asarray(frame.to_ndarray(format="rgb24", threads=1), np.uint8)
    swap, left_right, top_bottom = turn
    if swap:
        picture = rearrange(picture, "h w c -> w h c")
    upright = np.ascontiguousarray(picture[:: -1 if top_bottom else 1, :: -1 if left_right else 1])
    return upright if fit is None else fit(upright)


def _check_first_size(size: tuple[int, int], target: Target, *, allow_damaged: bool) -> None:
    if size != target.stored_size and not allow_damaged:
        (width, height), (wide, tall) = size, target.stored_size
        raise VideoError(f"damaged: frame 0 is {width}x{height}, the header says {wide}x{tall}")


def _alpha_remarks(frame: VideoFrame) -> tuple[str, ...]:
    if not any(component.is_alpha for component in frame.format.components) and frame.format.name != "pal8":
        return ()
    opaque = frame.to_ndarray(format="rgba", threads=1)[..., 3].min() == 255
    return () if opaque else (TRANSPARENCY,)


def _present(target: Target, num_frames: int, *, allow_damaged: bool) -> list[int]:
    if num_frames < target.num_frames and not allow_damaged:
        raise VideoError(f"damaged: only {num_frames} of {target.num_frames} frames could be decoded")
    wanted = sorted(index for index in target.wanted if index < num_frames)
    if not wanted:
        raise VideoError("damaged: none of the wanted frames could be decoded")
    return wanted


def _first_line(error: Exception) -> str:
    # decord opens its messages with a clock and the place in its source.
    return re.sub(r"^\[[\d:]+\] \S+: ", "", (str(error).splitlines() or [type(error).__name__])[0])
