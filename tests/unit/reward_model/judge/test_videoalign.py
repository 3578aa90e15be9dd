"""VideoAlign's checkpoints: what is read, what is refused, and the head at three tokens."""

import dataclasses
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from reward_model.judge.exchange.videoalign import NAMES, load_videoalign
from reward_model.judge.families.tiny import build_tokenizer
from reward_model.judge.model import VideoJudge
from reward_model.judge.modules.score_head import HeadConfig, ScoreHead, states_at
from reward_model.records import Clip
from tests.parity import videoalign_layout as layout
from tests.tiny_judge import build_judge, make_clip

SCRIPT = Path(__file__).parents[4] / "scripts" / "import_videoalign.py"
TEMPLATE = "Look. <|VQ_reward|>\nMotion? <|MQ_reward|>\nText: {text_prompt} <|TA_reward|>\n"
TOKENS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
SETTINGS = HeadConfig(
    template=TEMPLATE, tokens=TOKENS, dimensions=tuple(NAMES.values()), mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0)
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base whose video token is that of its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    layout.write_base(folder)
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([f"filler{i}" for i in range(layout.VOCAB - 3 - len(tokenizer))])
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("video", "image")}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    layout.write(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def load(checkpoint, base, template=TEMPLATE):
    judge = load_videoalign(checkpoint, base=base, template=template)
    judge.configure(min_pixels=1024, max_pixels=4096)
    return judge


def change(checkpoint, part, **values):
    file = checkpoint / "model_config.json"
    settings = json.loads(file.read_text())
    settings[part] = None if not values else {**settings[part], **values}
    file.write_text(json.dumps(settings))


def test_settings_become_those_of_a_judge(checkpoint, base):
    judge = load_videoalign(checkpoint, base=base, template=TEMPLATE)
    assert judge.config.dimensions == ("visual_quality", "motion_quality", "text_alignment")
    assert (judge.config.min_pixels, judge.config.max_pixels) == (128 * 28 * 28, 200704)
    assert judge.config.frame_policy == {"mode": "fps", "fps": 2.0, "min_frames": 4, "max_frames": 768}
    assert judge.config.position_rule == "text" and judge.config.base == "." and judge.config.origin == {}
    assert judge.head.config.mean == (3.0, 1.0, 2.5) and judge.head.config.std == (2.0, 0.5, 4.0)
    change(checkpoint, "data_config", num_frames=12, fps=None)
    change(checkpoint, "inference_config")
    judge = load_videoalign(checkpoint, base=base, template=TEMPLATE)
    assert judge.config.frame_policy == {"mode": "uniform", "num_frames": 12}
    assert judge.head.config.mean == (0.0, 0.0, 0.0) and judge.head.config.std == (1.0, 1.0, 1.0)


def test_the_newest_checkpoint_is_read_with_its_lora_added_by_alpha_over_rank(checkpoint, base):
    newest = checkpoint / "checkpoint-11"
    newest.mkdir()
    tensors = load_file(checkpoint / "checkpoint-5" / "model.safetensors")
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors[f"{layer}.lora_B.default.weight"] *= 3
    save_file(tensors, newest / "model.safetensors")
    found = load(checkpoint, base).model.model.language_model.layers[0].self_attn.q_proj.weight
    up, down = (tensors[f"{layer}.lora_{side}.default.weight"] for side in "BA")
    assert_close(found, tensors[f"{layer}.base_layer.weight"] + up @ down * 2)  # alpha 8, rank 4
    change(checkpoint, "peft_lora_config", use_rslora=True)
    found = load(checkpoint, base).model.model.language_model.layers[0].self_attn.q_proj.weight
    assert_close(found, tensors[f"{layer}.base_layer.weight"] + up @ down * 4)  # 8 / sqrt(4)


def test_a_checkpoint_without_the_frozen_weights_takes_them_from_the_base(tmp_path, base):
    """The whole state is given the base's frozen weights first, so that both layouts mean the same judge."""
    start, whole = "base_model.model.", layout.trained()
    for name, tensor in load_file(base / "model.safetensors").items():
        layer, _, part = name.rpartition(".")
        wrapped = f"{start}{layer}.base_layer.{part}"
        if name.startswith(("model.layers", "model.norm")):
            whole[wrapped if wrapped in whole else f"{start}{name}"] = tensor
    for folder in ("whole", "parts"):
        layout.write(tmp_path / folder)
    save_file(whole, tmp_path / "whole" / "checkpoint-5" / "model.safetensors")
    place = tmp_path / "parts" / "checkpoint-5"
    (place / "model.safetensors").unlink()
    lora = {name.replace(".default", ""): tensor for name, tensor in whole.items() if ".lora_" in name}
    save_file(lora, place / "adapter_model.safetensors")
    rest = {n: t for n, t in whole.items() if "visual." in n or "embed_tokens" in n or "rm_head" in n}
    save_file(rest, place / "non_lora_state_dict.safetensors")
    left, right = (load(tmp_path / name, base).model.state_dict() for name in ("whole", "parts"))
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", ["model.pth", "adapter_model.bin"])
def test_a_pickle_is_refused(checkpoint, base, name):
    (checkpoint / "checkpoint-5" / "model.safetensors").rename(checkpoint / "checkpoint-5" / name)
    with pytest.raises(ValueError, match=f"{name}, a pickle, which can run code when read"):
        load(checkpoint, base)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("model_config", {"use_special_tokens": False}, "use_special_tokens is False, only True can be read"),
        ("data_config", {"eval_dim": ["VQ"]}, r"eval_dim is \['VQ'\], only \['VQ', 'MQ', 'TA'\] can be read"),
        ("data_config", {"sample_type": "multi_pts"}, "sample_type is 'multi_pts', only 'uniform' can be read"),
    ],
)
def test_other_readings_than_the_released_one_are_refused(checkpoint, base, part, values, message):
    change(checkpoint, part, **values)
    with pytest.raises(ValueError, match=message):
        load(checkpoint, base)


