"""The judge's reward as a differentiable loss for other trainers.

Shapes: B videos.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from reward_model.records import Video


def pixel_loss(
    reward: Callable[..., Any],
    target: float | None,
    *,
    scale: float,
    space: Literal["expectation", "logit"],
    weights: Mapping[str, float] | None,
    check_gradients: bool = True,
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return `loss(videos, prompts, fps=...)`; see `VideoJudgeReward.as_loss`.

    Args:
        reward: a `VideoJudgeReward`.
        target: None minimises -reward; a number minimises |reward - target|.
        scale: factor of the loss.
        space: space of the reward in the loss, "expectation" or "logit".
        weights: dimension -> weight of the reward; None for overall.
        check_gradients: stop the backward pass where the gradient to a clip is not finite.

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
        if check_gradients and torch.is_grad_enabled():
            videos = _checked(videos, layout)
        out = reward(videos, prompts, fps=fps, layout=layout, weights=weights, differentiable=True)
        missing = ~torch.isfinite(out.rewards.detach())
        if bool(missing.any()):
            causes = {
                name: [f"video {index}: {reason}" for index, reason in enumerate(reasons) if reason]
                for name, reasons in out.reasons.items()
                if any(reasons)
            }
            raise RuntimeError(f"{int(missing.sum())} of {len(missing)} rewards could not be computed: {causes}")
        value = out.rewards if space == "expectation" else torch.logit(out.rewards, eps=1e-4)
        distance = -value if target is None else (value - target).abs()
        return scale * distance.mean(), out.rewards.detach()

    return loss


class _CheckedGradient(torch.autograd.Function):
    """Identity whose backward pass refuses a gradient that is not finite (RuntimeError) and names the clips."""

    @staticmethod
    def forward(ctx: Any, video: Tensor, first: int, axis: int | None) -> Tensor:
        """Return the clip number `first`, or with an `axis` the clips along it from number `first` on."""
        ctx.first, ctx.axis = first, axis
        return video.view_as(video)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient as it came."""
        (grad,) = grads
        clips = [grad] if ctx.axis is None else grad.unbind(ctx.axis)
        wrong = [str(ctx.first + number) for number, clip in enumerate(clips) if not bool(torch.isfinite(clip).all())]
        if wrong:
            raise RuntimeError(
                f"the judge's gradient to clip {', '.join(wrong)} of the batch is not finite ({grad.dtype} frames); load the "
                "judge in bfloat16 or float32 and check the loss's scale, or pass check_gradients=False where a gradient "
                "scaler skips such steps"
            )
        return grad, None, None


def _checked(videos: Any, layout: str) -> Any:
    """Return the same videos, each tensor of which checks its gradient in the backward pass."""
    if isinstance(videos, Tensor):
        is_batch = "B" in layout and videos.ndim == len(layout)
        return _checked_tensor(videos, 0, layout.index("B") if is_batch else None)
    if isinstance(videos, Video):
        return _checked_item(videos, 0)
    if isinstance(videos, Sequence) and any(isinstance(video, Tensor | Video) for video in videos):
        return [_checked_item(video, number) for number, video in enumerate(videos)]
    return videos


def _checked_item(video: Any, number: int) -> Any:
    if isinstance(video, Video):
        return replace(video, frames=_checked_tensor(video.frames, number, None))
    return _checked_tensor(video, number, None) if isinstance(video, Tensor) else video


def _checked_tensor(video: Tensor, first: int, axis: int | None) -> Tensor:
    return _CheckedGradient.apply(video, first, axis) if video.requires_grad else video
