"""Times the judge against stock transformers on the same weights, after checking that both say the same.

    python scripts/bench/judge.py [--sizes toy 10m] [--torchvision FOLDER] [--cli-files N] [--docs docs]

Three dimensions of a clip by the level readout, against (a) three forward passes of the library's own model and (b) its
`generate` of a reasoned answer, without and, where torchvision is named (`make setup-parity` puts it into .venv-parity), with
the library's own processor; further against itself by the exact attention of training. Then 16 clips at a time against one,
features that are remembered against encoded, and the command line on two one-thread processes against one, by the time that more
files take. One thread. Each ratio is the median of repeats in turn with the readout, in CPU seconds of this process, so that other
processes disturb it least. Prints tables and, last, one JSON line; 1 where the logits disagree.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from stock import Stock, stock_prefix  # noqa: E402

from reward_model.judge.checkpoints.format import JudgeConfig  # noqa: E402
from reward_model.judge.engine import shared_prefix  # noqa: E402
from reward_model.judge.engine.batching import clip_grid, patches_of  # noqa: E402
from reward_model.judge.families.base import merged  # noqa: E402
from reward_model.judge.families.tiny import build_tiny  # noqa: E402
from reward_model.judge.model import VideoJudge  # noqa: E402
from reward_model.language import requests  # noqa: E402
from reward_model.media.frame_sampling import FramePolicy, take  # noqa: E402
from reward_model.media.video_io import write_video  # noqa: E402
from reward_model.records import DIMENSIONS, Clip, FramePlan, JudgeRequest, Video  # noqa: E402
from reward_model.toy_world import moving_shapes  # noqa: E402
from reward_model.video_reward import VideoJudgeReward  # noqa: E402
from tests.parity.official_processor import declare_missing_operators  # noqa: E402

ASKED = ("visual_quality", "motion_quality", "text_alignment")
TOLERANCE = 1e-4
SHAPES: Mapping[str, Mapping[str, int]] = {
    "10m": {"hidden": 160, "layers": 28, "vision_hidden": 64, "vision_layers": 32},
    "10m_shallow": {"hidden": 256, "layers": 6, "vision_hidden": 256, "vision_layers": 4},
}
"""10m has the depths of Qwen2.5-VL-7B, its widths divided by some twenty; 10m_shallow is wide for its depth, so that the vision
tower outweighs the language model as in no released one."""

ANSWER_TOKENS = (64, 512)
"""Tokens that `generate` writes: a terse reasoned answer and the longest that a judge may give by default."""

EXPLAINED = (
    "# The judge against stock transformers",
    "",
    "One thread of a processor that others use at the same time, fp32. A ratio is the median of repeats, each in turn with the level",
    "readout, in CPU seconds of the process; low and high are the least and the most of the repeats. against_forwards: three",
    "dimensions of a clip by the level readout against three forward passes of the library's own model; against_generate_N: against",
    "its `generate` of a reasoned answer of N tokens; and_processor: with the library's own processor at every call;",
    "against_exact: against the readout by the attention of training, whose parts are merged exactly (difference of the logits:",
    "max_exact_difference). predicted_against_forwards is the ratio of tokens times layers. Logits of all ways are compared first.",
    "toy: the embedded judge. 10m: random weights, the depths of Qwen2.5-VL-7B with its widths divided by some twenty. 10m_shallow:",
    "random weights, 6 wide language layers and 4 of vision, where the vision tower, which all ways pay, outweighs the rest.",
    "command_line: `video-judge score` by the time that files take beyond the start, in seconds of the clock; two_apart: two commands",
    "that know nothing of each other, the most this machine gives; without --cli-files the figures of the run before stand. This",
    "page is written by",
)

PROMPT = "a large red circle moving left slowly over a plain floor"


def seconds(action: Callable[[], object], repeats: int) -> float:
    """Return the shortest of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def cpu_seconds(action: Callable[[], object], repeats: int) -> float:
    """Return the median CPU time of several runs."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return median(times)


def compared(ours: Callable[[], object], other: Callable[[], object], repeats: int) -> list[float]:
    """Return, for each repeat, the CPU time of `other` by that of `ours`, the mean of one run before it and one after."""
    ours()
    before, ratios = cpu_seconds(ours, 1), []
    for _ in range(repeats):
        between, after = cpu_seconds(other, 1), cpu_seconds(ours, 1)
        ratios.append(2 * between / (before + after))
        before = after
    return ratios


def summary(name: str, ratios: Sequence[float]) -> dict[str, float]:
    """Return a ratio's median under its name, and its least and most."""
    return {name: median(ratios), f"{name}_low": min(ratios), f"{name}_high": max(ratios)}


