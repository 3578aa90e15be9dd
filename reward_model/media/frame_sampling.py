"""Frame sampling: one deterministic planner of the frames that the judge sees, for training and inference.

A plan names index, time and kind of each chosen frame, and travels with the clip to the judge's output. Arithmetic on
indices is exact, so one clip gets one plan on every machine.

Shapes: T source frames, N planned frames.
"""

from __future__ import annotations

import bisect
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from typing import Any, Literal, get_args

from reward_model.records import Clip, FramePlan, Video

Mode = Literal["uniform", "centres", "fps", "all", "slowfast"]


@dataclass(frozen=True, kw_only=True)
class FramePolicy:
    """Rule for choosing frames. Fields that a mode does not name below have no effect on it."""

    mode: Mode = "uniform"
    """uniform: `num_frames` over the whole clip, its first and last among them; centres: the middle one of each of `num_frames`
    equal stretches (VQAThinker); fps: `fps` frames a second within `min_frames..max_frames`; all: every
    frame up to `max_frames`, evenly thinned beyond; slowfast: `num_frames` slow ones with `num_fast_frames` fast ones
    between them."""
    num_frames: int = 8
    """Frames of `uniform` and `centres`, slow frames of `slowfast`; a shorter clip gives all it has."""
    num_fast_frames: int = 24
    """Fast frames of `slowfast`, which families show smaller; more of them catch faster motion."""
    fps: float = 2.0
    """Rate of `fps` in Hz; 2.0 is Qwen2.5-VL's default."""
    min_frames: int = 4
    """Fewest frames of `fps`, as far as the clip has them; 4 is Qwen2.5-VL's default."""
    max_frames: int = 16
    """Most frames of `fps` and `all`; VQ-Insight uses 16."""
    multiple_of: int = 2
    """`fps` rounds its count down to a multiple of this; 2 is the temporal patch of the Qwen families."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.mode not in get_args(Mode):
            raise ValueError(f"frame_policy.mode must be one of {get_args(Mode)}, got {self.mode!r}")
        for name in ("num_frames", "num_fast_frames", "min_frames", "max_frames", "multiple_of"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"frame_policy.{name} must be a whole number >= 1, got {value!r}")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"frame_policy.fps must be a finite rate > 0 in Hz, got {self.fps!r}")
        if self.min_frames > self.max_frames:
            raise ValueError(
                f"frame_policy.min_frames must be <= max_frames, got {self.min_frames} and {self.max_frames}"
            )
        if self.mode == "fps" and self.multiple_of > self.max_frames:
            raise ValueError(
                f"frame_policy.multiple_of must be <= max_frames, got {self.multiple_of} and {self.max_frames}"
            )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> FramePolicy:
        """Build a policy from its saved form; unknown keys are refused.

        Args:
            settings: field name to value, as `to_dict` returns it; missing fields take their defaults.

        Returns:
            The validated policy.

        Raises:
            ValueError: if a key is unknown or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        for key in settings:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else f"; expected {known}"
                raise ValueError(f"frame_policy has no field {key!r}{hint}")
        return cls(**settings)

    def to_dict(self) -> dict[str, object]:
        """Return the fields as plain values, for `judge_config.json`."""
        return asdict(self)


def plan_frames(
    num_frames: int, fps: float, policy: FramePolicy | None, *, times: Sequence[float] | None = None
) -> FramePlan:
    """Choose frames of one clip.

    At a constant rate frames lie evenly by index, first and last included, rounding half to even as Qwen does. At a
    variable rate (`times` off the even grid by more than half a frame) they lie evenly in time, and each is the frame
    on screen at its moment; a frozen picture may thus be chosen more than once.

    Args:
        num_frames: T, frames of the source, >= 1.
        fps: mean rate of the source in Hz, > 0.
        policy: rule for choosing; None takes every frame.
        times: T ascending seconds at which the frames appear; None: index / fps.

    Returns:
        The plan: N ascending indices, times in seconds, kinds, the rate of the chosen frames and that over the whole source.

    Raises:
        ValueError: if there is no frame, the rate is not positive, or the times do not fit.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be >= 1, got {num_frames}")
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be a finite rate > 0 in Hz, got {fps!r}")
    if times and len(times) != num_frames:
        raise ValueError(f"times must have one value per frame: got {len(times)} for {num_frames} frames")
    if times and any(later < earlier for earlier, later in zip(times, times[1:], strict=False)):
        raise ValueError("times must be ascending")
    times = tuple(times) if times else tuple(index / fps for index in range(num_frames))
    count = num_frames if policy is None else _num_planned(num_frames, num_frames / fps, policy)
    centred = policy is not None and policy.mode == "centres"
    indices = (
        [(2 * step + 1) * num_frames // (2 * count) for step in range(count)] if centred else _spread(count, times, fps)
    )
    kinds = ["slow"] * len(indices)
    if policy is not None and policy.mode == "slowfast":
        slow = set(indices)
        fast = set(_spread(min(policy.num_fast_frames, num_frames), times, fps)) - slow
        indices = sorted(slow | fast)
        kinds = ["slow" if index in slow else "fast" for index in indices]
    chosen = tuple(times[index] for index in indices)
    span = chosen[-1] - chosen[0]
    rate = (len(chosen) - 1) / span if span > 0 else fps
    sampled = len(chosen) / num_frames * fps
    return FramePlan(indices=tuple(indices), times=chosen, kinds=tuple(kinds), fps=rate, sampled_fps=sampled)


def take(video: Video, policy: FramePolicy | None) -> Clip:
    """Choose frames of a decoded video; gradients pass to the chosen frames.

    Args:
        video: frames [T, C, H, W] with their rate.
        policy: rule for choosing; None takes every frame.

    Returns:
        Clip of N frames with its plan.
    """
    plan = plan_frames(len(video.frames), video.fps, policy, times=video.times or None)
    return Clip(frames=video.frames[list(plan.indices)], plan=plan, remarks=video.remarks)


def _num_planned(num_frames: int, duration: float, policy: FramePolicy) -> int:
    if policy.mode == "all":
        return min(num_frames, policy.max_frames)
    if policy.mode in ("uniform", "centres", "slowfast"):
        return min(num_frames, policy.num_frames)
    wanted = min(max(duration * policy.fps, policy.min_frames), policy.max_frames, num_frames)
    # The slack keeps 2.0 s at 2 Hz from becoming 3.999 frames.
    return max(math.floor((wanted + 1e-6) / policy.multiple_of) * policy.multiple_of, 1)


def _spread(count: int, times: Sequence[float], fps: float) -> list[int]:
    last = len(times) - 1
    if count == 1:
        return [last // 2]
    if count == last + 1:
        return list(range(count))
    even = all(abs(time - times[0] - index / fps) <= 0.5 / fps for index, time in enumerate(times))
    if even:
        return [round(Fraction(step * last, count - 1)) for step in range(count)]
    moments = [times[0] + (times[-1] - times[0]) * step / (count - 1) for step in range(count)]
    # 1e-9 s: a moment that falls on a frame belongs to that frame, whatever the rounding.
    return [bisect.bisect_right(times, moment + 1e-9) - 1 for moment in moments]
