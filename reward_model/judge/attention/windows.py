"""Attention inside the windows of a packed sequence: one call for all windows of a length, not one for each.

Stock transformers, without flash-attention, calls attention once for every window of every clip in every layer of the
vision tower. A clip has few window lengths but many windows, so most of that time goes into the calls themselves.

Shapes: P patches of all clips, W windows of one length n, heads h, head size d.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from reward_model.judge.attention.switch import AttentionSwitch, switch_attention

NAME = "flash_free_windows"
"""Registered name; transformers hands the windows' bounds to implementations whose name holds "flash" only."""


def batch_windows(model: nn.Module) -> AttentionSwitch:
    """Make every vision tower in `model` that uses torch's attention run its windows in batches, with equal values.

    Args:
        model: changed in place: `_attn_implementation` of its vision configs.

    Returns:
        The change, for its `undo`.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, window_attention)
    return switch_attention(model, having="patch_embed", to=NAME)


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
        return _attend_in_windows(query[0], key[0], value[0], sizes[0], scaling, dropout)[None], None
    own = lengths.repeat_interleave(lengths)  # [P] length of each patch's window
    output = torch.empty_like(query[0].transpose(0, 1))
    for size in sizes:
        patches = (own == size).nonzero()[:, 0]
        q, k, v = (tensor[0].index_select(1, patches) for tensor in (query, key, value))
        output = output.index_copy(0, patches, _attend_in_windows(q, k, v, size, scaling, dropout))
    return output[None], None


def _attend_in_windows(query: Tensor, key: Tensor, value: Tensor, size: int, scaling: float, dropout: float) -> Tensor:
    """Attend in neighbouring windows of `size`: [h, W * n, d] -> [W * n, h, d]."""
    q, k, v = (rearrange(tensor, "h (w n) d -> w h n d", n=size) for tensor in (query, key, value))
    attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
    return rearrange(attended, "w h n d -> (w n) h d")