@contextmanager
def exact_attention() -> Iterator[None]:
    """Let the level readout take the exact attention of training inside this context."""
    before, shared_prefix.MAX_MASK = shared_prefix.MAX_MASK, 0
    try:
        yield
    finally:
        shared_prefix.MAX_MASK = before


def predicted(judge: VideoJudge, request: JudgeRequest) -> float:
    """Return the ratio of work: tokens times layers, a video token being four patches in the vision tower."""
    model = judge.model.config
    video = math.prod(merged(clip_grid(request.clips[0], judge.family), judge.family.facts))
    vision = 4 * video * model.vision_config.depth
    shared = len(judge.tokenizer.encode(stock_prefix(judge, request)))
    branches = [len(judge.tokenizer.encode(branch)) for branch in request.branches]
    layers = model.text_config.num_hidden_layers
    stock = sum(vision + (shared + branch) * layers for branch in branches)
    return stock / (vision + (shared + sum(branches)) * layers)


def bench(judge: VideoJudge, clips: Sequence[Clip], repeats: int, *, processed: bool) -> dict[str, float]:
    """Compare, then time, the judge and the stock ways on clips of one size; names that begin with against_ are ratios."""
    request = requests.score_request(clips[0], PROMPT, ASKED)
    reason = requests.reason_request(clips[0], PROMPT, DIMENSIONS)
    ways = {"": Stock(judge, processed=False)} | ({"_and_processor": Stock(judge, processed=True)} if processed else {})
    patches = patches_of([clips[0]], judge.family, quantise=True, device=judge.device)
    goal = predicted(judge, request)
    with torch.inference_mode():
        ours = judge.next_token_logits([request])[0]
        with exact_attention():
            exact = judge.next_token_logits([request])[0]
        figures = {
            "parameters": sum(p.numel() for p in judge.parameters()),
            "prompt_tokens": len(judge.tokenizer.encode(stock_prefix(judge, request))),
            "max_logit_difference": max(float((ours - w.logits(request, patches)).abs().max()) for w in ways.values()),
            "max_exact_difference": float((ours - exact).abs().max()),
            "predicted_against_forwards": goal,
        }

        def level() -> None:
            """Read three dimensions of one clip."""
            judge.next_token_logits([request])

        def by_exact_attention() -> None:
            """Read them by the attention of training."""
            with exact_attention():
                level()

        figures["clips_per_cpu_second"] = 1 / cpu_seconds(level, repeats)
        figures |= summary("against_exact", compared(level, by_exact_attention, 3 * repeats))
        for name, way in ways.items():
            forwards = compared(level, lambda w=way: w.logits(request, patches), repeats)  # type: ignore[misc]
            figures |= summary(f"against_forwards{name}", forwards)
            for num in ANSWER_TOKENS:
                written = compared(level, lambda w=way, n=num: w.generate(reason, patches, n), repeats)  # type: ignore[misc]
                figures |= summary(f"against_generate_{num}{name}", written)
        many = [requests.score_request(clip, PROMPT, ASKED) for clip in clips]
        batched = compared(level, lambda: judge.next_token_logits(many), repeats)
        encoded = cpu_seconds(level, repeats)
        with judge.remember_clips():
            level()
            remembered = cpu_seconds(level, repeats)
    figures["share_of_prediction"] = figures["against_forwards"] / goal
    return figures | {
        "batch_16_against_1": len(many) / median(batched),
        "remembered_against_encoded": encoded / remembered,
    }


def small_judge(size: str, frames: int, side: int) -> tuple[VideoJudge, list[Clip]]:
    """Return a random Qwen2.5-VL of some 10 M parameters and 16 clips that make long prompts."""
    model, tokenizer = build_tiny("qwen2_5_vl", **SHAPES[size], init_std=0.05)
    pixels = side**2
    judge = VideoJudge(model, tokenizer, JudgeConfig.for_model(model.config, min_pixels=pixels, max_pixels=pixels))
    plan = FramePlan(tuple(range(frames)), tuple(i / 8 for i in range(frames)), ("slow",) * frames, 8.0)
    generator = torch.Generator().manual_seed(0)
    return judge.eval(), [Clip(torch.rand(frames, 3, side, side, generator=generator), plan) for _ in range(16)]


def toy_judge() -> tuple[VideoJudge, list[Clip]]:
    """Return the embedded judge and 16 clips of its world."""
    judge = VideoJudgeReward.from_pretrained("toy", role=None).judge
    policy = FramePolicy.from_dict(judge.config.frame_policy)
    rated = moving_shapes.sample_rated(16, seed=0)
    return judge, [take(clip.video, policy) for clip in rated if isinstance(clip.video, Video)]


