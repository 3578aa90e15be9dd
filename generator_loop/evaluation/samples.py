"""The clips that a round leaves on disk: one for each prompt shown, with its scores in `samples.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from generator_loop.evaluation.columns import Evaluation
from generator_loop.evaluation.summary import clip_scores
from generator_loop.records import Prompt
from reward_model import write_video
from reward_model.files import write_json


class SampleWriter:
    """Writes the first clip of the prompts shown, as an evaluation hands them over."""

    def __init__(self, folder: Path, prompts: Sequence[Prompt], *, fps: float) -> None:
        """Name the folder; nothing is written yet.

        Args:
            folder: of the round's clips.
            prompts: the prompts shown.
            fps: frame rate of the clips, Hz.
        """
        self._folder, self._fps = folder, fps
        self._texts = {prompt.prompt_id: prompt.text for prompt in prompts}

    def __call__(self, prompt: Prompt, frames: Tensor) -> None:
        """Write a clip [T, C, H, W] in [0, 1] if its prompt is shown."""
        if prompt.prompt_id in self._texts:
            write_video(self._folder / _name(prompt.prompt_id), frames, self._fps)

    def write_scores(self, evaluation: Evaluation) -> None:
        """Write `samples.json`: file, prompt, rewards and oracle's dimensions of each clip shown."""
        shown = [prompt_id for prompt_id in dict.fromkeys(evaluation.prompt_ids) if prompt_id in self._texts]
        records = [
            {
                "file": _name(prompt_id),
                "prompt": self._texts[prompt_id],
                "scores": clip_scores(evaluation, evaluation.prompt_ids.index(prompt_id)),
            }
            for prompt_id in shown
        ]
        write_json(self._folder / "samples.json", records)


def _name(prompt_id: int) -> str:
    return f"prompt-{prompt_id:05d}.mp4"
