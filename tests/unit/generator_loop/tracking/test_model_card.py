"""The model card beside a trained LoRA."""

import json

import pytest

from generator_loop.adapters import GENERATORS
from generator_loop.tracking.model_card import model_card, write_model_card

WAN = "WanPipeline"


def summary(**generator):
    settings = dict(path="org/wan", family="wan", revision=None, train="lora", lora_rank=32, lora_alpha=64)
    settings |= dict(num_frames=33, height=240, width=416, fps=16.0)
    rewards = {"initial": {"overall": 0.4, "reward": 0.41}, "audit": {"reward": 0.3}}
    after = {"initial": {"overall": 0.6, "reward": 0.61}, "audit": {"reward": 0.35}}
    change = {"mean": 0.2, "low": 0.1, "high": 0.3}
    return {
        "config": {
            "generator": {**settings, **generator},
            "objective": {"name": "nft"},
            "loop": {"num_rounds": 2, "num_iterations": 8},
            "judge": {"path": "org/judge"},
            "refresh": {"every": 1},
            "run": {"seed": 3},
        },
        "before": {"oracle": None, "rewards": rewards},
        "after": {"oracle": None, "rewards": after},
        "difference": {
            "overall": change,
            "reward_initial_judge": change,
            "reward_audit": change,
            "motion_quality": {"mean": None},
        },
        "num_prompts": 32,
        "seeds": [0, 1],
        "alarms": [],
        "commit": "abc",
        "generator_checkpoint": "checkpoints/round-002/generator",
    }


def test_it_names_base_and_scale_and_the_lines_that_load_it():
    card = model_card(summary(revision="v1"), pipeline="LTXPipeline")
    assert 'base_model: "org/wan"' in card and "rank 32, alpha 64" in card and "Suggested scale: 1.0" in card
    assert 'pipe = LTXPipeline.from_pretrained("org/wan", revision="v1")' in card


def test_a_whole_transformer_is_loaded_in_place_of_the_bases():
    card = model_card(
        summary(train="full", revision="v1"), pipeline=WAN, further=["transformer_2"], whole="WanTransformer3DModel"
    )
    lines = [
        "from diffusers import WanPipeline, WanTransformer3DModel",
        "",
        'transformer = WanTransformer3DModel.from_pretrained("path/to/this/folder")',
        'transformer_2 = WanTransformer3DModel.from_pretrained("path/to/this/folder/transformer_2")',
        'pipe = WanPipeline.from_pretrained("org/wan", revision="v1", transformer=transformer, transformer_2=transformer_2)',
    ]
    assert "```python\n" + "\n".join(lines) + "\n```" in card
    assert "tags: [full-fine-tuning, text-to-video, rlhf]" in card and "lora" not in card.lower()


@pytest.mark.parametrize("files", [1, 3])
def test_the_class_of_a_whole_transformer_is_read_beside_it(tmp_path, files):
    (tmp_path / "summary.json").write_text(json.dumps(summary(train="full")))
    folder = tmp_path / "checkpoints/round-002/generator"
    (folder / "transformer_2").mkdir(parents=True)
    (folder / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    for number in range(files):
        (folder / "transformer_2" / f"part-{number}.safetensors").write_bytes(b"")
    card = write_model_card(tmp_path, pipeline=WAN).read_text()
    expected = dict(pipeline=WAN, further=["transformer_2"], whole="WanTransformer3DModel")
    assert card == model_card(summary(train="full"), **expected)


def test_the_change_stands_with_its_ends_and_interval():
    card = model_card(summary(), pipeline=WAN)
    assert "| overall | 0.400 | 0.600 | +0.200 [+0.100, +0.300] |" in card
    assert "| reward initial judge | 0.410 | 0.610 |" in card and "| reward audit | 0.300 | 0.350 |" in card
    assert "motion quality" not in card and "32 held-out prompts x 2 seeds" in card


def test_a_folder_of_this_machine_is_named_without_its_place():
    card = model_card(summary(path="/home/someone/models/wan"), pipeline=WAN)
    assert "/home" not in card and 'base_model: "wan"' in card


def test_alarms_are_told():
    assert "- brightness rose" in model_card({**summary(), "alarms": ["brightness rose"]}, pipeline=WAN)
    assert "warned" not in model_card(summary(), pipeline=WAN)


def test_it_is_written_beside_the_lora(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    (tmp_path / "checkpoints/round-002/generator").mkdir(parents=True)
    path = write_model_card(tmp_path, pipeline=WAN)
    assert path == tmp_path / "checkpoints/round-002/generator/README.md"
    assert path.read_text() == model_card(summary(), pipeline=WAN)


@pytest.mark.parametrize("family", GENERATORS)
def test_every_family_has_its_pipeline_in_diffusers(family):
    import diffusers

    assert hasattr(diffusers, GENERATORS[family].pipeline_name)


def test_every_further_transformer_has_a_line_that_loads_it(tmp_path):
    content = summary()
    folder = tmp_path / content["generator_checkpoint"]
    (folder / "transformer_2").mkdir(parents=True)
    (folder / "transformer_2" / "pytorch_lora_weights.safetensors").touch()
    (tmp_path / "summary.json").write_text(json.dumps(content))
    card = write_model_card(tmp_path, pipeline=WAN).read_text()
    assert 'pipe.load_lora_weights("path/to/this/folder/transformer_2", load_into_transformer_2=True)' in card
    assert "transformer_2" not in model_card(content, pipeline=WAN)
