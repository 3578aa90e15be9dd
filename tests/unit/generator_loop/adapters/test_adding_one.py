"""A new generator family needs its own file and one line in `GENERATORS`: here the line is patched in, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from generator_loop.adapters import GENERATORS
from generator_loop.adapters.base import REFERENCE, predict_with
from generator_loop.adapters.wan import WanGenerator
from generator_loop.config import JointConfig
from generator_loop.run.build import open_generator, read_config
from generator_loop.tracking.model_card import write_model_card
from tests.tiny_models import RECIPE, save_tiny_wan
from tests.unit.generator_loop.tracking.test_model_card import summary

CPU = torch.device("cpu")


class SlowWan(WanGenerator):
    """A family whose velocity is half that of Wan."""

    name = "slow_wan"

    def _velocity(self, latents, sigma, cond):
        return super()._velocity(latents, sigma, cond) / 2


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GENERATORS, "slow_wan", SlowWan)


def read(family: str, path: Path) -> JointConfig:
    named = {"generator.family": family, "generator.path": path, "judge.path": "toy", "run.output": "out"}
    return read_config(None, [f"{key}={value}" for key, value in {**RECIPE, **named}.items()])


def test_it_opens_by_its_name_predicts_and_gets_a_model_card(tmp_path: Path) -> None:
    folder = save_tiny_wan(tmp_path / "weights")
    slow, wan = (open_generator(read(family, folder), CPU) for family in ("slow_wan", "wan"))
    assert isinstance(slow, SlowWan)
    inputs = wan.init_latents([torch.Generator().manual_seed(0)]), torch.tensor([0.5]), wan.encode_prompts(["a ball"])
    assert torch.equal(predict_with(slow, REFERENCE)(*inputs), predict_with(wan, REFERENCE)(*inputs) / 2)
    (tmp_path / "summary.json").write_text(json.dumps(summary(family="slow_wan")))
    slow.save(tmp_path / "checkpoints/round-002/generator")
    card = write_model_card(tmp_path, pipeline=slow.pipeline_name)
    assert 'base = "org/wan"\npipe = WanPipeline.from_pretrained(base)' in card.read_text()


def test_a_misspelt_family_is_refused_with_the_nearest_name_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="generator.family is 'slow_wn'; did you mean 'slow_wan'?"):
        read("slow_wn", tmp_path / "missing")


def test_the_names_of_all_families_stand_in_the_error_where_none_is_near(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one of cogvideox, hunyuan_video, ltx, mochi, slow_wan, wan"):
        read("nothing_like_it", tmp_path / "missing")
