"""The plan of a recipe before a model is loaded: files, steps, memory and hours, against values by hand and a real judge."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from reward_model import load_config
from reward_model.datasets.readers import DataConfig
from reward_model.judge.checkpoints.format import JudgeConfig
from reward_model.judge.families.tiny import build_tiny
from reward_model.judge.model import VideoJudge
from reward_model.language.requests import reason_request
from reward_model.media.frame_sampling import FramePolicy
from reward_model.rewards import RewardConfig
from reward_model.training.dry_run import (
    TEXT_TOKENS,
    activation_bytes,
    lora_parameters,
    memory_parts,
    model_shape,
    plan_recipe,
    tokens_per_step,
)
from reward_model.training.fit import FitConfig
from reward_model.training.methods.grpo import AnswerGRPOConfig
from reward_model.training.recipe import LoraConfig, ModelShape, RecipeConfig, StageConfig
from scripts.train_judge import main
from tests.tiny_judge import make_clip

ROOT = Path(__file__).resolve().parents[4]
SHAPE = ModelShape(
    parameters=1000.0,
    hidden=8,
    intermediate=24,
    layers=2,
    key_value=4,
    vocabulary=100,
    vision_hidden=16,
    vision_intermediate=48,
    vision_layers=3,
    patch_size=8,
)


def stage_of(**changes):
    settings = {
        "method": "grpo",
        "data": [DataConfig(kind="moving_shapes", num_clips=4)],
        "tasks": {"reason": 1.0},
        "rewards": [RewardConfig(kind="reason", name="format")],
        "grpo": AnswerGRPOConfig(group_size=4, max_answer_tokens=64),
        "fit": FitConfig(num_steps=3, learning_rate=1e-3, batch_size=2),
    }
    return StageConfig(**settings | changes)


def recipe_of(stage, **changes):
    settings = {"base": "toy", "trained_on": "x", "frame_policy": FramePolicy(num_frames=8), "max_pixels": 4096}
    return RecipeConfig(name="judge", output="nowhere", stages={"one": stage}, **settings | changes)


def saved_bytes(judge, run):
    """Return the bytes of all distinct tensors that a call keeps for its backward pass, weights left out."""
    storages, kept = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    weights = {parameter.untyped_storage().data_ptr() for parameter in judge.parameters()}
    return sum(size for place, size in storages.items() if place not in weights)


@pytest.mark.parametrize(("role", "group"), [("natural", 4), ("natural", 8), (None, 4)])
def test_estimated_activations_are_near_those_of_a_real_judge(tmp_path, role, group):
    model, tokenizer = build_tiny("qwen2_5_vl", hidden=256, layers=6, vision_hidden=64, vision_layers=4, patch_size=8)
    judge = VideoJudge(model, tokenizer, JudgeConfig.for_model(model.config, min_pixels=4096, max_pixels=4096))
    judge.save_pretrained(tmp_path)
    if role:
        judge.add_role(role)
    judge.train_only(role)
    request = reason_request(make_clip(num_frames=8, height=64, width=64), "a dog", ("overall",))
    answers = [[[tuple(range(20, 84))] * group]]
    with judge.use_role(role):
        real = saved_bytes(judge, lambda: judge.log_probs([request], answers).values.sum())
    stage = stage_of(role=role, grpo=AnswerGRPOConfig(group_size=group, max_answer_tokens=64))
    model.save_pretrained(tmp_path)
    recipe = recipe_of(stage, base=str(tmp_path))
    shape = model_shape(recipe, tmp_path)
    # a prompt of this vocabulary is shorter than the assumed one
    assert 0.6 < real / activation_bytes(recipe, stage, shape, prompts=1) < 1.2
    distinct = {
        parameter.data_ptr(): parameter.numel() for name, parameter in model.named_parameters() if "lora" not in name
    }
    assert shape.parameters == pytest.approx(sum(distinct.values()))


@pytest.mark.parametrize("targets", [["text"], ["text", "vision"]])
def test_the_size_of_an_adapter_is_that_of_a_real_one(tmp_path, targets):
    model, tokenizer = build_tiny("qwen2_5_vl", hidden=64, layers=2, vision_hidden=32, vision_layers=2)
    model.save_pretrained(tmp_path)
    judge = VideoJudge(model, tokenizer, JudgeConfig.for_model(model.config))
    judge.add_role("natural", rank=4, targets=targets)
    stage = stage_of(role="natural", lora=LoraConfig(rank=4, alpha=8, targets=targets))
    shape = model_shape(recipe_of(stage, base=str(tmp_path)), tmp_path)
    assert lora_parameters(stage, shape) == sum(one.numel() for one in judge.role_parameters("natural"))


def test_all_weights_cost_twenty_bytes_each_beside_the_activations():
    stage = stage_of(num_held_out=8, measure_every=1)
    parts = memory_parts(recipe_of(stage), stage, SHAPE, prompts=1)
    # float32 weights, gradients, two moments, a frozen copy, the best weights
    expected = {"weights": 4e3, "gradients": 4e3, "AdamW": 8e3, "reference": 4e3, "best weights": 4e3}
    assert {name: value for name, value in parts.items() if name != "activations"} == expected
    free = stage_of(grpo=AnswerGRPOConfig(kl_coef=0.0))
    assert "reference" not in memory_parts(recipe_of(free), free, SHAPE, prompts=1)


def test_an_adapter_costs_its_own_weights_and_a_frozen_base():
    stage = stage_of(role="natural", lora=LoraConfig(rank=2, alpha=2))
    parts = memory_parts(recipe_of(stage, dtype="bfloat16"), stage, SHAPE, prompts=1)
    # q and o: 16 each, k and v: 12 each, three of 32: 152 a layer, rank 2, 2 layers
    trained = 2 * 2 * (16 + 16 + 12 + 12 + 3 * 32)
    assert parts["weights"] == 2 * 1000 + 4 * trained and parts["gradients"] == 4 * trained
    assert parts["AdamW"] == 8 * trained and parts["reference"] == 4 * trained


def test_activations_are_counted_by_hand():
    stage = stage_of(role="natural", grpo=AnswerGRPOConfig(group_size=4, max_answer_tokens=64))
    # 8 frames are 4 groups of 4096 / 256 = 16 tokens
    tokens = 3 * (4 * 16 + TEXT_TOKENS + 4 * 64)
    layer = 4 * (5 * 8 + 2 * 4 + 4 * 24) + 8 * 8
    assert activation_bytes(recipe_of(stage), stage, SHAPE, prompts=3) == tokens * 2 * layer + 12 * 512 * 100


@pytest.mark.parametrize(
    ("changes", "answers", "forms"),
    [
        ({}, 2 * 4 * 50, 1),
        ({"perturbation": "shuffle", "num_perturbed": 3}, 2 * 7 * 50, 2),
        ({"perturbation": "any", "num_perturbed": 3, "perturb_each": "rollout"}, 2 * 7 * 50, 4),
        ({"max_answer_tokens": 20}, 2 * 4 * 20, 1),
    ],
)
def test_tokens_of_a_step_are_counted_by_hand(changes, answers, forms):
    stage = stage_of(grpo=AnswerGRPOConfig(**{"group_size": 4, "max_answer_tokens": 64} | changes))
    recipe = recipe_of(stage, estimate=type(recipe_of(stage).estimate)(answer_tokens=50))
    assert tokens_per_step(recipe, stage, None, SHAPE) == (answers, 2 * (64 + TEXT_TOKENS) * forms)


def test_a_comparison_by_the_next_token_has_one():
    stage = stage_of(tasks={"compare": 0.5}, rewards=[RewardConfig(kind="compare", name="choice")])
    assert tokens_per_step(recipe_of(stage), stage, None, SHAPE) == (1 * 4 * 1, 1 * (2 * 64 + TEXT_TOKENS))
    adapter = dataclasses.replace(stage, role="comparator")
    layer = 4 * (5 * 8 + 2 * 4 + 4 * 24) + 8 * 8
    expected = (2 * 64 + TEXT_TOKENS + 4) * 2 * layer + 12 * 512 * 100
    assert activation_bytes(recipe_of(adapter), adapter, SHAPE, prompts=1) == expected


@pytest.fixture
def no_model(monkeypatch):
    """Let nothing load a model."""

    def refuse(*_, **__):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(VideoJudge, "from_pretrained", refuse)
    monkeypatch.setattr("transformers.modeling_utils.PreTrainedModel.from_pretrained", refuse)


def test_a_dry_run_of_a_paper_names_files_steps_memory_and_hours(tmp_path, monkeypatch, capsys, no_model):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "lsvq" / "videos").mkdir(parents=True)
    recipe = str(ROOT / "configs" / "judge" / "vq_insight.yaml")
    assert main([recipe, "--dry-run"]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and "data/lgvq/train.csv: no such file" in told.err
    assert "data/lsvq/videos:" not in told.err and "data/lsvq/videos (MISSING)" not in told.out
    assert told.out.count("(MISSING)") == 8
    # 3 x 7058 / 8 and 3 x 28056 / 8, rounded up
    assert "00-warm_up: grpo, base, 2647 steps of 8 clips, which are 3 epochs of 7058 clips, assumed" in told.out
    assert "01-natural: grpo, base, 10521 steps of 8 clips" in told.out
    memory = re.findall(
        r"memory: about ([\d.]+) GiB a process \(weights 30.9, gradients 30.9, AdamW 61.8, reference 30.9", told.out
    )
    assert len(memory) == 4 and all(float(one) > 154 for one in memory)
    assert told.out.count("MORE than the 80 GiB of a process") == 4 and told.out.count("name a role") == 4
    hours = [float(one) for one in re.findall(r"time: about ([\d.]+) hours", told.out)]
    # natural: 8 prompts of (8 + 4) answers of 400 tokens; true and shuffled clips of 8 x 128 tokens
    expected = 10521 * (8 * 12 * 400 / 250 + 8 * 2 * (1024 + TEXT_TOKENS) / 3000) / 8 / 3600
    assert hours[1] == pytest.approx(expected, rel=1e-2)
    assert main([recipe, "--dry-run", "estimate.tokens_per_second=1e9", "estimate.prompt_tokens_per_second=1500"]) == 2
    again = [float(one) for one in re.findall(r"time: about ([\d.]+) hours", capsys.readouterr().out)]
    assert again[1] == pytest.approx(10521 * 8 * 2 * (1024 + TEXT_TOKENS) / 1500 / 8 / 3600, rel=1e-2)
    assert not (tmp_path / "runs").exists()


def test_our_forms_fit_the_device_that_they_assume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("vq_insight_ours", "vqathinker_ours"):
        text, _ = plan_recipe(load_config(RecipeConfig, ROOT / "configs" / "judge" / f"{name}.yaml"))
        assert "memory: about" in text and "MORE than" not in text


def test_files_that_are_there_are_counted_and_missing_media_named(tmp_path, capsys, no_model):
    lines = ["video,overall", *(f"{n}.mp4,0.{n}" for n in range(9)), "9.mp4,seven"]
    (tmp_path / "rated.csv").write_text("\n".join(lines))
    for n in range(7):
        (tmp_path / f"{n}.mp4").write_bytes(b"")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"""
name: judge
output: {tmp_path / "out"}
base: toy
trained_on: nothing
stages:
  first:
    method: grpo
    role: natural
    data: [{{kind: manifest, path: {tmp_path / "rated.csv"}, hold_out: false}}]
    tasks: {{reason: 1.0}}
    rewards: [{{kind: reason, name: format}}]
    fit: {{num_epochs: 2, learning_rate: 1.0e-3, batch_size: 4}}
    num_held_out: 0
""")
    assert main([str(recipe), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "5 steps of 4 clips, which are 2 epochs of 9 clips" in told
    assert "9 examples, 1 lines that cannot be read, 2 media missing" in told and "7.mp4, " in told
    assert "weights 0.0" in told and "MORE" not in told
