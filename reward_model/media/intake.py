"""Conversion of a caller's videos (tensors, PIL frames, paths, bytes) into planned clips.

Shapes: B videos, T frames, C = 3, H, W pixels; a layout string names the axes of a tensor, e.g. "BTCHW".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from einops import rearrange
from torch import Tensor

from reward_model.media.decoders import Fit
from reward_model.media.frame_sampling import FramePolicy, take
from reward_model.media.motion import MotionEncoder
from reward_model.media.video_io import MediaLimits, read_video
from reward_model.records import Clip, Video, VideoError

if TYPE_CHECKING:
    import numpy
    from PIL.Image import Image

    VideoLike = Tensor | numpy.ndarray | Sequence[Image] | Sequence[numpy.ndarray] | str | Path | bytes | Video

Item = TypeVar("Item")

_Item = tuple[Any, float | None, str]
"""A video, its frame rate and its layout."""

DEFAULT_LAYOUT = "BTCHW"

NO_RATE = "fps is required for videos given as tensors, arrays or PIL frames (frames per second, in Hz)"

MAX_PIXELS_AHEAD = 2**26
"""Pixels of the planned frames of one chunk, 12 bytes each in float32: a chunk ends with the clip that reaches them, so that a
call holds at most this and one clip (twice, where a thread reads ahead), however many large clips it has."""

MOTION_SIDE = 256
"""Pixels of the longer side of the frames that a motion encoder gets from a file."""

RANGE_SLACK = 1e-3
"""Tolerance of float pixels outside [0, 1]: bicubic resizes overshoot by less, inputs in [-1, 1] by more."""


def to_clips(
    videos: VideoLike | Sequence[VideoLike],
    *,
    policy: FramePolicy,
    fps: float | Sequence[float] | None = None,
    layout: str = DEFAULT_LAYOUT,
    allow_damaged: bool = False,
    motion: MotionEncoder | None = None,
) -> list[Clip | str]:
    """Return one planned clip per video, or the reason why that video cannot be read.

    Args:
        videos: a tensor of all videos, or a sequence of tensors, numpy arrays, lists of PIL pictures or of arrays, paths, bytes or
            `Video` records; or one such video. Pixels are RGB, float in [0, 1] or uint8 in 0..255; gradients pass through
            float tensors.
        policy: rule for choosing frames.
        fps: frame rate in Hz of tensors, arrays and pictures, one for all or one each; files carry their own.
        layout: axes of a batched tensor; without the "B" those of one video. Arrays of the default layout are [B, T, H, W, C] or
            [T, H, W, C], as imageio and diffusers give them.
        allow_damaged: accept files whose sampled frames the decoder marks damaged.
        motion: encoder whose features of all frames, without gradient, go with each clip.

    Returns:
        A list of B items: `Clip`, or a string with the reason why that file is unreadable, or why those pixels are no picture (not
        finite, outside their range).

    Raises:
        ValueError: pixels without fps, of the wrong rank, channel count, type or layout.
        TypeError: an item that is no video.
    """
    to_clip = partial(_to_clip, policy=policy, allow_damaged=allow_damaged, motion=motion)
    return [to_clip(*item) for item in items_of(videos, fps, layout)]


def clips_ahead(
    videos: VideoLike | Sequence[VideoLike],
    num: int,
    *,
    read_ahead: bool,
    policy: FramePolicy,
    fps: float | Sequence[float] | None = None,
    layout: str = DEFAULT_LAYOUT,
    allow_damaged: bool = False,
    motion: MotionEncoder | None = None,
) -> tuple[int, Iterator[list[Clip | str]]]:
    """Plan up to `num` videos at a time; with `read_ahead`, a thread reads the next files while the caller works on these.

    A chunk ends earlier where its frames reach `MAX_PIXELS_AHEAD`.

    Args:
        videos: as in `to_clips`.
        num: most videos at a time.
        read_ahead: use a thread. It pays if the caller waits for a GPU; if the caller computes on the CPU, both threads
            contend for the interpreter (measured: a third slower).
        policy: see `to_clips`.
        fps: see `to_clips`.
        layout: see `to_clips`.
        allow_damaged: see `to_clips`.
        motion: see `to_clips`.

    Returns:
        B, and an iterator over the items of `to_clips`; it raises a video's errors at its items.

    Raises:
        ValueError: numbers of videos and rates differ, or a batched tensor of the wrong layout.
    """
    items = items_of(videos, fps, layout)
    to_clip = partial(_to_clip, policy=policy, allow_damaged=allow_damaged, motion=motion)
    chunks = in_chunks((to_clip(*item) for item in items), num, num_pixels)
    if not read_ahead or not all(isinstance(item, (str, Path, bytes)) for item, _, _ in items):
        return len(items), chunks  # gradients stay with the caller's thread
    return len(items), _ahead(chunks)


def clip_readers(
    videos: VideoLike | Sequence[VideoLike],
    *,
    policy: FramePolicy,
    fps: float | Sequence[float] | None = None,
    layout: str = DEFAULT_LAYOUT,
    allow_damaged: bool = False,
    motion: MotionEncoder | None = None,
) -> list[Callable[[], Clip | str]]:
    """Return a function for each video that reads and plans it anew at every call; arguments as in `to_clips`.

    Args:
        videos: see `to_clips`.
        policy: see `to_clips`.
        fps: see `to_clips`.
        layout: see `to_clips`.
        allow_damaged: see `to_clips`.
        motion: see `to_clips`.

    Returns:
        B functions, each of which returns an item of `to_clips`.
    """
    to_clip = partial(_to_clip, policy=policy, allow_damaged=allow_damaged, motion=motion)
    return [partial(to_clip, *item) for item in items_of(videos, fps, layout)]


def in_chunks(items: Iterable[Item], num: int, pixels: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Yield lists of up to `num` items as they come, each ending with the item that reaches `MAX_PIXELS_AHEAD`.

    Args:
        items: clips, pairs of clips, or the like.
        num: most items of a list.
        pixels: number of pixels that an item holds.

    Yields:
        The lists, none of them empty.
    """
    chunk: list[Item] = []
    held = 0
    for item in items:
        chunk.append(item)
        held += pixels(item)
        if len(chunk) == num or held >= MAX_PIXELS_AHEAD:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def num_pixels(clip: Clip | str) -> int:
    """Return the pixels of a clip's planned frames, 0 for a reason."""
    return 0 if isinstance(clip, str) else clip.frames.numel() // 3


