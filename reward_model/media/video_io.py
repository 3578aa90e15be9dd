"""Video files and bytes to frames and back; the only place where pixels are 8 bit.

A file is demuxed once for its time stamps, planned, then decoded from start to end, keeping the wanted frames: faster
than seeking, and the only way to see damage. H.264 predicts frames from one another, so a fault in any frame makes the
clip suspect, whether that frame was sampled or not.

Shapes: T frames of the source, N kept frames, C = 3 (RGB), H, W pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from reward_model.media.containers import is_animated_webp, is_whole, last_cluster
from reward_model.media.decoders import DECODERS, Fit, Pictures, Source, Target, first_shown, open_video, shown_stamps
from reward_model.media.frame_sampling import FramePolicy, plan_frames
from reward_model.media.webp import read_animation
from reward_model.records import FramePlan, Video, VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

ENCODERS = {"h264": "libx264", "hevc": "libx265"}

MIN_HEVC_SIDE = 64
"""x265 (in the FFmpeg of PyAV 18.1) writes past its buffers for most pictures with both sides between 34 and 48."""

STREAMS = {"mpegts", "mpeg", "mpegvideo", "h264", "hevc"}
"""Demuxers of streams that may be cut anywhere."""

MAX_EMPTY_PICTURE = 20
"""Bytes below which a packet of MPEG-4 part 2 may say only that the last picture stays."""

HDR_CURVES = {16: "PQ", 18: "HLG"}
"""Transfer characteristics of ITU-T H.273 above standard dynamic range."""

HD_HEIGHT = 720
"""Lines from which players take untagged video for BT.709, and for BT.601 below."""


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """Limits on a single input; a file beyond them is refused with the reason."""

    max_frame_pixels: int = 2**25
    """Pixels of one source frame; 2**25 admits 8K."""
    max_frames: int = 36_000
    """Frames of the source, all of which are decoded; 36,000 are 20 minutes at 30 Hz."""
    max_kept_pixels: int = 2**28
    """Pixels of all kept frames together, 12 bytes each in float32; 2**28 is 3.2 GB."""


@dataclass(frozen=True)
class _Header:
    """Facts known before decoding: size (width, height), mean rate in Hz, and the time of each of the T frames.

    `start` and `plain` are those of `Target`; `remarks` name what the judge does not see of the pictures.
    """

    size: tuple[int, int]
    fps: float
    times: tuple[float, ...]
    start: int | None
    plain: bool
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Packets:
    """A file's packets: stamps of those that show a picture, and counts of those that an edit list hides or that show nothing.

    `key` is the stamp of the first key frame, `small` whether some packets may be empty MPEG-4 pictures, `last_place` the place
    of the last packet in the file.
    """

    stamps: list[int | None]
    num_discarded: int = 0
    num_hidden: int = 0
    key: int | None = None
    small: bool = False
    last_place: int = 0


def read_video(
    source: Source,
    *,
    policy: FramePolicy | None = None,
    max_side: int | None = None,
    allow_damaged: bool = False,
    decoder: str = "pyav",
    limits: MediaLimits | None = None,
    fit: Callable[[int], Fit] | None = None,
) -> tuple[Video, FramePlan]:
    """Decode the frames that a policy chooses, upright and in display order.

    Args:
        source: path of a file, or the file's bytes.
        policy: rule for choosing frames; None keeps all.
        max_side: shrink frames whose longer side is above this many pixels, while decoding.
        allow_damaged: accept clips that the decoder marks as damaged; frames that are lost leave the plan.
        decoder: "pyav", "decord" or "torchcodec". The last two see missing frames but not damaged ones.
        limits: bounds on size; None takes the defaults.
        fit: takes the number of planned frames and returns what resizes each of them as it is decoded (pyav only).

    Returns:
        The kept frames (float32 in [0, 1]) with their times, and the plan that chose them.

    Raises:
        VideoError: if the file cannot be read, is damaged, or is no moving picture; the message is the reason.
        ValueError: if a setting is unknown or out of range.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder must be one of {sorted(DECODERS)}, got {decoder!r}")
    if fit is not None and decoder != "pyav":
        raise ValueError(f"fit goes with the decoder pyav, got {decoder!r}")
    if max_side is not None and max_side < 2:
        raise ValueError(f"max_side must be >= 2 pixels, got {max_side}")
    _check_source(source)
    limits = limits or MediaLimits()
    if is_animated_webp(source):
        if decoder != "pyav":
            raise VideoError(f"{decoder} reads no animated WebP; use the pyav decoder")
        header = _inspect_webp(source, limits, allow_damaged=allow_damaged)
    else:
        header = _inspect(source, limits, allow_damaged=allow_damaged)
    if len(header.times) == 1 and policy is not None:
        raise VideoError("a single frame: a still image has no motion to judge")
    plan = plan_frames(len(header.times), header.fps, policy, times=header.times)
    target = _target(header, plan, max_side, limits, None if fit is None else fit(len(plan.indices)))
    width, height = target.size
    if width * height * len(plan.indices) > limits.max_kept_pixels:
        raise VideoError(
            f"too large: {len(plan.indices)} frames of {width}x{height} exceed the limit of "
            f"{limits.max_kept_pixels} pixels; choose fewer frames or a max_side"
        )
    decoded = DECODERS[decoder](source, target, allow_damaged=allow_damaged)
    pictures = decoded.pictures
    kept = [position for position, index in enumerate(plan.indices) if index in pictures]
    if not kept:
        raise VideoError("damaged: none of the wanted frames could be decoded")
    if len(kept) < len(plan.indices):
        plan = FramePlan(
            indices=tuple(plan.indices[position] for position in kept),
            times=tuple(plan.times[position] for position in kept),
            kinds=tuple(plan.kinds[position] for position in kept),
            fps=plan.fps,
            sampled_fps=plan.sampled_fps * len(kept) / len(plan.indices),
        )
    frames = _as_float(pictures, plan.indices)
    name = "bytes" if isinstance(source, bytes) else str(source)
    remarks = (*header.remarks, *decoded.remarks)
    return Video(frames=frames, fps=plan.fps, times=plan.times, source=name, remarks=remarks), plan


