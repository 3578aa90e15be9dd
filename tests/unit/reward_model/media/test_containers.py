"""What the decoder may be handed."""

import struct

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
    ],
)
def test_other_containers_are_known_by_their_first_bytes(start):
    assert is_container(start + bytes(32))


@pytest.mark.parametrize("data", [b"", b"abc", b"root:x:0:0:root", b"\x89PNG\r\n\x1a\n", b"#EXTM3U\nhttp://host/a.ts"])
def test_bytes_that_are_no_video_are_refused(data):
    assert not is_container(data)


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
