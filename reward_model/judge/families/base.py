"""What every vision-language family shares: pixels to patches, and positions, as plain functions of a model's facts.

Shapes: N clips of one size, T frames, C = 3 channels, H, W pixels, P patches a clip, L tokens, p patch size, m merge size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from reward_model.judge.attention.tree import Seen
from reward_model.records import FramePlan

Grid = tuple[int, int, int]
"""Frame groups, rows and columns of patches of one clip, before merging."""

Run = tuple[Grid, float] | tuple[Grid, float, int]
"""An unbroken run of video tokens: its merged grid, the position step between its frame groups and, where that is more than
the longer side of the grid, how far behind the run's start the text goes on."""

MAX_ASPECT_RATIO = 200


@dataclass(frozen=True)
class VisionFacts:
    """The numbers of one model's vision input; `mean` and `std` are per channel on the [0, 1] scale."""

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    video_token_id: int

    @classmethod
    def of(cls, config: Any, mean: tuple[float, float, float], std: tuple[float, float, float]) -> VisionFacts:
        """Read the numbers from a model's config; mean and deviation stand in its processor's."""
        vision = config.vision_config
        return cls(
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
            mean=mean,
            std=std,
            video_token_id=config.video_token_id,
        )

    @property
    def factor(self) -> int:
        """Side in pixels of one merged token."""
        return self.patch_size * self.merge_size


@dataclass(frozen=True)
class VisionFeatures:
    """Merged video tokens: `tokens` [N, D], and per deep layer of the text model what is added there [N, D]."""

    tokens: Tensor
    deep: tuple[Tensor, ...]

    def select(self, index: Tensor) -> VisionFeatures:
        """Return the rows of `index` [M]."""
        return VisionFeatures(self.tokens[index], tuple(layer[index] for layer in self.deep))

    def split(self, sizes: Sequence[int]) -> list[VisionFeatures]:
        """Return runs of neighbouring rows, `sizes` of them each."""
        parts = zip(*(layer.split(list(sizes)) for layer in (self.tokens, *self.deep)), strict=True)
        return [VisionFeatures(tokens, tuple(deep)) for tokens, *deep in parts]

    @classmethod
    def join(cls, parts: Sequence[VisionFeatures]) -> VisionFeatures:
        """Return the rows of all parts in order."""
        deep = zip(*(part.deep for part in parts), strict=True)
        return cls(torch.cat([part.tokens for part in parts]), tuple(torch.cat(layers) for layers in deep))


