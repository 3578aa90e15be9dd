"""TRL: the judge as one of the `reward_funcs` of a GRPO or RLOO trainer of a text model.

TRL's trainers sample text, so the reward needs a clip as well. There are three uses, by the source of clip and text:

    from reward_model.hosts.trl import in_thread, video_reward

    # captions: the completion describes the clip in the dataset column "video"
    caption = video_reward("path/to/judge", video="video", weights={"text_alignment": 1.0})
    # prompt rewriting: render(completions) -> clips of your generator, judged against the prompt that the user wrote
    rewrite = video_reward("path/to/judge", video=render, text="prompt", fps=16)
    # agents: the completion names a file that the agent has made in a folder
    agent = video_reward("path/to/judge", video="completion", text="prompt", folder="clips")

    GRPOTrainer(model, reward_funcs=[in_thread(caption)], ...)  # awaited with the other rewards; synchronous without in_thread

A completion without a score gets None: TRL leaves it out, or, with several rewards, leaves out this one. The reason is
logged as a column of TRL's completions table.
(`reward_model.rewards.compose` is the other direction: TRL's functions as rewards that train the judge.)

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
"""render(texts) -> one clip per text (tensor [T, C, H, W], PIL frames, path or bytes), None if rendering failed."""


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
        judge: a judge, or where to load it from.
        video: source of the clips: a column (paths, bytes, or undecoded videos of `datasets`), "completion" (the
            completion is the name of a file in `folder`), or a function that renders the completions.
        text: text that the clips are judged against: "completion", "prompt", or a column.
        folder: for "completion" only; files outside it do not count, or the policy could learn to name a better clip.
        fps: frame rate in Hz of rendered tensors and PIL frames; files have their own.
        weights: dimension -> weight of the reward; None for overall.
        device: device to load the judge on; with several processes, each names its own.
        name: name under which TRL logs the reward.

    Returns:
        `f(prompts, completions, ..., **columns) -> list[float | None]`. It logs the share of completions without a score as
        "<name>/failed" and their reasons as the column "<name>_reason".

    Raises:
        ValueError: `folder` is missing, or given without video="completion".
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
        """Return one reward per completion; None where it is missing."""
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
        given = [index for index, clip in enumerate(clips) if clip is not None]
        output = score(loaded, [clips[i] for i in given], [texts[i] for i in given], fps=fps, weights=weights)
        rewards: list[float | None] = [None] * len(completions)
        reasons = ["no clip"] * len(completions)
        for index, value, reason in zip(given, output.rewards, output.reasons, strict=True):
            rewards[index], reasons[index] = (None if reason else value), reason
        if log_extra is not None:
            log_extra(f"{name}_reason", reasons)
        if log_metric is not None:
            log_metric(f"{name}/failed", rewards.count(None) / max(len(rewards), 1))
        return rewards

    reward.__name__ = name
    return reward


def _column(columns: Mapping[str, list[Any]], name: str) -> list[Any]:
    if name not in columns:
        raise ValueError(f"no column {name!r} for clips or texts; the columns are {', '.join(sorted(columns))}")
    return columns[name]


def _text(message: Any) -> str:
    """Return the text of a prompt or completion: a string, or a conversation whose last message holds it."""
    content = message if isinstance(message, str) else message[-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(piece["text"] for piece in content if piece["type"] == "text")


def _undecoded(item: Any) -> Any:
    """Return bytes or path of a video column of `datasets` without decoding; other items are already clips."""
    return (item["bytes"] or item["path"]) if isinstance(item, Mapping) else item


def _file_in(folder: Path, name: str) -> Path | None:
    path = (folder / name.strip()).resolve()
    return path if path.is_relative_to(folder.resolve()) and path.is_file() else None
