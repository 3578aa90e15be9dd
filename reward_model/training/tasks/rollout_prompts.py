"""Rollout prompts of GRPO: a request about clips with one branch, its label, and how the answer is read.

Shapes: T frames, C = 3, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from reward_model.language.parsing import read_choice, read_scores
from reward_model.language.requests import (
    PREFERENCES,
    SCORE_RANGE,
    closed_request,
    compare_request,
    preference_answer,
    reason_request,
)
from reward_model.media.perturbations import perturb
from reward_model.records import Annotation, Answer, Clip, JudgeRequest, Label, RatedClip, VideoPair, VideoQuestion
from reward_model.training.tasks.supervised import ToClip, choices_of, neighbours, pair_of, turned

LOW, HIGH = SCORE_RANGE


@dataclass(frozen=True)
class RolloutPrompt:
    """One question about clips, as a request with one branch; `group` numbers it within an optimiser step.

    `kind` is the task: "reason" expects a score for every dimension of the label, "compare" and "ask" one of
    `choices`. `one_token` answers are the next token alone, as the comparison is read.
    """

    kind: str
    request: JudgeRequest
    label: Label
    group: int
    choices: tuple[str, ...] = ()
    one_token: bool = False

    def read(self, text: str, *, num_tokens: int, ended: bool) -> Answer:
        """Return a completion as the answer that rewards read."""
        if not ended and not self.one_token:
            return Answer(text, num_tokens, fault=f"not finished after {num_tokens} tokens")
        if self.choices:
            return read_choice(text, num_tokens, self.choices)
        return read_scores(text, num_tokens, tuple(self.label.scores))


def reason_prompt(rated: RatedClip, to_clip: ToClip, *, group: int) -> RolloutPrompt:
    """Ask for a reasoned answer on the dimensions that the clip is rated on (its label on the scale 1 to 5)."""
    scores = {name: LOW + (HIGH - LOW) * float(quality) for name, quality in rated.quality.items()}
    request = reason_request(to_clip(rated.video), rated.prompt, tuple(scores))
    return RolloutPrompt("reason", request, Label(scores=scores), group)


def compare_prompt(pair: VideoPair, to_clip: ToClip, *, group: int) -> RolloutPrompt:
    """Ask which of a pair's clips is better overall, or neither; a pair that is not labelled overall raises ValueError."""
    if "overall" not in pair.preference:
        raise ValueError(f"pair {pair.source_id} is not labelled overall, only {', '.join(pair.preference)}")
    right = preference_answer(pair.preference["overall"] - 0.5).strip()
    request = compare_request(to_clip(pair.first), to_clip(pair.second), pair.prompt)
    return RolloutPrompt("compare", request, Label(choice=right), group, PREFERENCES, one_token=True)


def closed_prompt(asked: VideoQuestion, to_clip: ToClip, *, group: int) -> RolloutPrompt:
    """Ask a question with listed answers."""
    choices = choices_of(asked)
    request = closed_request(to_clip(asked.video), asked.question, asked.options or choices)
    return RolloutPrompt("ask", request, Label(choice=asked.answer), group, choices)


def perturbed(prompt: RolloutPrompt, name: str, generator: torch.Generator) -> RolloutPrompt:
    """Return the same prompt about clips whose frames are disturbed in time, each clip by itself.

    Motion features, which are made from all frames in their true order, are left out.
    """
    clips = tuple(Clip(perturb(clip.frames, name, generator), replace(clip.plan)) for clip in prompt.request.clips)
    return replace(prompt, request=replace(prompt.request, clips=clips))


def plan_prompts(
    annotations: Sequence[Annotation], shares: Mapping[str, float], *, turn: int = 0
) -> list[tuple[str, Annotation]]:
    """Choose the rollout prompts of a batch.

    Args:
        annotations: drawn from the stage's data; neighbouring clips of one prompt, rated overall, make pairs beside the
            labelled ones.
        shares: kind of prompt -> prompts per clip of the batch, at most as many as the annotations allow.
        turn: number of the step; every second pair is swapped, from the first on in odd steps, so that both orders occur
            equally.

    Returns:
        (kind, annotation) for each rollout prompt, reasons first.
    """
    beside = [pair_of(*two) for two in neighbours(annotations)]
    askable: Mapping[str, Sequence[Annotation]] = {
        "reason": [e for e in annotations if isinstance(e, RatedClip)],
        "compare": [
            *turned([e for e in annotations if isinstance(e, VideoPair)], turn),
            *turned([pair for pair in beside if "overall" in pair.preference], turn),
        ],
        "ask": [e for e in annotations if isinstance(e, VideoQuestion)],
    }
    num = sum(2 if isinstance(e, VideoPair) else 1 for e in annotations)
    return [(kind, e) for kind in askable if kind in shares for e in askable[kind][: round(num * shares[kind])]]


def build_prompt(kind: str, annotation: Annotation, to_clip: ToClip, *, group: int) -> RolloutPrompt:
    """Return the rollout prompt of a kind about an annotation of `plan_prompts`."""
    return _BUILD[kind](annotation, to_clip, group=group)


_BUILD: Mapping[str, Callable[..., RolloutPrompt]] = {
    "reason": reason_prompt,
    "compare": compare_prompt,
    "ask": closed_prompt,
}
