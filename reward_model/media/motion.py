"""Motion features of dense clips: effects of frame rate, stutter and flicker, which a judge's few frames cannot show.

An encoder turns all frames of a clip, at their native rate, into one token for each second. It is frozen: its features
are computed once and kept on disk. `TemporalDifferences` needs no weights; `slowfast.SlowFastR50` needs a checkpoint.

Shapes: T frames of the source at their own rate, C = 3 (RGB), H, W pixels; N tokens, F features; n frames of a segment,
g * g blocks of a frame.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

RANGE_SLACK = 1e-3
"""Tolerance of pixels outside [0, 1], for resizes that overshoot."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""

STILL = 1 / 255
"""Mean change of luma below which two frames count as the same picture: one step of 8 bits."""


class MotionEncoder(Protocol):
    """Encoder of motion features; frozen, without gradient, deterministic."""

    @property
    def name(self) -> str:
        """Name of the encoder, settings included."""

    @property
    def weights_hash(self) -> str:
        """SHA-256 in hex of all that its features depend on but its name."""

    @property
    def feature_size(self) -> int:
        """F, features of a token."""

    @property
    def sees_planned(self) -> bool:
        """Whether it is given the planned frames of a clip, not all frames."""

    def encode(self, frames: Tensor, fps: float) -> Tensor:
        """Return one token for each second or so.

        Args:
            frames: all frames of a clip (the planned ones where `sees_planned`), float RGB [T, 3, H, W] in [0, 1].
            fps: their rate in Hz, > 0.

        Returns:
            [N, F] float32, in the order of time, on the frames' device.
        """


class WholeClipEncoder(MotionEncoder, Protocol):
    """Encoder that can also make one token of a whole clip."""

    def encode_whole(self, frames: Tensor, fps: float) -> Tensor:
        """Return one token [1, F] of frames [T, 3, H, W] at a rate in Hz."""


@dataclass(frozen=True)
class PlannedFramesEncoder:
    """An encoder that makes one token of a clip's planned frames, as VQAThinker does."""

    encoder: WholeClipEncoder

    @property
    def name(self) -> str:
        """The encoder's, marked."""
        return f"{self.encoder.name}_of_planned_frames"

    @property
    def weights_hash(self) -> str:
        """The encoder's."""
        return self.encoder.weights_hash

    @property
    def feature_size(self) -> int:
        """The encoder's."""
        return self.encoder.feature_size

    @property
    def sees_planned(self) -> bool:
        """True."""
        return True

    def encode(self, frames: Tensor, fps: float) -> Tensor:
        """Return one token [1, F] of the planned frames."""
        return self.encoder.encode_whole(frames, fps)


