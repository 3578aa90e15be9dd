"""Measures judge and generator at full size on a GPU, with random weights of the real architectures.

python scripts/bench/gpu.py [--size full|tiny] [--device cuda] [--repeats N] [--out FILE.json]

Preprocessing and the embedded judge's scores are first compared with the CPU's; the level readout is compared with, and
timed against, the library's own forward once per dimension; then the gradient to the pixels, one Flow-DPO and one DRaFT
step of the generator are measured. Without a GPU the script says so and measures nothing. `--size tiny --device cpu` tries the script.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from stock import Stock
from torch import Tensor

from generator_loop.adapters.base import OLD, POLICY, REFERENCE
from generator_loop.adapters.wan import WanGenerator
from generator_loop.config import GeneratorConfig
from generator_loop.objectives.base import Objective
from generator_loop.objectives.diffusion_dpo import DiffusionDPO, DiffusionDPOConfig
from generator_loop.objectives.draft import Draft, DraftConfig
from generator_loop.optim.step import Updater, policies_of
from generator_loop.pretrain.pipeline import build_tokenizer as build_words
from generator_loop.records import Draw, Prompt
from generator_loop.rewards.advantages import group_advantages
from generator_loop.rewards.scorer import Scorer
from generator_loop.sampling.rollout import PromptEncoder, rollout
from reward_model.judge.checkpoints.format import JudgeConfig
from reward_model.judge.engine.batching import patches_of
from reward_model.judge.engine.readouts import read_levels
from reward_model.judge.families.tiny import build_tiny, build_tokenizer
from reward_model.judge.model import VideoJudge
from reward_model.language.requests import score_request
from reward_model.media.frame_sampling import FramePolicy
from reward_model.media.intake import to_clips
from reward_model.records import DIMENSIONS, Clip, FramePlan, JudgeRequest
from reward_model.video_reward import VideoJudgeReward

PROMPT = "a red circle moving left"
JUDGES: dict[str, dict[str, dict[str, Any]]] = {
    "qwen2_5_vl": {  # Qwen2.5-VL-3B-Instruct's shape
        "text": {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        "vision": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "out_hidden_size": 2048,
        },
    },
    "qwen3_vl": {  # Qwen3-VL-4B-Instruct's shape
        "text": {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        "vision": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "patch_size": 16,
            "deepstack_visual_indexes": [5, 11, 17],
            "out_hidden_size": 2560,
        },
    },
}
VOCABULARY = 151936
CLIPS = {"full": {"frames": 16, "side": 448}, "tiny": {"frames": 4, "side": 56}}
"""Clips that the judge is shown; sides suit patches of 14 and of 16."""
WAN: dict[str, dict[str, Any]] = {
    "full": {  # Wan 2.1 T2V 1.3B's shape; one layer of its text encoder's width suffices, since that only feeds embeddings in
        "transformer": {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30},
        "vae": {},
        "text_dim": 4096,
        "clip": {"num_frames": 33, "height": 480, "width": 832, "max_sequence_length": 512},
    },
    "tiny": {
        "transformer": {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 2},
        "vae": {"base_dim": 8},
        "text_dim": 16,
        "clip": {"num_frames": 5, "height": 32, "width": 32, "max_sequence_length": 8},
    },
}


def build_judge(family: str, size: str, device: torch.device) -> VideoJudge:
    """Return a random judge of the family, in bfloat16 on a GPU, that sees clips of `CLIPS[size]` as they are."""
    pixels = CLIPS[size]["side"] ** 2 * (1 if family == "qwen2_5_vl" else CLIPS[size]["frames"])
    if size == "tiny":
        model, tokenizer = build_tiny(family, patch_size=JUDGES[family]["vision"]["patch_size"])
    else:
        model, tokenizer = _full_model(family, device)
    config = JudgeConfig.for_model(model.config, min_pixels=pixels, max_pixels=pixels)
    return VideoJudge(model.eval().requires_grad_(False).to(device), tokenizer, config)


def _full_model(family: str, device: torch.device) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen3VLConfig

    tokenizer, shape = build_tokenizer(), JUDGES[family]
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    config = (Qwen2_5_VLConfig if family == "qwen2_5_vl" else Qwen3VLConfig)(
        text_config={**shape["text"], "vocab_size": VOCABULARY, "max_position_embeddings": 128000},
        vision_config=shape["vision"],
        tie_word_embeddings=True,
        **ids,
    )
    torch.manual_seed(0)
    with device:
        return AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16), tokenizer


class RandomReward:
    """Expected level of a judge with random weights; `VideoJudgeReward` refuses such levels for want of confidence."""

    def __init__(self, judge: VideoJudge) -> None:
        """Keep the judge."""
        self.judge = judge

    def __call__(
        self, videos: Tensor, texts: Sequence[str], *, fps: float, differentiable: bool = False, **_: Any
    ) -> SimpleNamespace:
        """Return `rewards` [B] of frames [B, T, 3, H, W], with gradient to them on demand, and no `scores`."""
        clips = to_clips(videos, policy=FramePolicy.from_dict(self.judge.config.frame_policy), fps=fps)
        asked = [score_request(c, t, ("overall",)) for c, t in zip(clips, texts, strict=True) if isinstance(c, Clip)]
        with torch.set_grad_enabled(differentiable):
            logits = torch.cat(self.judge.next_token_logits(asked))  # [B, V]
            return SimpleNamespace(rewards=read_levels(logits, self.judge.level_ids).quality, scores={}, reasons={})


def noise_clip(size: str, seed: int) -> Clip:
    """Return a clip of noise at 8 frames per second."""
    num, side = CLIPS[size]["frames"], CLIPS[size]["side"]
    frames = torch.rand(num, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return Clip(frames, FramePlan(tuple(range(num)), tuple(i / 8 for i in range(num)), ("slow",) * num, 8.0))


def compare_with_cpu(device: torch.device, size: str) -> dict[str, float]:
    """Return how far the device's preprocessing, and the embedded judge's scores and pixel gradient, are from the CPU's."""
    figures = {}
    for family in JUDGES:
        facts = build_judge(family, "tiny", torch.device("cpu")).family
        clip = noise_clip(size, 0)
        moved = Clip(clip.frames.to(device), clip.plan)
        for name, quantise in (("float", False), ("quantised", True)):
            cpu = patches_of([clip], facts, quantise=quantise, device=torch.device("cpu"))[0]
            gap = (patches_of([moved], facts, quantise=quantise, device=device)[0].cpu() - cpu).abs()
            figures[f"{family} {name} patches: largest difference"] = float(gap.max())
            figures[f"{family} {name} patches: share that differs by over 1e-4"] = float((gap > 1e-4).float().mean())
    videos = torch.rand(4, 9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs = []
    for place in (torch.device("cpu"), device):
        pixels = videos.to(place).requires_grad_(True)
        judge = VideoJudgeReward.from_pretrained("toy", dtype="float32", device=place)
        rewards = judge(pixels, PROMPT, fps=8.0, differentiable=True).rewards
        (gradient,) = torch.autograd.grad(rewards.sum(), pixels)
        outputs.append((rewards.detach().cpu(), gradient.cpu()))
    (cpu, cpu_gradient), (gpu, gpu_gradient) = outputs
    figures["embedded judge: largest difference of a score"] = float((gpu - cpu).abs().max())
    figures["embedded judge: relative difference of the pixel gradient"] = float(
        (gpu_gradient - cpu_gradient).norm() / cpu_gradient.norm()
    )
    return figures


def timed(action: Callable[[], object], device: torch.device, repeats: int) -> tuple[float, float]:
    """Return the shortest seconds of several runs after a first, and the peak of the device's memory in GiB."""
    action()
    times = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        action()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times), torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def against_stock(judge: VideoJudge, request: JudgeRequest, device: torch.device, repeats: int) -> tuple[float, float]:
    """Return how far the logits are from the stock way's, over their deviation, and its seconds; its model goes again."""
    way = Stock(judge, processed=False)
    ours, stock = judge.next_token_logits([request])[0].float(), way.logits(request).float()
    return float((ours - stock).abs().max() / stock.std()), timed(lambda: way.logits(request), device, repeats)[0]