def _as_float(pictures: Pictures, indices: Sequence[int]) -> Tensor:
    """Return pictures [H, W, C] of 8 bits as frames [N, C, H, W] in [0, 1]; each leaves the dict at its last use, so that memory
    holds it once."""
    height, width, channels = pictures[indices[0]].shape
    frames = torch.empty(len(indices), channels, height, width)
    last = {index: place for place, index in enumerate(indices)}  # a frozen picture is shown more than once
    for place, (frame, index) in enumerate(zip(frames, indices, strict=True)):
        picture = pictures.pop(index) if last[index] == place else pictures[index]
        frame.copy_(rearrange(torch.from_numpy(picture), "h w c -> c h w")).div_(255)
    return frames


def stated_size(source: Source) -> tuple[int, int, int]:
    """Return a file's number of frames (0 if it does not say), height and width by its header; VideoError if it is no video."""
    if is_animated_webp(source):
        animation = read_animation(source)
        return len(animation.parts), animation.height, animation.width
    with open_video(source) as (_, stream):
        return stream.frames, stream.height, stream.width


def encode_video(frames: Tensor, fps: float, *, codec: str = "h264", crf: int = 18) -> bytes:
    """Encode frames as an MP4 that browsers play (yuv420p).

    Args:
        frames: RGB [T, C, H, W] in [0, 1], values outside are clipped; the last row and column are repeated up to
            an even size, which yuv420p needs, and for hevc up to 64 pixels.
        fps: rate in Hz, > 0.
        codec: "h264" or "hevc".
        crf: constant rate factor, 0 (nearly lossless) to 51; 18 is visually lossless.

    Returns:
        The file's bytes.

    Raises:
        ValueError: if shape, values or a setting are out of range.
    """
    import av
    from av.video.reformatter import ColorRange

    if codec not in ENCODERS:
        raise ValueError(f"codec must be one of {sorted(ENCODERS)}, got {codec!r}")
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be non-empty RGB [T, 3, H, W], got shape {tuple(frames.shape)}")
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be a finite rate > 0 in Hz, got {fps!r}")
    pixels = frames.detach().to("cpu", torch.float32)
    if not torch.isfinite(pixels).all():
        raise ValueError("frames hold values that are not finite")
    height, width = pixels.shape[-2:]
    least = MIN_HEVC_SIDE if codec == "hevc" else 2
    right, bottom = (max(least, side + side % 2) - side for side in (width, height))
    pixels = torch.nn.functional.pad(pixels, (0, right, 0, bottom), mode="replicate")
    pictures = rearrange(pixels.clamp(0, 1).mul(255).round().to(torch.uint8), "t c h w -> t h w c").contiguous().numpy()
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        # One thread: the bytes should not depend on the number of cores.
        options = {"crf": str(crf), "threads": "1"}
        if codec == "h264":
            # without these settings the look-ahead of either encoder decides otherwise about the same frames now and then
            options["x264-params"] = "cpu-independent=1"
        else:
            # x265 takes the delay of its two reordered pictures from the third, and from memory where there is none
            reorder = "" if len(pictures) > 2 else ":bframes=0"
            options["x265-params"] = "log-level=none:pools=1:frame-threads=1:no-cutree=1" + reorder
        stream = container.add_stream(ENCODERS[codec], rate=Fraction(fps).limit_denominator(100_000), options=options)
        stream.width, stream.height, stream.pix_fmt = pictures.shape[2], pictures.shape[1], "yuv420p"
        space, tags = _colours(height)
        stream.codec_context.colorspace, stream.codec_context.color_primaries = tags[:2]
        stream.codec_context.color_trc, stream.codec_context.color_range = tags[2:]
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=space, dst_color_range=ColorRange.MPEG, threads=1)
            frame.colorspace, frame.color_range = tags[0], tags[3]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def _colours(height: int) -> tuple[int, tuple[int, int, int, int]]:
    """Return FFmpeg's number of the matrix to convert by, and the tags of matrix, primaries, curve and range (limited)."""
    from av.video.reformatter import Colorspace

    if height >= HD_HEIGHT:
        return Colorspace.ITU709, (1, 1, 1, 1)
    return Colorspace.ITU601, (6, 6, 6, 1)  # of ITU-T H.273


