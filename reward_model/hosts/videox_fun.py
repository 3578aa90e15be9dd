"""VideoX-Fun: a reward class for its reward back-propagation scripts, with a gradient to the frames.

In the host's `videox_fun/reward/reward_fn.py`, and on its command line:

    from reward_model.hosts.videox_fun import JudgeFrames

    class VideoJudge(JudgeFrames, BaseReward): ...

    --reward_fn VideoJudge --reward_fn_kwargs '{"judge": "path/to/judge", "fps": 16, "validation_frames": 81}'

The host keeps 4 frames of each validation video, evenly spaced, and --num_sampled_frames of the decoded ones in training, and
tells neither to the reward. `validation_frames` (the frames of a validation video) and `decoded_frames` (those before
--num_sampled_frames) give such frames their true rate. The main process loads the reward on the CPU first; that copy is freed as
soon as the host replaces it.

Source: aigc-apps/VideoX-Fun, videox_fun/reward/reward_fn.py, scripts/{wan2.1,wan2.1_fun,wan2.2_fun,cogvideox_fun}/
train_reward_lora.py and scripts/get_rewards_1video.py, commit 804a425.

Shapes: B videos, C = 3 channels, T frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from reward_model.hosts.core import JudgeLike, load_judge, scores_of

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
        decoded_frames: int | None = None,
        validation_frames: int | None = None,
        check_gradients: bool = True,
    ) -> None:
        """Load the judge; all arguments but device and dtype come from the host's JSON.

        Args:
            judge: a judge, or where to load it from.
            fps: frame rate in Hz of the generator's videos, before the host drops frames.
            device: device to load it on.
            dtype: dtype of the weights.
            max_reward: None makes the loss -reward; a number makes it |reward - max_reward|.
            loss_scale: factor of the loss.
            weights: dimension -> weight of the reward; None for overall.
            decoded_frames: frames decoded in training, of which --num_sampled_frames are passed; None if all are.
            validation_frames: frames of a video that is scored without gradient, of which the host passes some; needed there.
            check_gradients: stop where a gradient is not finite; false with `--mixed_precision fp16`, whose scaler skips the step.

        Raises:
            ValueError: a rate or number of frames that is not positive.
        """
        super().__init__()
        for name, value in {
            "fps": fps,
            "decoded_frames": decoded_frames,
            "validation_frames": validation_frames,
        }.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be > 0, got {value}")
        self.judge = load_judge(judge, device=device, dtype=dtype)
        self.fps, self.weights = fps, weights
        self.decoded_frames, self.validation_frames = decoded_frames, validation_frames
        self._loss = self.judge.as_loss(max_reward, scale=loss_scale, weights=weights, check_gradients=check_gradients)

    def __call__(self, batch_frames: Tensor, batch_prompt: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
        """Return loss and reward, each the mean over the batch.

        Args:
            batch_frames: [B, C, T, H, W] in [0, 1].
            batch_prompt: one per video; without prompts, overall is the mean of the other dimensions.

        Returns:
            The loss with gradient to the frames, and the reward without gradient.

        Raises:
            ValueError: the rate of the frames is unknown; see `rate`.
            RuntimeError: a reward is missing.
        """
        loss, rewards = self._loss(batch_frames, batch_prompt, fps=self.rate(batch_frames), layout=LAYOUT)
        return loss, rewards.mean()

    def get_reward(self, batch_frames: Tensor, batch_prompt: Sequence[str] | None = None) -> Tensor:
        """Return the rewards [B], NaN and a warning with the reason where one is missing; with gradient if torch records one."""
        out = self.judge(
            batch_frames,
            batch_prompt,
            fps=self.rate(batch_frames),
            layout=LAYOUT,
            weights=self.weights,
            differentiable=torch.is_grad_enabled(),
        )
        scores_of(out, self.weights).checked("nan")
        return out.rewards

    def rate(self, batch_frames: Tensor) -> float:
        """Return the rate in Hz of frames as the host passes them: thinned with gradient in training, without in validation.

        Args:
            batch_frames: [B, C, T, H, W].

        Returns:
            The rate.

        Raises:
            ValueError: more frames than there were, or frames without gradient and `validation_frames` is None.
        """
        num = batch_frames.shape[LAYOUT.index("T")]
        training = torch.is_grad_enabled()
        name, total = (
            ("decoded_frames", self.decoded_frames) if training else ("validation_frames", self.validation_frames)
        )
        if num == 1 or (total is None and training):
            return self.fps
        if total is None:
            raise ValueError(
                "validation_frames is needed without gradient: the host passes some frames of each validation video and does "
                "not say of how many; add the number to --reward_fn_kwargs"
            )
        if num > total:
            raise ValueError(f"{name} must be the frames before the host dropped some, got {total} for {num} frames")
        # in training the host keeps the last frame, in validation it leaves one interval after the last
        return self.fps * (num - 1) / (total - 1) if training else self.fps * num / total
