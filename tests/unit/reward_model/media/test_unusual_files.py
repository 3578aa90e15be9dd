"""Whole files of unusual kinds: each gives its pictures at their times, or a reason that is true."""

import io
import struct
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from reward_model.media.frame_sampling import FramePolicy
from reward_model.media.video_io import MediaLimits, _shows_nothing, encode_video, read_video
from reward_model.records import VideoError

CASES = Path(__file__).resolve().parents[5] / "shared" / "cases" / "media"
WIDTH, HEIGHT, NUM = 96, 64, 24
RED, GREEN, BLUE, WHITE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 1.0)


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A grey picture with the bits of its number in five blocks and a colour in each corner: TL, TR, BL, BR."""
    image = np.full((height, width, 3), 100, np.uint8)
    for place, colour in zip(((0, 0), (0, 1), (1, 0), (1, 1)), (RED, GREEN, BLUE, WHITE), strict=True):
        rows = slice(0, 16) if place[0] == 0 else slice(height - 16, height)
        columns = slice(0, 16) if place[1] == 0 else slice(width - 16, width)
        image[rows, columns] = [int(230 * value) for value in colour]
    for bit in range(5):
        image[24:40, 8 + 16 * bit : 24 + 16 * bit] = 235 if number >> bit & 1 else 20
    return image


def numbers(frames: torch.Tensor) -> list[int]:
    """Read the numbers back from the blocks."""
    bits = [frames[:, 1, 28:36, 12 + 16 * bit : 20 + 16 * bit].mean(dim=(1, 2)) > 0.5 for bit in range(5)]
    return [sum(int(bits[bit][n]) << bit for bit in range(5)) for n in range(len(frames))]


def corners(frames: torch.Tensor) -> list[tuple[float, ...]]:
    """Return the colours of the first frame's corners, TL, TR, BL, BR, each channel as 0 or 1."""
    places = ((4, 4), (4, -5), (-5, 4), (-5, -5))
    return [tuple(float(value > 0.5) for value in frames[0, :, y, x]) for y, x in places]


