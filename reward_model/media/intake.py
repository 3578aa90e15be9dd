"""Conversion of a caller's videos (tensors, PIL frames, paths, bytes) into planned clips.

Shapes: B videos, T frames, C = 3, H, W pixels; a layout string names the axes of a tensor, e.g. "BTCHW".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor

from reward_model.media.frame_sampling import FramePolicy, take
from reward_model.media.motion import MotionEncoder
from reward_model.media.video_io import MediaLimits, read_video
from reward_model.records import Clip, Video, VideoError

if TYPE_CHECKING:
    from PIL.Image import Image

    VideoLike = Tensor | Sequence[Image] | str | Path | bytes | Video

_Item = tuple[Any, float | None, str]
"""A video, its frame rate and its layout."""

MOTION_SIDE = 256
"""Pixels of the longer side of the frames that a motion encoder gets from a file."""

RANGE_SLACK = 1e-3
"""Tolerance of float pixels outside [0, 1]: bicubic resizes overshoot by less, inputs in [-1, 1] by more."""


def to_clips(
    videos: Tensor | Sequence[VideoLike],
    *,
    policy: FramePolicy,
    fps: float | Sequence[float] | None = None,
    layout: str = "BTCHW",
    allow_damaged: bool = False,
    motion: MotionEncoder | None = None,
) -> list[Clip | str]:
    """Return one planned clip per video, or the reason why that video cannot be read.

    Args:
        videos: a tensor of all videos, or a sequence of tensors, PIL lists, paths, bytes or `Video` records.
            Tensors are RGB, float in [0, 1] or uint8 in 0..255; gradients pass through float tensors.
        policy: rule for choosing frames.
        fps: frame rate in Hz of tensors and PIL lists, one for all or one each; files carry their own.
        layout: axes of a batched tensor; for a sequence of tensors the "B" is dropped.
        allow_damaged: accept files whose sampled frames the decoder marks damaged.
        motion: encoder whose features of all frames, without gradient, go with each clip.

    Returns:
        A list of B items: `Clip`, or a string with the reason why that file is unreadable.

    Raises:
        ValueError: a tensor without fps, of the wrong rank, channel count, range or layout.
        TypeError: an item that is no video.
    """
    to_clip = partial(_to_clip, policy=policy, allow_damaged=allow_damaged, motion=motion)
    return [to_clip(*item) for item in _items(videos, fps, layout)]


def clips_ahead(
    videos: Tensor | Sequence[VideoLike],
    num: int,
    *,
    read_ahead: bool,
    policy: FramePolicy,
    fps: float | Sequence[float] | None = None,
    layout: str = "BTCHW",
    allow_damaged: bool = False,
    motion: MotionEncoder | None = None,
) -> tuple[int, Iterator[list[Clip | str]]]:
    """Plan videos `num` at a time; with `read_ahead`, a thread reads the next files while the caller works on these.

    Args:
        videos: as in `to_clips`.
        num: videos at a time.
        read_ahead: use a thread. It pays if the caller waits for a GPU; if the caller computes on the CPU, both threads
            contend for the interpreter (measured: a third slower).
        policy: see `to_clips`.
        fps: see `to_clips`.
        layout: see `to_clips`.
        allow_damaged: see `to_clips`.
        motion: see `to_clips`.

    Returns:
        B, and an iterator over the items of `to_clips`, `num` at a time; it raises a video's errors at its items.

    Raises:
        ValueError: numbers of videos and rates differ, or a batched tensor of the wrong layout.
    """
    items = _items(videos, fps, layout)
    chunks = [items[start : start + num] for start in range(0, len(items), num)]
    to_clip = partial(_to_clip, policy=policy, allow_damaged=allow_damaged, motion=motion)

    def plan(chunk: Sequence[_Item]) -> list[Clip | str]:
        """Return the clips of one chunk, or the reasons why they are unreadable."""
        return [to_clip(*item) for item in chunk]

    if not read_ahead or not all(isinstance(item, (str, Path, bytes)) for item, _, _ in items):
        return len(items), map(plan, chunks)  # gradients stay with the caller's thread
    return len(items), _ahead(plan, chunks)


def _ahead(plan: Callable[[Sequence[_Item]], list[Clip | str]], chunks: Sequence[Sequence[_Item]]) -> Iterator[list]:
    with ThreadPoolExecutor(1) as reader:
        reading = None
        for chunk in chunks:
            coming = reader.submit(plan, chunk)
            if reading is not None:
                yield reading.result()
            reading = coming
        if reading is not None:
            yield reading.result()


def _items(videos: Tensor | Sequence[VideoLike], fps: float | Sequence[float] | None, layout: str) -> list[_Item]:
    items = list(videos) if not isinstance(videos, Tensor) else _split_batch(videos, layout)
    item_layout = "TCHW" if isinstance(videos, Tensor) else layout.replace("B", "")
    rates = list(fps) if isinstance(fps, Sequence) else [fps] * len(items)
    if len(rates) != len(items):
        raise ValueError(f"fps must be one number or one per video: got {len(rates)} rates for {len(items)} videos")
    return [(item, rate, item_layout) for item, rate in zip(items, rates, strict=True)]


def plan_clip(
    video: Video | str | Path | bytes,
    policy: FramePolicy | None,
    *,
    motion: MotionEncoder | None = None,
    allow_damaged: bool = False,
    limits: MediaLimits | None = None,
) -> Clip:
    """Read a video and plan its frames, with its motion features.

    Args:
        video: decoded, or a file or its bytes.
        policy: which frames to keep; None keeps all.
        motion: encoder of all frames, of at most `MOTION_SIDE` pixels; None leaves motion out.
        allow_damaged: see `read_video`.
        limits: see `read_video`.

    Returns:
        The clip.

    Raises:
        VideoError: the file cannot be read.
    """
    if isinstance(video, Video):
        clip, dense = take(video, policy), video
    else:
        read, plan = read_video(video, policy=policy, allow_damaged=allow_damaged, limits=limits)
        clip = Clip(frames=read.frames, plan=plan, remarks=read.remarks)
        if motion is not None:
            dense, _ = read_video(video, max_side=MOTION_SIDE, allow_damaged=allow_damaged, limits=limits)
    return clip if motion is None else replace(clip, motion=motion.encode(dense.frames.detach(), dense.fps))


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
    if isinstance(item, (str, Path, bytes)):
        try:
            return plan_clip(item, policy, motion=motion, allow_damaged=allow_damaged)
        except VideoError as error:
            return str(error)
    if not isinstance(item, Video):
        if fps is None:
            raise ValueError("fps is required for videos given as tensors or PIL frames (frames per second, in Hz)")
        item = Video(frames=_as_frames(item, layout), fps=float(fps))
    return plan_clip(item, policy, motion=motion)


def _as_frames(item: Any, layout: str) -> Tensor:
    """Return float32 RGB frames [T, C, H, W] in [0, 1] of one tensor or list of PIL images."""
    if isinstance(item, Tensor):
        if item.ndim != 4 or sorted(layout) != sorted("TCHW"):
            raise ValueError(f"each video must have the axes {layout}, got shape {tuple(item.shape)}")
        frames = rearrange(item, f"{' '.join(layout)} -> T C H W")
    elif isinstance(item, Sequence) and item and all(hasattr(frame, "convert") for frame in item):
        import numpy

        pictures = [torch.from_numpy(numpy.array(frame.convert("RGB"))) for frame in item]
        frames = rearrange(pictures, "T H W C -> T C H W")
    else:
        raise TypeError(f"a video is a tensor, a list of PIL images, a path or bytes, got {type(item).__name__}")
    if frames.shape[1] != 3:
        raise ValueError(f"frames must have 3 channels (RGB), got {frames.shape[1]}; check layout={layout!r}")
    if frames.shape[0] == 0:
        raise ValueError("a video must have at least one frame, got none")
    if frames.dtype == torch.uint8:
        return frames.float() / 255
    if not frames.is_floating_point():
        raise ValueError(f"frames must be float in [0, 1] or uint8, got {frames.dtype}")
    low, high = frames.detach().amin().item(), frames.detach().amax().item()
    if not (low >= -RANGE_SLACK and high <= 1 + RANGE_SLACK):
        raise ValueError(
            f"float frames must lie in [0, 1], got [{low:.3g}, {high:.3g}]; rescale (x + 1) / 2 or x / 255"
        )
    return frames if frames.dtype == torch.float64 else frames.float()
