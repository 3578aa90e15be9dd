"""Sanity checks of a judge: clips are damaged on purpose, and the scores of the damaged dimension must fall.

Every clip is its own control: a check measures the change of its score, whose mean has a bootstrap interval. Clips are
damaged as the judge sees them, in the frames that its plan chooses.

| damage | change | must fall |
|---|---|---|
| prompt_swap | another clip's prompt | text alignment |
| shuffle | frames in random order | motion quality |
| freeze | the first frame throughout | motion quality |
| reverse | last frame first | text alignment, where the prompt names a direction |
| blur, noise | strong; blur is in proportion to the frame's side | visual quality |
| half_fps, double_fps | the same frames at another rate | nothing: reported, as frame rate changes what some judges see |

Shapes: T frames, C = 3 (RGB), H, W pixels.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from reward_model.dimensions import BY_NAME, needs_prompt
from reward_model.evaluation.benchmark import ProgressCallback, ScoringReward
from reward_model.evaluation.metrics import Interval, bootstrap_interval
from reward_model.evaluation.tables import format_rows, nulls
from reward_model.media import distortions
from reward_model.media.frame_sampling import FramePolicy
from reward_model.media.perturbations import perturb
from reward_model.media.video_io import read_video
from reward_model.records import RatedClip, RewardOutput, Video, VideoError
from reward_model.toy_world import moving_shapes as world

DIRECTION = re.compile(
    r"\b((left|right|up|down|for|back)(wards?)?|ris(es|ing)|fall(s|ing)|approach(es|ing)|away|towards?)\b", re.I
)
"""Words of a prompt by which a clip that runs backwards shows something else."""

SEVERITY = 3.0
"""Of blur and noise: strong."""

MIN_CLIPS = 5
"""Fewer cannot show a direction: even if all scores fall, chance does that once in 2 ** 4 or more often."""

Damage = Callable[[Video, torch.Generator], Video]


@dataclass(frozen=True)
class Check:
    """A damage and a dimension that it must lower; where `must_fall` is False the change is reported only."""

    damage: str
    dimension: str
    must_fall: bool = True


CHECKS = (
    Check("prompt_swap", "text_alignment"),
    Check("prompt_swap", "visual_quality", must_fall=False),
    Check("shuffle", "motion_quality"),
    Check("freeze", "motion_quality"),
    Check("reverse", "text_alignment"),
    Check("reverse", "motion_quality", must_fall=False),
    Check("blur", "visual_quality"),
    Check("noise", "visual_quality"),
    Check("half_fps", "motion_quality", must_fall=False),
    Check("half_fps", "text_alignment", must_fall=False),
    Check("double_fps", "motion_quality", must_fall=False),
    Check("double_fps", "text_alignment", must_fall=False),
)


@dataclass(frozen=True)
class SanityRow:
    """One check over the `num_clips` that have both scores.

    `before` and `after` are mean scores, `change` is the mean change with its 95 % interval [low, high], `share_fallen`
    the share of clips whose score fell. `num_warned` clips had more warnings than before. `holds` says whether the whole
    interval is below 0; None where nothing is expected, or fewer than `MIN_CLIPS` could be tested.
    """

    damage: str
    dimension: str
    must_fall: bool
    num_clips: int
    before: float
    after: float
    change: float
    low: float
    high: float
    share_fallen: float
    num_warned: int
    holds: bool | None


@dataclass(frozen=True)
class SanityTable:
    """One row for each check; `num_unread` clips were unreadable."""

    rows: tuple[SanityRow, ...]
    num_unread: int

    @property
    def failed(self) -> tuple[SanityRow, ...]:
        """Rows whose expected direction does not hold."""
        return tuple(row for row in self.rows if row.holds is False)

    def to_json(self) -> dict[str, object]:
        """Return plain values, undefined ones as None."""
        rows = [nulls(asdict(row)) for row in self.rows]
        return {"rows": rows, "num_unread": self.num_unread, "num_failed": len(self.failed)}

    def format(self) -> str:
        """Return the table as text, with a line that sums it up."""
        shown = [
            asdict(row) | {"must_fall": "yes" if row.must_fall else "-", "holds": _verdict(row)} for row in self.rows
        ]
        tested = [row for row in self.rows if row.holds is not None]
        text = f"{len(tested) - len(self.failed)} of {len(tested)} expected directions hold"
        unread = f"; {self.num_unread} clips could not be read" if self.num_unread else ""
        return f"{format_rows(shown)}\n{text}{unread}"


def sanity(
    judge: ScoringReward,
    clips: Sequence[RatedClip],
    *,
    policy: FramePolicy | None = None,
    allow_damaged: bool = False,
    batch_size: int = 16,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> SanityTable:
    """Damage clips and test whether the scores fall as they must.

    Args:
        judge: reward that scores.
        clips: good clips that fit their prompts are the most informative; labels are not used.
        policy: the judge's frame plan, by which files are read; None reads all frames.
        allow_damaged: see `read_video`.
        batch_size: clips per call.
        seed: of prompt swaps and random damage.
        progress: told after each batch of clips.

    Returns:
        The table, in the order of `CHECKS`.

    Raises:
        ValueError: there are no clips.
    """
    if not clips:
        raise ValueError("there are no clips to damage")
    asked = [clip.prompt for clip in clips]
    swapped = _swap_prompts(asked, random.Random(seed))
    outcomes = {trial: _Outcome(len(clips)) for trial in TRIALS}
    num_unread = 0
    for start in range(0, len(clips), batch_size):
        indices = range(start, min(start + batch_size, len(clips)))
        read = {index: _read(clips[index].video, policy, allow_damaged) for index in indices}
        videos = {index: video for index, video in read.items() if video is not None}
        num_unread += len(read) - len(videos)
        for trial, damage in TRIALS.items() if videos else ():
            shown = [damage(video, _generator(seed, index)) for index, video in videos.items()]
            prompts = swapped if trial == "prompt_swap" else asked
            outcomes[trial].add(list(videos), judge(shown, [prompts[index] for index in videos], readout="level"))
        if progress:
            progress(indices.stop, len(clips))
    named = np.array([bool(DIRECTION.search(prompt or "")) for prompt in asked])
    fits = {"prompt_swap": np.array([new is not None for new in swapped]), "reverse": named}
    return SanityTable(tuple(_sanity_row(check, outcomes, fits) for check in CHECKS), num_unread)


class _Outcome:
    """Outcome of one trial: scores, dimension -> [N], NaN where unavailable, and [N] numbers of warnings."""

    def __init__(self, num_clips: int) -> None:
        self.scores = {dimension: np.full(num_clips, np.nan) for dimension in BY_NAME}
        self.warnings = np.zeros(num_clips, int)

    def add(self, indices: list[int], output: RewardOutput) -> None:
        """Record the judge's scores and warnings of the clips numbered `indices`."""
        for dimension, values in output.scores.items():
            self.scores[dimension][indices] = values.tolist()
        if output.warnings:
            self.warnings[indices] = [len(warnings) for warnings in output.warnings]


