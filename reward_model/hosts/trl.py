"""TRL: the judge among the `reward_funcs` of a GRPO or RLOO trainer of a text model.

TRL's trainers sample text, so that a reward needs a clip beside it. Three uses, by where clip and text come from:

    from reward_model.hosts.trl import in_thread, video_reward

    # captions: the completion describes the clip in the data set's column "video"
    caption = video_reward("path/to/judge", video="video", weights={"text_alignment": 1.0})
    # prompt rewriting: render(completions) -> clips by your generator, judged against the prompt as the user wrote it
    rewrite = video_reward("path/to/judge", video=render, text="prompt", fps=16)
    # agents: the completion names a file that it made in a folder
    agent = video_reward("path/to/judge", video="completion", text="prompt", folder="clips")

    GRPOTrainer(model, reward_funcs=[in_thread(caption)], ...)  # awaited beside other rewards; without in_thread, synchronous

A completion without a score gets None: it is not learned from or, beside other rewards, this one adds nothing to it. The
reason is a column of TRL's completions table.
(`reward_model.rewards.compose` has the other direction: TRL's functions as rewards for training the judge.)

Source: huggingface/trl, GRPOTrainer._calculate_rewards of trl 1.16.0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from reward_model.hosts.core import JudgeLike, in_thread, load_judge, score

__all__ = ["in_thread", "video_reward"]

Render = Callable[[list[str]], Sequence[Any]]
"""render(texts) -> one clip each (tensor [T, C, H, W], PIL frames, path or bytes), None where there is none."""


def video_reward(
    judge: JudgeLike,
    *,
    video: str | Render = "video",
    text: str = "completion",
    folder: str | Path | None = None,
    fps: float | None = None,
    weights: Mapping[str, float] | None = None,
    device: str | torch.device | None = None,
    name: str = "video_judge",
) -> Callable[..., list[float | None]]:
    """Return a reward function that judges a clip against a text for every completion.

    Args:
        judge: a judge, or where it is.
        video: where clips come from: a column (paths, bytes, or undecoded videos of `datasets`), "completion" (the
            completion is the name of a file in `folder`), or a function that renders the completions.
        text: what they are judged against: "completion", "prompt", or a column.
        folder: for "completion" only: files outside it do not count, because a policy would soon name a better clip.
        fps: frame rate in Hz of rendered tensors and PIL frames; files carry their own.
        weights: dimension -> weight of the reward; None for overall.
        device: where to load the judge; in a run of several processes, name each one's own.
        name: under which TRL logs the reward.

    Returns:
        `f(prompts, completions, ..., **columns) -> list[float | None]`. It logs the share of completions without a score as
        "<name>/failed" and their reasons as the column "<name>_reason".

    Raises:
        ValueError: a folder that is missing or not needed.
    """
    if (video == "completion") != (folder is not None):
        raise ValueError(
            f"folder goes with video='completion' and only with it, got video={video!r}, folder={folder!r}"
        )
    loaded = load_judge(judge, device=device)

    def reward(
        prompts: list[Any],
        completions: list[Any],
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return one reward a completion; None where it could not be had."""
        named = {
            **columns,
            "prompt": [_text(one) for one in prompts],
            "completion": [_text(one) for one in completions],
        }
        texts = _column(named, text)
        if callable(video):
            clips = list(video(named["completion"]))
        elif folder is not None:
            clips = [_file_in(Path(folder), completion) for completion in named["completion"]]
        else:
            clips = [_undecoded(one) for one in _column(named, video)]
        rows = [row for row, clip in enumerate(clips) if clip is not None]
        found = score(loaded, [clips[row] for row in rows], [texts[row] for row in rows], fps=fps, weights=weights)
        rewards: list[float | None] = [None] * len(completions)
        reasons = ["no clip"] * len(completions)
        for row, value, reason in zip(rows, found.rewards, found.reasons, strict=True):
            rewards[row], reasons[row] = (None if reason else value), reason
        if log_extra is not None:
            log_extra(f"{name}_reason", reasons)
        if log_metric is not None:
            log_metric(f"{name}/failed", rewards.count(None) / max(len(rewards), 1))
        return rewards

    reward.__name__ = name
    return reward


def _column(columns: Mapping[str, list[Any]], name: str) -> list[Any]:
    if name not in columns:
        raise ValueError(f"no column {name!r} to take clips or texts from; there are {', '.join(sorted(columns))}")
    return columns[name]


def _text(message: Any) -> str:
    """Return the text of a prompt or completion: a string, or a conversation whose last message holds it."""
    content = message if isinstance(message, str) else message[-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def _undecoded(item: Any) -> Any:
    """Return bytes or path of a video column of `datasets` without decoding; other items are clips already."""
    return (item["bytes"] or item["path"]) if isinstance(item, Mapping) else item


def _file_in(folder: Path, name: str) -> Path | None:
    path = (folder / name.strip()).resolve()
    return path if path.is_relative_to(folder.resolve()) and path.is_file() else None
