"""Rollout prompts of GRPO: a request about clips with one branch, its label, and how the answer is read.

Shapes: T frames, C = 3, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from reward_model.language.requests import SCORE_RANGE, preference_answer
from reward_model.language.styles import OWN, STYLES, Style
from reward_model.media.intake import MOTION_SIDE
from reward_model.media.motion import CachedEncoder, MotionEncoder
from reward_model.media.perturbations import BLACK, draw_order, reorder, spread_order
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
    request's clips, `style` reads the answers, and `draw` numbers the disturbed forms of one prompt.
    """

    kind: str
    request: JudgeRequest
    label: Label
    group: int
    choices: tuple[str, ...] = ()
    one_token: bool = False
    videos: tuple[Video | Path, ...] = ()
    style: Style = STYLES[OWN]
    draw: int = 0

    @property
    def name(self) -> str:
        """Name of the prompt among those of a step, which keys the sampling of its answers."""
        return f"{self.group}.{self.draw}" if self.draw else str(self.group)

    def read(self, text: str, *, num_tokens: int, ended: bool) -> Answer:
        """Return a completion as the answer that rewards read."""
        if not ended and not self.one_token:
            return Answer(text, num_tokens, fault=f"not finished after {num_tokens} tokens")
        if self.choices:
            return self.style.read_choice(text, num_tokens, self.choices)
        return self.style.read_scores(text, num_tokens, tuple(self.label.scores))


def reason_prompt(rated: RatedClip, to_clip: ToClip, *, group: int, style: Style = STYLES[OWN]) -> RolloutPrompt:
    """Ask for a reasoned answer on the dimensions that the clip is rated on (its label on the scale 1 to 5)."""
    scores = {name: LOW + (HIGH - LOW) * float(quality) for name, quality in rated.quality.items()}
    request = style.reason_request(to_clip(rated.video), rated.prompt, tuple(scores))
    return RolloutPrompt("reason", request, Label(scores=scores), group, videos=(rated.video,), style=style)


def compare_prompt(pair: VideoPair, to_clip: ToClip, *, group: int, style: Style = STYLES[OWN]) -> RolloutPrompt:
    """Ask which of a pair's clips is better overall, or neither where the style has that answer.

    Args:
        pair: labelled pair.
        to_clip: reads the videos.
        group: number of the prompt.
        style: form of the question.

    Returns:
        The prompt.

    Raises:
        ValueError: The pair is not labelled overall, or is a tie that the style has no answer for.
    """
    if "overall" not in pair.preference:
        raise ValueError(f"pair {pair.source_id} is not labelled overall, only {', '.join(pair.preference)}")
    right = preference_answer(pair.preference["overall"] - 0.5).strip()
    if right not in style.preferences:
        raise ValueError(
            f"a tie, which is none of the answers {', '.join(style.preferences)}; set ties: false for the data"
        )
    request = style.compare_request(to_clip(pair.first), to_clip(pair.second), pair.prompt)
    return RolloutPrompt(
        "compare",
        request,
        Label(choice=right),
        group,
        style.preferences,
        one_token=not style.reasons_to_compare,
        videos=(pair.first, pair.second),
        style=style,
    )


def closed_prompt(asked: VideoQuestion, to_clip: ToClip, *, group: int, style: Style = STYLES[OWN]) -> RolloutPrompt:
    """Ask a question with listed answers."""
    choices = choices_of(asked)
    request = style.ask_request(to_clip(asked.video), asked.question, asked.options or choices)
    return RolloutPrompt("ask", request, Label(choice=asked.answer), group, choices, videos=(asked.video,), style=style)


def perturbed(
    prompt: RolloutPrompt,
    name: str,
    generator: torch.Generator,
    *,
    motion: MotionEncoder | None = None,
    blank_colour: tuple[float, float, float] = BLACK,
) -> RolloutPrompt:
    """Return the same prompt about clips whose frames are disturbed in time, each clip by itself.

    Motion features are those of the frames in the disturbed order, so that the prompt has the same slots.

    Args:
        prompt: about the clips as they are.
        name: a key of `PERTURBATIONS`, or `ANY`.
        generator: source of all randomness, on the CPU.
        motion: the judge's encoder; needed where the clips have motion features.
        blank_colour: RGB in [0, 1] of lost frames.

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
            features = _disturbed_motion(prompt.videos[place], clip, order, motion, blank_colour)
        clips.append(Clip(reorder(clip.frames, order, blank_colour=blank_colour), replace(clip.plan), features))
    return replace(prompt, request=replace(request, clips=tuple(clips)))


def _disturbed_motion(
    video: Video | Path, clip: Clip, order: Tensor, motion: MotionEncoder, colour: tuple[float, float, float]
) -> Tensor:
    """Return the motion features of a clip whose planned frames are disturbed by `order`, lost ones in a colour."""
    if motion.sees_planned:
        encoder = motion.encoder if isinstance(motion, CachedEncoder) else motion
        return encoder.encode(reorder(clip.frames.detach(), order, blank_colour=colour), clip.plan.fps)
    dense = video if isinstance(video, Video) else read_video(video, max_side=MOTION_SIDE)[0]
    everything = spread_order(order, clip.plan.indices, len(dense.frames))
    # each disturbance is drawn once and never comes again: a cache would only grow
    encoder = motion.encoder if isinstance(motion, CachedEncoder) else motion
    return encoder.encode(reorder(dense.frames.detach(), everything, blank_colour=colour), dense.fps)


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


def build_prompt(
    kind: str, annotation: Annotation, to_clip: ToClip, *, group: int, style: Style = STYLES[OWN]
) -> RolloutPrompt:
    """Return the rollout prompt of a kind about an annotation of `plan_prompts`, in a judge's style."""
    return _BUILD[kind](annotation, to_clip, group=group, style=style)


_BUILD: Mapping[str, Callable[..., RolloutPrompt]] = {
    "reason": reason_prompt,
    "compare": compare_prompt,
    "ask": closed_prompt,
}