def write(
    name: str, codec: str, *, ticks=None, options=None, num=NUM, pix_fmt="yuv420p", before=None, **container
) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=name, options=container) as file:
        stream = file.add_stream(codec, rate=24, options=options or {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        if before:
            before(stream)
        for number in range(num):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = ticks[number] if ticks else number, Fraction(1, 24)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def mp4() -> bytes:
    return write("mp4", "libx264", options={"crf": "10"})


def with_matrix(mp4: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """Return the file with (a, b, c, d) in the display matrix of its track."""
    place = mp4.index(b"tkhd") + 4 + 40
    one = 1 << 16
    a, b, c, d = (value * one for value in matrix)
    return mp4[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + mp4[place + 36 :]


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((1, 0, 0, 1), (RED, GREEN, BLUE, WHITE)),
        ((-1, 0, 0, 1), (GREEN, RED, WHITE, BLUE)),  # left to right
        ((1, 0, 0, -1), (BLUE, WHITE, RED, GREEN)),  # top to bottom
        ((-1, 0, 0, -1), (WHITE, BLUE, GREEN, RED)),  # half a turn
        ((0, 1, 1, 0), (RED, BLUE, GREEN, WHITE)),  # main diagonal
        ((0, 1, -1, 0), (BLUE, RED, WHITE, GREEN)),  # clockwise
        ((0, -1, 1, 0), (GREEN, WHITE, RED, BLUE)),  # counter-clockwise
        ((0, -1, -1, 0), (WHITE, GREEN, BLUE, RED)),  # other diagonal
    ],
)
def test_all_eight_orientations_are_shown_upright(mp4, matrix, shown):
    frames = read_video(with_matrix(mp4, matrix))[0].frames
    assert corners(frames) == list(shown)
    assert frames.shape[-2:] == ((HEIGHT, WIDTH) if matrix[0] else (WIDTH, HEIGHT))


def test_decord_refuses_mirrored_files(mp4):
    pytest.importorskip("decord")
    with pytest.raises(VideoError, match="mirrored"):
        read_video(with_matrix(mp4, (-1, 0, 0, 1)), decoder="decord")


def with_hidden_frames(data: bytes, codec: str) -> bytes:
    """Put in front of each key frame a copy that is decoded but not shown, as encoders do with alternate references."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(data)) as file, av.open(buffer, "w", format="webm") as output:
        stream = output.add_stream_from_template(file.streams.video[0])
        for packet in file.demux(video=0):
            if packet.size == 0:
                continue
            shown = bytearray(bytes(packet))
            if packet.is_keyframe:
                shown[0] &= ~(0x10 if codec == "libvpx" else 0x02)  # show_frame
                hidden = av.Packet(bytes(shown))
                hidden.pts = hidden.dts = max(packet.pts - 1, 0)
                hidden.stream, hidden.time_base, hidden.is_keyframe = stream, packet.time_base, True
                output.mux(hidden)
            packet.stream = stream
            output.mux(packet)
    return buffer.getvalue()


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_hidden_reference_frames_are_no_lost_pictures(codec):
    options = {"g": "8", "crf": "4", "b": "2M", "lag-in-frames": "0", "auto-alt-ref": "0"}
    data = with_hidden_frames(write("webm", codec, options=options), codec)
    video, plan = read_video(data)
    assert numbers(video.frames) == list(range(NUM))
    assert plan.times == pytest.approx([n / 24 for n in range(NUM)], abs=1e-3)
    if codec == "libvpx":  # a muxer joins the hidden frames of VP9 with the shown ones
        pytest.importorskip("decord")
        with pytest.raises(VideoError, match="show nothing"):
            read_video(data, decoder="decord")


@pytest.mark.parametrize(
    ("codec", "packet", "hidden"),
    [
        ("vp8", [0b00010000, 9], False),
        ("vp8", [0b00000000, 9], True),
        ("vp9", [0b10000010, 9], False),
        ("vp9", [0b10000000, 9], True),
        ("vp9", [0b10001000, 9], False),  # shows an earlier one
        ("vp9", [0b10110001, 9], False),  # profile 3 has a reserved bit
        ("vp9", [0b10110000, 9 | 128], True),
        ("vp9", [0b10000000, 0b11000001], False),  # hidden and shown ones together
        ("h264", [0, 0], False),
    ],
)
def test_hidden_frames_are_known_by_their_header(codec, packet, hidden):
    assert _shows_nothing(memoryview(bytes(packet)), codec) is hidden


def test_empty_packets_of_an_avi_repeat_the_last_picture():
    ticks = [*range(12), *(30 + n for n in range(12))]
    data = write("avi", "mpeg4", ticks=ticks, options={"q": "2"})
    video, plan = read_video(data)
    assert numbers(video.frames) == list(range(NUM))
    assert plan.times == pytest.approx([tick / 24 for tick in ticks])
    # at 0.85 s the picture of 0.458 s is still shown
    sampled, _ = read_video(data, policy=FramePolicy(num_frames=3))
    assert numbers(sampled.frames) == [0, 11, 23]
    with pytest.raises(VideoError, match="damaged"):
        read_video(data[: int(0.7 * len(data))])


@pytest.mark.parametrize("name", ["matroska", "flv"])
def test_a_last_picture_may_stay_long_but_a_cut_file_is_damaged(name):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=name) as file:
        stream = file.add_stream("libx264", rate=24, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        packets = []
        for number in range(NUM):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            packets += stream.encode(frame.reformat(format="yuv420p"))
        packets += stream.encode()
        packets[-1].duration *= 240
        file.mux(packets)
    data = buffer.getvalue()
    video, plan = read_video(data)
    assert numbers(video.frames) == list(range(NUM))
    assert plan.times[-1] == pytest.approx(23 / 24, abs=2e-3)
    for share in (0.5, 0.8):
        with pytest.raises(VideoError):
            read_video(data[: int(share * len(data))])


def test_recordings_that_begin_in_mid_stream_start_at_the_first_whole_picture():
    data = write("mpegts", "mpeg2video", options={"g": "10", "bf": "2", "q": "2"})
    with av.open(io.BytesIO(data)) as file:
        packets = [packet for packet in file.demux(video=0) if packet.size]
    cut = data[packets[3].pos :]  # in front of a picture between two key frames
    video, plan = read_video(cut)
    shown = numbers(video.frames)
    assert shown == list(range(shown[0], NUM)) and 0 < shown[0] <= 12
    assert plan.times[0] == 0 and plan.times[-1] == pytest.approx((NUM - 1 - shown[0]) / 24, abs=1e-3)
    assert any("begins in mid-stream" in remark for remark in video.remarks)
    pytest.importorskip("decord")
    with pytest.raises(VideoError, match="decord loses frames"):
        read_video(data, decoder="decord")


def test_an_open_group_of_pictures_is_refused_by_decord(mp4):
    pytest.importorskip("decord")
    data = write("mp4", "libx264", options={"x264-params": "open-gop=1:keyint=8:bframes=3:b-adapt=0:scenecut=0"})
    assert numbers(read_video(data)[0].frames) == list(range(NUM))
    with pytest.raises(VideoError, match="precede a key frame"):
        read_video(data, decoder="decord")
    assert numbers(read_video(mp4, decoder="decord")[0].frames) == list(range(NUM))


def test_animated_png_is_a_video_with_its_times():
    image = pytest.importorskip("PIL.Image")
    pictures = [image.fromarray(picture(number)) for number in range(5)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "PNG", save_all=True, append_images=pictures[1:], duration=[100, 100, 300, 100, 100])
    video, plan = read_video(buffer.getvalue())
    assert numbers(video.frames) == list(range(5))
    assert plan.times == pytest.approx((0, 0.1, 0.2, 0.5, 0.6))


def box(name: bytes, content: bytes, *, wide: bool = False) -> bytes:
    if wide:
        return struct.pack(">I4sQ", 1, name, 16 + len(content)) + content
    return struct.pack(">I4s", 8 + len(content), name) + content


@pytest.mark.parametrize(
    "junk", [b"junk", b"wide", b"free", b"skip", b"uuid", b"pict", b"prfl", b"abcd", b"moof", b"\xa9xyz"]
)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_a_false_index_is_refused_behind_any_box(mp4, junk, wide, last):
    false = bytearray(mp4)
    place = mp4.index(b"stsz") + 8
    false[place : place + 8] = struct.pack(">II", 1, 40_000_000)
    start = mp4.index(b"moov") - 4
    end = start + int.from_bytes(mp4[start : start + 4])
    moov, rest = bytes(false[start:end]), bytes(false[:start] + false[end:])
    began = time.monotonic()
    for data in (
        box(junk, bytes(64), wide=wide) + (rest + moov if last else moov + rest),
        box(junk, box(b"junk", bytes(8)) + bytes(9), wide=wide) + box(b"mdat", bytes(32)) + moov,
    ):
        with pytest.raises(VideoError, match="40000000 samples"):
            read_video(data)
    assert time.monotonic() - began < 2


def test_remarks_name_what_the_frames_do_not_show():
    def hdr(stream):
        stream.codec_context.color_trc = 16

    def narrow(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    assert any("PQ" in remark for remark in read_video(write("mp4", "libx264", before=hdr))[0].remarks)
    assert read_video(write("mp4", "libx264", before=narrow))[0].remarks == ("pixels of 4:3 are judged as square",)
    assert read_video(write("mp4", "libx264"))[0].remarks == ()


def test_transparency_is_remarked_where_there_is_some():
    image = pytest.importorskip("PIL.Image")
    for alpha, remarks in ((255, ()), (90, ("transparency is ignored",))):
        pictures = [
            image.fromarray(np.dstack([picture(n), np.full((HEIGHT, WIDTH), alpha, np.uint8)])) for n in range(3)
        ]
        buffer = io.BytesIO()
        pictures[0].save(buffer, "PNG", save_all=True, append_images=pictures[1:], duration=100)
        assert read_video(buffer.getvalue())[0].remarks == remarks


@pytest.mark.parametrize(("height", "matrix"), [(64, 6), (720, 1)])
@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_encoded_files_say_their_colours(height, matrix, codec):
    frames = torch.zeros(2, 3, height, 96)
    frames[:, 1] = 0.9
    data = encode_video(frames, 8.0, codec=codec)
    with av.open(io.BytesIO(data)) as file:
        shown = next(file.decode(video=0))
        assert (shown.colorspace, shown.color_primaries, shown.color_trc, shown.color_range) == (matrix,) * 3 + (1,)
    seen = read_video(data)[0].frames
    assert (seen.mean(dim=(0, 2, 3)) - torch.tensor([0.0, 0.9, 0.0])).abs().max() < 0.03


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("num", [1, 2, 3])
def test_the_shortest_clips_are_encoded_every_time(codec, num):
    """x265 takes the delay of reordered pictures from a third one; without it, time stamps are whatever memory holds."""
    frames = torch.zeros(num, 3, 720, 96)
    encoded = {encode_video(frames, 8.0, codec=codec) for _ in range(60 if num < 3 else 3)}
    assert len(encoded) == 1
    assert read_video(encoded.pop())[1].times == pytest.approx([n / 8 for n in range(num)])


def test_frames_beyond_the_limit_are_refused_wherever_the_size_changes(mp4):
    with pytest.raises(VideoError, match="too large"):
        read_video(mp4, limits=MediaLimits(max_frame_pixels=100))


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the shared cases")
@pytest.mark.parametrize(
    ("name", "num", "end", "shown"),
    [
        ("base.mp4", 24, 23 / 24, (RED, GREEN, BLUE, WHITE)),
        ("vfr.mp4", 24, 4.125, (RED, GREEN, BLUE, WHITE)),
        ("vfr.mkv", 24, 4.125, (RED, GREEN, BLUE, WHITE)),
        ("mat_hflip.mp4", 24, 23 / 24, (GREEN, RED, WHITE, BLUE)),
        ("mat_transpose.mp4", 24, 23 / 24, (RED, BLUE, GREEN, WHITE)),
        ("vfr_avi_gaps.avi", 24, 4.125, (RED, GREEN, BLUE, WHITE)),
        ("last_frame_10s.mkv", 24, 0.958, (RED, GREEN, BLUE, WHITE)),
        ("mpeg2.ts", 48, 47 / 24, (RED, GREEN, BLUE, WHITE)),
        ("res_change.webm", 24, 0.958, (RED, GREEN, BLUE, WHITE)),
    ],
)
@pytest.mark.parametrize("allow_damaged", [False, True])
def test_shared_cases_give_their_pictures_and_times(name, num, end, shown, allow_damaged):
    video, plan = read_video(CASES / name, allow_damaged=allow_damaged)
    assert len(plan.times) == num and plan.times[-1] == pytest.approx(end, abs=2e-3)
    assert corners(video.frames) == list(shown)


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the shared cases")
def test_shared_bomb_is_refused_at_once():
    began = time.monotonic()
    with pytest.raises(VideoError, match="40000000 samples"):
        read_video(CASES / "bomb_junk.mp4")
    assert time.monotonic() - began < 1
