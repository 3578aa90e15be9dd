"""Names of the columns of an evaluation: its judges, and the sources beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

INITIAL, CURRENT, AUDIT = "initial", "current", "audit"
"""The judges that look at an evaluation: as it was at the start, as it is, and the one that never learns."""


Measure = Callable[[Tensor, str], Mapping[str, float]]
"""measure(frames [T, C, H, W], prompt) -> named numbers."""


ORACLE, OPEN, SPREAD = "oracle", "open", "latents/spread"
"""Sources of columns beside the judges: the world's oracle, the features that prompts leave open, and the spread of latents."""
