"""Times the judge against stock transformers on the same weights, after checking that both say the same.

    python scripts/bench_judge.py [--sizes toy 10m] [--frames N] [--side PIXELS] [--repeats N] [--cli-files N]

Three dimensions of a clip by the level readout, against (a) three forward passes of the library's own model, with and without
its own processor (which needs torchvision), and (b) the library's `generate` of a reasoned answer. Then 16 clips at a time
against one, features that are remembered against encoded, and the command line on two one-thread processes against one,
by the time that more files take. One thread. Prints tables and, last, one JSON line.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reward_model.datasets import moving_shapes
from reward_model.judge.batching import clip_grid, patches_of
from reward_model.judge.checkpoint import JudgeConfig
from reward_model.judge.families.base import merged
from reward_model.judge.model import VideoJudge
from reward_model.judge.tiny import build_tiny
from reward_model.language import prompts
from reward_model.media.frame_sampling import FramePolicy, take
from reward_model.media.video_io import write_video
from reward_model.records import Clip, FramePlan, JudgeRequest, Video
from reward_model.video_reward import VideoJudgeReward

ASKED = ("visual_quality", "motion_quality", "text_alignment")
TOLERANCE = 1e-4
ANSWER_TOKENS = (64, 512)
"""Tokens that `generate` writes: a terse reasoned answer and the longest that a judge may give by default."""

PROMPT = "a large red circle moving left slowly over a plain floor"


def seconds(action: Callable[[], object], repeats: int) -> float:
    """Return the shortest of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


class Stock:
    """The library's way: the whole prompt for every question."""

    def __init__(self, judge: VideoJudge, *, processed: bool) -> None:
        """Take the judge's model; `processed` makes pixels into patches by the library's processor, at every call."""
        self.judge = judge
        self.processor = _processor(judge) if processed else None

    def inputs(self, clip: Clip, text: str, patches: tuple[Tensor, Tensor] | None) -> dict[str, Any]:
        """Return the model's inputs for one clip and one question."""
        facts = self.judge.family.facts
        if self.processor is not None:
            found = self.processor([clip.frames], return_tensors="pt", do_sample_frames=False, do_rescale=True)
            patches = found["pixel_values_videos"], found["video_grid_thw"]
        assert patches is not None
        ids = torch.tensor([self.judge.tokenizer.encode(text)], device=self.judge.device)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == facts.video_token_id).int() * 2,
            "pixel_values_videos": patches[0],
            "video_grid_thw": patches[1],
            "second_per_grid_ts": torch.tensor([facts.temporal_patch_size / clip.plan.fps]),
        }

    def logits(self, request: JudgeRequest, patches: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return the last logits [D, V] by one forward pass per question; without `patches` they are made here, once."""
        if patches is None and self.processor is None:
            patches = patches_of(request.clips, self.judge.family, quantise=True, device=self.judge.device)
        clip, text = request.clips[0], self.prefix(request)
        found = [
            self.judge.model(**self.inputs(clip, text + branch, patches), logits_to_keep=1, use_cache=False).logits[
                0, -1
            ]
            for branch in request.branches
        ]
        return torch.stack(found)

    def prefix(self, request: JudgeRequest) -> str:
        """Return the text that all questions share, with the clip's video tokens."""
        before, _, after = request.prefix
        clip, family = request.clips[0], self.judge.family
        return f"{before}{family.placeholder(clip.plan, clip_grid(clip, family))}{after}"

    def generate(self, request: JudgeRequest, patches: tuple[Tensor, Tensor], num_tokens: int) -> None:
        """Let the library write a reasoned answer of a length."""
        clip, text = request.clips[0], self.prefix(request) + request.branches[0]
        how = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False}
        self.judge.model.generate(**self.inputs(clip, text, patches), **how)


