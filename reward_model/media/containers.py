"""Checks of video containers before FFmpeg opens them: their kind, and the size of the index that they declare.

FFmpeg builds its index of an MP4 from counts in the file, before the caller can ask for the number of frames; a file of two
kilobytes can make it fill gigabytes that way. So those counts are read first.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from reward_model.records import VideoError

Bytes = bytes | mmap.mmap

MAX_INDEX = 2**23
"""Entries of FFmpeg's index, some 70 bytes each while it is built; 2**23 admits two minutes of uncompressed sound."""

MAX_BOXES = 2**16
"""Boxes of an MP4; ten minutes in fragments of a second have some five thousand."""

_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_MAGICS = (b"\x1a\x45\xdf\xa3", b"FLV", b"OggS", b"GIF8", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"\x30\x26\xb2\x75")
_TS_PACKET = 188

_FOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf", b"mvex", b"udta")
_SAMPLES = {b"stsz": 8, b"stz2": 8, b"trun": 4}  # codespell:ignore trun
"""Offset of the number of samples in a box's content."""
_EDITS = {b"elst": 4}


def is_container(data: bytes) -> bool:
    """Return whether bytes begin as a video file does: MP4, MOV, Matroska, WebM, AVI, MPEG, FLV, Ogg, ASF or GIF."""
    is_ts = data[:1] == b"\x47" and data[_TS_PACKET : _TS_PACKET + 1] in (b"", b"\x47")
    is_avi = data[:4] == b"RIFF" and data[8:12] == b"AVI "
    return data[4:8] in _MP4_BOXES or is_ts or is_avi or data.startswith(_MAGICS)


def check_index(source: str | Path | bytes) -> None:
    """Refuse an MP4 whose header declares an oversized index; other containers have no such header.

    Args:
        source: path of a file that is not empty, or a whole file's bytes.

    Raises:
        VideoError: an MP4 whose header names more samples, over all its edits, than `MAX_INDEX`, or hides them.
    """
    if isinstance(source, bytes):
        _check_header(source)
        return
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _check_header(data)


def _check_header(data: Bytes) -> None:
    if data[4:8] not in _MP4_BOXES:
        return
    boxes = list(islice(_boxes(data), MAX_BOXES))
    if len(boxes) == MAX_BOXES:
        raise VideoError(f"not read: the file has {MAX_BOXES} boxes or more")
    if any(name == b"cmov" for name, _ in boxes):
        raise VideoError("not read: the file's header is compressed")
    num_samples, num_edits = (
        sum(int.from_bytes(content[kinds[name] : kinds[name] + 4]) for name, content in boxes if name in kinds)
        for kinds in (_SAMPLES, _EDITS)
    )
    # each edit may list all samples once more
    if num_samples * max(num_edits, 1) > MAX_INDEX:
        edits = f" in {num_edits} edits" if num_edits > 1 else ""
        raise VideoError(f"too long: the header names {num_samples} samples{edits}")


def _boxes(data: Bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and first bytes of the content of every box of an MP4, nested ones too."""
    pending = [(0, len(data))]
    while pending:
        start, end = pending.pop()
        while start + 8 <= end:
            size, name, content = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8], start + 8
            if size == 1:
                size, content = int.from_bytes(data[start + 8 : start + 16]), start + 16
            # 0 reaches to the end; a box cannot leave the one that it is in
            stop = min(start + size, end) if size >= content - start else end
            yield name, data[content : content + 16]
            # a header may hide in a box that is to be skipped, and is found there
            if name in _FOLDERS or data[content + 4 : content + 8] in (b"mvhd", b"cmov"):
                pending.append((content, stop))
            start = stop