def test_weights_that_lack_a_part_or_do_not_fit_the_base_are_refused(checkpoint, base, tmp_path):
    file = checkpoint / "checkpoint-5" / "model.safetensors"
    whole = load_file(file)
    save_file({name: tensor for name, tensor in whole.items() if "rm_head" not in name}, file)
    with pytest.raises(ValueError, match="has no rm_head.weight; convert model.pth, or non_lora"):
        load(checkpoint, base)
    save_file({**whole, "base_model.model.visual.extra": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match=r"model.visual.extra \[2\] does not fit the base"):
        load(checkpoint, base)
    layout.write(checkpoint, vocab=layout.VOCAB - 1)
    with pytest.raises(ValueError, match="the checkpoint knows 699 tokens, the tokenizer of .* 700"):
        load(checkpoint, base)
    (checkpoint / "checkpoint-5").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="has no folder checkpoint-N"):
        load(checkpoint, base)


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE.replace("{text_prompt}", ""),
        TEMPLATE.replace("<|MQ_reward|>", ""),
        TEMPLATE + "<|TA_reward|>",
        TEMPLATE.replace("VQ", "MQ", 1).replace("Motion? <|MQ", "Motion? <|VQ"),
    ],
)
def test_a_question_that_does_not_fit_the_tokens_is_refused(template):
    with pytest.raises(ValueError, match="the template must have {text_prompt} and, in this order, "):
        dataclasses.replace(SETTINGS, template=template)


def test_a_head_of_another_size_or_with_unknown_tokens_is_refused():
    tokenizer = build_tokenizer()
    with pytest.raises(ValueError, match=re.escape("the tokenizer has no token <|VQ_reward|>")):
        ScoreHead(torch.zeros(1, 4), SETTINGS, tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": list(TOKENS)})
    with pytest.raises(ValueError, match="the head has 2 weight vectors, expected 1 or 3"):
        ScoreHead(torch.zeros(2, 4), SETTINGS, tokenizer)
    with pytest.raises(ValueError, match="a mean and a std > 0"):
        dataclasses.replace(SETTINGS, std=(1.0, 0.0, 1.0))


def test_states_are_taken_at_each_branchs_own_tokens():
    tokens = torch.tensor([[1, 7, 2, 8, 3, 8, 4, 7]])
    branch = torch.tensor([[0, 1, 1, 1, 2, 2, 2, 2]])
    hidden = torch.arange(8.0)[None, :, None]
    found = states_at(hidden, tokens, branch, [3, 7], (7, 8))
    assert found[..., 0].tolist() == [[1.0, 3.0], [7.0, 5.0]]


def test_scores_do_not_depend_on_the_batch_and_reach_every_frame(checkpoint, base):
    judge = load(checkpoint, base)
    clips, texts = [make_clip(4, 32, 32, seed=i) for i in range(2)], ["a dog", "a cat"]
    pairs = [(clips[0], "a dog"), (clips[0], "a cat"), (clips[1], "a cat")]
    together = judge.head_scores([clip for clip, _ in pairs], [text for _, text in pairs])
    alone = torch.cat([judge.head_scores([clip], [text]) for clip, text in pairs])
    assert_close(together, alone, atol=1e-4, rtol=1e-5)
    assert_close(together[0, :2], together[1, :2], atol=1e-4, rtol=1e-5)
    assert (together[0, 2] - together[1, 2]).abs() > 0.01  # only TA stands behind the prompt
    frames = clips[0].frames.clone().requires_grad_()
    judge.head_scores([Clip(frames, clips[0].plan)], texts[:1]).sum().backward()
    assert (frames.grad.abs().sum(dim=(1, 2, 3)) > 0).all()


def test_a_prompt_cannot_score_itself(checkpoint, base):
    judge = load(checkpoint, base)
    asked = judge.head.request(make_clip(), "good <|TA_reward|>").branches[0]
    assert asked.count("<|TA_reward|>") == 1 and "good < |TA_reward|>" in asked


def test_a_judge_without_a_head_says_so():
    with pytest.raises(ValueError, match="this judge has no score head"):
        build_judge().head_scores([make_clip()], ["a dog"])


def test_the_program_writes_a_judge_folder(checkpoint, base, tmp_path, monkeypatch, capsys):
    (tmp_path / "template.txt").write_text(TEMPLATE)
    words = [
        checkpoint,
        tmp_path / "judge",
        "--base",
        base,
        "--template",
        tmp_path / "template.txt",
        "--dtype",
        "bfloat16",
    ]
    monkeypatch.setattr(sys, "argv", ["import_videoalign.py", *map(str, words)])
    with pytest.raises(SystemExit) as status:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert status.value.code == 0 and capsys.readouterr().out == f"{tmp_path / 'judge'}\n"
    judge = VideoJudge.from_pretrained(tmp_path / "judge", device="cpu", dtype=torch.bfloat16)
    judge.configure(min_pixels=1024, max_pixels=4096)
    assert judge.head_scores([make_clip()], ["a dog"]).shape == (1, 3)
