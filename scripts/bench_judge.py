"""Times the level readout of several dimensions behind one shared prefix against stock forwards that repeat it.

python scripts/bench_judge.py [--hidden N] [--layers N] [--frames N] [--side PIXELS] [--repeats N]

Same random Qwen2.5-VL, same pixels, one thread. The stock way runs the model's own forward once per dimension, with
inputs prepared beforehand, so that neither preprocessing nor a processor is counted against it. Logits are compared
before anything is timed. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from reward_model.judge.batching import clip_grid, patches_of
from reward_model.judge.checkpoint import JudgeConfig
from reward_model.judge.families.base import merged
from reward_model.judge.model import VideoJudge
from reward_model.judge.tiny import build_tiny
from reward_model.language import prompts
from reward_model.records import DIMENSIONS, Clip, FramePlan, JudgeRequest


def stock_logits(judge: VideoJudge, request: JudgeRequest) -> Tensor:
    """Return the last logits [D, V] by one whole forward of the library's model per branch."""
    clip, family, tokenizer = request.clips[0], judge.family, judge.tokenizer
    before, _, after = request.prefix
    text = f"{before}{family.placeholder(clip.plan, clip_grid(clip, family))}{after}"
    patches, grid = patches_of([clip], family, quantise=True, device=judge.device)
    found = []
    for branch in request.branches:
        ids = torch.tensor([tokenizer.encode(text) + tokenizer.encode(branch)])
        output = judge.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == family.facts.video_token_id).int() * 2,
            pixel_values_videos=patches,
            video_grid_thw=grid,
            second_per_grid_ts=torch.tensor([family.facts.temporal_patch_size / clip.plan.fps]),
            logits_to_keep=1,
            use_cache=False,
        )
        found.append(output.logits[0, -1])
    return torch.stack(found)


def seconds(action: Callable[[], object], repeats: int) -> float:
    """Return the shortest of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def main(argv: Sequence[str]) -> int:
    """Check that both ways agree, time them, print the table; 1 if they disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256, help="width of both towers")
    parser.add_argument("--layers", type=int, default=6, help="depth of both towers")
    parser.add_argument("--frames", type=int, default=16, help="frames of the clip")
    parser.add_argument("--side", type=int, default=308, help="frame side in pixels, a multiple of 28")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the shortest counts")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    size = {"hidden": arguments.hidden, "layers": arguments.layers}
    vision = {"vision_hidden": arguments.hidden, "vision_layers": arguments.layers}
    model, tokenizer = build_tiny("qwen2_5_vl", **size, **vision, init_std=0.05)
    pixels = arguments.side**2
    judge = VideoJudge(model, tokenizer, JudgeConfig.for_model(model.config, min_pixels=pixels, max_pixels=pixels))
    frames = torch.rand(arguments.frames, 3, arguments.side, arguments.side, generator=torch.Generator().manual_seed(0))
    times = tuple(i / 8 for i in range(arguments.frames))
    plan = FramePlan(tuple(range(arguments.frames)), times, ("slow",) * arguments.frames, 8.0)
    request = prompts.score_request(Clip(frames, plan), "a red circle moving left", DIMENSIONS)
    with torch.inference_mode():
        difference = float((judge.next_token_logits([request])[0] - stock_logits(judge, request)).abs().max())
        if difference > 1e-4:
            sys.stdout.write(f"the two ways disagree by {difference}\n")
            return 1
        ours = seconds(lambda: judge.next_token_logits([request]), arguments.repeats)
        stock = seconds(lambda: stock_logits(judge, request), arguments.repeats)
    row = {
        "parameters": sum(p.numel() for p in judge.parameters()),
        "video_tokens": math.prod(merged(clip_grid(request.clips[0], judge.family), judge.family.facts)),
        "dimensions": len(DIMENSIONS),
        "max_logit_difference": difference,
        "seconds_shared": ours,
        "seconds_stock": stock,
        "ratio": stock / ours,
    }
    sys.stdout.writelines(f"{name:>22}  {value:.6g}\n" for name, value in row.items())
    sys.stdout.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
