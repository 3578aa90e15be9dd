"""Judges behind vLLM and SGLang: clips for which their positions are those of a judge, and the change of its scores elsewhere.

Both servers let text go on after the largest position on any axis, transformers 5.23 after the longer side of the merged grid.
That is the same until the last frame group's time lies beyond the longer side: short or large clips agree, long or small ones do
not. vLLM moreover puts Qwen3-VL's frame groups in the place of start, video token and end, which transformers 5.23 keeps around
them. The servers themselves are not run here; their rules are those of `server_rule` of the families.

Shapes: T frames, C = 3 channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reward_model.judge.checkpoints.format import JudgeConfig
from reward_model.judge.engine.readouts import read_levels
from reward_model.judge.families.base import Grid, VisionFamily, grid_of, time_offsets
from reward_model.judge.model import VideoJudge
from reward_model.language.requests import askable, score_request
from reward_model.media.frame_sampling import FramePolicy, plan_frames
from reward_model.records import Clip, FramePlan

RATE = 24.0
"""Frame rate in Hz of clips whose range of training is unknown."""

LONGEST = 60.0
"""Longest clip in seconds that is looked at."""

SIZES = ((224, 224), (448, 448), (480, 832), (720, 1280))
"""Heights and widths of the clips whose lengths a model card states."""


@dataclass(frozen=True)
class ScoreChange:
    """Change of a judge's scores under a server's rule, over some clips of one length and size and all dimensions."""

    seconds: float
    height: int
    width: int
    num_clips: int
    mean: float
    most: float


def server_family(family: VisionFamily) -> VisionFamily:
    """Return the family with the rule of the servers; one that does not know it is refused (ValueError)."""
    if family.server_rule not in family.position_rules:
        raise ValueError(
            f"{family.display_name} has no position rule of servers among {', '.join(family.position_rules)}"
        )
    return replace(family, position_rule=family.server_rule)  # type: ignore[type-var]


def is_served_alike(family: VisionFamily, plan: FramePlan, grid: Grid) -> bool:
    """Return whether a server gives a clip the tokens and positions of the judge.

    Args:
        family: of the judge, with its rule.
        plan: of the clip.
        grid: of the clip's patches.

    Returns:
        True where both agree.
    """
    server = server_family(family)
    shown = [_shown(one, plan, grid) for one in (family, server)]
    return shown[0] == shown[1]


def first_differences(
    config: JudgeConfig, family: VisionFamily, sizes: Sequence[tuple[int, int]] = SIZES
) -> dict[tuple[int, int], float | None]:
    """Return, per size, the length in seconds of the shortest clip whose positions on a server are others than the judge's.

    Args:
        config: of the judge; its policy chooses the frames, at the highest rate that it was trained on.
        family: of the judge.
        sizes: heights and widths of frames in pixels.

    Returns:
        Height and width -> seconds; None where clips of every number of frames up to `LONGEST` agree.
    """
    rate = trained_rate(config)
    found: dict[tuple[int, int], float | None] = {size: None for size in sizes}
    for num_frames in range(1, int(LONGEST * rate) + 1):
        plan = _plan(config, num_frames)
        for size in [size for size, seconds in found.items() if seconds is None]:
            if not is_served_alike(family, plan, _grid(family, plan, *size)):
                found[size] = num_frames / rate
        if None not in found.values():
            break
    return found


def trained_rate(config: JudgeConfig) -> float:
    """Return the highest frame rate in Hz that a judge was trained on; `RATE` where it is unknown."""
    return config.trained_range.get("fps", (RATE, RATE))[1]


def score_change(judge: VideoJudge, role: str | None, *, num_clips: int = 3) -> ScoreChange | None:
    """Return the change of a judge's level scores under the servers' rule, at a size where it differs.

    Args:
        judge: the judge, which is left as it was.
        role: that is read.
        num_clips: drifting coloured noise of this many seeds.

    Returns:
        The change over clips of the fewest pixels that the judge is shown, and of the longest length that it was trained on, or of
        the shortest whose positions differ if that is longer; None where they do not differ.
    """
    side, rate = _smallest_side(judge.family), trained_rate(judge.config)
    shortest = first_differences(judge.config, judge.family, [(side, side)])[side, side]
    if shortest is None:
        return None
    plan = _plan(judge.config, int(judge.config.trained_range.get("frames", (0, 0))[1]))
    if is_served_alike(judge.family, plan, _grid(judge.family, plan, side, side)):
        plan = _plan(judge.config, round(shortest * rate))
    seconds = len(plan.times) / (plan.sampled_fps or rate)
    clips = [Clip(_noise(len(plan.times), side, seed), plan) for seed in range(num_clips)]
    own = _scores(judge, role, clips)
    with _positions_of(judge, server_family(judge.family)):
        change = (_scores(judge, role, clips) - own).abs()
    return ScoreChange(seconds, side, side, num_clips, float(change.mean()), float(change.max()))


def _shown(family: VisionFamily, plan: FramePlan, grid: Grid) -> tuple[Any, ...]:
    """Return the placeholder and, per span, the merged grid, the times of its groups and the distance to the text behind it."""
    spans = family.video_spans(plan, grid)
    places = [(shape, time_offsets(shape[0], step).tolist(), max(*shape[1:], *rest)) for (shape, step, *rest) in spans]
    return family.placeholder(plan, grid), places


def _plan(config: JudgeConfig, num_frames: int) -> FramePlan:
    return plan_frames(max(1, num_frames), trained_rate(config), FramePolicy.from_dict(config.frame_policy))


def _grid(family: VisionFamily, plan: FramePlan, height: int, width: int) -> Grid:
    num = len(plan.times)
    return grid_of(num, family.size(num, height, width), family.facts)


def _smallest_side(family: VisionFamily) -> int:
    """Return the side in pixels of the smallest square that the family shows one frame at."""
    return family.size(1, family.facts.factor, family.facts.factor)[0]


def _noise(num_frames: int, side: int, seed: int) -> Tensor:
    """Return coarse colours [T, 3, side, side] that drift a pixel a frame."""
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    picture = F.interpolate(coarse, (side, side), mode="bilinear")[0]
    return torch.stack([picture.roll(number, dims=2) for number in range(num_frames)])


@torch.no_grad()
def _scores(judge: VideoJudge, role: str | None, clips: list[Clip]) -> Tensor:
    """Return the qualities of all clips and dimensions that need no prompt."""
    names = askable(judge.config.dimensions, None)
    with judge.use_role(role):
        logits = judge.next_token_logits([score_request(clip, None, names) for clip in clips])
    return read_levels(torch.cat(logits), judge.level_ids).quality


@contextmanager
def _positions_of(judge: VideoJudge, family: VisionFamily) -> Iterator[None]:
    """Read the judge with the positions of a family inside this context."""
    before, judge.family = judge.family, family
    try:
        yield
    finally:
        judge.family = before
