"""Clips to features by the vision tower, which may remember them while they are asked about again and again.

GRPO shows a clip three times (rollout, reference, policy), a ranking compares it with many others, a client sends it twice;
as long as nothing in the tower is trained or adapted, its features are the same each time. A hash of the pixels identifies a
clip.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from reward_model.judge.engine.batching import clip_grid, patches_of
from reward_model.judge.families.base import VisionFamily, VisionFeatures, merged
from reward_model.records import Clip

CACHED_PATCHES = 4096
"""Patches that a processor encodes at a time: more outgrow its caches, and were measured a third slower. A GPU takes all."""


class ClipEncoder:
    """The vision tower of a model, run once over all clips of a batch."""

    def __init__(self, model: Any) -> None:
        """Take the model; nothing is remembered at first.

        Args:
            model: the whole vision-language model.
        """
        self._model = model
        self._known: OrderedDict[tuple, VisionFeatures] | None = None
        self._room: int | None = None

    @contextmanager
    def remember(self, num_clips: int | None = None) -> Iterator[None]:
        """Encode each clip once inside this context, unless the tower is adapted, or trained while gradients are on.

        Args:
            num_clips: features kept, those not asked for longest dropped first; None keeps all.

        Yields:
            Nothing; inside another such context, which goes on, that one's limit holds.
        """
        before = self._known, self._room
        if not _is_fixed(self._model.model.visual):
            self._known = None
        elif self._known is None:
            self._known, self._room = OrderedDict(), num_clips
        try:
            yield
        finally:
            self._known, self._room = before

    def features(self, clips: Sequence[Clip], family: VisionFamily, *, quantise: bool) -> VisionFeatures:
        """Return the merged features of all clips in order.

        Args:
            clips: distinct clips.
            family: of the model, with the sizes that clips are shown at.
            quantise: see pixels as 8-bit values.

        Returns:
            The features, with gradient to pixels and weights that require one.
        """
        if self._known is None or any(clip.frames.requires_grad for clip in clips):
            return self._encode(clips, family, quantise=quantise)
        keys = [(_content(clip), family, quantise) for clip in clips]
        held = {key: self._known[key] for key in keys if key in self._known}
        new = {key: clip for key, clip in zip(keys, clips, strict=True) if key not in held}
        if new:
            sizes = [math.prod(merged(clip_grid(clip, family), family.facts)) for clip in new.values()]
            with torch.no_grad():
                encoded = self._encode(list(new.values()), family, quantise=quantise).split(sizes)
            held |= zip(new, encoded, strict=True)
        self._keep(held)
        return VisionFeatures.join([held[key] for key in keys])

    def _keep(self, used: Mapping[tuple, VisionFeatures]) -> None:
        assert self._known is not None
        for key, features in used.items():
            self._known[key] = features
            self._known.move_to_end(key)
        while self._room is not None and len(self._known) > self._room:
            self._known.popitem(last=False)

    def _encode(self, clips: Sequence[Clip], family: VisionFamily, *, quantise: bool) -> VisionFeatures:
        device = self._model.lm_head.weight.device
        features = []
        for chunk in _chunks(clips, family) if device.type == "cpu" else [clips]:
            patches = patches_of(chunk, family, quantise=quantise, device=device)
            features.append(family.encode(self._model, *patches))
        return VisionFeatures.join(features)


def _chunks(clips: Sequence[Clip], family: VisionFamily) -> list[list[Clip]]:
    """Return neighbouring clips together as long as they have at most `CACHED_PATCHES`."""
    chunks: list[list[Clip]] = []
    size = 0
    for clip in clips:
        own = math.prod(clip_grid(clip, family))
        if not chunks or size + own > CACHED_PATCHES:
            chunks.append([])
            size = 0
        chunks[-1].append(clip)
        size += own
    return chunks


def _content(clip: Clip) -> tuple:
    """Return the key of a clip's features: a hash of its pixels, and the plan that places its frames in time."""
    frames = clip.frames.detach()
    data = frames.cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return hashlib.blake2b(data, digest_size=16).digest(), tuple(frames.shape), frames.dtype, clip.plan


def _is_fixed(tower: nn.Module) -> bool:
    """Return whether the tower's features are the same in every role, and no gradient is wanted."""
    learns = torch.is_grad_enabled()
    return not any(".lora_" in name or (learns and weight.requires_grad) for name, weight in tower.named_parameters())
