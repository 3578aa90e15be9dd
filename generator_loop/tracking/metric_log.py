"""The metric log: one JSON object a line, means over all processes, written by the first."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from generator_loop.processes import gather
from reward_model.files import write_text


class MetricLog:
    """Appends records to `metrics.jsonl` on the first process; the others contribute to the means only."""

    def __init__(self, path: str | Path, *, is_main: bool) -> None:
        self.path, self.is_main = Path(path), is_main

    def rewind(self, step: int, *, round_is_open: bool = False) -> None:
        """Drop the records that a resumed run will write again.

        Args:
            step: iterations finished; records of later steps go.
            round_is_open: the refresh and evaluation at `step` are still to come, so their records go too.
        """
        if self.is_main and self.path.exists():
            kept = [
                record
                for record in read_log(self.path)
                if record["step"] < step
                or (record["step"] == step and (record["kind"] == "iteration" or not round_is_open))
            ]
            write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))

    def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Append one record and return its metrics averaged over the processes.

        Args:
            kind: kind of record ("update", "round", "refresh", ...).
            step: iterations finished so far, over all rounds.
            metrics: this process's numbers; a number that is not finite is written as null.

        Returns:
            The means.
        """
        assert not {"kind", "step"} & metrics.keys(), "a metric may not have the name of the record's own keys"
        means = mean_over_processes(metrics)
        if self.is_main:
            record = {"kind": kind, "step": step, **{name: finite_or_none(value) for name, value in means.items()}}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        return means


class ProgressBar:
    """A bar over all iterations of a run with the remaining time, shown by the first process."""

    def __init__(self, num_iterations: int, *, is_shown: bool) -> None:
        from tqdm import tqdm  # type: ignore[import-untyped]

        self._bar = tqdm(total=num_iterations, disable=not is_shown, unit="iteration", dynamic_ncols=True)

    def start_at(self, step: int) -> None:
        """Count the iterations that were done before a resume."""
        self._bar.initial = self._bar.n = step
        self._bar.refresh()

    def say(self, text: str) -> None:
        """Show the current activity."""
        self._bar.set_description(text)

    def advance(self, text: str) -> None:
        """Count one more iteration."""
        self._bar.set_description(text, refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Return the records of a log; a last line cut short by a kill is left out."""
    records = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def mean_over_processes(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the mean of each metric over the processes that have a finite one; NaN where none has."""
    shares = gather([dict(metrics)])
    names = sorted({name for share in shares for name in share})
    return {name: _mean(share[name] for share in shares if name in share) for name in names}


def finite_or_none(value: float) -> float | None:
    """Return the number, or None (JSON null) if it is not finite."""
    return float(value) if math.isfinite(value) else None


def _mean(values: Iterable[float]) -> float:
    finite = [float(value) for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