def _ahead(chunks: Iterator[list[Clip | str]]) -> Iterator[list[Clip | str]]:
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(next, chunks, None)
        while (chunk := reading.result()) is not None:
            reading = reader.submit(next, chunks, None)
            yield chunk


def items_of(videos: Any, fps: float | Sequence[float] | None, layout: str) -> list[_Item]:
    """Tell the videos of a call apart, whatever form they come in.

    Args:
        videos: as in `to_clips`.
        fps: as in `to_clips`.
        layout: as in `to_clips`.

    Returns:
        For each of B videos: itself, its frame rate, and the axes of its pixels.

    Raises:
        ValueError: numbers of videos and rates differ, a batched tensor of the wrong layout, or a range that is none of ours.
    """
    axes = layout.replace("B", "")
    if _is_array(videos):
        if layout == DEFAULT_LAYOUT and not isinstance(videos, Tensor):
            layout, axes = "BTHWC", "THWC"
        videos = as_tensor(videos)
    one = _is_one(videos, axes)
    if isinstance(videos, Tensor) and not one:
        items, axes = list[Any](_split_batch(videos, layout)), "TCHW"
    else:
        items = [videos] if one else list(videos)
    rates = list(fps) if isinstance(fps, Sequence) else [fps] * len(items)
    if len(rates) != len(items):
        raise ValueError(f"fps must be one number or one per video: got {len(rates)} rates for {len(items)} videos")
    return [(item, rate, axes) for item, rate in zip(items, rates, strict=True)]


def _in_range(low: float, high: float) -> bool:
    return low >= -RANGE_SLACK and high <= 1 + RANGE_SLACK


def _other_range(low: float, high: float) -> str:
    return f"float frames must lie in [0, 1], got [{low:.3g}, {high:.3g}]; rescale (x + 1) / 2 or x / 255"


def _is_one(videos: Any, axes: str) -> bool:
    """Return whether the videos are a single one: a file, its bytes, a record, pictures one after the other, or their tensor."""
    if isinstance(videos, Tensor):
        return videos.ndim == 4 and len(axes) == 4
    return isinstance(videos, (str, Path, bytes, Video)) or _are_pictures(videos)


def _are_pictures(item: Any) -> bool:
    """Return whether an item lists PIL pictures or arrays [H, W, C]."""
    if not isinstance(item, Sequence) or isinstance(item, (str, bytes)) or not item:
        return False
    return all(hasattr(frame, "convert") or (_is_array(frame) and frame.ndim == 3) for frame in item)


def _is_array(item: Any) -> bool:
    """Return whether an item is a tensor or a numpy array."""
    import numpy

    return isinstance(item, (Tensor, numpy.ndarray))


def as_tensor(array: Any) -> Tensor:
    """Return a numpy array as a tensor, floats in float32; a tensor as it is.

    Args:
        array: numpy array or tensor.

    Returns:
        The tensor, which may share the array's memory.

    Raises:
        ValueError: an array of no number type.
    """
    import numpy

    if isinstance(array, Tensor):
        return array
    plain = numpy.ascontiguousarray(numpy.asarray(array))
    if plain.dtype.kind == "f":
        plain = plain.astype(numpy.float32, copy=False)
    elif plain.dtype != numpy.uint8:
        raise ValueError(f"frames must be float in [0, 1] or uint8, got {plain.dtype}")
    return torch.from_numpy(plain if plain.flags.writeable else plain.copy())