def write_video(path: str | Path, frames: Tensor, fps: float, *, codec: str = "h264", crf: int = 18) -> None:
    """Write frames to an MP4 file, making its folder; arguments as in `encode_video`."""
    path = Path(path)
    encoded = encode_video(frames, fps, codec=codec, crf=crf)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded)


def _check_source(source: Source) -> None:
    if isinstance(source, bytes):
        if not source:
            raise VideoError("empty: no bytes")
        return
    path = Path(source)
    if not path.exists():
        raise VideoError("no such file")
    if not path.is_file():
        raise VideoError("not a file")
    if path.stat().st_size == 0:
        raise VideoError("empty: the file has 0 bytes")


def _inspect(source: Source, limits: MediaLimits, *, allow_damaged: bool) -> _Header:
    """Read sizes and time stamps, without decoding but where a file begins between pictures or has packets without one."""
    with open_video(source) as (container, stream):
        size = (stream.width, stream.height)
        if min(size) < 1:
            raise VideoError("damaged: the header gives no frame size")
        _check_frame_size(size, limits)
        packets = _packets(container, stream, limits)
        stamps, start, remarks = packets.stamps, None, list(_remarks(stream))
        num_missing = _num_missing(source, container, stream, packets)
        if num_missing > 0 and not allow_damaged:
            raise VideoError(f"damaged: {num_missing} of the {stream.frames} frames that the header names are missing")
        if packets.small and not allow_damaged and None not in (shown := shown_stamps(source)):
            stamps = shown or stamps
        if _begins_between(container, packets):
            start = first_shown(source)
            whole = [stamp for stamp in stamps if stamp is not None and start is not None and stamp >= start]
            if not whole:
                raise VideoError("damaged: no picture of the file can be decoded")
            remarks.append(f"the file begins in mid-stream: its first {len(stamps) - len(whole)} pictures are left out")
            stamps = list(whole)
        times, fps = _times(stamps, stream)
        if stream.frames == 0 and start is None and not allow_damaged and not _reaches_end(source, container, packets):
            _check_duration(container, times, fps)
        plain = packets.num_hidden == 0 and start is None and len(stamps) == len(packets.stamps)
        plain = plain and (container.format.name != "avi" or len(stamps) == stream.frames)
    return _Header(size, fps, times, start, plain, tuple(remarks))


def _inspect_webp(source: Source, limits: MediaLimits, *, allow_damaged: bool) -> _Header:
    """Read sizes and times of an animated WebP."""
    animation = read_animation(source)
    size = (animation.width, animation.height)
    _check_frame_size(size, limits)
    if not (animation.is_whole or allow_damaged):
        raise VideoError("damaged: the file ends too early")
    if not animation.parts:
        raise VideoError("no frames in the file")
    if len(animation.parts) > limits.max_frames:
        raise VideoError(f"too long: more than {limits.max_frames} frames")
    times = animation.times
    fps = (len(times) - 1) / times[-1] if len(times) > 1 else 1.0
    return _Header(size, fps, times, start=None, plain=True, remarks=())


def _check_frame_size(size: tuple[int, int], limits: MediaLimits) -> None:
    if size[0] * size[1] > limits.max_frame_pixels:
        raise VideoError(f"too large: {size[0]}x{size[1]} exceeds {limits.max_frame_pixels} pixels a frame")


def _times(stamps: Sequence[int | None], stream: VideoStream) -> tuple[tuple[float, ...], float]:
    """Return the times of the frames in seconds from the first, and their mean rate in Hz."""
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    known = sorted(stamp for stamp in stamps if stamp is not None)
    if len(known) < len(stamps) or stream.time_base is None:
        times = tuple(index / fps if fps > 0 else 0.0 for index in range(len(stamps)))
    else:
        times = tuple(float((stamp - known[0]) * stream.time_base) for stamp in known)
    if times[-1] > 0:
        fps = (len(times) - 1) / times[-1]
    if not (math.isfinite(fps) and fps > 0):
        raise VideoError("damaged: the header gives no frame rate")
    return times, fps


