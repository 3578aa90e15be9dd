"""What GRPO asks about clips: a request with one branch, the label, and how the answer is read.

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
from reward_model.training.tasks.supervised import ToClip, choices_of, neighbours, pair_of

LOW, HIGH = SCORE_RANGE


@dataclass(frozen=True)
class Question:
    """One question with one branch; `group` numbers it within an optimiser step.

    `kind` names what is asked: "reason" expects a score for every dimension of the label, "compare" and "ask" one of
    `choices`. `one_token` answers are the next token alone, as the comparison is read.
    """

    kind: str
    request: JudgeRequest
    label: Label
    group: int
    choices: tuple[str, ...] = ()
    one_token: bool = False

    def read(self, text: str, *, num_tokens: int, ended: bool) -> Answer:
        """Return a completion as the rewards see it."""
        if not ended and not self.one_token:
            return Answer(text, num_tokens, fault=f"not finished after {num_tokens} tokens")
        if self.choices:
            return read_choice(text, num_tokens, self.choices)
        return read_scores(text, num_tokens, tuple(self.label.scores))


def reason_question(rated: RatedClip, to_clip: ToClip, *, group: int) -> Question:
    """Ask for a reasoned answer on the dimensions that the clip is rated on (its label on the scale 1 to 5)."""
    scores = {name: LOW + (HIGH - LOW) * float(quality) for name, quality in rated.quality.items()}
    request = reason_request(to_clip(rated.video), rated.prompt, tuple(scores))
    return Question("reason", request, Label(scores=scores), group)


def compare_question(pair: VideoPair, to_clip: ToClip, *, group: int) -> Question:
    """Ask which of a pair's clips is better overall, or neither; a pair that is not labelled overall raises ValueError."""
    if "overall" not in pair.preference:
        raise ValueError(f"pair {pair.source_id} is not labelled overall, only {', '.join(pair.preference)}")
    right = preference_answer(pair.preference["overall"] - 0.5).strip()
    request = compare_request(to_clip(pair.first), to_clip(pair.second), pair.prompt)
    return Question("compare", request, Label(choice=right), group, PREFERENCES, one_token=True)


def closed_question(asked: VideoQuestion, to_clip: ToClip, *, group: int) -> Question:
    """Ask a question with listed answers."""
    choices = choices_of(asked)
    request = closed_request(to_clip(asked.video), asked.question, asked.options or choices)
    return Question("ask", request, Label(choice=asked.answer), group, choices)


def perturbed(question: Question, name: str, generator: torch.Generator) -> Question:
    """Return the same question about clips whose frames are disturbed in time, each clip by itself.

    Motion features, which tell of all frames in their true order, are left out.
    """
    clips = tuple(Clip(perturb(clip.frames, name, generator), replace(clip.plan)) for clip in question.request.clips)
    return replace(question, request=replace(question.request, clips=clips))


def plan_questions(examples: Sequence[Annotation], shares: Mapping[str, float]) -> list[tuple[str, Annotation]]:
    """Choose what is asked about a batch.

    Args:
        examples: drawn from the stage's data; neighbouring clips of one prompt, rated overall, make pairs beside the labelled.
        shares: kind of question -> questions per clip of the batch, at most as many as the examples allow.

    Returns:
        (kind, example) for each question, reasons first.
    """
    found: Mapping[str, Sequence[Annotation]] = {
        "reason": [e for e in examples if isinstance(e, RatedClip)],
        "compare": [
            *(e for e in examples if isinstance(e, VideoPair)),
            *(pair for pair in (pair_of(*two) for two in neighbours(examples)) if "overall" in pair.preference),
        ],
        "ask": [e for e in examples if isinstance(e, VideoQuestion)],
    }
    num = sum(2 if isinstance(e, VideoPair) else 1 for e in examples)
    return [(kind, e) for kind in found if kind in shares for e in found[kind][: round(num * shares[kind])]]


def ask(kind: str, example: Annotation, to_clip: ToClip, *, group: int) -> Question:
    """Return the question of a kind about an example of `plan_questions`."""
    return _ASK[kind](example, to_clip, group=group)


_ASK: Mapping[str, Callable[..., Question]] = {
    "reason": reason_question,
    "compare": compare_question,
    "ask": closed_question,
}