def measure_judge(family: str, size: str, device: torch.device, repeats: int) -> dict[str, float]:
    """Return clips per second of the level readout, against the stock way, and the cost of the pixel gradient."""
    judge = build_judge(family, size, device)
    requests = [score_request(noise_clip(size, seed), PROMPT, DIMENSIONS) for seed in range(8)]
    figures = {"parameters": float(sum(p.numel() for p in judge.parameters()))}
    with torch.inference_mode():
        figures["logits: difference from stock over their deviation"], stock_seconds = against_stock(
            judge, requests[0], device, repeats
        )
        for num in (1, 8):
            spent, peak = timed(lambda n=num: judge.next_token_logits(requests[:n]), device, repeats)  # type: ignore[misc]
            figures[f"level readout, batch {num}: clips/s"] = num / spent
            figures[f"level readout, batch {num}: times stock"] = stock_seconds * num / spent
            figures[f"level readout, batch {num}: peak GiB"] = peak
    reward = RandomReward(judge)
    clip = noise_clip(size, 0)
    pixels = clip.frames[None].to(device).requires_grad_(True)

    def backward() -> Tensor:
        """Return the gradient of the reward to the pixels."""
        rewards = reward(pixels, [PROMPT], fps=8.0, differentiable=True).rewards
        return torch.autograd.grad(rewards.sum(), pixels)[0]

    figures["pixel gradient: share not zero"] = float((backward() != 0).float().mean())
    spent, peak = timed(backward, device, repeats)
    return figures | {"pixel gradient: clips/s": 1 / spent, "pixel gradient: peak GiB": peak}


