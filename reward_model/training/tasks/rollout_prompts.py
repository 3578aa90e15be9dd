"""Rollout prompts of GRPO: a request about clips with one branch, its label, and how the answer is read.

Shapes: T frames, C = 3, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from reward_model.language.parsing import read_choice, read_scores
from reward_model.language.requests import (
    PREFERENCES,
    SCORE_RANGE,
    closed_request,
    compare_request,
    preference_answer,
    reason_request,
)
from reward_model.media.intake import MOTION_SIDE
from reward_model.media.motion import CachedEncoder, MotionEncoder
from reward_model.media.perturbations import draw_order, reorder, spread_order
from reward_model.media.video_io import read_video
from reward_model.records import (
    Annotation,
    Answer,
    Clip,
    JudgeRequest,
    Label,
    RatedClip,
    Video,
    VideoPair,
    VideoQuestion,
)
from reward_model.training.tasks.supervised import ToClip, choices_of, neighbours, pair_of, turned

LOW, HIGH = SCORE_RANGE


@dataclass(frozen=True)
class RolloutPrompt:
    """One question about clips, as a request with one branch; `group` numbers it within an optimiser step.

    `kind` is the task: "reason" expects a score for every dimension of the label, "compare" and "ask" one of
    `choices`. `one_token` answers are the next token alone, as the comparison is read. `videos` are those behind the
    request's clips.
    """

    kind: str
    request: JudgeRequest
    label: Label
    group: int
    choices: tuple[str, ...] = ()
    one_token: bool = False
    videos: tuple[Video | Path, ...] = ()

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
    return RolloutPrompt("reason", request, Label(scores=scores), group, videos=(rated.video,))


def compare_prompt(pair: VideoPair, to_clip: ToClip, *, group: int) -> RolloutPrompt:
    """Ask which of a pair's clips is better overall, or neither; a pair that is not labelled overall raises ValueError."""
    if "overall" not in pair.preference:
        raise ValueError(f"pair {pair.source_id} is not labelled overall, only {', '.join(pair.preference)}")
    right = preference_answer(pair.preference["overall"] - 0.5).strip()
    request = compare_request(to_clip(pair.first), to_clip(pair.second), pair.prompt)
    videos = (pair.first, pair.second)
    return RolloutPrompt("compare", request, Label(choice=right), group, PREFERENCES, one_token=True, videos=videos)


def closed_prompt(asked: VideoQuestion, to_clip: ToClip, *, group: int) -> RolloutPrompt:
    """Ask a question with listed answers."""
    choices = choices_of(asked)
    request = closed_request(to_clip(asked.video), asked.question, asked.options or choices)
    return RolloutPrompt("ask", request, Label(choice=asked.answer), group, choices, videos=(asked.video,))


def perturbed(
    prompt: RolloutPrompt, name: str, generator: torch.Generator, *, motion: MotionEncoder | None = None
) -> RolloutPrompt:
    """Return the same prompt about clips whose frames are disturbed in time, each clip by itself.

    Motion features are those of all frames in the disturbed order, so that the prompt has the same slots.

    Args:
        prompt: about the clips as they are.
        name: a key of `PERTURBATIONS`.
        generator: source of all randomness, on the CPU.
        motion: the judge's encoder; needed where the clips have motion features.

    Returns:
        The prompt, whose text and length are the same.

    Raises:
        ValueError: Clips with motion features, and no encoder.
    """
    request, clips = prompt.request, []
    for place, clip in enumerate(request.clips):
        order = draw_order(len(clip.frames), name, generator)
        features = None
        if clip.motion is not None:
            if motion is None:
                raise ValueError("clips with motion features need the judge's motion encoder to be disturbed")
            features = _disturbed_motion(prompt.videos[place], clip, order, motion)
        clips.append(Clip(reorder(clip.frames, order), replace(clip.plan), features))
    return replace(prompt, request=replace(request, clips=tuple(clips)))


def _disturbed_motion(video: Video | Path, clip: Clip, order: Tensor, motion: MotionEncoder) -> Tensor:
    dense = video if isinstance(video, Video) else read_video(video, max_side=MOTION_SIDE)[0]
    everything = spread_order(order, clip.plan.indices, len(dense.frames))
    # each disturbance is drawn once and never comes again: a cache would only grow
    encoder = motion.encoder if isinstance(motion, CachedEncoder) else motion
    return encoder.encode(reorder(dense.frames.detach(), everything), dense.fps)


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
