"""Code that all vision-language families share: pixels to patches, and positions, as plain functions of a model's facts.

Shapes: N clips of one size, T frames, C = 3 channels, H, W pixels, P patches a clip, L tokens, p patch size, m merge size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from reward_model.judge.attention.tree import AttentionSpans
from reward_model.records import FramePlan, VideoError

Grid = tuple[int, int, int]
"""Frame groups, lines and columns of patches of one clip, before merging."""

VideoSpan = tuple[Grid, float] | tuple[Grid, float, int]
"""Neighbouring video tokens: their merged grid, the position step between their frame groups and, where that is more than the
longer side of the grid, the distance from the span's start to the position at which the text goes on."""

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
    """Merged video tokens: `tokens` [N, D], and per deep layer of the text model the features [N, D] that are added there."""

    tokens: Tensor
    deep: tuple[Tensor, ...]

    def select(self, index: Tensor) -> VisionFeatures:
        """Return the tokens of `index` [M]."""
        return VisionFeatures(self.tokens[index], tuple(layer[index] for layer in self.deep))

    def split(self, sizes: Sequence[int]) -> list[VisionFeatures]:
        """Return the tokens as consecutive pieces of these `sizes`."""
        pieces = zip(*(layer.split(list(sizes)) for layer in (self.tokens, *self.deep)), strict=True)
        return [VisionFeatures(tokens, tuple(deep)) for tokens, *deep in pieces]

    @classmethod
    def join(cls, pieces: Sequence[VisionFeatures]) -> VisionFeatures:
        """Return the tokens of all pieces in order."""
        deep = zip(*(piece.deep for piece in pieces), strict=True)
        return cls(torch.cat([piece.tokens for piece in pieces]), tuple(torch.cat(layers) for layers in deep))


@dataclass(frozen=True)
class ProcessorNames:
    """Names of transformers' processor classes, as an exported checkpoint's files give them."""

    whole: str
    images: str
    videos: str


