"""Moving averages of named weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def follow(average: Mapping[str, Tensor], current: Mapping[str, Tensor], *, decay: float) -> None:
    """Move an average in place to decay x average + (1 - decay) x current, exact at both ends.

    One tensor at a time, so that whole models need no room for a third copy.

    Args:
        average: name to tensor, on any device.
        current: the same names and shapes, on any device.
        decay: weight of the average in [0, 1]; 0 makes it a copy of `current`.
    """
    if average.keys() != current.keys():
        raise ValueError(f"weights differ in names: {sorted(average.keys() ^ current.keys())[:3]}")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be in [0, 1], got {decay}")
    for name, tensor in average.items():
        tensor.copy_(torch.lerp(current[name].to(tensor.device), tensor, decay))
