"""Attention implementations of a transformers model, replaced for a judge and given back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

STOCK = "sdpa"
"""The one implementation that is replaced: torch's own attention."""


@dataclass(frozen=True)
class AttentionSwitch:
    """Configs whose attention implementation was replaced."""

    configs: tuple[Any, ...]

    def undo(self) -> None:
        """Give the stock implementation back to every config that was changed."""
        for config in self.configs:
            config._attn_implementation = STOCK


def switch_attention(model: nn.Module, *, having: str, to: str) -> AttentionSwitch:
    """Replace torch's attention in some modules of a model, in place.

    Args:
        model: a transformers model; its configs change, its weights and its forward methods do not.
        having: attribute that marks the modules, e.g. "embed_tokens" for text models.
        to: registered name of the new implementation.

    Returns:
        The changed configs; modules with another implementation than torch's, or switched before, are left alone.
    """
    changed = []
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(module, having) and getattr(config, "_attn_implementation", "") == STOCK:
            config._attn_implementation = to
            changed.append(config)
    return AttentionSwitch(tuple(changed))