def clean_shapes(num: int, *, seed: int) -> list[RatedClip]:
    """Draw clips of the embedded world to damage: held-out scenes, without fault, that fit their captions."""
    held_out = world.split(world.CORE)[1]
    return world.sample_rated(num, seed=seed, scenes=held_out, clean_share=1.0, match_share=1.0)


def _generator(seed: int, index: int) -> torch.Generator:
    """Return the clip's own stream, the same in any batch."""
    return torch.Generator().manual_seed(seed * 1_000_003 + index)


def _swap_prompts(prompts: Sequence[str | None], rng: random.Random) -> list[str | None]:
    """Give every clip the prompt of another that has a different one; None where there is none."""
    known = sorted({prompt for prompt in prompts if prompt})
    return [rng.choice([p for p in known if p != own]) if own and len(known) > 1 else None for own in prompts]


def _read(video: Video | Path, policy: FramePolicy | None, allow_damaged: bool) -> Video | None:
    if isinstance(video, Video):
        return video
    try:
        return read_video(video, policy=policy, allow_damaged=allow_damaged)[0]
    except VideoError:
        return None


def _sanity_row(check: Check, outcomes: Mapping[str, _Outcome], fits: Mapping[str, NDArray[np.bool_]]) -> SanityRow:
    as_it_is, damaged = outcomes["as_it_is"], outcomes[check.damage]
    before, after = as_it_is.scores[check.dimension], damaged.scores[check.dimension]
    both = np.isfinite(before) & np.isfinite(after)
    if needs_prompt(check.dimension):
        both &= fits.get(check.damage, np.ones_like(both))
    before, change = before[both], (after - before)[both]
    enough, nan = len(change) >= MIN_CLIPS, float("nan")
    mean = bootstrap_interval(np.mean, change) if enough else Interval(nan, nan, nan, len(change), 0)
    return SanityRow(
        damage=check.damage,
        dimension=check.dimension,
        must_fall=check.must_fall,
        num_clips=len(change),
        before=float(before.mean()) if enough else nan,
        after=float((before + change).mean()) if enough else nan,
        change=mean.value,
        low=mean.low,
        high=mean.high,
        share_fallen=float((change < 0).mean()) if enough else nan,
        num_warned=int((damaged.warnings > as_it_is.warnings).sum()),
        holds=mean.high < 0 if check.must_fall and enough else None,
    )


def _verdict(row: SanityRow) -> str:
    if row.holds is None:
        return "not tested" if row.num_clips < MIN_CLIPS else "reported"
    return "yes" if row.holds else "NO"


def _distort(name: str, severity: float) -> Damage:
    return lambda v, generator: replace(
        v, frames=distortions.distort(v.frames, name, severity, generator=generator, fps=v.fps)
    )


def _reorder(name: str) -> Damage:
    return lambda v, generator: replace(v, frames=perturb(v.frames, name, generator))


def _retime(factor: float) -> Damage:
    return lambda v, generator: replace(v, fps=v.fps * factor, times=tuple(t / factor for t in v.times))


def _as_it_is(video: Video, generator: torch.Generator) -> Video:
    return video


TRIALS: dict[str, Damage] = {
    "as_it_is": _as_it_is,
    "prompt_swap": _as_it_is,
    "shuffle": _reorder("shuffle"),
    "freeze": _distort("freeze", 4.0),
    "reverse": _reorder("reverse"),
    "blur": _distort("blur", SEVERITY),
    "noise": _distort("noise", SEVERITY),
    "half_fps": _retime(0.5),
    "double_fps": _retime(2.0),
}
"""Name -> damage to the frames."""
