"""Moving averages of named weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def blend(average: Mapping[str, Tensor], current: Mapping[str, Tensor], *, decay: float) -> dict[str, Tensor]:
    """Return decay x average + (1 - decay) x current, exact at both ends.

    Args:
        average: name to tensor.
        current: the same names and shapes.
        decay: weight of the average in [0, 1]; 0 returns a copy of `current`.

    Returns:
        New tensors under the same names.
    """
    if average.keys() != current.keys():
        raise ValueError(f"weights differ in names: {sorted(average.keys() ^ current.keys())[:3]}")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be in [0, 1], got {decay}")
    return {name: torch.lerp(current[name], average[name], decay) for name in current}
