"""VideoAlign's call and return: VQ, MQ, TA and their sum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from reward_model.judge.model import VideoJudge
from reward_model.records import Clip
from reward_model.scoring.assemble import ScoreSheet
from reward_model.scoring.score import score_rows

ALIGN_NAMES = {"VQ": "visual_quality", "MQ": "motion_quality", "TA": "text_alignment"}
"""VideoAlign's names of dimensions."""


@torch.no_grad()
def align_rows(
    judge: VideoJudge,
    role: str | None,
    clips: Sequence[Clip | str],
    prompts: Sequence[str | None],
    *,
    max_pixels: int | None,
    use_norm: bool,
) -> list[dict[str, float]]:
    """Return VideoAlign's rows (VQ, MQ, TA and their sum, Overall), one clip after another as it does.

    Args:
        judge: the judge; one with a score head is read by that.
        role: adapter that scores.
        clips: B clips, or why there is none.
        prompts: their prompts.
        max_pixels: pixel cap per frame; None keeps the judge's.
        use_norm: z scores; otherwise raw 1..5, or a head's own numbers.

    Returns:
        B rows; NaN where a score could not be had.
    """
    with judge.use_role(role), judge.pixel_cap(max_pixels):
        if judge.head is not None:
            found = [_head_scores(judge, clip, text, use_norm) for clip, text in zip(clips, prompts, strict=True)]
        else:
            sheet = ScoreSheet(tuple(ALIGN_NAMES.values()), len(clips), judge.config, judge.device)
            for row, (clip, text) in enumerate(zip(clips, prompts, strict=True)):
                score_rows(judge, sheet, [(row, clip, text)], "level")
            out = sheet.output(None, "z" if use_norm else "raw")
            found = [{name: out.scores[name][row].item() for name in out.scores} for row in range(len(clips))]
    rows = [{key: scores[name] for key, name in ALIGN_NAMES.items()} for scores in found]
    return [{**row, "Overall": sum(row.values())} for row in rows]


def _head_scores(judge: VideoJudge, clip: Clip | str, prompt: str | None, use_norm: bool) -> dict[str, float]:
    assert judge.head is not None
    found = dict.fromkeys(ALIGN_NAMES.values(), math.nan)
    if isinstance(clip, Clip) and prompt is not None:
        scores = judge.head_scores([clip], [prompt])
        values = judge.head.normalise(scores) if use_norm else scores
        found |= dict(zip(judge.head.config.dimensions, values[0].tolist(), strict=True))
    return found
