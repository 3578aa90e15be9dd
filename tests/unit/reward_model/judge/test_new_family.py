"""A further family: one class and one entry, and it is built, scored with, trained from nothing, exported and described."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from reward_model.config import load_config
from reward_model.evaluation.card import CardFacts, write_card
from reward_model.judge.exchange.merge import merge_role
from reward_model.judge.families import FAMILIES
from reward_model.judge.families.base import ProcessorNames
from reward_model.judge.families.qwen2_5_vl import Qwen25VL
from reward_model.language.requests import score_request
from reward_model.training.recipe import RecipeConfig, ScratchConfig
from reward_model.training.start import start_judge
from reward_model.video_reward import VideoJudgeReward
from tests.tiny_judge import build_judge, forced_log_probs, make_clip

TOY = Path(__file__).resolve().parents[4] / "configs/judge/toy.yaml"


class HouseVLConfig(Qwen2_5_VLConfig):
    model_type = "house_vl"


class HouseVLForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    config_class = HouseVLConfig


@dataclasses.dataclass(frozen=True)
class HouseVL(Qwen25VL):
    display_name: ClassVar[str] = "House-VL"
    default_pixels: ClassVar[tuple[int, int]] = (1024, 4096)
    position_rules: ClassVar[tuple[str, ...]] = ("house_rule",)
    processors: ClassVar[ProcessorNames] = ProcessorNames("HouseProcessor", "HouseImages", "HouseVideos")

    @staticmethod
    def scratch_config(text, vision, rope, ids):
        fields = Qwen25VL.scratch_config(text, vision, rope, ids).to_dict()
        return HouseVLConfig(**{**fields, "model_type": "house_vl"})


@pytest.fixture
def house(monkeypatch):
    monkeypatch.setitem(FAMILIES, "house_vl", HouseVL)
    AutoConfig.register("house_vl", HouseVLConfig, exist_ok=True)
    AutoModelForImageTextToText.register(HouseVLConfig, HouseVLForConditionalGeneration, exist_ok=True)


def test_one_class_and_one_entry_make_a_family_from_recipe_to_card(house, tmp_path):
    scratch = ScratchConfig(family="house_vl", hidden=32, layers=1)
    config = dataclasses.replace(load_config(RecipeConfig, TOY), base=None, scratch=scratch)
    judge = start_judge(config)
    assert isinstance(judge.family, HouseVL) and judge.config.position_rule == "house_rule"
    judge.add_role("generated", rank=2)
    frames = torch.rand(1, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    scored = VideoJudgeReward(judge, role="generated").eval()(frames, "a red circle", fps=8.0)
    assert 0 < float(scored.level_mass["overall"][0]) < 0.1  # untrained, so its reward is NaN

    folder = merge_role(judge, "generated", tmp_path / "merged")
    assert json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"] == "HouseImages"
    again = VideoJudgeReward.from_pretrained(folder, device="cpu")
    rescored = again(frames, "a red circle", fps=8.0)
    torch.testing.assert_close(rescored.level_mass["overall"], scored.level_mass["overall"])
    write_card(folder, CardFacts(name="house"))
    assert "A video judge of the House-VL family" in (folder / "README.md").read_text()


def test_a_family_that_nobody_entered_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"scratch.family: Invalid value 'qwen2_5vl'; did you mean 'qwen2_5_vl'\?"):
        load_config(RecipeConfig, TOY, ["scratch.family=qwen2_5vl"])
    with pytest.raises(ValueError, match="Invalid value 'llava'; expected one of qwen2_5_vl, qwen2_vl, qwen3_vl"):
        ScratchConfig(family="llava")


def test_every_family_counts_the_frames_that_share_its_pixel_bounds():
    assert [FAMILIES[name].counted_frames(9) for name in ("qwen2_5_vl", "qwen2_vl", "qwen3_vl")] == [1, 1, 10]
    assert FAMILIES["qwen3_vl"].counted_frames(8) == 8


def test_a_small_qwen2_vl_equals_teacher_forcing_with_the_librarys_positions():
    judge = build_judge("qwen2_vl")
    assert judge.model.config.model_type == "qwen2_vl" and judge.model.model.visual.config.mlp_ratio == 3
    clips = [make_clip(8, 32, 32, 8.0, 0), make_clip(5, 48, 40, 3.0, 1)]
    requests = [score_request(clip, "a dog", ("visual_quality", "overall")) for clip in clips]
    values = judge.log_probs(requests, [[[" bad", " excellent"], [" good"]]] * 2).by_answer()
    asked = [(branch, text) for branch, texts in ((0, (" bad", " excellent")), (1, (" good",))) for text in texts]
    forced = [forced_log_probs(judge, r, r.branches[branch], text) for r in requests for branch, text in asked]
    for value, expected in zip(values, forced, strict=True):
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=0)
