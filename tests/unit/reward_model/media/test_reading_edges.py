"""Edges of reading files and planning clips: nothing to show, several streams, other decoders' sizes, chunks of clips."""

from __future__ import annotations

import io
import sys
from fractions import Fraction
from types import ModuleType, SimpleNamespace

import av
import numpy as np
import pytest
import torch
from einops import rearrange

from reward_model.media.decoders import open_video
from reward_model.media.frame_sampling import FramePolicy
from reward_model.media.intake import in_chunks, to_clips
from reward_model.media.video_io import encode_video, read_video
from reward_model.records import VideoError


def ramp(num: int = 8, height: int = 64, width: int = 96) -> torch.Tensor:
    """Smooth frames [T, C, H, W], each brighter than the one before."""
    across = torch.linspace(0.1, 0.5, width).expand(num, 3, height, width)
    return across + torch.linspace(0, 0.4, num)[:, None, None, None]


def encode(name: str, codec: str, *, sizes: tuple[int, ...] = (96,), marks_keys: bool = True, **settings: str) -> bytes:
    """Return a file of eight pictures with a video stream of each width, whose packets may not be marked as key frames."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=name) as file:
        streams, packets = [file.add_stream(codec, rate=8, options=settings) for _ in sizes], []
        for stream, width in zip(streams, sizes, strict=True):
            stream.width, stream.height, stream.pix_fmt = width, 64, "yuv420p"
        for number in range(8):
            for stream, width in zip(streams, sizes, strict=True):
                picture = av.VideoFrame.from_ndarray(np.full((64, width, 3), 20 * number, np.uint8), format="rgb24")
                picture.pts, picture.time_base = number, Fraction(1, 8)
                packets += stream.encode(picture.reformat(format="yuv420p"))
        for stream in streams:
            packets += stream.encode()
        for packet in packets:
            packet.is_keyframe = packet.is_keyframe and marks_keys
            file.mux(packet)
    return buffer.getvalue()


@pytest.mark.parametrize(("max_side", "shape"), [(None, (64, 96)), (64, (43, 64)), (48, (32, 48)), (50, (33, 50))])
def test_decord_gives_the_pictures_of_pyav_at_any_size(max_side, shape):
    pytest.importorskip("decord")
    data = encode_video(ramp(), 8.0)
    theirs, ours = (read_video(data, decoder=name, max_side=max_side)[0].frames for name in ("decord", "pyav"))
    assert theirs.shape == ours.shape == (8, 3, *shape)
    assert (theirs - ours).abs().mean() < 0.02


def test_the_first_of_several_streams_is_read_by_one_thread():
    data = encode("matroska", "mpeg4", sizes=(96, 32))
    with open_video(data) as (container, stream):
        assert len(container.streams.video) == 2 and stream.width == 96
        assert stream.codec_context.thread_count == 1
    assert read_video(data)[0].frames.shape == (8, 3, 64, 96)


def test_a_file_without_one_picture_that_can_be_decoded_has_that_reason():
    data = bytearray(encode("matroska", "mpeg4", g="1"))
    with av.open(io.BytesIO(bytes(data))) as file:
        packets = [bytes(packet) for packet in file.demux(video=0) if packet.size]
    for packet in packets:
        place = bytes(data).index(packet)
        data[place : place + len(packet)] = b"\xff" * len(packet)
    with pytest.raises(VideoError, match="none of the wanted frames"):
        read_video(bytes(data), allow_damaged=True)


def test_a_stream_that_begins_with_a_whole_picture_has_no_remark():
    for options in ({"g": "4", "bf": "0"}, {"g": "4", "bf": "2"}):
        video, plan = read_video(encode("mpegts", "mpeg2video", **options))
        assert len(plan.times) == 8 and video.remarks == ()


@pytest.mark.parametrize(("name", "codec"), [("flv", "flv"), ("matroska", "msmpeg4"), ("matroska", "libx265")])
def test_a_file_that_marks_no_key_frame_is_read_from_its_first_picture(name, codec):
    data = encode(name, codec, marks_keys=False)
    with av.open(io.BytesIO(data)) as file:
        assert not any(packet.is_keyframe for packet in file.demux(video=0))
    video, plan = read_video(data)
    brightness = [round(float(frame.mean()) * 255 / 20) for frame in video.frames]
    assert brightness == [*range(8)] and len(plan.times) == 8 and video.remarks == ()


@pytest.mark.parametrize("max_side", [None, 96, 48])
def test_pictures_of_torchcodec_are_left_as_they_are_but_where_they_are_too_large(monkeypatch, max_side):
    """Torchcodec itself is stood in for: it gives pictures of the stored size, and the adapter fits them."""
    stored = torch.randint(256, (4, 64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    class VideoDecoder:
        def __init__(self, source: bytes, *, dimension_order: str) -> None:
            assert source and dimension_order == "NHWC"

        def __len__(self) -> int:
            return len(stored)

        def get_frames_at(self, indices: list[int]) -> SimpleNamespace:
            return SimpleNamespace(data=stored[indices])

    module = ModuleType("torchcodec.decoders")
    monkeypatch.setattr(module, "VideoDecoder", VideoDecoder, raising=False)
    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    frames = read_video(encode_video(ramp(4), 8.0), decoder="torchcodec", max_side=max_side)[0].frames
    expected = rearrange(stored, "n h w c -> n c h w") / 255
    if max_side == 48:
        expected = torch.nn.functional.interpolate(expected, (32, 48), mode="bilinear", antialias=True)
    torch.testing.assert_close(frames, expected, atol=0.51 / 255 if max_side == 48 else 0, rtol=0)


def test_no_videos_are_no_clips():
    assert to_clips([], policy=FramePolicy()) == []


def test_pictures_that_are_not_finite_or_out_of_range_are_told_apart():
    fine, endless, signed = ramp(2), ramp(2), ramp(2) * 2 - 1
    endless[0, 0, 0, 0] = torch.inf
    clips = to_clips([fine, endless, signed], policy=FramePolicy(), fps=8.0)
    assert clips[0].frames.shape[0] == 2
    assert "not finite" in clips[1] and "must lie in [0, 1]" in clips[2]


def test_a_chunk_holds_as_many_pixels_as_the_changelog_promises():
    """A call holds the planned frames of at most 2**26 pixels and one clip."""
    half, less = 2**25, 2**25 - 1
    assert list(in_chunks([half, half, half], 9, int)) == [[half, half], [half]]
    assert list(in_chunks([half, less, half, 2**27, 1], 9, int)) == [[half, less, half], [2**27], [1]]
    assert list(in_chunks([1, 1, 1], 2, int)) == [[1, 1], [1]]