def _processor(judge: VideoJudge) -> Any:
    from transformers import Qwen2VLVideoProcessor

    config, facts = judge.config, judge.family.facts
    return Qwen2VLVideoProcessor(
        size={"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels},
        patch_size=facts.patch_size,
        merge_size=facts.merge_size,
        temporal_patch_size=facts.temporal_patch_size,
    )


def has_processor() -> bool:
    """Return whether the library's own video processor can be had here."""
    from transformers.utils import is_torchvision_available

    return bool(is_torchvision_available())


def predicted(judge: VideoJudge, request: JudgeRequest) -> float:
    """Return the ratio of work: tokens times layers, a video token being four patches in the vision tower."""
    model = judge.model.config
    video = math.prod(merged(clip_grid(request.clips[0], judge.family), judge.family.facts))
    vision = 4 * video * model.vision_config.depth
    shared = len(judge.tokenizer.encode(Stock(judge, processed=False).prefix(request)))
    branches = [len(judge.tokenizer.encode(branch)) for branch in request.branches]
    layers = model.text_config.num_hidden_layers
    stock = sum(vision + (shared + branch) * layers for branch in branches)
    return stock / (vision + (shared + sum(branches)) * layers)


def bench(judge: VideoJudge, clips: Sequence[Clip], repeats: int) -> dict[str, float | None]:
    """Compare, then time, the judge and the stock way on clips of one size."""
    request = prompts.score_request(clips[0], PROMPT, ASKED)
    reason = prompts.reason_request(clips[0], PROMPT)
    patches = patches_of([clips[0]], judge.family, quantise=True, device=judge.device)
    stock = Stock(judge, processed=False)
    with torch.inference_mode():
        ours = judge.next_token_logits([request])[0]
        difference = float((ours - stock.logits(request, patches)).abs().max())
        processed = Stock(judge, processed=True) if has_processor() else None
        if processed is not None:
            difference = max(difference, float((ours - processed.logits(request, patches)).abs().max()))
        if difference > TOLERANCE:
            raise SystemExit(f"the two ways disagree by {difference}")
        level = seconds(lambda: judge.next_token_logits([request]), repeats)
        forward = seconds(lambda: stock.logits(request, patches), repeats)
        with_processor = None if processed is None else seconds(lambda: processed.logits(request, patches), repeats)
        generate = {n: seconds(lambda n=n: stock.generate(reason, patches, n), 1) for n in ANSWER_TOKENS}  # type: ignore[misc]
        many = [prompts.score_request(clip, PROMPT, ASKED) for clip in clips]
        batched = seconds(lambda: judge.next_token_logits(many), 1) / len(many)
        with judge.remember_clips():
            judge.next_token_logits([request])
            cached = seconds(lambda: judge.next_token_logits([request]), repeats)
    goal = predicted(judge, request)
    return {
        "parameters": sum(p.numel() for p in judge.parameters()),
        "prompt_tokens": len(judge.tokenizer.encode(stock.prefix(request))),
        "max_logit_difference": difference,
        "clips_per_second": 1 / level,
        "against_forwards": forward / level,
        "against_processor_and_forwards": None if with_processor is None else with_processor / level,
        "predicted_against_forwards": goal,
        "share_of_prediction": forward / level / goal,
        **{f"against_generate_{num}": took / level for num, took in generate.items()},
        "batch_16_against_1": level / batched,
        "remembered_against_encoded": level / cached,
    }


def small_judge(frames: int, side: int) -> tuple[VideoJudge, list[Clip]]:
    """Return a random Qwen2.5-VL of some 10 M parameters and 16 clips that make long prompts."""
    size = {"hidden": 256, "layers": 6, "vision_hidden": 256, "vision_layers": 6}
    model, tokenizer = build_tiny("qwen2_5_vl", **size, init_std=0.05)
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


def command_line(num_files: int) -> dict[str, float]:
    """Return what two processes gain over one on files, by the time that `num_files` take beyond a tenth of them."""
    with tempfile.TemporaryDirectory() as folder:
        for number, rated in enumerate(moving_shapes.sample_rated(num_files, seed=1)):
            assert isinstance(rated.video, Video)
            name = Path(folder) / ("few" if number < num_files // 10 else "more") / f"{number:04d}.mp4"
            name.parent.mkdir(exist_ok=True)
            write_video(name, rated.video.frames, fps=rated.video.fps)

        def took(jobs: int, *parts: str) -> float:
            inputs = [str(Path(folder) / part) for part in parts]
            command = [sys.executable, "-m", "reward_model.cli", "score", *inputs, "--json", "--jobs", str(jobs)]
            start = time.perf_counter()
            subprocess.run(
                command,
                check=True,
                capture_output=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            return time.perf_counter() - start

        one, two = (took(jobs, "few", "more") - took(jobs, "few") for jobs in (1, 2))
    return {"files": num_files, "files_per_second": 0.9 * num_files / one, "two_processes_against_one": one / two}


def main(argv: Sequence[str]) -> int:
    """Compare, time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", choices=("toy", "10m"), default=["toy", "10m"], help="judges")
    parser.add_argument("--frames", type=int, default=16, help="frames of the 10 M judge's clips")
    parser.add_argument("--side", type=int, default=308, help="their side in pixels, a multiple of 28")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the shortest counts")
    parser.add_argument("--cli-files", type=int, default=200, help="files for the command line; 0 leaves it out")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for size in arguments.sizes:
        judge, clips = toy_judge() if size == "toy" else small_judge(arguments.frames, arguments.side)
        found[size] = bench(judge, clips, arguments.repeats)
        sys.stdout.write(f"\n{size}\n")
        sys.stdout.writelines(
            f"{name:>32}  {'-' if v is None else format(v, '.6g')}\n" for name, v in found[size].items()
        )
    if arguments.cli_files:
        found["command_line"] = command_line(arguments.cli_files)
        sys.stdout.write("\ncommand line\n")
        sys.stdout.writelines(f"{name:>32}  {value:.6g}\n" for name, value in found["command_line"].items())
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