def _packets(container: InputContainer, stream: VideoStream, limits: MediaLimits) -> _Packets:
    """Return the time stamps of the frames to show, in stored order, with the packets that show none."""
    too_long = f"too long: more than {limits.max_frames} frames"
    if stream.frames > limits.max_frames and container.format.name != "avi":
        raise VideoError(too_long)
    codec, in_ticks = stream.codec_context.name, container.format.name == "avi"
    packets = _Packets([])
    num_discarded = num_hidden = last_place = 0
    key, small = None, False
    for packet in container.demux(stream):
        if packet.is_discard:
            num_discarded += 1
        elif packet.size > 0 and _shows_nothing(memoryview(packet), codec):
            num_hidden += 1
        elif packet.size > 0:
            # AVI counts every packet, empty ones too, and knows no other times
            packets.stamps.append(packet.dts if in_ticks and packet.pts is None else packet.pts)
            key = packet.pts if key is None and packet.is_keyframe else key
            small = small or (codec == "mpeg4" and packet.size < MAX_EMPTY_PICTURE)
            last_place = packet.pos or 0
        if len(packets.stamps) > limits.max_frames:
            raise VideoError(too_long)
    if not packets.stamps:
        raise VideoError("no frames in the file")
    return replace(
        packets, num_discarded=num_discarded, num_hidden=num_hidden, key=key, small=small, last_place=last_place
    )


def _shows_nothing(packet: memoryview, codec: str) -> bool:
    """Return whether a packet of VP8 or VP9 only holds a picture for others to be predicted from (an alternate reference)."""
    first = packet[0]
    if codec == "vp8":
        return not first >> 4 & 1
    if codec != "vp9" or packet[-1] >> 5 == 0b110:  # several pictures, of which the last is shown
        return False
    bits = f"{first:08b}"[5 if first >> 4 & 3 == 3 else 4 :]
    return bits[:1] == "0" and bits[2:3] == "0"


def _num_missing(source: Source, container: InputContainer, stream: VideoStream, packets: _Packets) -> int:
    """Return how many frames that the header names are not there; an empty packet of an AVI repeats the frame before it."""
    num = len(packets.stamps) + packets.num_hidden
    if container.format.name != "avi":
        return stream.frames - packets.num_discarded - num
    num_listed = len(stream.index_entries)
    if is_whole(source) and num_listed >= num:
        return num_listed - num
    known = [stamp for stamp in packets.stamps if stamp is not None]
    return stream.frames - max(num, max(known, default=0) + 1)


def _begins_between(container: InputContainer, packets: _Packets) -> bool:
    """Return whether a stream without an index has pictures before its first key frame, as a recording that begins anywhere."""
    if container.format.name not in STREAMS or packets.key is None or None in packets.stamps:
        return False
    return min(stamp for stamp in packets.stamps if stamp is not None) < packets.key


def _remarks(stream: VideoStream) -> Iterator[str]:
    """Yield what a judge does not see of the pictures as they are meant."""
    curve = HDR_CURVES.get(int(stream.codec_context.color_trc or 0))
    if curve:
        yield f"high dynamic range ({curve}) is judged without tone mapping"
    aspect = stream.sample_aspect_ratio
    if aspect and aspect > 0 and aspect != 1:
        yield f"pixels of {aspect.numerator}:{aspect.denominator} are judged as square"
    if stream.metadata.get("alpha_mode") == "1":
        yield "transparency is ignored"


def _reaches_end(source: Source, container: InputContainer, packets: _Packets) -> bool:
    """Return whether the file is whole by its own account, so that a long duration is that of the last picture."""
    return is_whole(source) and ("matroska" not in container.format.name or packets.last_place >= last_cluster(source))


def _check_duration(container: InputContainer, times: tuple[float, ...], fps: float) -> None:
    """Refuse a file without a frame count whose frames end well before its header says (a cut Matroska or FLV file)."""
    if len(container.streams) > 1 or not container.duration:
        return
    stated, end = container.duration / 1e6, times[-1] + 1 / fps
    slack = 2 * max([1 / fps, *(later - earlier for earlier, later in zip(times, times[1:], strict=False))])
    if stated - end > slack:
        raise VideoError(f"damaged: the frames end at {end:.2f} s, the header names {stated:.2f} s")


def _target(header: _Header, plan: FramePlan, max_side: int | None, limits: MediaLimits, fit: Fit | None) -> Target:
    width, height = header.size
    shrink = 1.0 if max_side is None else min(1.0, max_side / max(width, height))
    size = max(round(width * shrink), 1), max(round(height * shrink), 1)
    return Target(
        frozenset(plan.indices),
        len(header.times),
        stored_size=header.size,
        size=size,
        start=header.start,
        plain=header.plain,
        max_frame_pixels=limits.max_frame_pixels,
        fit=fit,
    )