def command_line(num_files: int, repeats: int) -> dict[str, float]:
    """Return the gain of two processes over one on files, by the time that nine tenths of them take beyond the others.

    The shortest of `repeats` times counts, because starting up takes a second more or less. `two_apart_against_one` is the
    gain of two processes that know nothing of each other: as much as this machine gives.
    """
    with tempfile.TemporaryDirectory() as folder:
        for number, rated in enumerate(moving_shapes.sample_rated(num_files, seed=1)):
            assert isinstance(rated.video, Video)
            share = "few" if number < num_files // 10 else ("left", "right")[number % 2]
            name = Path(folder) / share / f"{number:04d}.mp4"
            name.parent.mkdir(exist_ok=True)
            write_video(name, rated.video.frames, fps=rated.video.fps)

        def score(jobs: int, *shares: str) -> subprocess.Popen[bytes]:
            """Start the command line on some of the folders."""
            inputs = [str(Path(folder) / share) for share in shares]
            command = [sys.executable, "-m", "reward_model.cli", "score", *inputs, "--json", "--jobs", str(jobs)]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **quiet)

        def once(commands: Sequence[tuple[int, tuple[str, ...]]]) -> None:
            """Run command lines side by side and wait for all of them."""
            for process in [score(jobs, *shares) for jobs, shares in commands]:
                if process.wait():
                    raise RuntimeError("video-judge score failed")

        def took(*commands: tuple[int, tuple[str, ...]]) -> float:
            """Return the seconds of some commands side by side."""
            return seconds(lambda: once(commands), repeats)

        few, everything = ("few",), ("few", "left", "right")
        one, two = (took((jobs, everything)) - took((jobs, few)) for jobs in (1, 2))
        apart = took((1, ("few", "left")), (1, ("few", "right"))) - took((1, few), (1, few))
    return {
        "files": num_files,
        "files_per_second": 0.9 * num_files / one,
        "two_processes_against_one": one / two,
        "two_apart_against_one": one / apart,
    }


def table(measured: Mapping[str, Mapping[str, float]]) -> str:
    """Return the figures of every judge and of the command line as text."""
    width = max(len(key) for figures in measured.values() for key in figures)
    return "\n\n".join(
        "\n".join([name, *(f"  {key.ljust(width)}  {value:.6g}" for key, value in figures.items())])
        for name, figures in measured.items()
    )


def main(argv: Sequence[str]) -> int:
    """Compare, time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", choices=("toy", *SHAPES), default=["toy", *SHAPES], help="judges")
    parser.add_argument("--torchvision", metavar="FOLDER", help="site-packages that has torchvision")
    parser.add_argument("--frames", type=int, default=16, help="frames of the 10 M judge's clips")
    parser.add_argument("--side", type=int, default=308, help="their side in pixels, a multiple of 28")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each comparison")
    parser.add_argument("--cli-files", type=int, default=1000, help="files for the command line; 0: not run")
    parser.add_argument("--docs", type=Path, help="folder that gets the figures as bench_judge.md and .json")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if arguments.torchvision:
        sys.path.append(arguments.torchvision)
        declare_missing_operators()
    measured: dict[str, dict[str, float]] = {}
    for size in arguments.sizes:
        judge, clips = toy_judge() if size == "toy" else small_judge(size, arguments.frames, arguments.side)
        measured[size] = bench(judge, clips, arguments.repeats, processed=bool(arguments.torchvision))
    if arguments.cli_files:
        measured["command_line"] = command_line(arguments.cli_files, arguments.repeats)
    elif arguments.docs is not None and (arguments.docs / "bench_judge.json").is_file():
        measured["command_line"] = json.loads((arguments.docs / "bench_judge.json").read_text())["command_line"]
    named = {
        "bench": "judge",
        "command": " ".join(["python", "scripts/bench/judge.py", *argv]),
        "torch": torch.__version__,
    }
    print(table(measured))
    print(json.dumps({**named, **measured}))
    if arguments.docs is not None:
        arguments.docs.mkdir(parents=True, exist_ok=True)
        (arguments.docs / "bench_judge.json").write_text(
            json.dumps({**named, **measured}, indent=1) + "\n", encoding="utf-8"
        )
        page = [*EXPLAINED, "", f"`{named['command']}`", "", "```", table(measured), "```", ""]
        (arguments.docs / "bench_judge.md").write_text("\n".join(page), encoding="utf-8")
    return int(any(figures.get("max_logit_difference", 0) > TOLERANCE for figures in measured.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
