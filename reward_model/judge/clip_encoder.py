"""Clips to features by the vision tower, which may remember them while they are asked about again and again.

GRPO shows a clip three times (rollout, reference, policy) and a ranking compares it with many others; as long as nothing
in the tower is trained or adapted, it makes the same of it each time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from reward_model.judge.batching import clip_grid, patches_of
from reward_model.judge.families.base import Family, VisionFeatures, merged
from reward_model.records import Clip


class ClipEncoder:
    """The vision tower of a model, run once over all clips of a batch."""

    def __init__(self, model: Any) -> None:
        """Take the model; nothing is remembered at first.

        Args:
            model: the whole vision-language model.
        """
        self._model = model
        self._known: dict[tuple, tuple[Clip, VisionFeatures]] | None = None

    @contextmanager
    def remember(self) -> Iterator[None]:
        """Encode each clip once inside this context, unless the tower is adapted, or trained while gradients are on."""
        before, fixed = self._known, _is_fixed(self._model.model.visual)
        self._known = (before or {}) if fixed else None
        try:
            yield
        finally:
            self._known = before

    def features(self, clips: Sequence[Clip], family: Family, *, quantise: bool) -> VisionFeatures:
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
        keys = [(id(clip.frames), clip.plan, family, quantise) for clip in clips]
        new = [(key, clip) for key, clip in zip(keys, clips, strict=True) if key not in self._known]
        if new:
            sizes = [math.prod(merged(clip_grid(clip, family), family.facts)) for _, clip in new]
            with torch.no_grad():
                found = self._encode([clip for _, clip in new], family, quantise=quantise).split(sizes)
            # the clips are held, so that no later one is taken for them by its address
            self._known |= {key: (clip, one) for (key, clip), one in zip(new, found, strict=True)}
        return VisionFeatures.join([self._known[key][1] for key in keys])

    def _encode(self, clips: Sequence[Clip], family: Family, *, quantise: bool) -> VisionFeatures:
        patches, grids = patches_of(clips, family, quantise=quantise, device=self._model.lm_head.weight.device)
        return family.encode(self._model, patches, grids)


def _is_fixed(tower: nn.Module) -> bool:
    """Return whether the tower makes the same of a clip whatever role is in use, and no gradient is wanted."""
    learns = torch.is_grad_enabled()
    return not any(".lora_" in name or (learns and weight.requires_grad) for name, weight in tower.named_parameters())
