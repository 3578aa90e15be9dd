"""One scored video as a JSON object, a line of a table, or a line of a CSV file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward_model.commands.inputs import Item
from reward_model.dimensions import BY_NAME
from reward_model.records import DIMENSIONS, NO_PROMPT
from reward_model.scoring.json_records import output_records, unscored_record
from reward_model.terminal import visible

Result = dict[str, Any]
"""Result of one video as a JSON object."""

SHORT = {name: entry.short for name, entry in BY_NAME.items()}
"""Dimension -> heading of its column on the terminal."""

CSV_COLUMNS = (
    *("path", "prompt", "valid"),
    *DIMENSIONS,
    *(f"{name}_std" for name in DIMENSIONS),
    *("overall_from", "reasons", "warnings", "text", "frames", "judged_by"),
)
"""Columns of a CSV of scores; an empty cell is a missing value."""


@dataclass(frozen=True)
class Reading:
    """Options of a score: `readout` level or reason, the mean of `samples` answers, `normalize` as in a call."""

    readout: str = "level"
    samples: int = 1
    normalize: str = "unit"


def judged_by(args: argparse.Namespace, reading: Reading) -> str:
    """Return one line that names judge and reading; scores are comparable only if their lines are equal."""
    samples = f" samples={reading.samples}" if reading.samples > 1 else ""
    return f"{args.judge} role={args.role} readout={reading.readout}{samples} scores={reading.normalize}"


def score_items(judge: Any, items: Sequence[Item], reading: Reading, maker: str) -> list[Result]:
    """Score a batch; `maker` is the line of `judged_by`."""
    output = judge(
        [item.path for item in items],
        [item.prompt for item in items],
        readout=reading.readout,
        num_samples=reading.samples,
        normalize=reading.normalize,
        batch_size=len(items),
    )
    records = output_records(output, [item.prompt for item in items])
    return [{"path": item.path, **record, "judged_by": maker} for item, record in zip(items, records, strict=True)]


def unscored(item: Item, reason: str, maker: str) -> Result:
    """Return the result of a video without a score."""
    return {"path": item.path, **unscored_record(reason, item.prompt), "judged_by": maker}


def table_head(width: int) -> str:
    """Return the heading of a table whose paths take `width` characters."""
    return "  ".join(["file".ljust(width), *(name.rjust(7) for name in SHORT.values()), "remarks"])


def table_line(result: Result, width: int) -> str:
    """Return one line of the table."""
    scores = [result["scores"].get(name) for name in SHORT]
    cells = ["-".rjust(7) if score is None else f"{score:7.3f}" for score in scores]
    remarks = list(dict.fromkeys(reason for reason in result["reasons"].values() if reason != NO_PROMPT))
    if result["valid"] and result["reasons"]:
        remarks.append(f"no prompt: overall is the mean of {' and '.join(result['overall_from'])}")
    remarks += result["warnings"]
    return "  ".join([visible(result["path"]).ljust(width), *cells, visible("; ".join(remarks))]).rstrip()


def json_line(result: Mapping[str, Any]) -> str:
    """Return a result as one line of strict JSON, without the line end."""
    return json.dumps(result, allow_nan=False)


def csv_line(result: Result) -> str:
    """Return a result as one CSV record (RFC 4180 quoting, which may hold line ends), without the line end."""
    frames = result["frames"]
    cells = {
        "path": result["path"],
        "prompt": result["prompt"] or "",
        "valid": "true" if result["valid"] else "false",
        **{name: _cell(result["scores"].get(name)) for name in DIMENSIONS},
        **{f"{name}_std": _cell(result["std"].get(name)) for name in DIMENSIONS},
        "overall_from": "+".join(result["overall_from"]),
        "reasons": "; ".join(f"{name}: {why}" for name, why in result["reasons"].items()),
        "warnings": "; ".join(result["warnings"]),
        "text": result["text"] or "",
        "frames": " ".join(map(str, frames["indices"])) if frames else "",
        "judged_by": result["judged_by"],
    }
    return csv_record([cells[name] for name in CSV_COLUMNS])


def csv_record(cells: Sequence[str]) -> str:
    """Join cells; the csv module of Python 3.11 leaves a lone carriage return unquoted and cannot read it back."""
    return ",".join('"' + cell.replace('"', '""') + '"' if set(cell) & set(',"\r\n') else cell for cell in cells)


def _cell(value: float | None) -> str:
    return "" if value is None else repr(value)
