"""The saved LoRA, alpha unlike rank, in a stock `diffusers.WanPipeline`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close

from generator_loop.adapters.lora import LORA_FILE
from generator_loop.records import Draw, Prompt
from generator_loop.sampling.rollout import PromptEncoder, rollout
from tests.tiny_wan import build_generator, build_wan, randomise_lora

ROOT = Path(__file__).parents[2]
PROMPT = Prompt(7, "a red ball moves left")


@pytest.fixture
def trained(tmp_path):
    generator = build_generator(lora_rank=4, lora_alpha=12)
    randomise_lora(generator)
    generator.save(tmp_path)
    return generator, tmp_path


def sample(generator):
    settings = dict(draw=Draw(seed=0, step=0), group_size=2, num_steps=3, batch_size=2)
    return rollout(generator, [PROMPT], encoder=PromptEncoder(generator), **settings).frames


def stock_sample(pipeline):
    generators = [Draw(seed=0, step=0).generator(PROMPT.prompt_id, sample) for sample in range(2)]
    call = dict(height=16, width=16, num_frames=5, num_inference_steps=3, guidance_scale=1.0, max_sequence_length=8)
    return pipeline([PROMPT.text] * 2, generator=generators, output_type="pt", **call).frames


@pytest.mark.parity
def test_stock_pipeline_with_the_saved_lora_reproduces_our_samples(trained):
    generator, folder = trained
    pipeline = build_wan()
    base = stock_sample(pipeline)
    pipeline.load_lora_weights(folder)
    frames = stock_sample(pipeline)
    assert_close(frames, sample(generator), atol=1e-5, rtol=0)
    assert (frames - base).abs().max() > 0.01  # or the LoRA did nothing and the line above proves nothing


@pytest.mark.parity
def test_the_original_key_layout_reproduces_our_samples(trained, tmp_path):
    generator, folder = trained
    file = tmp_path / "original.safetensors"
    command = [sys.executable, "scripts/export_lora.py", str(folder), str(file)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    with safe_open(file, framework="pt") as opened:
        names = set(opened.keys())
    for name in ("self_attn.q.lora_down.weight", "cross_attn.o.lora_up.weight", "ffn.2.alpha"):
        assert f"diffusion_model.blocks.1.{name}" in names
    pipeline = build_wan()
    pipeline.load_lora_weights(file)
    assert_close(stock_sample(pipeline), sample(generator), atol=1e-5, rtol=0)


def test_a_folder_without_a_lora_is_refused_in_one_sentence(tmp_path):
    build_generator(train="full").save(tmp_path)
    command = [sys.executable, "scripts/export_lora.py", str(tmp_path), str(tmp_path / "out.safetensors")]
    ended = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ended.returncode == 2 and "Traceback" not in ended.stderr and "generator.train=full" in ended.stderr


@pytest.mark.parity
def test_two_transformers_are_saved_as_two_loras_that_the_stock_pipeline_loads(tmp_path):
    generator = build_generator(pipeline=build_wan(kind="2.2 A14B"), lora_rank=4, lora_alpha=12)
    randomise_lora(generator)
    generator.save(tmp_path)
    ours, pipeline = sample(generator), build_wan(kind="2.2 A14B")
    pipeline.load_lora_weights(tmp_path)
    half = stock_sample(pipeline)
    pipeline.load_lora_weights(tmp_path / "transformer_2", load_into_transformer_2=True)
    assert_close(stock_sample(pipeline), ours, atol=1e-5, rtol=0)
    assert (half - ours).abs().max() > 1e-3  # the second one matters
    other = build_generator(pipeline=build_wan(kind="2.2 A14B"), lora_rank=4, lora_alpha=12, lora_seed=5)
    other.load(tmp_path)
    assert torch.equal(sample(other), ours)


@pytest.mark.parity
def test_fresh_lora_samples_like_the_stock_base():
    assert_close(sample(build_generator()), stock_sample(build_wan()), atol=1e-5, rtol=0)


def test_alpha_stands_in_the_saved_file(trained):
    with safe_open(trained[1] / LORA_FILE, framework="pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (metadata["transformer.r"], metadata["transformer.lora_alpha"]) == (4, 12)


def test_load_restores_the_policy_exactly(trained):
    generator, folder = trained
    other = build_generator(lora_rank=4, lora_alpha=12, lora_seed=5)
    other.load(folder)
    saved, loaded = generator.weights("policy"), other.weights("policy")
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    assert torch.equal(sample(generator), sample(other))


@pytest.mark.parametrize(("rank", "alpha"), [(2, 12), (4, 8)])
def test_load_refuses_a_lora_of_another_rank_or_alpha(trained, rank, alpha):
    with pytest.raises(ValueError, match="lora"):
        build_generator(lora_rank=rank, lora_alpha=alpha).load(trained[1])
