"""From planned clips to scores: requests to the judge, whose answers a `ScoreAssembler` collects.

Shapes: B clips, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from reward_model.dimensions import in_order
from reward_model.judge.engine import readouts
from reward_model.judge.model import VideoJudge
from reward_model.language.requests import score_request
from reward_model.records import Clip
from reward_model.scoring.assemble import ScoreAssembler


class ClipToScore(NamedTuple):
    """A planned clip, or the reason why it is unreadable, with its index among the assembler's clips and its prompt."""

    index: int
    clip: Clip | str
    prompt: str | None


def open_assembler(
    judge: VideoJudge,
    role: str | None,
    num_clips: int,
    *,
    dimensions: Sequence[str] | None,
    weights: Mapping[str, float] | None,
    readout: str,
    num_samples: int,
    differentiable: bool = False,
) -> ScoreAssembler:
    """Return an assembler of the requested scores, still without any.

    Args:
        judge: the judge.
        role: adapter that scores.
        num_clips: B.
        dimensions: of the call; None for all dimensions of the judge, or all that the role reasons about.
        weights: of the call.
        readout: of the call.
        num_samples: of the call.
        differentiable: of the call.

    Returns:
        The assembler, its dimensions in the order of the table.

    Raises:
        ValueError: unknown or missing dimensions, or settings that exclude each other.
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
    return ScoreAssembler(in_order(asked), num_clips, judge.config, judge.device, named=named)


def score_batch(
    judge: VideoJudge, assembler: ScoreAssembler, batch: Sequence[ClipToScore], readout: str, num_samples: int = 1
) -> None:
    """Ask the adapter in use about one batch of clips and record its answers.

    Args:
        judge: the judge.
        assembler: receives scores and reasons.
        batch: clips of one forward pass.
        readout: "level" or "reason".
        num_samples: reasoned answers to average.
    """
    readable = [
        (index, clip, prompt, asked)
        for index, clip, prompt in batch
        if (asked := assembler.add_clip(index, clip, prompt)) and isinstance(clip, Clip)
    ]
    if not readable:
        return
    if readout == "level":
        requests = [score_request(clip, prompt, asked) for _, clip, prompt, asked in readable]
        logits = judge.next_token_logits(requests)
        for (index, _, _, asked), branches in zip(readable, logits, strict=True):
            assembler.add_levels(index, asked, readouts.read_levels(branches, judge.level_ids))
        return
    answers = judge.generate(
        [judge.style.reason_request(clip, prompt, assembler.named) for _, clip, prompt, _ in readable],
        max_new_tokens=judge.config.max_answer_tokens,
        num_samples=num_samples,
        temperature=1.0 if num_samples > 1 else 0.0,
    )
    for (index, _, _, asked), (texts,) in zip(readable, answers, strict=True):
        assembler.add_answers(index, asked, texts, [judge.style.parse_reason(text, asked) for text in texts])
