"""Scores in VideoAlign's form: VQ, MQ, TA and their sum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from reward_model.dimensions import video_align_names
from reward_model.judge.model import VideoJudge
from reward_model.records import NO_PROMPT, AlignedScores, Clip
from reward_model.scoring.assemble import ScoreAssembler
from reward_model.scoring.score import ClipToScore, score_batch

NOT_FINITE = "no finite score"
"""Reason of a score that is missing although the clip could be read and the judge has answered."""


@torch.no_grad()
def align_scores(
    judge: VideoJudge,
    role: str | None,
    clips: Sequence[Clip | str],
    prompts: Sequence[str | None],
    *,
    max_pixels: int | None,
    use_norm: bool,
) -> AlignedScores:
    """Return VQ, MQ, TA and their sum, Overall, of each clip; clips are scored one by one, as VideoAlign does.

    Args:
        judge: the judge; one with a score head is read by that.
        role: adapter that scores.
        clips: B clips, or the reasons why they are unreadable.
        prompts: their prompts.
        max_pixels: pixel cap per frame; None keeps the judge's.
        use_norm: z scores; otherwise raw 1..5, or a head's own numbers.

    Returns:
        A dict per clip, NaN where a score is unavailable, and why.
    """
    names = video_align_names()
    with judge.use_role(role), judge.pixel_cap(max_pixels):
        if judge.head is not None:
            scores = [_head_scores(judge, clip, text, use_norm) for clip, text in zip(clips, prompts, strict=True)]
            reasons = [_head_reason(clip, text) for clip, text in zip(clips, prompts, strict=True)]
        else:
            assembler = ScoreAssembler(tuple(names.values()), len(clips), judge.config, judge.device)
            for index, (clip, text) in enumerate(zip(clips, prompts, strict=True)):
                score_batch(judge, assembler, [ClipToScore(index, clip, text)], "level")
            out = assembler.output(None, "z" if use_norm else "raw")
            scores = [{name: out.scores[name][index].item() for name in out.scores} for index in range(len(clips))]
            reasons = [
                next((out.reasons[name][index] for name in names.values() if out.reasons[name][index]), "")
                for index in range(len(clips))
            ]
    records = [{key: one[name] for key, name in names.items()} for one in scores]
    records = [{**record, "Overall": sum(record.values())} for record in records]
    pairs = zip(records, reasons, strict=True)
    return AlignedScores(records, ["" if math.isfinite(one["Overall"]) else why or NOT_FINITE for one, why in pairs])


def _head_reason(clip: Clip | str, prompt: str | None) -> str:
    return clip if isinstance(clip, str) else NO_PROMPT if prompt is None else ""


def _head_scores(judge: VideoJudge, clip: Clip | str, prompt: str | None, use_norm: bool) -> dict[str, float]:
    assert judge.head is not None
    scores = dict.fromkeys(video_align_names().values(), math.nan)
    if isinstance(clip, Clip) and prompt is not None:
        values = judge.head_scores([clip], [prompt])
        values = judge.head.normalise(values) if use_norm else values
        scores |= dict(zip(judge.head.config.dimensions, values[0].tolist(), strict=True))
    return scores
