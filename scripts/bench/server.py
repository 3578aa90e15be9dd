"""Many clients at once against `video-judge serve` on this machine: are answers right, how fast, does memory stay flat?

python scripts/bench/server.py [--seconds 60] [--clients 64] [--max-growth-mb 48]

The embedded judge is served by a process of its own. Each client has a clip and a prompt that nobody else has, sends it
again and again (about half of them as MP4 files, the rest as frames) and compares every answer with the direct call's.
Prints a table and, last, one JSON line; the exit status is 1 after an error, a wrong answer, or growth of the server's
memory (read on Linux only).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import torch

from reward_model.media.video_io import encode_video
from reward_model.records import Video
from reward_model.serving.client import VideoJudgeClient
from reward_model.toy_world import moving_shapes
from reward_model.video_reward import VideoJudgeReward

TOLERANCE = 1e-4
"""How far a score may be from that of the direct call, which is of another batch; scores of two clients differ by more."""


@dataclass(frozen=True)
class LoadQuestion:
    """Video and prompt that one client sends again and again, and the scores [D] of the direct call."""

    video: Video | bytes
    prompt: str
    expected: torch.Tensor


@dataclass
class Tally:
    """Times and errors that the clients met; each appends under the interpreter's lock."""

    seconds: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    wrong: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


@contextmanager
def server_process() -> Iterator[tuple[str, int]]:
    """Yield address and process id of a server, and end it by SIGTERM."""
    command = [sys.executable, "-m", "reward_model.cli", "serve", "--port", "0", "--json"]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"], process.pid
        finally:
            process.terminate()
            if process.wait(timeout=300) != 0:
                raise RuntimeError(f"the server ended with status {process.returncode}")


def questions(num: int) -> list[LoadQuestion]:
    """Return one question a client; no two have all their scores in common."""
    clips = list(moving_shapes.sample_rated(2 * num, seed=7))
    videos = [encode_video(c.video.frames, c.video.fps) if i % 2 else c.video for i, c in enumerate(clips)]
    scores = VideoJudgeReward.from_pretrained("toy")(videos, [clip.prompt for clip in clips]).scores
    chosen: list[LoadQuestion] = []
    for video, clip, expected in zip(videos, clips, torch.stack(list(scores.values()), dim=1), strict=True):
        near = (torch.allclose(expected, other.expected, rtol=0, atol=10 * TOLERANCE) for other in chosen)
        if expected.isfinite().all() and not any(near):
            chosen.append(LoadQuestion(video, clip.prompt, expected))
    if len(chosen) < num:
        raise RuntimeError(f"only {len(chosen)} of {num} clips have scores of their own")
    return chosen[:num]


def ask_on(url: str, question: LoadQuestion, end: float, tally: Tally) -> None:
    """Be one client until `end`."""
    client = VideoJudgeClient(url)
    while time.monotonic() < end:
        start = time.monotonic()
        try:
            out = client.score([question.video], [question.prompt])
        except (ValueError, RuntimeError, OSError) as error:
            tally.errors.append(f"{type(error).__name__}: {error}")
            continue
        tally.seconds.append(time.monotonic() - start)
        difference = float((torch.stack([score[0] for score in out.scores.values()]) - question.expected).abs().max())
        if not difference <= TOLERANCE:
            tally.wrong.append(difference)


def watch(url: str, process_id: int, end: float, tally: Tally) -> None:
    """Note memory and the time that /health takes, twice a second."""
    while time.monotonic() < end:
        start = time.monotonic()
        with urlopen(f"{url}/health", timeout=30) as answer:
            answer.read()
        tally.health.append(time.monotonic() - start)
        tally.memory.append(resident_mb(process_id))
        time.sleep(0.5)


def resident_mb(process_id: int) -> float:
    """Return a process's resident memory in 10^6 bytes; NaN where there is no /proc."""
    path = Path(f"/proc/{process_id}/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6 if path.exists() else math.nan


def load(url: str, process_id: int, asked: Sequence[LoadQuestion], seconds: float) -> Tally:
    """Run all clients side by side."""
    tally, end = Tally(), time.monotonic() + seconds
    threads = [threading.Thread(target=ask_on, args=(url, question, end, tally)) for question in asked]
    threads.append(threading.Thread(target=watch, args=(url, process_id, end, tally)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


def summary(tally: Tally, asked: Sequence[LoadQuestion], seconds: float, batches: float) -> dict[str, object]:
    """Return the figures; growth of memory is counted from a third of the time on."""
    spent = sorted(tally.seconds)
    warm = tally.memory[len(tally.memory) // 3 :] or [math.nan]
    return {
        "clients": len(asked),
        "seconds": seconds,
        "answers": len(spent),
        "answers_a_second": round(len(spent) / seconds, 1),
        "clips_a_batch": round(len(spent) / max(batches, 1), 2),
        "median_ms": round(1e3 * spent[len(spent) // 2], 1) if spent else None,
        "p99_ms": round(1e3 * spent[int(0.99 * len(spent))], 1) if spent else None,
        "worst_health_ms": round(1e3 * max(tally.health), 1),
        "errors": len(tally.errors),
        "wrong_answers": len(tally.wrong),
        "memory_mb": round(warm[0], 1),
        "growth_mb": round(max(warm) - warm[0], 1),
    }


def main(argv: Sequence[str]) -> int:
    """Measure and print; 0 where all answers were right and memory stayed flat."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the clients ask (default: 60)")
    parser.add_argument("--clients", type=int, default=64, help="clients at a time (default: 64)")
    parser.add_argument("--max-growth-mb", type=float, default=48.0, help="growth of memory allowed (default: 48)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    asked = questions(args.clients)
    with server_process() as (url, process_id):
        tally = load(url, process_id, asked, args.seconds)
        with urlopen(f"{url}/metrics", timeout=30) as answer:
            counts = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[0] != "#")
    figures = summary(tally, asked, args.seconds, float(counts["video_judge_batch_size_count"]))
    sys.stdout.writelines(f"{name:>18}  {value}\n" for name, value in figures.items())
    sys.stdout.writelines(f"{reason}\n" for reason in sorted(set(tally.errors))[:5])
    sys.stdout.write(json.dumps(figures) + "\n")
    grown = figures["growth_mb"] > args.max_growth_mb  # never so where memory cannot be read: NaN
    return int(not tally.seconds or bool(tally.errors) or bool(tally.wrong) or grown)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