def build_generator(size: str, device: torch.device) -> WanGenerator:
    """Return a random Wan generator of the real architecture with LoRA that is not zero."""
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    shape, words = WAN[size], build_words()
    torch.manual_seed(0)
    with device:
        vae = AutoencoderKLWan(**shape["vae"])
        text = UMT5Config(vocab_size=len(words), d_model=shape["text_dim"], d_kv=8, d_ff=64, num_layers=1, num_heads=2)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        transformer = WanTransformer3DModel(
            **shape["transformer"], text_dim=shape["text_dim"], freq_dim=256, cross_attn_norm=True
        )
        for name, parameter in transformer.named_parameters():
            if not set(name.split(".")) & set(transformer._keep_in_fp32_modules):  # as `from_pretrained` casts
                parameter.data = parameter.data.to(dtype)
        pipeline = WanPipeline(
            tokenizer=words,
            text_encoder=UMT5EncoderModel(text).to(dtype),
            transformer=transformer,
            vae=vae,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
    settings = {"lora_rank": 32, "lora_alpha": 64, "checkpoint_decode": True, "checkpoint_transformer": True}
    config = GeneratorConfig(path="", fps=16.0, **shape["clip"], **settings)
    generator = WanGenerator(pipeline.to(device), config)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in generator.trainable_parameters().values():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=noise).to(parameter.device))
    for name in (OLD, REFERENCE):
        generator.set_weights(name, {key: value.clone() for key, value in generator.weights(POLICY).items()})
    return generator


def measure_step(name: str, size: str, device: torch.device) -> dict[str, float]:
    """Return seconds, memory and metrics of one optimiser step on two samples of one prompt.

    Args:
        name: "dpo" or "draft".
        size: of the models.
        device: where they are.

    Returns:
        Figures of the step; the rollout is counted apart.
    """
    generator = build_generator(size, device)
    judge: Any = RandomReward(build_judge("qwen2_5_vl", size, device))
    draw, objective = Draw(0, 0), _OBJECTIVES[name]()
    scorer = Scorer(judge=judge, weights={"overall": 1.0}, terms={}, fps=16.0, batch_size=2)
    encoder = PromptEncoder(generator)
    _wait(device)
    start = time.perf_counter()
    drawn = rollout(
        generator,
        [Prompt(0, PROMPT)],
        encoder=encoder,
        draw=draw,
        group_size=2,
        num_steps=8,
        batch_size=1,
        tail_span=objective.tail_span,
    )
    scored = scorer.score(drawn)
    _wait(device)
    figures = {"rollout of 2 clips in 8 steps with scores: seconds": time.perf_counter() - start}
    advantages = group_advantages(scored.rewards, group_size=2)
    updater = Updater(generator.trainable_parameters(), lr=1e-5)
    before = copy.deepcopy(generator.weights(POLICY))
    policies = policies_of(generator, scorer.differentiable)
    (batches,) = objective.plan(drawn, scored, advantages, draw=draw, micro_batch_size=1)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    metrics = updater.step(objective, batches, policies)
    _wait(device)
    figures["step: seconds"] = time.perf_counter() - start
    if device.type == "cuda":
        figures["step: peak GiB"] = torch.cuda.max_memory_allocated(device) / 2**30
    moved = [float((value - before[key]).abs().max()) for key, value in generator.weights(POLICY).items()]
    figures["step: largest change of a weight"] = max(moved)
    return figures | {f"step: {key}": value for key, value in metrics.items()}


_OBJECTIVES: dict[str, Callable[[], Objective[Any]]] = {
    "dpo": lambda: DiffusionDPO(DiffusionDPOConfig(num_updates=1, min_gap=0.0)),
    "draft": lambda: Draft(DraftConfig()),
}


def main(argv: Sequence[str]) -> int:
    """Measure everything that is asked for and print it; 0 too where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="of the models and clips")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try the script")
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the shortest counts")
    parser.add_argument("--out", type=Path, help="JSON file that receives the figures")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.stdout.write("no GPU is at hand, so nothing was measured\n")
        return 0
    parts: dict[str, Callable[[], dict[str, float]]] = {
        "difference from the CPU": lambda: compare_with_cpu(device, arguments.size),
        "judge qwen2_5_vl": lambda: measure_judge("qwen2_5_vl", arguments.size, device, arguments.repeats),
        "judge qwen3_vl": lambda: measure_judge("qwen3_vl", arguments.size, device, arguments.repeats),
        "Flow-DPO": lambda: measure_step("dpo", arguments.size, device),
        "DRaFT": lambda: measure_step("draft", arguments.size, device),
    }
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    figures: dict[str, Any] = {"hardware": hardware, "torch": torch.__version__, "size": arguments.size}
    sys.stdout.write(f"{hardware}, torch {torch.__version__}, {arguments.size} size\n")
    for name, measure in parts.items():
        figures[name] = measure()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        sys.stdout.write(f"\n{name}\n")
        sys.stdout.writelines(f"{value:>14.6g}  {key}\n" for key, value in figures[name].items())
        sys.stdout.flush()
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
