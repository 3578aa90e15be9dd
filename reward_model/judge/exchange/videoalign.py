"""VideoAlign's VideoReward as a judge: Qwen2-VL with LoRA, fully trained vision tower and a head at three tokens.

Its weights are released as a pickle, which is never read here, and its question stands in its code; both are brought over
once, in a clone of it (docs in scripts/import_videoalign.py).

Source: github.com/KwaiVGI/VideoAlign, commit 219ab9d: layout of checkpoints (utils.py, train_reward.py), where the head is
read (trainer.py), frames and sizes (vision_process.py, inference.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reward_model.dimensions import video_align_names
from reward_model.judge.checkpoints.format import SAME_FOLDER, JudgeConfig, load_stock_model, load_tokenizer
from reward_model.judge.checkpoints.location import locate
from reward_model.judge.families.qwen2_vl import TEXT_RULE
from reward_model.judge.model import VideoJudge
from reward_model.judge.modules.score_head import HeadConfig, ScoreHead
from reward_model.weights import read_json, read_tensors, refuse_pickles

NAMES = video_align_names()
"""VideoAlign's name -> dimension."""

_LEAST_PIXELS = 128 * 28 * 28
_HEAD = "rm_head.weight"
_EMBEDDING = "model.language_model.embed_tokens.weight"


def load_videoalign(
    folder: str | Path,
    *,
    base: str | Path,
    template: str,
    base_revision: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> VideoJudge:
    """Read a checkpoint of VideoAlign with its LoRA merged.

    Args:
        folder: with model_config.json and checkpoint-N/*.safetensors; the newest checkpoint is taken.
        base: folder or hub id of Qwen2-VL-2B-Instruct, for configuration, tokenizer and weights that are not in the checkpoint.
        template: the question, as VideoAlign's prompt_template.py has it.
        base_revision: revision of a hub base.
        dtype: of the judge's weights; the merge is done in single precision.

    Returns:
        The judge, with its head; `save_pretrained` writes it as a whole.

    Raises:
        ValueError: weights in a pickle, a setting that this reading does not cover, or weights that do not fit the base.
    """
    place = Path(folder)
    settings = read_json(place / "model_config.json")
    _check(settings)
    weights = _weights(place)
    model, tokenizer = _base(base, base_revision, [f"<|{name}_reward|>" for name in NAMES], weights)
    head = weights.pop(_HEAD)
    _fill(model, weights, settings["peft_lora_config"])
    low, most = _LEAST_PIXELS, settings["data_config"]["max_frame_pixels"]
    config = JudgeConfig.for_model(
        model.config,
        base=SAME_FOLDER,
        origin={"base": str(base), "revision": base_revision} if not Path(base).is_dir() else {},
        position_rule=TEXT_RULE,
        min_pixels=min(low, most),
        max_pixels=most,
        frame_policy=_frames(settings["data_config"]),
        dimensions=tuple(NAMES.values()),
        trained_on="pairs of generated videos, by VideoAlign",
        lineage=("videoalign",),
    )
    judge = VideoJudge(model.to(dtype), tokenizer, config)
    judge.head = ScoreHead(head.to(dtype), _head_config(template, settings.get("inference_config")), tokenizer)
    return judge.eval()


def _check(settings: Mapping[str, Any]) -> None:
    """Refuse settings under which the checkpoint would be read otherwise than it was trained (ValueError)."""
    model, data = settings["model_config"], settings["data_config"]
    read = {
        "model_config.use_special_tokens": (model["use_special_tokens"], True),
        "data_config.eval_dim": (list(data["eval_dim"]), list(NAMES)),
        "data_config.sample_type": (data["sample_type"], "uniform"),
    }
    for name, (value, expected) in read.items():
        if value != expected:
            raise ValueError(f"model_config.json: {name} is {value!r}, only {expected!r} can be read")


def _weights(place: Path) -> dict[str, Tensor]:
    """Return the newest checkpoint's tensors by plain names: no wrapper's prefix, no adapter's name."""
    checkpoints = sorted(place.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    if not checkpoints:
        raise ValueError(f"{place} has no folder checkpoint-N")
    refuse_pickles(checkpoints[-1], beside=False)
    saved: dict[str, Tensor] = {}
    for file in sorted(checkpoints[-1].glob("*.safetensors")):
        saved |= read_tensors(file)
    plain = {_plain(name): tensor for name, tensor in saved.items()}
    for name in (_HEAD, _EMBEDDING):
        if name not in plain:
            raise ValueError(f"{checkpoints[-1]} has no {name}; convert model.pth, or non_lora_state_dict.pth as well")
    return plain


def _plain(name: str) -> str:
    name = name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".default.", ".")
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def _base(base: str | Path, revision: str | None, tokens: list[str], weights: Mapping[str, Tensor]) -> tuple[Any, Any]:
    """Return the base model and its tokenizer, with embeddings for the special tokens."""
    place = locate(base, revision=revision)
    model = load_stock_model(place, dtype=torch.float32, attn_implementation="sdpa")
    tokenizer = load_tokenizer(place)
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    size = len(weights[_EMBEDDING])
    if size != len(tokenizer):
        raise ValueError(f"the checkpoint knows {size} tokens, the tokenizer of {base} {len(tokenizer)}; name its base")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model, tokenizer


def _fill(model: Any, weights: Mapping[str, Tensor], lora: Mapping[str, Any]) -> None:
    """Load the checkpoint's weights into the base, with the LoRA added."""
    state = model.state_dict()
    rank, alpha = lora["lora_r"], lora["lora_alpha"]
    scale = alpha / (math.sqrt(rank) if lora["use_rslora"] else rank)
    plain = {name: tensor.float() for name, tensor in weights.items() if ".lora_" not in name}
    for name, down in weights.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            up = weights[f"{layer}.lora_B.weight"]
            start = plain.get(f"{layer}.weight", state.get(f"{layer}.weight"))
            if start is None:
                raise ValueError(f"the base has no layer {layer}; name the base of this checkpoint")
            plain[f"{layer}.weight"] = start + up.float() @ down.float() * scale
    for name, tensor in plain.items():
        if name not in state or state[name].shape != tensor.shape:
            raise ValueError(f"{name} {list(tensor.shape)} does not fit the base; name the base of this checkpoint")
    model.load_state_dict(plain, strict=False)


def _frames(data: Mapping[str, Any]) -> dict[str, Any]:
    if data["num_frames"] is not None:
        return {"mode": "uniform", "num_frames": int(data["num_frames"])}
    return {"mode": "fps", "fps": data["fps"], "min_frames": 4, "max_frames": 768}


def _head_config(template: str, constants: Mapping[str, float] | None) -> HeadConfig:
    """Return the config; without constants raw scores are their own z scores, as in VideoAlign."""
    known = constants or {f"{name}_{key}": value for name in NAMES for key, value in (("mean", 0.0), ("std", 1.0))}
    return HeadConfig(
        template=template,
        tokens=tuple(f"<|{name}_reward|>" for name in NAMES),
        dimensions=tuple(NAMES.values()),
        mean=tuple(known[f"{name}_mean"] for name in NAMES),
        std=tuple(known[f"{name}_std"] for name in NAMES),
    )
