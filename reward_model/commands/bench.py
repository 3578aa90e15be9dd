"""`video-judge bench`: clips per second and peak memory, by batch size."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from reward_model.commands.inputs import list_items
from reward_model.commands.judge_options import JudgeFactory, open_judge, positive
from reward_model.terminal import visible

if TYPE_CHECKING:
    from reward_model.records import Video

EXAMPLES = """examples:
  video-judge bench                                         rendered clips of the embedded world
  video-judge bench --judge FOLDER clips/ --batch-sizes 1 4 16
  video-judge bench --judge FOLDER clips/ --readout reason --repeats 1

Files are read and their frames planned once, timed separately. Then each batch size scores all clips, after one batch
to warm up; the result is the median of the repeats. Peak memory on CUDA is the device's peak for that batch size; on a
CPU it is the process's peak so far, so it can only grow from one batch size to the next."""

PROMPT = "a large red circle moving left slowly over a plain floor"
"""Prompt of files without one; with it all dimensions are scored."""


@dataclass(frozen=True)
class Speed:
    """Measurements of one batch size."""

    batch_size: int
    clips_per_second: float
    seconds: float
    peak_mib: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description, parser.epilog = "Measure clips per second and peak memory, by batch size.", EXAMPLES
    parser.add_argument("inputs", nargs="*", help="video files, folders or lists (default: rendered clips)")
    parser.add_argument("--prompt", default=PROMPT, help="generation prompt of videos without one in a list")
    parser.add_argument(
        "--batch-sizes", nargs="+", type=positive, default=[1, 4, 8, 16], help="batch sizes to time (default: 1 4 8 16)"
    )
    parser.add_argument("--num", type=positive, default=32, help="number of rendered clips (default: 32)")
    parser.add_argument("--repeats", type=positive, default=3, help="passes over the clips (default: 3)")
    parser.add_argument(
        "--readout", choices=("level", "reason"), default="level", help="one forward pass, or a reasoned answer"
    )


def run(args: argparse.Namespace, judge_factory: JudgeFactory) -> int:
    """Time the judge on clips in memory and print one line per batch size."""
    judge = open_judge(args, judge_factory, real_clips=bool(args.inputs))
    start = time.perf_counter()
    videos, prompts, failed = _read(args, judge) if args.inputs else _render(args.num)
    reading = time.perf_counter() - start
    if not videos:
        raise ValueError(f"none of the {failed} videos can be read")
    speeds = [_measure(judge, videos, prompts, size, args) for size in sorted(set(args.batch_sizes))]
    height, width = videos[0].frames.shape[-2:]
    facts = {
        "judge": args.judge,
        "readout": args.readout,
        "device": str(judge.judge.device),
        "threads": args.threads,
        "num_clips": len(videos),
        "num_failed": failed,
        "first_clip": f"{len(videos[0].frames)} frames of {width}x{height}",
        "clips_read_per_second": (len(videos) + failed) / reading if args.inputs else None,
    }
    _show(args, facts, speeds)
    return int(failed > 0)


def _show(args: argparse.Namespace, facts: dict[str, Any], speeds: Sequence[Speed]) -> None:
    from reward_model.evaluation.tables import format_rows

    if args.json:
        for speed in speeds:
            print(json.dumps(facts | asdict(speed), allow_nan=False))
        return
    named = (f"{name.replace('_', ' ')}: {value}" for name, value in facts.items() if value is not None)
    print(visible(", ".join(named)))
    print(format_rows([asdict(speed) for speed in speeds]))


def _read(args: argparse.Namespace, judge: Any) -> tuple[list[Video], list[str | None], int]:
    """Return the planned frames of readable files, their prompts, and the number of unreadable files."""
    from reward_model.media.video_io import read_video
    from reward_model.records import VideoError

    videos, prompts, failed = [], [], 0
    for item in list_items(args.inputs, prompt=args.prompt):
        try:
            videos.append(read_video(item.path, policy=judge.frame_policy, allow_damaged=args.allow_damaged)[0])
            prompts.append(item.prompt)
        except VideoError as error:
            failed += 1
            print(visible(f"video-judge bench: {item.path}: {error}"), file=sys.stderr)
    return videos, prompts, failed


def _render(num: int) -> tuple[list[Video], list[str | None], int]:
    from reward_model.evaluation.sanity import clean_shapes
    from reward_model.records import Video

    clips = clean_shapes(num, seed=0)
    return [clip.video for clip in clips if isinstance(clip.video, Video)], [clip.prompt for clip in clips], 0


def _measure(
    judge: Any, videos: Sequence[Video], prompts: Sequence[str | None], size: int, args: argparse.Namespace
) -> Speed:
    import torch

    on_cuda = judge.judge.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(judge.judge.device)
    judge(videos[:size], prompts[:size], readout=args.readout, batch_size=size)
    times = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        output = judge(videos, prompts, readout=args.readout, batch_size=size)
        output.rewards.tolist()  # waits for the device
        times.append(time.perf_counter() - start)
    if on_cuda:
        peak = torch.cuda.max_memory_allocated(judge.judge.device) / 2**20
    else:
        scale = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
    seconds = statistics.median(times)
    return Speed(size, len(videos) / seconds, seconds, peak)