@dataclass(frozen=True, kw_only=True)
class TemporalDifferences:
    """Changes of luma from frame to frame in blocks of the picture; deterministic, without weights.

    A token holds, for its segment of the clip,
    - for each lag and block: the square root of the mean absolute change, so that small changes count; the standard
      deviation of that change over time (stutter, jumps); the mean signed change (fades);
    - for each block: the mean luma, its standard deviation over time (flicker) and within the block (contrast);
    - the share of frames that repeat the one before, and log2(fps) / 8.

    All lie in about [-1, 1]; a single frame has only the luma, contrast and rate, as a still picture must.
    """

    segment_seconds: float = 1.0
    """Seconds of a token; shorter ones place a fault more exactly. W2S-VQA uses 1."""
    lags: tuple[int, ...] = (1, 2, 4)
    """Distances in frames over which changes are taken; larger ones see slower motion."""
    grid: int = 4
    """g, blocks of a side."""
    max_side: int = 128
    """Pixels of the longer side after shrinking; more of them see finer motion and more noise."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not (math.isfinite(self.segment_seconds) and self.segment_seconds > 0):
            raise ValueError(f"segment_seconds must be finite and > 0, got {self.segment_seconds!r}")
        if not self.lags or min(self.lags) < 1:
            raise ValueError(f"lags must be frames >= 1, got {self.lags!r}")
        if self.grid < 1 or self.max_side < self.grid:
            raise ValueError(f"need 1 <= grid <= max_side, got {self.grid} and {self.max_side}")

    @property
    def name(self) -> str:
        """Name of the encoder."""
        return "temporal_differences"

    @property
    def weights_hash(self) -> str:
        """SHA-256 of the settings, and of a number that grows whenever the features change."""
        return hashlib.sha256(json.dumps({"version": 1, **asdict(self)}, sort_keys=True).encode()).hexdigest()

    @property
    def feature_size(self) -> int:
        """F: three statistics for each lag and block, three for each block, two for the segment."""
        return 3 * (len(self.lags) + 1) * self.grid**2 + 2

    @property
    def sees_planned(self) -> bool:
        """False."""
        return False

    def encode(self, frames: Tensor, fps: float) -> Tensor:
        """Return one token for each segment.

        Args:
            frames: float RGB [T, 3, H, W] in [0, 1].
            fps: rate in Hz, > 0.

        Returns:
            [N, F] float32 on the frames' device.

        Raises:
            ValueError: frames or rate are not as described.
        """
        check_clip(frames, fps)
        return self._encode(frames, fps, segments(len(frames), fps, self.segment_seconds))

    def encode_whole(self, frames: Tensor, fps: float) -> Tensor:
        """Return one token [1, F] of a whole clip; arguments as `encode`'s."""
        check_clip(frames, fps)
        return self._encode(frames, fps, [(0, len(frames))])

    def _encode(self, frames: Tensor, fps: float, spans: Sequence[tuple[int, int]]) -> Tensor:
        with torch.no_grad():
            luma = torch.cat([self._luma(chunk) for chunk in frames.split(32)])  # [T, 1, h, w]
            rate = luma.new_tensor([math.log2(fps) / 8])
            return torch.stack([torch.cat([*self._token(luma, start, stop), rate]) for start, stop in spans])

    def _luma(self, frames: Tensor) -> Tensor:
        weights = frames.new_tensor(LUMA, dtype=torch.float32)[:, None, None]
        luma = (frames.float() * weights).sum(1, keepdim=True)
        shrink = min(1.0, self.max_side / max(frames.shape[-2:]))
        return F.interpolate(luma, size=[max(1, round(side * shrink)) for side in frames.shape[-2:]], mode="area")

    def _token(self, luma: Tensor, start: int, stop: int) -> list[Tensor]:
        changes = [self._changes(luma, start, stop, lag) for lag in self.lags]
        inside = luma[start:stop]
        brightness = self._blocks(inside)  # [n, g * g]
        contrast = (self._blocks(inside**2) - brightness**2).clamp_min(0).sqrt()
        steps = luma[start : stop + 1].diff(dim=0).abs().mean((1, 2, 3))  # empty for a clip of one frame
        still = (steps < STILL).float().mean().nan_to_num()[None]
        return [*changes, brightness.mean(0), brightness.std(0, unbiased=False), contrast.mean(0), still]

    def _changes(self, luma: Tensor, start: int, stop: int, lag: int) -> Tensor:
        """Return the statistics [3 * g * g] of changes that begin in a segment; zeros where there is none."""
        later = luma[start + lag : stop + lag]
        if len(later) == 0:
            return luma.new_zeros(3 * self.grid**2)
        change = later - luma[start : start + len(later)]
        size = self._blocks(change.abs())
        return torch.cat([size.mean(0).sqrt(), size.std(0, unbiased=False), self._blocks(change).mean(0)])

    def _blocks(self, pictures: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(pictures, self.grid).flatten(1)


@dataclass(frozen=True)
class CachedEncoder:
    """An encoder whose tokens are kept in `folder`, a safetensors file for each clip, named by content."""

    encoder: MotionEncoder
    folder: Path

    @property
    def name(self) -> str:
        """The encoder's."""
        return self.encoder.name

    @property
    def weights_hash(self) -> str:
        """The encoder's."""
        return self.encoder.weights_hash

    @property
    def feature_size(self) -> int:
        """The encoder's."""
        return self.encoder.feature_size

    @property
    def sees_planned(self) -> bool:
        """The encoder's."""
        return self.encoder.sees_planned

    def encode(self, frames: Tensor, fps: float) -> Tensor:
        """Return stored tokens [N, F], computing them first where there are none; arguments as `MotionEncoder`'s."""
        from safetensors.torch import load_file, save_file

        path = self.folder / f"{clip_key(self.encoder, frames, fps)}.safetensors"
        if not path.is_file():
            tokens = self.encoder.encode(frames, fps).to("cpu").contiguous()
            self.folder.mkdir(parents=True, exist_ok=True)
            # Beside and renamed: several processes fill one folder, and a killed one leaves no half file.
            beside = path.with_name(f".{path.stem}-{uuid.uuid4().hex}")
            save_file({"motion": tokens}, str(beside))
            os.replace(beside, path)
        return load_file(str(path))["motion"].to(frames.device)


def cached(encoder: MotionEncoder, folder: str | Path) -> CachedEncoder:
    """Return `encoder` with its tokens kept in `folder`, which may be shared by encoders and processes."""
    return CachedEncoder(encoder, Path(folder))


def clip_key(encoder: MotionEncoder, frames: Tensor, fps: float) -> str:
    """Return the SHA-256 in hex of an encoder's identity, a clip's pixels [T, C, H, W] and its rate in Hz."""
    pixels = frames.detach().to("cpu", torch.float32).contiguous().numpy()
    identity = [encoder.name, encoder.weights_hash, encoder.feature_size, list(pixels.shape), float(fps)]
    digest = hashlib.sha256(json.dumps(identity).encode())
    digest.update(pixels.data)
    return digest.hexdigest()


def segments(num_frames: int, fps: float, seconds: float = 1.0) -> list[tuple[int, int]]:
    """Cut a clip into even segments of about `seconds`, at least one and none of them empty.

    Args:
        num_frames: T, >= 1.
        fps: rate in Hz, > 0.
        seconds: wanted length of a segment.

    Returns:
        First frame and the one after the last of each segment; together they cover the clip.
    """
    count = min(max(1, round(num_frames / (fps * seconds))), num_frames)
    bounds = [step * num_frames // count for step in range(count + 1)]
    return list(zip(bounds, bounds[1:], strict=False))


def check_clip(frames: Tensor, fps: float) -> None:
    """Refuse invalid clips: ValueError unless frames are float RGB [T, 3, H, W] in [0, 1] and fps > 0 Hz."""
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be non-empty RGB [T, 3, H, W], got shape {tuple(frames.shape)}")
    if not frames.is_floating_point():
        raise ValueError(f"frames must be float in [0, 1], got {frames.dtype}")
    low, high = frames.detach().amin().item(), frames.detach().amax().item()
    if not (low >= -RANGE_SLACK and high <= 1 + RANGE_SLACK):
        raise ValueError(f"frames must lie in [0, 1], got [{low:.3g}, {high:.3g}]")
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be a finite rate > 0 in Hz, got {fps!r}")
