"""The frozen records that cross file borders in the judge package.

Shape legend: B batch, T frames, C = 3 channels, H, W pixels, D dimensions, K = 5 rating levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from reward_model.dimensions import BY_NAME

if TYPE_CHECKING:
    from torch import Tensor

DIMENSIONS = tuple(BY_NAME)
"""Names of the rated dimensions, in the order in which the judge is asked for them."""

NO_PROMPT = "no prompt"
"""Reason reported when a dimension that needs a prompt, such as text alignment, is requested without one."""

LEVELS = ("bad", "poor", "fair", "good", "excellent")
"""The five rating words, worst first; level k stands for quality k / 4."""

CLIP_MEASURES = ("fps", "frames", "pixels")
"""Bounds of a trained range: Hz of the frames that the judge sees, their number, and pixels of a source frame."""


class VideoError(ValueError):
    """A video that cannot be read or is damaged; the message is the reason shown to the user."""


@dataclass(frozen=True)
class Video:
    """Decoded frames of one clip.

    `frames` is float32 RGB [T, C, H, W] in [0, 1]; `fps` is in Hz and refers to these frames as consecutive;
    `times` [T] are seconds from the clip's start (empty: index / fps); `source` names where the clip came from, `remarks` what
    the frames do not show of it.
    """

    frames: Tensor
    fps: float
    times: tuple[float, ...] = ()
    source: str = ""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class FramePlan:
    """Frames that the judge sees: `indices` into the source, `times` in seconds, `kinds` in {"slow", "fast"}.

    `fps` is the rate in Hz at which the chosen frames follow one another. `sampled_fps` is their number over the seconds of the
    whole source, which is lower where the first and the last frame are among them; 0 stands for `fps`.
    """

    indices: tuple[int, ...]
    times: tuple[float, ...]
    kinds: tuple[str, ...]
    fps: float
    sampled_fps: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Clip:
    """Input of the judge for one video: planned frames, float32 RGB [T, C, H, W] in [0, 1], and the plan that chose them.

    `motion` [N, F] holds features of all frames by a motion encoder, for judges that were trained with them; `remarks` are the
    video's. `source_size` is the height and width of the source where `frames` were shrunk to the judge's size while they
    were read.
    """

    frames: Tensor
    plan: FramePlan
    motion: Tensor | None = None
    source_size: tuple[int, int] | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class JudgeRequest:
    """One prefix shared by several branches.

    `prefix` is text, with the int i in place of clip number i; each of `branches` continues the same prefix.
    """

    clips: tuple[Clip, ...]
    prefix: tuple[str | int, ...]
    branches: tuple[str, ...]


@dataclass(frozen=True)
class RatedClip:
    """A clip with known quality: `quality` maps a dimension to [0, 1] (higher is better); missing means unknown.

    `source_id` names the clip's origin, by which splits are made. `facts` describes how it was
    made (defect, severity, scene), for explanations and tables. `place` is the file and line of the label.
    """

    video: Video | Path
    prompt: str | None
    quality: Mapping[str, float]
    source_id: str
    facts: Mapping[str, object] = field(default_factory=dict)
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class VideoPair:
    """Two clips of one prompt; `preference` maps a dimension to P(first is better) in {0, 0.5, 1}; `place` as in `RatedClip`."""

    first: Video | Path
    second: Video | Path
    prompt: str | None
    preference: Mapping[str, float]
    source_id: str
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class VideoQuestion:
    """A question about one image or video with its right answer; `options` is empty for free-form answers.

    `kind` is the data set's own word for the type of question, `source_id` names the clip's origin,
    `place` is as in `RatedClip`.
    """

    video: Video | Path
    question: str
    options: tuple[str, ...]
    answer: str
    kind: str
    source_id: str
    place: str = field(default="", compare=False)


Annotation = RatedClip | VideoPair | VideoQuestion
"""A rated clip, a labelled pair, or a question with its answer: one item of labelled data."""


@dataclass(frozen=True)
class ParsedAnswer:
    """A well-formed reasoned answer: `quality` per dimension in [0, 1] and the reasoning text."""

    quality: Mapping[str, float]
    reasoning: str


@dataclass(frozen=True)
class ParseFailure:
    """A malformed reasoned answer, with the reason and the generated text."""

    reason: str
    text: str


@dataclass(frozen=True)
class Answer:
    """One sampled answer as the rewards of GRPO see it.

    `text` is the whole completion without its end token and `num_tokens` its length including that token. `scores` maps a
    dimension to its number as written in the text (on the scale 1 to 5), `choice` is the chosen word of a closed question
    ("A", "B", "neither", "yes", "no"). A malformed answer has neither, and `fault` gives the reason (empty: well-formed).
    """

    text: str
    num_tokens: int
    scores: Mapping[str, str] = field(default_factory=dict)
    choice: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Label:
    """Labels of the clip behind an answer: dimension -> mean opinion on the scale 1 to 5, or the right `choice`."""

    scores: Mapping[str, float] = field(default_factory=dict)
    choice: str = ""


@dataclass(frozen=True)
class RewardValues:
    """Rewards of N answers: `values` [N] in float32 and the terms that they are made of, name -> [N], unweighted."""

    values: Tensor
    breakdown: Mapping[str, Tensor]


@dataclass(frozen=True)
class LevelReadout:
    """Level readout of one question for N inputs; the readout of a single input lacks the axis N.

    `quality` [N] in [0, 1] keeps its gradient; `level_probs` [N, K]; `std` [N] is the rating spread in quality units,
    not a certainty; `mass` [N] is the probability that the model puts on the five words.
    """

    quality: Tensor
    level_probs: Tensor
    std: Tensor
    mass: Tensor


@dataclass(frozen=True)
class PreferenceReadout:
    """Readout of N comparisons, in one order of the clips.

    `p_first`, `p_second`, `p_tie` [N] are probabilities over the three answer words; `mass` [N] is the probability that the
    model puts on these words.
    """

    p_first: Tensor
    p_second: Tensor
    p_tie: Tensor
    mass: Tensor

    def swapped(self) -> PreferenceReadout:
        """Return the same readout with the clips of each pair exchanged."""
        return PreferenceReadout(self.p_second, self.p_first, self.p_tie, self.mass)


@dataclass(frozen=True)
class RewardOutput:
    """Scores of B videos, as `VideoJudgeReward` returns them.

    Attributes:
        rewards: [B], overall unless weights were given; NaN where unavailable.
        scores: dimension -> [B]; NaN where invalid.
        std: dimension -> [B], rating spread (NaN for a greedy reasoned answer).
        level_probs: dimension -> [B, K] (empty for the reasoned readout).
        level_mass: dimension -> [B].
        valid: dimension -> bool [B].
        reasons: dimension -> B strings, empty where valid.
        texts: B reasoned answers, or None.
        frame_plan: B plans, None where the clip could not be read.
        overall_from: per video, the dimensions whose mean is `overall` if the judge was not asked for it.
        warnings: per video, what its frames do not show (high dynamic range, transparency, ...), and its properties outside the
            judge's training range.
    """

    rewards: Tensor
    scores: Mapping[str, Tensor]
    std: Mapping[str, Tensor]
    level_probs: Mapping[str, Tensor]
    level_mass: Mapping[str, Tensor]
    valid: Mapping[str, Tensor]
    reasons: Mapping[str, Sequence[str]]
    texts: Sequence[str] | None
    frame_plan: Sequence[FramePlan | None]
    overall_from: Sequence[tuple[str, ...]]
    warnings: Sequence[tuple[str, ...]] = ()


@dataclass(frozen=True)
class AlignedScores:
    """Scores of B videos in VideoAlign's form.

    Attributes:
        records: B dicts with VQ, MQ, TA and Overall; NaN where a score is unavailable.
        reasons: B; why a score is unavailable, empty if all four are numbers.
    """

    records: list[dict[str, float]]
    reasons: list[str]


@dataclass(frozen=True)
class Ranking:
    """Outcome of `rank` for N videos: `order` holds their places in the group, best first.

    An unreadable video is missing from it and has its reason in `reasons` [N] ("" otherwise).
    """

    order: tuple[int, ...]
    reasons: Sequence[str]
    num_compared: int


@dataclass(frozen=True)
class Comparison:
    """Outcome of `compare` for B pairs: `p_first`, `p_tie` [B] in [0, 1], `margin` [B] in [-1, 1], `valid` bool [B].

    `margin` is P(first better) - P(second better), averaged over both orders when swapped; `consistent` bool [B]
    says whether both orders agree on the winner.
    """

    p_first: Tensor
    p_tie: Tensor
    margin: Tensor
    valid: Tensor
    reasons: Sequence[str]
    consistent: Tensor


@dataclass(frozen=True)
class Explanation:
    """Explanation of one video's scores, as `VideoJudgeReward.explain` returns it.

    Attributes:
        text: the reasoned answer as generated.
        quality: dimension -> [0, 1] as the reasoned answer states it, NaN if it is malformed.
        levels: dimension -> most probable level word of the level readout.
        labels: dimension -> faults that the reasoning names for it.
        saliency: dimension -> [T], share of each judged frame in the pixel gradient of the level score; sums to 1.
        reason: empty, or why the reasoned answer is malformed.
    """

    text: str
    quality: Mapping[str, float]
    levels: Mapping[str, str]
    labels: Mapping[str, tuple[str, ...]]
    saliency: Mapping[str, Tensor]
    reason: str
