"""Flip bits in real clips and count how many of the changed ones the reader refuses.

    python scripts/check_damage.py FOLDER_OF_CLIPS

A clip counts if its sampled pixels changed or it cannot be decoded at all even where damage is allowed. Prints a row for
each number of flipped bits and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from torch import Tensor

from reward_model.media.frame_sampling import FramePolicy
from reward_model.media.video_io import read_video
from reward_model.records import VideoError

NUM_BITS = (1, 4, 16, 64, 256)
POLICY = FramePolicy(mode="fps")
MAX_SIDE = 160


def main() -> None:
    """Run the check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder of .mp4 files")
    parser.add_argument("--num", type=int, default=100, help="damaged clips to make")
    parser.add_argument("--seed", type=int, default=0, help="of the flipped bits")
    args = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted(args.clips.glob("*.mp4"))
    if not paths:
        parser.error(f"{args.clips}: no .mp4 files")
    rng, start = random.Random(args.seed), time.perf_counter()
    whole = [path.read_bytes() for path in paths]
    clean = [sampled(data, allow_damaged=False) for data in whole]
    changed, found = dict.fromkeys(NUM_BITS, 0), dict.fromkeys(NUM_BITS, 0)
    for trial in range(args.num):
        which, bits = trial % len(paths), NUM_BITS[(trial // len(paths)) % len(NUM_BITS)]
        broken = flip(whole[which], bits, rng)
        if not differs(broken, clean[which]):
            continue
        changed[bits] += 1
        try:
            sampled(broken, allow_damaged=False)
        except VideoError:
            found[bits] += 1
    for bits in NUM_BITS:
        print(f"{bits:4d} bits flipped: {found[bits]:3d} of {changed[bits]:3d} changed clips detected")
    rate = sum(found.values()) / max(sum(changed.values()), 1)
    seconds = round(time.perf_counter() - start, 1)
    summary = {"clips": args.num, "changed": sum(changed.values()), "detected": sum(found.values())}
    print(json.dumps(summary | {"rate": round(rate, 4), "seconds": seconds}))


def sampled(data: bytes, *, allow_damaged: bool) -> Tensor:
    """Return the sampled frames of a file, small."""
    return read_video(data, policy=POLICY, max_side=MAX_SIDE, allow_damaged=allow_damaged)[0].frames


def differs(broken: bytes, clean: Tensor) -> bool:
    """Say whether the sampled pixels of a file differ from the clean ones."""
    try:
        frames = sampled(broken, allow_damaged=True)
    except VideoError:
        return True
    return frames.shape != clean.shape or not torch.equal(frames, clean)


def flip(data: bytes, num: int, rng: random.Random) -> bytes:
    """Return a copy with `num` bits flipped anywhere in the file."""
    broken = bytearray(data)
    for _ in range(num):
        bit = rng.randrange(8 * len(broken))
        broken[bit >> 3] ^= 1 << (bit & 7)
    return bytes(broken)


if __name__ == "__main__":
    main()
