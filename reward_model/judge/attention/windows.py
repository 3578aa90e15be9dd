"""Attention inside the windows of a packed sequence: one call for all windows of a length, not one for each.

Stock transformers, without flash-attention, calls attention once for every window of every clip in every layer of the
vision tower. A clip has few window lengths but many windows, so most of that time goes into the calls themselves.

Shapes: P patches of all clips, W windows of one length n, heads h, head size d.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "flash_free_windows"
"""Registered name; transformers hands the windows' bounds to implementations whose name holds "flash" only."""


def batch_windows(model: nn.Module) -> None:
    """Make every vision tower in `model` that uses torch's attention run its windows in batches."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, window_attention)
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(module, "patch_embed") and getattr(config, "_attn_implementation", "") == "sdpa":
            config._attn_implementation = NAME


def window_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    cu_seq_lens_q: Tensor,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within windows, as `transformers.AttentionInterface` calls it.

    Args:
        module: the attention layer (not read).
        query: [1, h, P, d]; key and value alike.
        key: see `query`.
        value: see `query`.
        attention_mask: None; windows are the only mask.
        cu_seq_lens_q: [windows + 1] bounds of the windows, from 0 to P.
        scaling: of the logits.
        dropout: share of attention weights dropped.

    Returns:
        [1, P, h, d], and None in place of weights.
    """
    lengths = cu_seq_lens_q.diff()
    sizes = lengths.unique().tolist()
    if len(sizes) == 1:
        return _attend(query[0], key[0], value[0], sizes[0], scaling, dropout)[None], None
    own = lengths.repeat_interleave(lengths)  # [P] length of each patch's window
    output = torch.empty_like(query[0].transpose(0, 1))
    for size in sizes:
        rows = (own == size).nonzero()[:, 0]
        q, k, v = (tensor[0].index_select(1, rows) for tensor in (query, key, value))
        output = output.index_copy(0, rows, _attend(q, k, v, size, scaling, dropout))
    return output[None], None


def _attend(query: Tensor, key: Tensor, value: Tensor, size: int, scaling: float, dropout: float) -> Tensor:
    """Attend in neighbouring windows of `size`: [h, W * n, d] -> [W * n, h, d]."""
    q, k, v = (tensor.unflatten(1, (-1, size)).transpose(0, 1) for tensor in (query, key, value))  # [W, h, n, d]
    attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
    return attended.transpose(1, 2).flatten(0, 1)
