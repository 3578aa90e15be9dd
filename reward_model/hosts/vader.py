"""VADER: a loss on decoded frames, whose gradient trains the generator.

VideoCrafter and ModelScope: the reward names that their scripts list score single frames, and stop with an assertion where
`--decode_frame all` decodes a clip. The one name under which they pass the whole clip is `vidclip`, to which they give no loss. Add it
where the training script chooses its `loss_fn`, and name it on the command line:

    from reward_model.hosts.vader import reward_loss

    elif args.reward_fn == "vidclip":
        loss_fn = reward_loss("path/to/judge", fps=8, device=accelerator.device)

    --reward_fn vidclip --decode_frame all --train_batch_size 1     # ModelScope: reward_fn, decode_frame, train_batch_size in its YAML

`--decode_frame alt` decodes every second frame: halve `fps`. "fml" decodes three frames without a common rate, which is no clip. The
loss keeps the gradient from the judge to every decoded frame. Open-Sora's script passes single frames whatever it decodes, so a judge
of clips does not reach it; as stills they are scored with `weights={"visual_quality": 1.0}`.

Source: mihirp1998/VADER, VADER-VideoCrafter/scripts/main/train_t2v_lora.py, VADER-ModelScope/{train_t2v_lora,ms_custom}.py and
VADER-Open-Sora/scripts/train_t2v_lora.py, commit adaf2ef.

Shapes: B videos, F frames, C = 3 channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from reward_model.hosts.core import JudgeLike, from_signed, load_judge, with_time


def reward_loss(
    judge: JudgeLike,
    *,
    fps: float,
    device: str | torch.device | None = None,
    target: float | None = None,
    scale: float = 1.0,
    space: Literal["expectation", "logit"] = "expectation",
    weights: Mapping[str, float] | None = None,
) -> Callable[[Tensor | Sequence[Tensor], str | Sequence[str]], tuple[Tensor, Tensor]]:
    """Return `loss_fn(frames, prompts) -> (loss, reward)`.

    Args:
        judge: a judge, or where to load it from.
        fps: frame rate in Hz of the decoded frames.
        device: device to load it on.
        target: None minimises -reward; a number minimises |reward - target|.
        scale: factor of the loss.
        space: "expectation" or "logit"; see `VideoJudgeReward.as_loss`.
        weights: dimension -> weight of the reward; None for overall.

    Returns:
        The loss function. It takes the decoder's output in [-1, 1]: videos [B, F, C, H, W] with one prompt or B prompts
        (VideoCrafter), one video with a string as a list of F frames [C, H, W] (ModelScope) or as [F, C, H, W], or stills
        [B, C, H, W] with a list of prompts. Both results are scalars, the reward without gradient. It raises ValueError for frames
        of another range and RuntimeError where a reward is missing, each naming the video.
    """
    loss = load_judge(judge, device=device).as_loss(target, scale=scale, space=space, weights=weights)

    def loss_fn(frames: Tensor | Sequence[Tensor], prompts: str | Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the loss with gradient and the mean reward, both scalars."""
        value, rewards = loss(from_signed(_videos(frames, prompts)), prompts, fps=fps)
        return value, rewards.mean()

    return loss_fn


def _videos(frames: Tensor | Sequence[Tensor], prompts: str | Sequence[str]) -> Tensor:
    """Return [B, F, C, H, W] of what the host decodes."""
    if not isinstance(frames, Tensor):
        kinds = {tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in frames}
        if not isinstance(prompts, str) or len(kinds) != 1 or not all(isinstance(one, Tensor) for one in frames):
            raise ValueError(
                f"a list must hold the frames [C, H, W] of one video, with its prompt as a string; got {len(frames)} items "
                f"of {sorted(map(str, kinds))} with {type(prompts).__name__}"
            )
        frames = torch.stack(list(frames))
    one_video = frames.ndim == 4 and isinstance(prompts, str)
    return frames.unsqueeze(0) if one_video else with_time(frames)
