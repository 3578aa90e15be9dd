"""What the decoder may be handed."""

import io
import struct

import av
import pytest
import torch

from reward_model.media import containers
from reward_model.media.containers import check_index, is_container
from reward_model.media.video_io import encode_video, read_video
from reward_model.records import VideoError


@pytest.fixture(scope="module")
def mp4() -> bytes:
    return encode_video(torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(0)), 8.0)


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


def sizes(num: int, name: bytes = b"stsz") -> bytes:
    """Return a table that names samples of one byte each without listing them."""
    return box(name, struct.pack(">III", 0, 1, num))


FTYP = box(b"ftyp", b"isom\0\0\0\0")


def test_an_mp4_is_let_through(mp4, tmp_path):
    assert is_container(mp4)
    check_index(mp4)
    (tmp_path / "clip.mp4").write_bytes(mp4)
    check_index(tmp_path / "clip.mp4")


@pytest.mark.parametrize("as_file", [True, False])
def test_the_reader_refuses_a_false_index_before_ffmpeg_believes_it(mp4, tmp_path, as_file):
    place = mp4.index(b"stsz") + 12
    false = mp4[:place] + struct.pack(">I", 2**23 + 1) + mp4[place + 4 :]
    (tmp_path / "clip.mp4").write_bytes(false)
    with pytest.raises(VideoError, match="the header names 8388609 samples"):
        read_video(tmp_path / "clip.mp4" if as_file else false)


@pytest.mark.parametrize(
    "start",
    [
        b"\x1a\x45\xdf\xa3",
        b"RIFF\0\0\0\0AVI LIST",
        b"FLV\x01",
        b"OggS",
        b"GIF89a",
        b"\x47" + bytes(187) + b"\x47",
        b"\x00\x00\x01\xba",
        b"\x00\x00\x01\xb3",
        b"\x00\x00\x00\x01\x67",
        b"DKIF",
        b"\x30\x26\xb2\x75",
        b"RIFF\0\0\0\0WEBPVP8X\n\0\0\0\2",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(21) + b"acTL" + bytes(16) + b"IDAT",
    ],
)
def test_other_containers_are_known_by_their_first_bytes(start):
    assert is_container(start + bytes(32))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        b"root:x:0:0:root",
        bytes(1000),
        b"\1" + bytes(1000),
        b"\x89PNG\r\n\x1a\n",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(21) + b"IDAT a text that names acTL",
        b"RIFF\0\0\0\0WEBPVP8X\n\0\0\0\0",
        b"RIFF\0\0\0\0WEBPVP8 ",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"#EXTM3U\nhttp://host/a.ts",
        b"text" * 200 + b"G" + bytes(187) + b"G",
    ],
)
def test_bytes_that_are_no_video_are_refused(data):
    assert not is_container(data)


def opens(data: bytes) -> bool:
    try:
        return len(read_video(data)[0].frames) == 9
    except VideoError:
        return False


def behind(junk: bytes, mp4: bytes) -> bytes:
    """Return the file behind other bytes, with the place of its pictures moved."""
    moved = bytearray(mp4)
    place = mp4.index(b"stco") + 8
    for entry in range(place + 4, place + 4 + 4 * int.from_bytes(mp4[place : place + 4]), 4):
        moved[entry : entry + 4] = struct.pack(">I", int.from_bytes(mp4[entry : entry + 4]) + len(junk))
    return junk + bytes(moved)


@pytest.mark.parametrize(
    "junk",
    [
        box(name, bytes(size))
        for name in (b"free", b"skip", b"wide", b"junk", b"\xa9xyz", b"uuid")
        for size in (16, 5000)
    ]
    + [
        box(b"junk", b"") * 300,
        box(b"junk", b"") + struct.pack(">I4sQ", 1, b"junk", 80) + bytes(64),
        box(b"junk", b"moov" * 40),
    ],
)
def test_a_file_behind_boxes_of_any_name_is_known_as_ffmpeg_knows_it_and_its_header_stays_bounded(mp4, junk):
    data = behind(junk, mp4)
    assert opens(data) and is_container(data)
    place = data.rindex(b"stsz") + 8
    with pytest.raises(VideoError, match="8388609 samples"):
        read_video(data[:place] + struct.pack(">II", 1, 2**23 + 1) + data[place + 8 :])


@pytest.mark.parametrize(
    "junk",
    [bytes(16), b"junk", struct.pack(">I4s", 4, b"junk"), struct.pack(">I", 4), b"ID3\4\0\0\0\0\0\x0a" + bytes(10)],
)
def test_a_file_behind_bytes_that_ffmpeg_does_not_skip_is_refused(mp4, junk):
    data = behind(junk, mp4)
    assert not opens(data) and not is_container(data)


