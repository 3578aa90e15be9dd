"""Interchangeable decoders: each returns the wanted frames of one video as upright 8-bit RGB pictures [H, W, C].

PyAV carries its own FFmpeg and reports damage; decord and torchcodec are optional and see missing frames only.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from reward_model.media.containers import check_index
from reward_model.records import VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Source = str | Path | bytes
Pictures = dict[int, NDArray[np.uint8]]
Fit = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""Resizes one upright picture [H, W, C]; VideoError for a size that cannot be shown."""

CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif,ivf,h264,hevc,m4v,mp3,wav,png_pipe,jpeg_pipe"
"""Demuxers that may open an input. Playlists and scripts, which would open further files, are not among them."""

STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}
"""Makes FFmpeg check what it can (such as picture hashes in HEVC) and stop at errors that it would conceal."""


@dataclass(frozen=True)
class Target:
    """Frames to decode: their numbers, the number of frames in the file, sizes (width, height) as stored and kept."""

    wanted: frozenset[int]
    num_frames: int
    stored_size: tuple[int, int]
    size: tuple[int, int]
    fit: Fit | None = None
    """Applied to each kept picture as soon as it is decoded, so that memory never holds all of them in full size."""


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


def decode_pyav(source: Source, target: Target, *, allow_damaged: bool) -> Pictures:
    """Decode from the first frame to the last, keep the wanted ones and refuse damage found anywhere.

    Args:
        source: path or bytes.
        target: frames to keep.
        allow_damaged: carry on past errors and keep damaged frames; a lost frame shifts the numbers after it.

    Returns:
        Frame number to picture.

    Raises:
        VideoError: if a frame is damaged or missing, or sizes change within the clip.
    """
    pictures: Pictures = {}
    damaged: list[int] = []
    count = 0
    with open_video(source) as (container, stream):
        if not allow_damaged:
            stream.codec_context.options = STRICT
        for frame in _frames(container, stream, skip_errors=allow_damaged):
            if (frame.width, frame.height) != target.stored_size:
                raise VideoError(
                    f"damaged: frame {count} is {frame.width}x{frame.height}, "
                    f"the header says {target.stored_size[0]}x{target.stored_size[1]}"
                )
            if frame.is_corrupt:
                damaged.append(count)
            if count in target.wanted:
                pictures[count] = _picture(frame, target)
            count += 1
    if damaged and not allow_damaged:
        raise VideoError(
            f"damaged: the decoder marks {len(damaged)} of {count} frames, the first is number {damaged[0]}"
        )
    if count < target.num_frames and not allow_damaged:
        raise VideoError(f"damaged: only {count} of {target.num_frames} frames could be decoded")
    return pictures


def decode_decord(source: Source, target: Target, *, allow_damaged: bool) -> Pictures:
    """Decode with decord; same contract as `decode_pyav`, but concealed damage goes unseen."""
    import decord
    from decord._ffi.base import DECORDError

    with open_video(source) as (container, stream):
        rotation = next(_frames(container, stream, skip_errors=True)).rotation
    if rotation % 180:
        # decord 0.6 turns the picture, then stretches it back to the size before the turn.
        raise VideoError("decord distorts clips that are stored on their side; use the pyav decoder")
    width, height = target.size if target.size != target.stored_size else (-1, -1)
    handle = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    try:
        reader = decord.VideoReader(handle, ctx=decord.cpu(0), width=width, height=height, num_threads=1)
        wanted = _present(target, len(reader), allow_damaged=allow_damaged)
        pictures = reader.get_batch(wanted).asnumpy()
    except (DECORDError, RuntimeError) as error:
        raise VideoError(f"damaged or not readable by decord: {_first_line(error)}") from error
    return dict(zip(wanted, pictures, strict=True))


def decode_torchcodec(source: Source, target: Target, *, allow_damaged: bool) -> Pictures:
    """Decode with torchcodec; same contract as `decode_pyav`, but concealed damage goes unseen."""
    import torch
    from torchcodec.decoders import VideoDecoder

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
    return dict(zip(wanted, pictures.numpy(), strict=True))


DECODERS: dict[str, Callable[..., Pictures]] = {
    "pyav": decode_pyav,
    "decord": decode_decord,
    "torchcodec": decode_torchcodec,
}


def _frames(container: InputContainer, stream: VideoStream, *, skip_errors: bool) -> Iterator[VideoFrame]:
    import av

    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            if not skip_errors:
                raise


def _picture(frame: VideoFrame, target: Target) -> NDArray[np.uint8]:
    # One thread: by default each conversion would start as many as there are cores.
    if target.size != target.stored_size:
        width, height = target.size
        frame = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA", threads=1)
    picture = np.asarray(frame.to_ndarray(format="rgb24", threads=1), np.uint8)
    # FFmpeg's rotation is the counter-clockwise turn that sets the picture upright, as is numpy's.
    upright = np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))
    return upright if target.fit is None else target.fit(upright)


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
