"""torchmetrics: the judge as a metric whose state is gathered over processes.

    from reward_model.hosts.torchmetrics import VideoJudgeMetric  # needs torchmetrics

    metric = VideoJudgeMetric("path/to/judge", fps=16)
    metric.update(videos, prompts)  # in every validation step, on every process
    metric.compute()                # {"overall": .., "visual_quality": .., ..., "valid": ..}

    overall = VideoJudgeMetric("path/to/judge", fps=16, dimension="overall")  # one number
    MetricTracker(overall).best_metric()                                      # a dict has no best value

Metrics are pickled without their judge, which is loaded again from its place, and plotted by `plot`.

Source: Lightning-AI/torchmetrics 1.9, Metric and wrappers.MetricTracker.

Shapes: B videos, N videos of all updates and processes, T frames, C = 3 channels, H, W pixels, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pickle import PicklingError
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from reward_model.hosts.core import JudgeLike, load_judge, scores_of, with_time

VALID = "valid"
"""Name of the share of videos with a reward."""


class VideoJudgeMetric(Metric):
    """Mean of each dimension over the videos that have a score, and the share of videos with a reward.

    Copies of the metric (`clone`, collections, trackers) share its judge, which stays on its own device. A metric of all
    dimensions has no `higher_is_better`, as a tracker would look for one best value.
    """

    is_differentiable = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    scores: list[Tensor]

    def __init__(
        self,
        judge: JudgeLike,
        *,
        fps: float | None,
        layout: str = "BTCHW",
        device: str | torch.device | None = None,
        dimension: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Load the judge.

        Args:
            judge: a judge, or where to load it from.
            fps: frame rate in Hz of tensors; None if all videos are files.
            layout: axes of tensors.
            device: device to load the judge on.
            dimension: the one dimension, or "valid", that `compute` returns; None returns all in a dict.
            **kwargs: arguments of `torchmetrics.Metric`.

        Raises:
            ValueError: the judge has no such dimension.
        """
        super().__init__(**kwargs)
        self._judge = _SharedJudge(judge, device)
        self.fps, self.layout, self.dimension = fps, layout, dimension
        self.dimensions = tuple(self._judge.judge.judge.config.dimensions)
        if dimension is not None and dimension not in (*self.dimensions, VALID):
            names = ", ".join((*self.dimensions, VALID))
            raise ValueError(f"dimension must be None or one of {names}, got {dimension!r}")
        # flat: a process without videos then has a state of the same rank as the others
        self.add_state("scores", default=[], dist_reduce_fx="cat")

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]  # a constant in metrics of one kind of result
        """True for one dimension; None, which is no best value, for a dict of all."""
        return None if self.dimension is None else True

    def update(self, videos: Tensor | Sequence[Any], prompts: str | Sequence[str | None] | None = None) -> None:
        """Score B videos; a missing reward counts as not valid, and its reason is a warning.

        Args:
            videos: as in a call of the judge, e.g. [B, T, C, H, W] in [0, 1].
            prompts: one per video; without them text alignment is missing.
        """
        if isinstance(videos, Tensor) and self.layout == "BTCHW":
            videos = with_time(videos)
        out = self._judge.judge(videos, prompts, fps=self.fps, layout=self.layout)
        scores_of(out, None).checked("nan")
        scores = torch.stack([*(out.scores[name] for name in self.dimensions), out.rewards], dim=1)  # [B, D + 1]
        self.scores.append(scores.flatten().to(self.device))

    def compute(self) -> dict[str, Tensor] | Tensor:
        """Return the mean of each dimension, NaN if no video has it, and "valid", the share of videos with a reward.

        Returns:
            All in a dict, or the one of `dimension`.
        """
        scores = rearrange(dim_zero_cat(self.scores), "(n d) -> n d", d=len(self.dimensions) + 1)  # [N, D + 1]
        means = dict(zip(self.dimensions, scores[:, :-1].nanmean(dim=0), strict=True))
        values = {**means, VALID: scores[:, -1].isfinite().float().mean()}
        return values if self.dimension is None else values[self.dimension]

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one or several results of `compute` with matplotlib.

        Args:
            val: results; None computes one now.
            ax: axes to draw on; None makes a figure.

        Returns:
            Figure and axes.
        """
        return self._plot(val, ax)


class _SharedJudge:
    """A judge that deep copies of its owner share, and that is pickled as the place to load it from."""

    def __init__(self, source: JudgeLike, device: str | torch.device | None) -> None:
        self.source, self.device = source, device
        self.judge = load_judge(source, device=device)

    def __deepcopy__(self, memo: dict[int, Any]) -> _SharedJudge:
        return self

    def __reduce__(self) -> tuple[type[_SharedJudge], tuple[str | Path, str | torch.device | None]]:
        if not isinstance(self.source, (str, Path)):
            raise PicklingError("a metric of a loaded judge cannot be pickled: give it the judge's folder or hub id")
        return _SharedJudge, (self.source, self.device)
