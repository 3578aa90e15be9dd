"""A GPU gives what the CPU gives; run with `make test ARGS="-m gpu tests/gpu"`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reward_model.judge.engine.batching import patches_of
from reward_model.records import Clip, FramePlan
from reward_model.video_reward import VideoJudgeReward
from tests.tiny_judge import FAMILIES, build_judge
from tests.tiny_wan import build_generator, build_wan, randomise_lora

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def full_precision():
    """Keep fp32 products exact, as on the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def noise(*shape, seed=0):
    """Return uniform noise of the shape."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantise", [False, True])
def test_preprocessing_equals_the_cpus(family, quantise):
    judge = build_judge(family)
    clip = Clip(noise(4, 3, 70, 90), FramePlan((0, 1, 2, 3), (0.0, 0.1, 0.2, 0.3), ("slow",) * 4, 10.0))
    cpu = patches_of([clip], judge.family, quantise=quantise, device=CPU)[0]
    gpu = patches_of([Clip(clip.frames.to(GPU), clip.plan)], judge.family, quantise=quantise, device=GPU)[0].cpu()
    gap = (gpu - cpu).abs()
    # a value on the edge between two of 256 steps may round either way
    assert float((gap > 1e-5).float().mean()) < (1e-3 if quantise else 1e-9)
    assert float(gap.max()) < (0.02 if quantise else 1e-5)


def test_scores_and_pixel_gradient_equal_the_cpus():
    videos, found = noise(3, 9, 3, 32, 32), []
    for device in (CPU, GPU):
        pixels = videos.to(device).requires_grad_(True)
        judge = VideoJudgeReward.from_pretrained("toy", dtype="float32", device=device)
        rewards = judge(pixels, "a red circle moving left", fps=8.0, differentiable=True).rewards
        (gradient,) = torch.autograd.grad(rewards.sum(), pixels)
        found.append((rewards.detach().cpu(), gradient.cpu()))
    (cpu, cpu_gradient), (gpu, gpu_gradient) = found
    torch.testing.assert_close(gpu, cpu, atol=1e-4, rtol=0)
    assert float((gpu_gradient - cpu_gradient).norm() / cpu_gradient.norm()) < 1e-2


def test_the_generator_predicts_and_decodes_as_on_the_cpu():
    found = []
    for device in (CPU, GPU):
        generator = build_generator(pipeline=build_wan().to(device))
        randomise_lora(generator)
        latents = generator.init_latents([torch.Generator().manual_seed(0)])
        velocity = generator.predict(
            latents, torch.tensor([0.5], device=device), generator.encode_prompts(["a red ball"])
        )
        found.append((velocity.cpu(), generator.decode(latents).detach().cpu()))
    for gpu, cpu in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(gpu, cpu, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("copies", ["device", "cpu"])
def test_all_weights_learn_beside_copies_that_wait_anywhere(copies):
    from generator_loop.adapters.base import OLD, POLICY, predict_with
    from generator_loop.optim.ema import follow

    generator = build_generator(pipeline=build_wan().to(GPU), train="full", copies=copies, dtype="float32")
    given = (
        generator.init_latents([torch.Generator().manual_seed(0)]),
        torch.tensor([0.5], device=GPU),
        generator.encode_prompts(["a red ball"]),
    )
    before = predict_with(generator, POLICY)(*given).detach()
    randomise_lora(generator, std=0.05)
    assert {tensor.device.type for tensor in generator.weights(OLD).values()} == {
        "cuda" if copies == "device" else "cpu"
    }
    assert torch.equal(predict_with(generator, OLD)(*given), before)
    moved = generator.predict(*given)
    assert not torch.allclose(moved, before)
    moved.square().mean().backward()
    assert {parameter.device.type for parameter in generator.trainable_parameters().values()} == {"cuda"}
    follow(generator.weights(OLD), generator.weights(POLICY), decay=0.0)
    assert torch.equal(predict_with(generator, OLD)(*given), moved)


def test_the_benchmark_runs(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "scripts/bench/gpu.py", "--size", "tiny", "--repeats", "1", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)
    found = json.loads(out.read_text())
    assert found["judge qwen3_vl"]["pixel gradient: share not zero"] > 0.9
    assert found["DRaFT"]["step: largest change of a weight"] > 0
