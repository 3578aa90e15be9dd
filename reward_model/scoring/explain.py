"""Explanation of a clip's scores: reasoned text, named faults, and the frames that the score depends on.

Shapes: T judged frames, C = 3, H, W pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reward_model.dimensions import OVERALL, needs_prompt
from reward_model.judge.engine import readouts
from reward_model.judge.model import VideoJudge
from reward_model.language import parsing
from reward_model.language.requests import score_request
from reward_model.records import LEVELS, Clip, Explanation, ParsedAnswer


def explain_clip(judge: VideoJudge, clip: Clip, prompt: str | None) -> Explanation:
    """Explain the scores of one clip with the adapter that is in use."""
    known = tuple(judge.config.dimensions)
    asked = tuple(name for name in known if prompt is not None or not (name == OVERALL or needs_prompt(name)))
    pixels = clip.frames.detach().to(judge.device).requires_grad_(True)
    with torch.enable_grad():
        request = score_request(Clip(pixels, clip.plan), prompt, asked)
        levels = readouts.read_levels(judge.next_token_logits([request])[0], judge.level_ids)
    with torch.no_grad():
        names = judge.config.reasons_about(judge.role_in_use)
        request = judge.style.reason_request(clip, prompt, names)
        text = judge.generate([request], max_new_tokens=judge.config.max_answer_tokens)[0][0][0]
    answer = judge.style.parse_reason(text, ())
    parsed = answer if isinstance(answer, ParsedAnswer) else ParsedAnswer({}, "")
    return Explanation(
        text=text,
        quality={name: parsed.quality.get(name, math.nan) for name in known},
        levels={name: LEVELS[int(levels.level_probs[i].argmax())] for i, name in enumerate(asked)},
        labels=parsing.parse_faults(parsed.reasoning),
        saliency={name: _frame_shares(levels.quality[i], pixels) for i, name in enumerate(asked)},
        words=judge.config.wording.get("source", ""),
        reason="" if isinstance(answer, ParsedAnswer) else answer.reason + _advice(judge, prompt),
    )


def _advice(judge: VideoJudge, prompt: str | None) -> str:
    """Return the next move after an answer that cannot be read."""
    if prompt is None:
        return "; give the clip's prompt (--prompt TEXT, or prompt=...), with which judges are taught to reason"
    taught = ", ".join(name or "the base" for name in judge.config.reasoned) or "none"
    return f"; is this role taught to reason? judge_config.json names under reasoned: {taught}"


def _frame_shares(quality: Tensor, pixels: Tensor) -> Tensor:
    """Return [T]: each frame's share of the absolute gradient of `quality`."""
    (gradient,) = torch.autograd.grad(quality, pixels, retain_graph=True)
    energy = gradient.abs().sum(dim=(1, 2, 3))
    return energy / energy.sum().clamp_min(1e-12)