class Family(Protocol):
    """All that differs between vision-language models."""

    @property
    def facts(self) -> VisionFacts:
        """The numbers of the model's vision input."""

    @property
    def position_rule(self) -> str:
        """Name of the rule that `runs` and `text_positions` follow, as judge_config.json records it."""

    def size(self, num_frames: int, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that a clip is resized to."""

    def placeholder(self, plan: FramePlan, grid: Grid) -> str:
        """Return the text that stands for a clip, with one video token per merged patch."""

    def runs(self, plan: FramePlan, grid: Grid) -> list[Run]:
        """Return each unbroken run of video tokens; none where video tokens have positions like text."""

    def encode(self, model: Any, patches: Tensor, grids: Tensor) -> VisionFeatures:
        """Run the vision tower on patches [P, ...] of clips with grids [N, 3]."""

    def text(
        self,
        model: Any,
        embeddings: Tensor,
        positions: Tensor,
        seen: Seen,
        *,
        deep: tuple[Tensor, ...] = (),
        video_mask: Tensor | None = None,
        cache: object | None = None,
    ) -> Tensor:
        """Run the text model: embeddings [B, L, D], positions [3, B, L] -> [B, L, D].

        `deep` is added at the True places of `video_mask` [B, L]; a `cache` is filled.
        """


def patchify(frames: Tensor, size: tuple[int, int], facts: VisionFacts, *, quantise: bool) -> Tensor:
    """Turn frames into the patches of the official processors, differentiably and without torchvision.

    Args:
        frames: RGB [N, T, C, H, W] in [0, 1], any float dtype.
        size: height and width to resize to, multiples of `facts.factor`.
        facts: the model's numbers.
        quantise: give the value of the processors' uint8 path with the gradient of the float resize (straight through);
            otherwise both come from the float resize.

    Returns:
        [N, P, C * temporal patch * p * p] in merge-block order.

    Source: transformers 5.23, Qwen2VLVideoProcessor and Qwen3VLVideoProcessor.
    """
    num, num_frames = frames.shape[:2]
    pixels = frames.flatten(0, 1) * 255.0  # [N * T, C, H, W]
    resized = _uint8_path(pixels.detach(), size) if quantise else _resize(pixels, size)
    if quantise and pixels.requires_grad:
        smooth = _resize(pixels, size)
        resized = smooth + (resized - smooth.detach())
    mean, std = (resized.new_tensor(v)[:, None, None] * 255.0 for v in (facts.mean, facts.std))
    normal = (resized - mean).div_(std).unflatten(0, (num, num_frames))
    missing = -num_frames % facts.temporal_patch_size
    if missing:
        normal = torch.cat([normal, normal[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
    groups, p, m = normal.shape[1] // facts.temporal_patch_size, facts.patch_size, facts.merge_size
    rows, columns = size[0] // p, size[1] // p
    blocks = normal.reshape(num, groups, facts.temporal_patch_size, 3, rows // m, m, p, columns // m, m, p)
    blocks = blocks.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
    return blocks.reshape(num, groups * rows * columns, -1)


def grid_of(num_frames: int, size: tuple[int, int], facts: VisionFacts) -> Grid:
    """Return the grid of a clip that was resized to `size`."""
    return (-(-num_frames // facts.temporal_patch_size), size[0] // facts.patch_size, size[1] // facts.patch_size)


def merged(grid: Grid, facts: VisionFacts) -> Grid:
    """Return the grid of merged tokens."""
    return grid[0], grid[1] // facts.merge_size, grid[2] // facts.merge_size


def bounded_size(
    height: int, width: int, factor: int, bounds: tuple[int, int], *, num_frames: int = 1, counted_frames: int = 1
) -> tuple[int, int]:
    """Return the size that the official processors resize frames to.

    Args:
        height: of a frame in pixels.
        width: of a frame in pixels.
        factor: what both sides become multiples of.
        bounds: least and most pixels of `num_frames` frames together.
        num_frames: frames that share the bounds.
        counted_frames: as many as are counted where it is asked whether the bounds hold.

    Returns:
        Height and width.

    Raises:
        ValueError: sides that differ by more than a factor of 200.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(f"frames of {height}x{width} are too narrow, the sides may differ by {MAX_ASPECT_RATIO} times")
    least, most = bounds
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if counted_frames * rows * columns > most:
        shrink = math.sqrt(num_frames * height * width / most)
        rows, columns = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif counted_frames * rows * columns < least:
        grow = math.sqrt(least / (num_frames * height * width))
        rows, columns = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return rows, columns


def prefix_positions(is_video: Tensor, runs: Sequence[Run]) -> tuple[Tensor, int]:
    """Return the positions of a prefix and the position of the text token that follows it.

    Text counts up by one; a run of video tokens that starts at s has (s + step * group, s + row, s + column); the text
    after it goes on at s + max(rows, columns), or further where the run says so.

    Args:
        is_video: bool [L].
        runs: in order of appearance.

    Returns:
        Positions [3, L] (time, height, width) and the next position.

    Source: get_rope_index of transformers 5.23 (4.57 went on at the maximum over all axes + 1).
    """
    parts, place, position = [], 0, 0
    flags = is_video.tolist()
    for run in runs:
        (groups, rows, columns), step = run[:2]
        start = flags.index(True, place)
        parts.append(text_positions(position, start - place))
        position += start - place
        time = time_offsets(groups, step) + position
        axes = torch.meshgrid(time, torch.arange(rows) + position, torch.arange(columns) + position, indexing="ij")
        parts.append(torch.stack(axes).reshape(3, -1))
        position += max(rows, columns, *run[2:])
        place = start + groups * rows * columns
    parts.append(text_positions(position, len(flags) - place))
    return torch.cat(parts, dim=1), position + len(flags) - place


def time_offsets(groups: int, step: float) -> Tensor:
    """Return [groups] whole positions of frame groups behind their run's start."""
    return (torch.arange(groups) * torch.tensor(step, dtype=torch.float32)).long()


def text_positions(start: int, length: int) -> Tensor:
    """Return [3, length] positions of plain text from `start` on."""
    return (torch.arange(length) + start).expand(3, -1)


def _resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    return F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)


@torch.no_grad()
def _uint8_path(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    whole = pixels.round().clamp_(0, 255)
    if tuple(pixels.shape[-2:]) == size:
        return whole
    if pixels.device.type == "cpu":
        return _resize(whole.to(torch.uint8), size).to(pixels.dtype)
    # torch has no uint8 resize elsewhere; torchvision rounds the float result there
    return _resize(whole, size).round().clamp(0, 255)