def encoded(name: str, codec: str) -> bytes:
    """Return nine pictures of noise in a container."""
    buffer = io.BytesIO()
    frames = torch.randint(0, 256, (9, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with av.open(buffer, "w", format=name) as file:
        stream = file.add_stream(codec, rate=8)
        stream.width, stream.height = 64, 64
        stream.pix_fmt = {"gif": "rgb8", "apng": "rgb24"}.get(name, "yuv420p")
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")
            file.mux(stream.encode(picture.reformat(format=stream.pix_fmt)))
        file.mux(stream.encode())
    return buffer.getvalue()


STREAMS = [("mpegts", "mpeg2video"), ("mpeg2video", "mpeg2video"), ("m4v", "mpeg4"), ("h264", "libx264")]
FILES = [
    ("matroska", "mpeg4"),
    ("webm", "libvpx"),
    ("avi", "mpeg4"),
    ("flv", "flv"),
    ("asf", "mpeg4"),
    ("ivf", "libvpx"),
    ("gif", "gif"),
    ("apng", "apng"),
]


@pytest.mark.parametrize(("name", "codec"), STREAMS + FILES)
def test_other_containers_are_known_by_their_first_bytes_where_ffmpeg_opens_them(name, codec):
    data = encoded(name, codec)
    assert opens(data) and is_container(data)
    after_zeros = bytes(8) + data
    assert opens(after_zeros) is is_container(after_zeros) is ((name, codec) in STREAMS)


@pytest.mark.parametrize("padding", [b"\xec\x8a" + bytes(10), b"\xbf\x84" + bytes(4)])
def test_a_matroska_file_behind_padding_is_refused_as_ffmpeg_does(padding):
    data = padding + encoded("matroska", "mpeg4")
    assert not opens(data) and not is_container(data)


@pytest.mark.parametrize("form", ["m2ts", "parity", "within a packet"])
def test_transport_streams_are_known_whatever_stands_between_their_packets(form):
    plain = encoded("mpegts", "mpeg2video")
    packets = [plain[start : start + 188] for start in range(0, len(plain), 188)]
    data = {
        "m2ts": b"".join(bytes(4) + packet for packet in packets),
        "parity": b"".join(packet + bytes(16) for packet in packets),
        "within a packet": packets[0][100:] + plain,
    }[form]
    assert opens(data) and is_container(data)


@pytest.mark.parametrize(
    "path",
    [
        (b"moov", b"trak", b"mdia", b"minf", b"stbl"),
        (b"moov", b"trak"),
        (b"moof", b"traf"),
        (b"moov", b"udta"),
    ],
)
@pytest.mark.parametrize("name", [b"stsz", b"stz2"])
def test_a_table_of_samples_that_are_not_there_is_refused_wherever_it_stands(path, name):
    content = sizes(2**23 + 1, name)
    for folder in reversed(path):
        content = box(folder, content)
    with pytest.raises(VideoError, match="the header names 8388609 samples"):
        check_index(FTYP + content)
    check_index(FTYP + content.replace(struct.pack(">I", 2**23 + 1), struct.pack(">I", 2**23)))


def test_fragments_count_together():
    run = box(b"trun", struct.pack(">II", 0, 2**22))  # codespell:ignore trun
    check_index(FTYP + 2 * box(b"moof", box(b"traf", run)))
    with pytest.raises(VideoError, match="names 12582912 samples"):
        check_index(FTYP + 3 * box(b"moof", box(b"traf", run)))


def test_samples_count_once_an_edit():
    def moov(num_edits: int) -> bytes:
        edits = box(b"edts", box(b"elst", struct.pack(">II", 0, num_edits)))
        return box(b"moov", box(b"trak", edits + sizes(2**20)))

    check_index(FTYP + moov(8))
    with pytest.raises(VideoError, match="1048576 samples in 9 edits"):
        check_index(FTYP + moov(9))


@pytest.mark.parametrize("size", [0, 1, 2**31])
def test_sizes_that_lie_hide_no_table(size):
    table = bytearray(sizes(2**24))
    table[:4] = struct.pack(">I", size)
    if size == 1:
        table[8:8] = struct.pack(">Q", len(table) + 8)
    with pytest.raises(VideoError, match="samples"):
        check_index(FTYP + box(b"moov", bytes(table)))


def test_a_header_in_a_box_that_is_to_be_skipped_is_found():
    hidden = box(b"mvhd", bytes(100)) + box(b"trak", sizes(2**24))
    with pytest.raises(VideoError, match="samples"):
        check_index(FTYP + box(b"free", hidden))


def test_a_compressed_header_is_refused():
    with pytest.raises(VideoError, match="compressed"):
        check_index(FTYP + box(b"moov", box(b"cmov", bytes(8))))


def test_names_in_media_and_texts_are_no_tables():
    text = b"a truncated cone and a trunk" + sizes(2**30)
    check_index(FTYP + box(b"uuid", text) + box(b"mdat", text) + box(b"moov", box(b"udta", box(b"name", text))))


def test_the_number_of_boxes_is_bounded(monkeypatch):
    monkeypatch.setattr(containers, "MAX_BOXES", 10)
    check_index(FTYP + box(b"free", b"") * 8)
    with pytest.raises(VideoError, match="10 boxes"):
        check_index(FTYP + box(b"free", b"") * 9)
