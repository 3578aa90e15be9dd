"""One scored video as a JSON object, a line of a table, or a row of a CSV file."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reward_model.commands.inputs import Item
from reward_model.records import DIMENSIONS

if TYPE_CHECKING:
    from reward_model.records import RewardOutput

Result = dict[str, Any]
"""What is written of one video; JSON values only."""

SHORT = {"visual_quality": "visual", "motion_quality": "motion", "text_alignment": "text", "overall": "overall"}
NO_PROMPT = "no prompt"

CSV_COLUMNS = (
    *("path", "prompt", "valid"),
    *DIMENSIONS,
    *(f"{name}_std" for name in DIMENSIONS),
    *("overall_from", "reasons", "warnings", "text", "frames", "judged_by"),
)
"""Columns of a CSV of scores; an empty cell is a value that could not be had."""


@dataclass(frozen=True)
class Reading:
    """How a judge is read: `readout` level or reason, the mean of `samples` answers, `normalize` as in its call."""

    readout: str = "level"
    samples: int = 1
    normalize: str = "unit"


def judged_by(args: argparse.Namespace, reading: Reading) -> str:
    """Return one line that names judge and reading; scores of different lines do not belong together."""
    samples = f" samples={reading.samples}" if reading.samples > 1 else ""
    return f"{args.judge} role={args.role} readout={reading.readout}{samples} scores={reading.normalize}"


def score_items(judge: Any, items: Sequence[Item], reading: Reading, maker: str) -> list[Result]:
    """Score a batch; `maker` is what `judged_by` says of the judge."""
    output = judge(
        [item.path for item in items],
        [item.prompt for item in items],
        readout=reading.readout,
        num_samples=reading.samples,
        normalize=reading.normalize,
        batch_size=len(items),
    )
    return [_result(output, row, item, maker) for row, item in enumerate(items)]


def unscored(item: Item, reason: str, maker: str) -> Result:
    """Return the result of a video that no judge has answered for."""
    nothing = dict.fromkeys(DIMENSIONS)
    return {
        "path": item.path,
        "prompt": item.prompt,
        "valid": False,
        "scores": nothing,
        "std": nothing,
        "reasons": dict.fromkeys(DIMENSIONS, reason),
        "overall_from": [],
        "warnings": [],
        "text": None,
        "frames": None,
        "judged_by": maker,
    }


def _result(output: RewardOutput, row: int, item: Item, maker: str) -> Result:
    """Return one item's JSON object; valid unless more than a prompt was missing."""
    reasons = {name: found[row] for name, found in output.reasons.items() if found[row]}
    plan = output.frame_plan[row]
    return {
        "path": item.path,
        "prompt": item.prompt,
        "valid": all(reason == NO_PROMPT for reason in reasons.values()),
        "scores": {name: number(values[row]) for name, values in output.scores.items()},
        "std": {name: number(values[row]) for name, values in output.std.items()},
        "reasons": reasons,
        "overall_from": list(output.overall_from[row]),
        "warnings": list(output.warnings[row]) if output.warnings else [],
        "text": output.texts[row] if output.texts is not None else None,
        "frames": None if plan is None else {"indices": list(plan.indices), "times": list(plan.times)},
        "judged_by": maker,
    }


def table_head(width: int) -> str:
    """Return the first line of a table whose paths take `width` characters."""
    return "  ".join(["file".ljust(width), *(name.rjust(7) for name in SHORT.values()), "remarks"])


def table_line(result: Result, width: int) -> str:
    """Return one line of the table."""
    scores = [result["scores"].get(name) for name in SHORT]
    cells = ["-".rjust(7) if score is None else f"{score:7.3f}" for score in scores]
    remarks = list(dict.fromkeys(reason for reason in result["reasons"].values() if reason != NO_PROMPT))
    if result["valid"] and result["reasons"]:
        remarks.append(f"no prompt: overall is the mean of {' and '.join(result['overall_from'])}")
    remarks += result["warnings"]
    return "  ".join([result["path"].ljust(width), *cells, "; ".join(remarks)]).rstrip()


def json_line(result: Mapping[str, Any]) -> str:
    """Return a result as one line of strict JSON, without its end."""
    return json.dumps(result, allow_nan=False)


def csv_line(result: Result) -> str:
    """Return a result as one CSV record (RFC 4180 quoting, which may hold line ends), without its end."""
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
    """Join cells; the csv module of Python 3.11 would leave a lone carriage return unquoted and not read it back."""
    return ",".join('"' + cell.replace('"', '""') + '"' if set(cell) & set(',"\r\n') else cell for cell in cells)


def number(value: Any) -> float | None:
    """Return a float, None where it is not finite."""
    found = float(value)
    return found if math.isfinite(found) else None


def _cell(value: float | None) -> str:
    return "" if value is None else repr(value)
