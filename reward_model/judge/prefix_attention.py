"""Attention of packed rows in two parts: the common prefix by plain causal attention, what follows it by the tree mask.

A mask costs twice: attention computes the half that causality forbids, and kernels without masks (flash attention) are shut
out. The tokens that all rows have in common at their start need none.

Shapes: R rows, L tokens of the longest row, h heads, d head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from reward_model.judge.shared_prefix import Rows

NAME = "shared_prefix_sdpa"
"""Registered name of the attention."""

LEAST = 256
"""Common tokens below which the second call costs more than it saves."""


def split_prefix(model: nn.Module) -> None:
    """Make every text model in `model` that uses torch's attention able to attend in two parts."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, prefix_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(module, "embed_tokens") and getattr(config, "_attn_implementation", "") == "sdpa":
            config._attn_implementation = NAME


def num_common(rows: Rows) -> int:
    """Return how many tokens at the start of every row belong to its prefix; 0 where they are too few to split."""
    common = int((rows.branch != 0).long().argmax(dim=1).min())
    return common if common >= LEAST else 0


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    num_common: int = 0,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attend in two parts where `num_common` is given, as torch's attention otherwise.

    Args:
        module: the attention layer.
        query: [R, h, L, d]; key and value alike, with fewer heads where these are shared.
        key: see `query`.
        value: see `query`.
        attention_mask: additive [R, 1, L, L]; its first `num_common` rows must be causal.
        num_common: tokens of the common prefix.
        **settings: further arguments of torch's attention in transformers.

    Returns:
        [R, L, h, d], and None in place of weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if not num_common or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    start, rest = slice(num_common), slice(num_common, None)
    first, _ = sdpa_attention_forward(
        module, query[:, :, start], key[:, :, start], value[:, :, start], None, **{**settings, "is_causal": True}
    )
    second, _ = sdpa_attention_forward(module, query[:, :, rest], key, value, attention_mask[:, :, rest], **settings)
    return torch.cat([first, second], dim=1), None
