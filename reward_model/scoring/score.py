"""Planned clips to scores: what is asked of the judge, and where its answers are entered.

Shapes: B clips, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reward_model.judge.engine import readouts
from reward_model.judge.model import VideoJudge
from reward_model.language.requests import score_request
from reward_model.records import DIMENSIONS, Clip
from reward_model.scoring.assemble import ScoreSheet

Row = tuple[int, Clip | str, str | None]
"""A place on the sheet, the clip or why there is none, and its prompt."""


def open_sheet(
    judge: VideoJudge,
    role: str | None,
    num_rows: int,
    *,
    dimensions: Sequence[str] | None,
    weights: Mapping[str, float] | None,
    readout: str,
    num_samples: int,
    differentiable: bool = False,
) -> ScoreSheet:
    """Return an empty sheet of what is to be scored, in the judge's order.

    Args:
        judge: the judge.
        role: adapter that scores.
        num_rows: B.
        dimensions: of the call; None for all of the judge's, or for all that the role reasons about.
        weights: of the call.
        readout: of the call.
        num_samples: of the call.
        differentiable: of the call.

    Returns:
        The sheet.

    Raises:
        ValueError: unknown or missing dimensions, or settings that do not go together.
    """
    if judge.head is not None:
        raise ValueError("this judge scores by a head at special tokens: call reward(video_paths, prompts)")
    if readout not in ("level", "reason"):
        raise ValueError(f"readout must be 'level' or 'reason', got {readout!r}")
    known = tuple(judge.config.dimensions)
    for name in (*(dimensions or ()), *(weights or ())):
        if name not in known:
            raise ValueError(f"unknown dimension {name!r}; this judge has {', '.join(known)}")
    if dimensions is not None and not dimensions:
        raise ValueError("dimensions must name at least one dimension")
    named = judge.config.reasons_about(role, tuple(dimensions or ())) if readout == "reason" else ()
    asked = tuple(dimensions or named or known)
    if weights is not None and not weights:
        raise ValueError("weights must name at least one dimension, got none; leave them out for the overall score")
    missing = set(weights or ()) - set(asked)
    if missing:
        raise ValueError(f"weights name dimensions that are not scored: {sorted(missing)}; add them to dimensions")
    if num_samples < 1 or (num_samples > 1 and readout != "reason"):
        raise ValueError(f"num_samples must be >= 1, and 1 for readout='level', got {num_samples}")
    if differentiable and readout != "level":
        raise ValueError("differentiable=True needs readout='level': generated text has no gradient")
    dims = tuple(name for name in DIMENSIONS if name in asked)
    return ScoreSheet(dims, num_rows, judge.config, judge.device, named=named)


def score_rows(judge: VideoJudge, sheet: ScoreSheet, rows: Sequence[Row], readout: str, num_samples: int = 1) -> None:
    """Ask the role in use about one batch of clips and enter what it says.

    Args:
        judge: the judge.
        sheet: receives scores and reasons.
        rows: the batch.
        readout: "level" or "reason".
        num_samples: reasoned answers to average.
    """
    readable = [
        (row, clip, prompt, asked)
        for row, clip, prompt in rows
        if (asked := sheet.enter(row, clip, prompt)) and isinstance(clip, Clip)
    ]
    if not readable:
        return
    if readout == "level":
        requests = [score_request(clip, prompt, asked) for _, clip, prompt, asked in readable]
        logits = judge.next_token_logits(requests)
        for (row, _, _, asked), branches in zip(readable, logits, strict=True):
            sheet.put_levels(row, asked, readouts.read_levels(branches, judge.level_ids))
        return
    answers = judge.generate(
        [judge.style.reason_request(clip, prompt, sheet.named) for _, clip, prompt, _ in readable],
        max_new_tokens=judge.config.max_answer_tokens,
        num_samples=num_samples,
        temperature=1.0 if num_samples > 1 else 0.0,
    )
    for (row, _, _, asked), (texts,) in zip(readable, answers, strict=True):
        sheet.put_answers(row, asked, texts, [judge.style.parse_reason(text, asked) for text in texts])
