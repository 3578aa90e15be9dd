"""Windows of a packed sequence in batches: the values and gradients of one call a window."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reward_model.judge.attention.windows import NAME, window_attention
from tests.tiny_judge import build_judge


def one_by_one(query, key, value, bounds, scaling):
    """Attend window after window."""
    spans = zip(bounds[:-1], bounds[1:], strict=True)
    parts = [
        F.scaled_dot_product_attention(*(tensor[:, :, a:b] for tensor in (query, key, value)), scale=scaling)
        for a, b in spans
    ]
    return torch.cat(parts, dim=2).transpose(1, 2)


@pytest.mark.parametrize("bounds", [[0, 4, 8, 12], [0, 4, 6, 10, 12], [0, 12], [0, 1, 4, 5, 12]])
def test_windows_in_batches_equal_windows_one_by_one(bounds):
    torch.manual_seed(0)
    ours, stock = ([torch.randn(1, 2, 12, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)] for _ in "ab")
    for mine, other in zip(ours, stock, strict=True):
        mine.data.copy_(other)
    found, _ = window_attention(None, *ours, None, cu_seq_lens_q=torch.tensor(bounds), scaling=0.3)
    expected = one_by_one(*stock, bounds, 0.3)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    for mine, other in zip(
        torch.autograd.grad((found * weight).sum(), ours),
        torch.autograd.grad((expected * weight).sum(), stock),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_the_vision_tower_uses_them_and_gives_the_stock_result(family):
    judge = build_judge(family)
    visual = judge.model.model.visual
    assert visual.config._attn_implementation == NAME
    grids = torch.tensor([[3, 4, 4], [2, 6, 4]])
    width = visual.config.patch_size**2 * 3 * visual.config.temporal_patch_size
    patches = torch.randn(int(grids.prod(1).sum()), width)
    ours = torch.cat(judge.model.model.get_video_features(patches, grids, return_dict=True).pooler_output)
    visual.config._attn_implementation = "sdpa"
    stock = torch.cat(judge.model.model.get_video_features(patches, grids, return_dict=True).pooler_output)
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)
