"""Peak memory of `video-judge score` and `video-judge rank` over large and many clips, each in a process of its own.

python scripts/bench/memory.py [--large 24] [--many 200] [--json]

Clips are H.264 files of smooth noise made with PyAV: 1080p for `score`, 480p for `rank`. The table gives the peak resident
memory (VmHWM, Linux only) of the command, and of the same command over one or two of the clips, which is mostly libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from reward_model.media.video_io import encode_video

ROOT = Path(__file__).resolve().parents[2]

COMMAND = """
import sys
from reward_model.cli import main
code = main(sys.argv[1:])
lines = open("/proc/self/status").read().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM")), file=sys.stderr)
sys.exit(code)
"""
"""Program that runs one command and prints its peak memory in KiB on stderr."""


def write_clips(
    folder: Path, num: int, *, height: int, width: int, num_frames: int = 17, kinds: int | None = None
) -> list[Path]:
    """Write clips of smooth noise.

    Args:
        folder: receives the files.
        num: number of files.
        height: of a frame.
        width: of a frame.
        num_frames: of a clip, at 8 Hz.
        kinds: number of distinct clips, each written several times; None makes all distinct.

    Returns:
        The files.
    """
    folder.mkdir(exist_ok=True)
    files, distinct = [], dict[int, bytes]()
    for number in range(num):
        kind = number % (kinds or num)
        if kind not in distinct:
            noise = torch.rand(num_frames, 3, 9, 16, generator=torch.Generator().manual_seed(kind))
            distinct[kind] = encode_video(torch.nn.functional.interpolate(noise, size=(height, width)), 8.0)
        files.append(folder / f"{number:03d}.mp4")
        files[-1].write_bytes(distinct[kind])
    return files


def peak_mb(arguments: Sequence[str]) -> float:
    """Return the peak memory of a `video-judge` command in 10^6 bytes.

    Args:
        arguments: the command line without the program's name.

    Returns:
        VmHWM of its process.

    Raises:
        RuntimeError: the command failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"video-judge {arguments[0]} ended with {done.returncode}: {done.stderr[-300:]}")
    return int(done.stderr.split()[-1]) * 1024 / 1e6


def main(argv: Sequence[str]) -> int:
    """Measure and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", type=int, default=24, help="1080p clips of one batch of score (default: 24)")
    parser.add_argument("--many", type=int, default=200, help="480p clips of rank (default: 200)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        large = [str(file) for file in write_clips(Path(place), args.large, height=1080, width=1920, kinds=4)]
        many = [str(file) for file in write_clips(Path(place, "many"), args.many, height=480, width=854, kinds=8)]
        score = ["score", "--judge", "toy", "--batch-size", str(args.large), "--json"]
        rank = ["rank", "--judge", "toy", "--prompt", "a red circle", "--json"]
        peaks = {
            "score, 1 clip of 1080p": peak_mb([*score, large[0]]),
            f"score, one batch of {args.large} clips of 1080p": peak_mb([*score, *large]),
            "rank, 2 clips of 480p": peak_mb([*rank, *many[:2]]),
            f"rank, {args.many} clips of 480p": peak_mb([*rank, *many]),
        }
    lines = [json.dumps(peaks)] if args.json else [f"{value:8.0f} MB  {name}" for name, value in peaks.items()]
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
