"""A judge's reward as a loss for trainers of others.

Shapes: B videos.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor


def pixel_loss(
    reward: Callable[..., Any],
    target: float | None,
    *,
    scale: float,
    space: Literal["expectation", "logit"],
    weights: Mapping[str, float] | None,
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return `loss(videos, prompts, fps=...)`; see `VideoJudgeReward.as_loss`.

    Args:
        reward: a `VideoJudgeReward`.
        target: None minimises -reward; a number minimises |reward - target|.
        scale: factor of the loss.
        space: of the reward in the loss.
        weights: dimension -> weight of the reward; None for overall.

    Returns:
        The loss callable.

    Raises:
        ValueError: unknown space, or log-odds of a weighted sum.
    """
    if space not in ("expectation", "logit"):
        raise ValueError(f"space must be 'expectation' or 'logit', got {space!r}")
    if space == "logit" and weights is not None:
        raise ValueError("space='logit' needs weights=None: a weighted sum of qualities has no log-odds")

    def loss(videos: Any, prompts: Any = None, *, fps: Any = None, layout: str = "BTCHW") -> tuple[Tensor, Tensor]:
        """Return the loss, a scalar with gradient to the pixels, and the rewards [B]; RuntimeError where one could not be had."""
        out = reward(videos, prompts, fps=fps, layout=layout, weights=weights, differentiable=True)
        bad = ~torch.isfinite(out.rewards.detach())
        if bool(bad.any()):
            why = {name: [r for r in reasons if r] for name, reasons in out.reasons.items()}
            raise RuntimeError(f"{int(bad.sum())} of {len(bad)} rewards could not be had: {why}")
        value = out.rewards if space == "expectation" else torch.logit(out.rewards, eps=1e-4)
        distance = -value if target is None else (value - target).abs()
        return scale * distance.mean(), out.rewards.detach()

    return loss
