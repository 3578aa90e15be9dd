"""The vision-language families that can judge, by the model type of their config."""

from __future__ import annotations

from typing import Any

from reward_model.judge.families.base import VisionFamily
from reward_model.judge.families.qwen2_5_vl import Qwen25VL
from reward_model.judge.families.qwen2_vl import Qwen2VL
from reward_model.judge.families.qwen3_vl import Qwen3VL

FAMILIES: dict[str, type[VisionFamily]] = {
    "qwen2_5_vl": Qwen25VL,
    "qwen3_vl": Qwen3VL,
    "qwen2_vl": Qwen2VL,
}
"""Model type of a transformers config -> family; loading, export, model cards and recipes read all they need from the class."""


def family_type(model_type: str) -> type[VisionFamily]:
    """Return the family's class; a model type that cannot judge raises ValueError."""
    if model_type not in FAMILIES:
        raise ValueError(f"model type {model_type!r} cannot judge, expected one of {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def family_of(config: Any, min_pixels: int, max_pixels: int, position_rule: str | None = None) -> VisionFamily:
    """Return the family of a model's config.

    Args:
        config: a transformers config.
        min_pixels: least pixels as the family's official processor counts them (Qwen2.5-VL a frame, Qwen3-VL a clip).
        max_pixels: most pixels, counted likewise.
        position_rule: one of the family's; None is that of the current transformers.

    Returns:
        The family, with the model's patch and merge sizes.

    Raises:
        ValueError: a model type that cannot judge, bounds in the wrong order, or a rule of another family.
    """
    family = family_type(config.model_type)
    if not 0 < min_pixels <= max_pixels:
        raise ValueError(f"pixel bounds must be 0 < min <= max, got {min_pixels} and {max_pixels}")
    rule = family.position_rules[0] if position_rule is None else position_rule
    if rule not in family.position_rules:
        raise ValueError(
            f"position rule {rule!r} is not the family's, expected one of {', '.join(family.position_rules)}"
        )
    return family.of(config, min_pixels, max_pixels, rule)
