"""VideoX-Fun: a reward class for its reward back-propagation scripts, with a gradient to the frames.

In the host's `videox_fun/reward/reward_fn.py`, and on its command line:

    from reward_model.hosts.videox_fun import JudgeFrames

    class VideoJudge(JudgeFrames, BaseReward): ...

    --reward_fn VideoJudge --reward_fn_kwargs '{"judge": "path/to/judge", "fps": 8}'

Source: aigc-apps/VideoX-Fun, videox_fun/reward/reward_fn.py and scripts/wan2.1/train_reward_lora.py, commit 804a425.

Shapes: B videos, C = 3 channels, T frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from reward_model.hosts.core import JudgeLike, load_judge

LAYOUT = "BCTHW"


class JudgeFrames:
    """The host's `BaseReward` without importing it; use it alone, or before `BaseReward` in a list of bases."""

    def __init__(
        self,
        judge: JudgeLike,
        fps: float,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float16,
        max_reward: float | None = None,
        loss_scale: float = 1.0,
        weights: Mapping[str, float] | None = None,
        check_gradients: bool = True,
    ) -> None:
        """Load the judge; all arguments but device and dtype come from the host's JSON.

        Args:
            judge: a judge, or where to load it from.
            fps: frame rate in Hz of the frames as passed, of which the host may have dropped some.
            device: device to load it on.
            dtype: dtype of the weights.
            max_reward: None makes the loss -reward; a number makes it |reward - max_reward|.
            loss_scale: factor of the loss.
            weights: dimension -> weight of the reward; None for overall.
            check_gradients: stop where a gradient is not finite; false with `--mixed_precision fp16`, whose scaler skips the step.
        """
        super().__init__()
        self.judge = load_judge(judge, device=device, dtype=dtype)
        self.fps, self.weights = fps, weights
        self._loss = self.judge.as_loss(max_reward, scale=loss_scale, weights=weights, check_gradients=check_gradients)

    def __call__(self, batch_frames: Tensor, batch_prompt: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
        """Return loss and reward, each the mean over the batch.

        Args:
            batch_frames: [B, C, T, H, W] in [0, 1].
            batch_prompt: one per video; without prompts, overall is the mean of the other dimensions.

        Returns:
            The loss with gradient to the frames, and the reward without gradient.

        Raises:
            RuntimeError: a reward is missing.
        """
        loss, rewards = self._loss(batch_frames, batch_prompt, fps=self.fps, layout=LAYOUT)
        return loss, rewards.mean()

    def get_reward(self, batch_frames: Tensor, batch_prompt: Sequence[str] | None = None) -> Tensor:
        """Return the rewards [B], NaN where one is missing; with gradient if torch records one."""
        out = self.judge(
            batch_frames,
            batch_prompt,
            fps=self.fps,
            layout=LAYOUT,
            weights=self.weights,
            differentiable=torch.is_grad_enabled(),
        )
        return out.rewards