def plan_clip(
    video: Video | str | Path | bytes,
    policy: FramePolicy | None,
    *,
    motion: MotionEncoder | None = None,
    allow_damaged: bool = False,
    limits: MediaLimits | None = None,
    fit: Callable[[int], Fit] | None = None,
) -> Clip:
    """Read a video and plan its frames, with its motion features.

    Args:
        video: decoded, or a file or its bytes.
        policy: which frames to keep; None keeps all.
        motion: encoder of all frames, of at most `MOTION_SIDE` pixels, or of the planned ones; None leaves motion out.
        allow_damaged: see `read_video`.
        limits: see `read_video`.
        fit: see `read_video`; for a file or its bytes.

    Returns:
        The clip.

    Raises:
        VideoError: the file cannot be read.
    """
    if isinstance(video, Video):
        clip, dense = take(video, policy), video
    else:
        read, plan = read_video(video, policy=policy, allow_damaged=allow_damaged, limits=limits, fit=fit)
        clip = Clip(frames=read.frames, plan=plan, remarks=read.remarks)
        if motion is not None and not motion.sees_planned:
            dense, _ = read_video(video, max_side=MOTION_SIDE, allow_damaged=allow_damaged, limits=limits)
    if motion is None:
        return clip
    seen, fps = (clip.frames, clip.plan.fps) if motion.sees_planned else (dense.frames, dense.fps)
    return replace(clip, motion=motion.encode(seen.detach(), fps))


def _split_batch(videos: Tensor, layout: str) -> list[Tensor]:
    if sorted(layout) != sorted("BTCHW"):
        raise ValueError(f"layout must name each of B, T, C, H, W once, got {layout!r}")
    if videos.ndim != 5:
        raise ValueError(f"videos must have the 5 axes {layout}, got shape {tuple(videos.shape)}")
    return list(rearrange(videos, f"{' '.join(layout)} -> B T C H W"))


def _to_clip(
    item: VideoLike,
    fps: float | None,
    layout: str,
    *,
    policy: FramePolicy,
    allow_damaged: bool,
    motion: MotionEncoder | None,
) -> Clip | str:
    if not isinstance(item, (str, Path, bytes, Video)):
        if fps is None:
            raise ValueError(NO_RATE)
        item = Video(frames=as_frames(item, layout), fps=float(fps))
    try:
        if isinstance(item, Video):
            item = replace(item, frames=_checked(item.frames))
        return plan_clip(item, policy, motion=motion, allow_damaged=allow_damaged)
    except VideoError as error:
        return str(error)


def as_frames(item: Any, layout: str) -> Tensor:
    """Return the frames of a video that came as pixels.

    Args:
        item: tensor, array, or list of pictures or arrays.
        layout: its axes, as `items_of` returns them.

    Returns:
        [T, C, H, W] of the type that they came in, floats of arrays in float32.

    Raises:
        ValueError: other axes, pictures of several sizes, or no numbers.
        TypeError: no video.
    """
    if _is_array(item):
        if not isinstance(item, Tensor) and layout == DEFAULT_LAYOUT.replace("B", ""):
            layout = "THWC"
        if item.ndim != 4 or sorted(layout) != sorted("TCHW"):
            raise ValueError(f"each video must have the axes {layout}, got shape {tuple(item.shape)}")
        return rearrange(as_tensor(item), f"{' '.join(layout)} -> T C H W")
    if not _are_pictures(item):
        raise TypeError(
            "a video is a path, bytes, a tensor, a numpy array [T, H, W, C] or a list of pictures, "
            f"got {type(item).__name__}"
        )
    pictures = [as_tensor(frame if _is_array(frame) else _rgb(frame)) for frame in item]
    if len({picture.shape for picture in pictures}) > 1:
        raise ValueError("the pictures of a video must have one size")
    return rearrange(pictures, "T H W C -> T C H W")


def _rgb(picture: Image) -> numpy.ndarray:
    import numpy

    return numpy.array(picture.convert("RGB"))


def refuse_other_shapes(frames: Tensor) -> None:
    """Refuse frames that are not RGB [T, 3, H, W] with at least one frame and pixel (ValueError)."""
    if frames.ndim != 4 or frames.shape[1] != 3:
        raise ValueError(
            f"frames must have 3 channels (RGB), got [T, C, H, W] = {list(frames.shape)}; check the layout, which for "
            "numpy arrays is [T, H, W, C]"
        )
    if 0 in frames.shape:
        raise VideoError(f"a video must have at least one frame and pixel, got [T, C, H, W] = {list(frames.shape)}")


def _checked(frames: Tensor) -> Tensor:
    """Return float RGB frames [T, C, H, W]; a wrong call is a ValueError, pixels that are no picture a VideoError."""
    refuse_other_shapes(frames)
    if frames.dtype == torch.uint8:
        return frames.float() / 255
    if not frames.is_floating_point():
        raise ValueError(f"frames must be float in [0, 1] or uint8, got {frames.dtype}")
    low, high = (bound.item() for bound in torch.aminmax(frames.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise VideoError("the frames hold pixels that are not finite (NaN or infinity)")
    if not _in_range(low, high):
        raise VideoError(_other_range(low, high))
    return frames if frames.dtype == torch.float64 else frames.float()