class VisionFamily(Protocol):
    """All that differs between vision-language models; a new family is one such class and an entry in `FAMILIES`."""

    display_name: ClassVar[str]
    """Name in model cards."""
    default_pixels: ClassVar[tuple[int, int]]
    """Least and most pixels, as the family's official processor has them."""
    position_rules: ClassVar[tuple[str, ...]]
    """Rules for position ids; the first is that of the current transformers."""
    server_rule: ClassVar[str]
    """The one of `position_rules` that vLLM and SGLang follow."""
    processors: ClassVar[ProcessorNames]
    """Stock processors that show a clip as the judge sees it."""

    @classmethod
    def of(cls, config: Any, min_pixels: int, max_pixels: int, position_rule: str) -> Self:
        """Read the facts from a model's config."""

    @staticmethod
    def counted_frames(num_frames: int) -> int:
        """Return the number of frames of a clip that share its pixel bounds."""

    @staticmethod
    def scratch_config(
        text: Mapping[str, Any], vision: Mapping[str, Any], rope: Mapping[str, Any], ids: Mapping[str, int]
    ) -> Any:
        """Return the transformers config of a small model, see `families.tiny.build_tiny`.

        Args:
            text: fields of the text model's config, without its rotary embedding.
            vision: "depth", "hidden_size", "intermediate_size", "num_heads", "patch_size", "out_hidden_size".
            rope: fields of the text model's rotary embedding.
            ids: the special tokens' ids by their names in the config.

        Returns:
            The config, whose model type is the family's.
        """

    @property
    def facts(self) -> VisionFacts:
        """The numbers of the model's vision input."""

    @property
    def position_rule(self) -> str:
        """Name of the rule that `video_spans` and `text_positions` follow, as judge_config.json records it."""

    def size(self, num_frames: int, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that a clip is resized to."""

    def placeholder(self, plan: FramePlan, grid: Grid) -> str:
        """Return the text that stands for a clip, with one video token per merged patch."""

    def video_spans(self, plan: FramePlan, grid: Grid) -> list[VideoSpan]:
        """Return each span of neighbouring video tokens; none where video tokens have positions like text."""

    def encode(self, model: Any, patches: Tensor, grids: Tensor) -> VisionFeatures:
        """Run the vision tower on patches [P, ...] of clips with grids [N, 3]."""

    def text(
        self,
        model: Any,
        embeddings: Tensor,
        positions: Tensor,
        spans: AttentionSpans,
        *,
        deep: tuple[Tensor, ...] = (),
        video_mask: Tensor | None = None,
        cache: object | None = None,
    ) -> Tensor:
        """Run the text model: embeddings [B, L, D], positions [3, B, L] -> [B, L, D].

        `deep` is added at the True places of `video_mask` [B, L]; a `cache` is filled.
        """


MAX_RESIZED = 2**23
"""Values of the pictures that are resized together; a larger picture goes alone."""


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
    pictures = rearrange(frames, "n t c h w -> (n t) c h w")
    resized = _quantised(pictures.detach(), size) if quantise else _resize(pictures * 255.0, size)
    if quantise and pictures.requires_grad:
        smooth = _resize(pictures * 255.0, size)
        resized = smooth + (resized - smooth.detach())
    mean, std = (resized.new_tensor(v)[:, None, None] * 255.0 for v in (facts.mean, facts.std))
    normal = rearrange((resized - mean).div_(std), "(n t) c h w -> n t c h w", n=num)
    missing = -num_frames % facts.temporal_patch_size
    if missing:
        normal = torch.cat([normal, normal[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
    return rearrange(
        normal,
        "n (group pair) c (h mh ph) (w mw pw) -> n (group h w mh mw) (c pair ph pw)",
        pair=facts.temporal_patch_size,
        mh=facts.merge_size,
        mw=facts.merge_size,
        ph=facts.patch_size,
        pw=facts.patch_size,
    )


def shrink_whole(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize 8-bit pixels [N, C, H, W] as `patchify` does for `quantise`, which then leaves them as they are."""
    return _resize(pixels, size)


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
        factor: number of which both sides become multiples.
        bounds: least and most pixels of `num_frames` frames together.
        num_frames: frames that share the bounds.
        counted_frames: number of frames counted where the bounds are checked.

    Returns:
        Height and width.

    Raises:
        VideoError: no pixels, or sides that differ by more than a factor of 200.
    """
    if min(height, width) < 1 or num_frames < 1:
        raise VideoError(f"there are no pixels to judge: {num_frames} frames of {height}x{width}")
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise VideoError(f"frames of {height}x{width} are too narrow, the sides may differ by {MAX_ASPECT_RATIO} times")
    least, most = bounds
    tall, wide = round(height / factor) * factor, round(width / factor) * factor
    if counted_frames * tall * wide > most:
        shrink = math.sqrt(num_frames * height * width / most)
        tall, wide = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif counted_frames * tall * wide < least:
        grow = math.sqrt(least / (num_frames * height * width))
        tall, wide = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return tall, wide


def prefix_positions(is_video: Tensor, spans: Sequence[VideoSpan]) -> tuple[Tensor, int]:
    """Return the positions of a prefix and the position of the text token that follows it.

    Text counts up by one; a span of video tokens that starts at s has (s + step * group, s + line, s + column) of its grid;
    the text after it goes on at s + max(lines, columns), or further where the span says so.

    Args:
        is_video: bool [L].
        spans: in order of appearance.

    Returns:
        Positions [3, L] (time, height, width) and the next position.

    Source: get_rope_index of transformers 5.23 (4.57, vLLM and SGLang go on at the maximum over all axes + 1).
    """
    # text text | a grid of 2 groups, 1 line, 3 columns and step 2 | text
    #   time 0 1 | 2 2 2 4 4 4 | 5      line 0 1 | 2 2 2 2 2 2 | 5      column 0 1 | 2 3 4 2 3 4 | 5
    pieces, place, position = [], 0, 0
    flags = is_video.tolist()
    for span in spans:
        (groups, lines, columns), step = span[:2]
        start = flags.index(True, place)
        pieces.append(text_positions(position, start - place))
        position += start - place
        time = time_offsets(groups, step) + position
        axes = torch.meshgrid(time, torch.arange(lines) + position, torch.arange(columns) + position, indexing="ij")
        pieces.append(rearrange(list(axes), "position group line column -> position (group line column)"))
        position += max(lines, columns, *span[2:])
        place = start + groups * lines * columns
    pieces.append(text_positions(position, len(flags) - place))
    return torch.cat(pieces, dim=1), position + len(flags) - place


def time_offsets(groups: int, step: float) -> Tensor:
    """Return [groups] whole positions of frame groups behind their span's start."""
    return (torch.arange(groups) * torch.tensor(step, dtype=torch.float32)).long()


def after_maximum(shown: Grid, step: float) -> VideoSpan:
    """Return the span of a merged grid after which text goes on behind the largest position on any axis."""
    return shown, step, int(time_offsets(shown[0], step)[-1]) + 1


def text_positions(start: int, length: int) -> Tensor:
    """Return [3, length] positions of plain text from `start` on."""
    return repeat(torch.arange(length) + start, "l -> three l", three=3)


def _resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    return F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)


def _quantised(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Return pictures [N, C, H, W] of [0, 1] on the uint8 path, a few at a time, since it makes several copies of them."""
    together = max(1, MAX_RESIZED // pictures[0].numel())
    return torch.cat([_uint8_path(some * 255.0, size) for some in pictures.split(together)])


@torch.no_grad()
def _uint8_path(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    whole = pixels.round().clamp_(0, 255)
    if tuple(pixels.shape[-2:]) == size:
        return whole
    if pixels.device.type == "cpu":
        return _resize(whole.to(torch.uint8), size).to(pixels.dtype)
    # torch has no uint8 resize elsewhere; torchvision rounds the float result there
    return _resize(whole, size).round().clamp(0, 255)
