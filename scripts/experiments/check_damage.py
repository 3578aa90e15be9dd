"""Damages real clips in many ways and checks how the reader takes them.

    python scripts/experiments/check_damage.py FOLDER_OF_CLIPS [--num 340] [--seed 0]

Every damaged file is read in a process of its own, which must neither crash nor take more than 10 seconds; every
refusal must have a reason. A file counts as damaged if its sampled pixels changed, or cannot be decoded at all even where
damage is allowed; at least 95 % of these must be refused. Prints a line for each kind of damage and, last, one JSON line;
exits with 1 where one of these conditions fails.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from reward_model.media.frame_sampling import FramePolicy
from reward_model.media.video_io import read_video
from reward_model.records import VideoError

POLICY = FramePolicy(mode="fps")
MAX_SIDE = 160
MAX_SECONDS = 10.0
MIN_REFUSED = 0.95

Damage = Callable[[bytearray, random.Random], bytes]


def flip(num_bits: int) -> Damage:
    """Return the damage that flips bits anywhere in the file."""

    def damage(data: bytearray, rng: random.Random) -> bytes:
        """Flip the bits."""
        for _ in range(num_bits):
            bit = rng.randrange(8 * len(data))
            data[bit >> 3] ^= 1 << (bit & 7)
        return bytes(data)

    return damage


def stretch(data: bytearray, rng: random.Random, largest: float) -> slice:
    """Return a random stretch of a file, up to a share of it."""
    length = max(1, int(len(data) * rng.uniform(0, largest)))
    start = rng.randrange(len(data) - length + 1)
    return slice(start, start + length)


def overwrite(with_noise: bool) -> Damage:
    """Return the damage that overwrites a stretch by zeros or noise."""

    def damage(data: bytearray, rng: random.Random) -> bytes:
        """Overwrite the stretch."""
        where = stretch(data, rng, 0.05)
        size = where.stop - where.start
        data[where] = rng.randbytes(size) if with_noise else bytes(size)
        return bytes(data)

    return damage


def cut(data: bytearray, rng: random.Random) -> bytes:
    """Keep the beginning only."""
    return bytes(data[: rng.randrange(1, len(data))])


def drop(data: bytearray, rng: random.Random) -> bytes:
    """Leave out a stretch."""
    del data[stretch(data, rng, 0.05)]
    return bytes(data)


def repeat(data: bytearray, rng: random.Random) -> bytes:
    """Put a stretch in twice."""
    where = stretch(data, rng, 0.05)
    return bytes(data[: where.stop] + data[where.start :])


def swap(data: bytearray, rng: random.Random) -> bytes:
    """Exchange two blocks of 4 KiB."""
    size = min(4096, len(data) // 4)
    one, two = (rng.randrange(len(data) - size) for _ in range(2))
    data[one : one + size], data[two : two + size] = data[two : two + size], data[one : one + size]
    return bytes(data)


def boxes(data: bytearray, rng: random.Random) -> bytes:
    """Change the stated size of one of the container's boxes."""
    names = (b"moov", b"trak", b"stbl", b"stsz", b"stco", b"stts", b"stsd", b"mdat", b"avcC")
    places = [place for name in names if (place := data.find(name)) >= 4]
    place = rng.choice(places)
    data[place - 4 : place] = rng.choice((bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", rng.randbytes(4)))
    return bytes(data)


def tables(data: bytearray, rng: random.Random) -> bytes:
    """Overwrite 16 bytes of the tables of samples."""
    start = data.find(b"stbl")
    place = rng.randrange(start, min(start + 2048, len(data) - 16))
    data[place : place + 16] = rng.randbytes(16)
    return bytes(data)


def before(data: bytearray, rng: random.Random) -> bytes:
    """Put noise in front."""
    return rng.randbytes(rng.randrange(1, 4096)) + bytes(data)


def behind(data: bytearray, rng: random.Random) -> bytes:
    """Append noise, which harms nothing."""
    return bytes(data) + rng.randbytes(rng.randrange(1, 65536))


DAMAGES: dict[str, Damage] = {
    **{f"flip {num} bits": flip(num) for num in (1, 4, 16, 64, 256)},
    "zeros": overwrite(False),
    "noise": overwrite(True),
    "cut": cut,
    "drop": drop,
    "repeat": repeat,
    "swap": swap,
    "boxes": boxes,
    "tables": tables,
    "noise before": before,
    "noise behind": behind,
}


def main(argv: Sequence[str]) -> int:
    """Run the check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder of .mp4 files")
    parser.add_argument("--num", type=int, default=340, help="damaged files to make")
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    paths = sorted(args.clips.glob("*.mp4"))
    if not paths:
        parser.error(f"{args.clips}: no .mp4 files")
    rng, started = random.Random(args.seed), time.perf_counter()
    whole = [path.read_bytes() for path in paths]
    clean = [sampled(data, allow_damaged=False) for data in whole]
    kinds = list(DAMAGES)
    counts = {kind: Counter[str]() for kind in kinds}
    for trial in range(args.num):
        kind, which = kinds[trial % len(kinds)], (trial // len(kinds)) % len(paths)
        counts[kind].update(read_apart(DAMAGES[kind](bytearray(whole[which]), rng), clean[which]))
    print(f"{'damage':>14} files changed refused of these  unharmed but refused  crashed  too slow  without reason")
    for kind, counted in counts.items():
        cells = [counted[key] for key in ("files", "changed", "caught", "strict", "crashed", "slow", "silent")]
        print("{:>14} {:5d} {:7d} {:16d} {:21d} {:8d} {:9d} {:15d}".format(kind, *cells))
    total = sum(counts.values(), Counter[str]())
    rate = total["caught"] / max(total["changed"], 1)
    held = rate >= MIN_REFUSED and not total["crashed"] and not total["slow"] and not total["silent"]
    seconds = round(time.perf_counter() - started, 1)
    print(json.dumps({**total, "refused_rate": round(rate, 4), "seconds": seconds, "holds": held}))
    return int(not held)


def read_apart(data: bytes, clean: Tensor) -> list[str]:
    """Read a file in a process of its own and return the names of the counts that it adds to."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=look, args=(data, clean, theirs))
    child.start()
    theirs.close()
    answered = ours.poll(2 * MAX_SECONDS)  # it reads twice
    try:
        counted = ours.recv() if answered else ["slow"]
    except EOFError:
        counted = ["crashed"]
    child.kill()
    child.join()
    return ["files", *counted]


def look(data: bytes, clean: Tensor, answer: Connection) -> None:
    """Read a file as users do, and send the names of the counts that it adds to."""
    started, refused, counted = time.perf_counter(), False, []
    try:
        sampled(data, allow_damaged=False)
    except VideoError as error:
        refused = True
        counted += [] if str(error).strip() else ["silent"]
    if time.perf_counter() - started > MAX_SECONDS:
        counted.append("slow")
    changed = differs(data, clean)
    counted += ["changed"] if changed else []
    counted += [("caught" if changed else "strict")] if refused else []
    answer.send(counted)


def sampled(data: bytes, *, allow_damaged: bool) -> Tensor:
    """Return the sampled frames of a file, small."""
    return read_video(data, policy=POLICY, max_side=MAX_SIDE, allow_damaged=allow_damaged)[0].frames


def differs(broken: bytes, clean: Tensor) -> bool:
    """Return whether the sampled pixels of a file differ from the clean ones."""
    try:
        frames = sampled(broken, allow_damaged=True)
    except VideoError:
        return True
    return frames.shape != clean.shape or not torch.equal(frames, clean)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
