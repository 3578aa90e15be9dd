"""Checks of video containers before FFmpeg opens them: their kind, and the size of the index that they declare.

FFmpeg builds its index of an MP4 from counts in the file, before the caller can ask for the number of frames; a file of two
kilobytes can make it fill gigabytes that way. So those counts are read first.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from reward_model.records import VideoError

Bytes = bytes | mmap.mmap

MAX_INDEX = 2**23
"""Entries of FFmpeg's index, some 70 bytes each while it is built; 2**23 admits two minutes of uncompressed sound."""

MAX_BOXES = 2**16
"""Boxes of an MP4; ten minutes in fragments of a second have some five thousand."""

_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"moof", b"styp", b"uuid")
_MAGICS = (b"\x1a\x45\xdf\xa3", b"FLV", b"OggS", b"GIF8", b"\x00\x00\x01\xba", b"\x30\x26\xb2\x75", b"DKIF")
_START_CODE = b"\x00\x00\x01"
"""Begins every part of a raw stream of MPEG-1, MPEG-2, MPEG-4, H.264 or H.265."""
_MAX_ZEROS = 64
"""Zeros and start code before the first part of a raw stream."""
_TS_PACKETS = (188, 192, 204)
"""Bytes from one packet of an MPEG-TS to the next: plain, behind four bytes of time (m2ts), before sixteen of parity."""
_TS_SYNC, _TS_RUN = 0x47, 5
_PNG, _PNG_ANIMATION, _PNG_PIXELS = b"\x89PNG\r\n\x1a\n", b"acTL", b"IDAT"

_FOLDERS = tuple(
    name.encode()
    for name in "moov trak mdia minf stbl edts moof traf mvex udta dinf sinf schi tref wave strk ilst meta iprp".split()
)
_SAMPLES = {b"stsz": 8, b"stz2": 8, b"trun": 4}  # codespell:ignore trun
"""Offset of the number of samples in a box's content."""
_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
_KNOWN = {
    _SEGMENT,
    _CLUSTER,
    0x1A45DFA3,
    0x114D9B74,
    0x1549A966,
    0x1654AE6B,
    0x1C53BB6B,
    0x1254C367,
    0x1941A469,
    0x1043A770,
}
_KNOWN |= {0xEC, 0xBF}
"""Elements of a Matroska file: its head, those of a segment, and padding and check sums."""
_FLV_LENGTH = b"\x00\x08filesize\x00"
_EDITS = {b"elst": 4}


def is_container(data: bytes) -> bool:
    """Return whether bytes begin as a video file does that FFmpeg can tell, behind leading boxes of any name too.

    Args:
        data: the whole file.

    Returns:
        True for MP4, MOV, Matroska, WebM, AVI, FLV, Ogg, ASF, MPEG programs, transport streams and raw streams, IVF, GIF, and
        animated PNG and WebP. `check_index` still has to bound the header of an MP4.
    """
    if data.startswith(_MAGICS) or _is_transport_stream(data) or is_animated_webp(data):
        return True
    if data.startswith(_PNG):
        return 0 <= data.find(_PNG_ANIMATION) < data.find(_PNG_PIXELS)
    is_avi = data[:4] == b"RIFF" and data[8:12] == b"AVI "
    is_raw = _START_CODE in (start := data[:_MAX_ZEROS]) and start.lstrip(b"\0").startswith(b"\1")
    return is_avi or is_raw or _is_mp4(data)


def _is_mp4(data: bytes) -> bool:
    """Return whether a chain of boxes, as FFmpeg walks them, leads to one of an MP4."""
    place = 0
    for _ in range(MAX_BOXES):
        size, name, content = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8], place + 8
        if name in _MP4_BOXES:
            return True
        if size == 1:
            size, content = int.from_bytes(data[place + 8 : place + 16]), place + 16
        if size < content - place or place + size >= len(data):
            return False
        place += size
    return False


def _is_transport_stream(data: bytes) -> bool:
    """Return whether bytes are packets of an MPEG-TS, which may begin within one where several follow."""
    if data[:1] == b"\x47" and data[188:189] in (b"", b"\x47"):
        return True
    return any(
        all(data[start + step * n] == _TS_SYNC for n in range(_TS_RUN))
        for step in _TS_PACKETS
        for start in range(min(step, len(data) - step * (_TS_RUN - 1)))
    )


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
    # whatever the first box: FFmpeg finds an MP4's header behind boxes of any name, and other containers end this walk early
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
            if name == b"meta":  # version and flags stand before its boxes, but in QuickTime
                pending.append((content + 4, stop))
            start = stop


def is_whole(source: str | Path | bytes) -> bool:
    """Return whether a Matroska, AVI or FLV file is as long as its own header says, so that nothing was cut off.

    Args:
        source: path of a file that is not empty, or a whole file's bytes.

    Returns:
        False too for containers that do not state their length.
    """
    if isinstance(source, bytes):
        return _ends_as_stated(source)
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _ends_as_stated(data)


def is_animated_webp(source: str | Path | bytes) -> bool:
    """Return whether a file is a WebP with several pictures, which FFmpeg's decoder takes for a damaged one."""
    if isinstance(source, bytes):
        head = source[:21]
    else:
        with open(source, "rb") as file:
            head = file.read(21)
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and bool(head[20] & 2)


def last_cluster(source: str | Path | bytes) -> int:
    """Return the place of a Matroska file's last cluster, 0 if there is none."""
    if isinstance(source, bytes):
        return max((start for name, start, _ in _elements(source) if name == _CLUSTER), default=0)
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return max((start for name, start, _ in _elements(data) if name == _CLUSTER), default=0)


def _ends_as_stated(data: Bytes) -> bool:
    if data[:4] == b"RIFF":
        return 8 + int.from_bytes(data[4:8], "little") <= len(data)
    if data[:3] == b"FLV":
        place = data.find(_FLV_LENGTH, 0, 2**16) + len(_FLV_LENGTH)
        return place >= len(_FLV_LENGTH) and data[place : place + 8] == struct.pack(">d", len(data))
    ends = [end for _, _, end in _elements(data)]
    return bool(ends) and ends[-1] == len(data)


def _elements(data: Bytes) -> Iterator[tuple[int, int, int]]:
    """Yield name, start and end of the elements in a Matroska file's segment; none after one that the file does not hold."""
    place, segment = 0, False
    while place < len(data):
        name, content = _ebml_number(data, place, keep_length=True)
        size, content = _ebml_number(data, content, keep_length=False)
        end = content + size
        if not name or name not in _KNOWN or end > len(data):
            return
        if name == _SEGMENT and not segment:
            segment, place = True, content
            continue
        if segment:
            yield name, place, end
        place = end


def _ebml_number(data: Bytes, place: int, *, keep_length: bool) -> tuple[int, int]:
    """Return a number of EBML's variable length and the place behind it."""
    length = 9 - (data[place : place + 1] or b"\0")[0].bit_length()
    value = int.from_bytes(data[place : place + length])
    return (value if keep_length else value & ((1 << 7 * length) - 1)), place + length
