"""One role of a judge as a stock checkpoint: its LoRA merged, with the files that stock transformers and servers read.

The folder is a judge as well: `judge_config.json` lies beside the weights.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reward_model.judge.checkpoints.format import BASE_FOLDER, SAME_FOLDER, JudgeConfig, quiet
from reward_model.judge.families import FAMILIES
from reward_model.judge.families.base import VisionFacts
from reward_model.judge.model import VideoJudge
from reward_model.judge.modules.roles import base_state

_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type in ('image', 'video') %}<|vision_start|><|{{ part.type }}_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Turns as all families have them, for tokenizers without a template of their own."""


def merge_role(judge: VideoJudge, role: str | None, folder: str | Path) -> Path:
    """Write a full stock checkpoint of the base with one role merged; the judge stays as it is.

    Args:
        judge: the judge.
        role: adapter to merge; None writes the base alone.
        folder: new or empty.

    Returns:
        The folder, for `AutoModelForImageTextToText.from_pretrained` and `VideoJudgeReward.from_pretrained`.

    Raises:
        ValueError: an unknown role, one that is no plain LoRA, or a folder that has files.
    """
    if role is not None and role not in judge.roles:
        raise ValueError(f"unknown role {role!r}, this judge has {', '.join(judge.roles) or 'none'}")
    place = Path(folder)
    if place.is_dir() and any(place.iterdir()):
        raise ValueError(f"{place} is not empty; name a new folder")
    with torch.no_grad(), quiet():
        state = merged_state(judge.model, role)
        place.mkdir(parents=True, exist_ok=True)
        judge.model.save_pretrained(place, state_dict=state)
    _name_settings_twice(place / "config.json", judge.model.config)
    judge.tokenizer.save_pretrained(place)
    _name_special_tokens(place / "tokenizer_config.json")
    if judge.tokenizer.chat_template is None:
        (place / "chat_template.jinja").write_text(_CHAT_TEMPLATE)
    if judge.motion is not None:
        judge.motion.save(place)
    if judge.head is not None:
        judge.head.save(place)
    _write_processors(judge.family.facts, judge.config, place)
    _merged_config(judge.config, role).save(place)
    return place


def merged_state(model: nn.Module, role: str | None) -> dict[str, Tensor]:
    """Return the weights of the base under their own names, with one role's LoRA added in single precision.

    Args:
        model: with its adapters.
        role: name of one; None for the base alone.

    Returns:
        Name -> tensor in the base's dtype.

    Raises:
        ValueError: the role has more than plain LoRA on linear layers.
    """
    state = base_state(model)
    if role is None:
        return state
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer) or role not in layer.lora_A:
            continue
        if type(layer) is not Linear or role in layer.lora_variant or layer.lora_bias[role]:
            raise ValueError(f"role {role!r} has more than plain LoRA at {name} and cannot be merged")
        update = layer.lora_B[role].weight.float() @ layer.lora_A[role].weight.float() * layer.scaling[role]
        weight = state[f"{name}.weight"]
        state[f"{name}.weight"] = (weight.float() + update).to(weight.dtype)
    return state


def _merged_config(config: JudgeConfig, role: str | None) -> JudgeConfig:
    """Return the configuration of a folder that holds its weights; of a base on the hub it keeps the name."""
    origin = dict(config.origin)
    if config.base not in (BASE_FOLDER, SAME_FOLDER) and not Path(config.base).is_absolute():
        origin |= {"base": config.base, "base_subfolder": config.base_subfolder, "revision": config.revision}
    if role is not None:
        origin["role"] = role
    reasoned = {"": taught} if (taught := config.taught(role)) else {}
    return dataclasses.replace(
        config, base=SAME_FOLDER, base_subfolder="", revision=None, origin=origin, reasoned=reasoned
    )


def _name_settings_twice(file: Path, config: Any) -> None:
    """Add to a saved config the names under which transformers 4 reads the rotary base and the tied head of the text model.

    Without them transformers 4.57 takes a base of its own and a fresh head, with no more than a warning.
    """
    values, rope = json.loads(file.read_text()), dict(config.text_config.rope_parameters)
    added = {
        "rope_theta": rope.pop("rope_theta"),
        "rope_scaling": rope,
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    values["text_config"] |= added
    _write(file, values)


def _name_special_tokens(file: Path) -> None:
    """Give a saved tokenizer's list of special tokens the name under which transformers 4 and 5 both read a list."""
    values = json.loads(file.read_text())
    if isinstance(values.get("extra_special_tokens"), list):
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
        _write(file, values)


def _write_processors(facts: VisionFacts, config: JudgeConfig, place: Path) -> None:
    """Write the settings with which stock processors show a clip as the judge sees it."""
    processors = FAMILIES[config.family].processors
    shared = {
        "processor_class": processors.whole,
        "patch_size": facts.patch_size,
        "merge_size": facts.merge_size,
        "temporal_patch_size": facts.temporal_patch_size,
        "image_mean": list(facts.mean),
        "image_std": list(facts.std),
    }
    size = {"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels}
    clips = {"size": size, "do_sample_frames": False, "cap_pixels_per_frame": False}
    _write(place / "preprocessor_config.json", {**shared, "image_processor_type": processors.images})
    _write(place / "video_preprocessor_config.json", {**shared, **clips, "video_processor_type": processors.videos})


def _write(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n")
