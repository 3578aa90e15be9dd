"""The judge's reward as a differentiable loss for other trainers.

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
        space: space of the reward in the loss, "expectation" or "logit".
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
        """Return the scalar loss with gradient to the pixels and the rewards [B]; RuntimeError if one is unavailable."""
        out = reward(videos, prompts, fps=fps, layout=layout, weights=weights, differentiable=True)
        missing = ~torch.isfinite(out.rewards.detach())
        if bool(missing.any()):
            causes = {
                name: [f"video {index}: {reason}" for index, reason in enumerate(reasons) if reason]
                for name, reasons in out.reasons.items()
            }
            raise RuntimeError(f"{int(missing.sum())} of {len(missing)} rewards could not be computed: {causes}")
        value = out.rewards if space == "expectation" else torch.logit(out.rewards, eps=1e-4)
        distance = -value if target is None else (value - target).abs()
        return scale * distance.mean(), out.rewards.detach()

    return loss
