"""What travels between client and server: pixels and files as text, and records from the JSON objects of `rows`.

A video is base64 of a whole file, or base64 of a safetensors file with one tensor named "frames".

Shapes: B videos, T frames, C = 3, H, W pixels, K = 5 levels.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from reward_model.records import LEVELS, Comparison, Explanation, FramePlan, RewardOutput
from reward_model.scoring.json_records import JsonRecord

DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
"""What frames may be made of."""


def encode_bytes(data: bytes) -> str:
    """Return bytes as base64 text."""
    return base64.b64encode(data).decode("ascii")


def decode_bytes(text: str) -> bytes:
    """Return the bytes of base64 text.

    Args:
        text: standard alphabet, padded, without line breaks.

    Returns:
        The bytes.

    Raises:
        ValueError: anything else, such as a path or a URL.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError("not base64; send the bytes of the video, no path and no URL") from error


def encode_frames(frames: Tensor) -> str:
    """Return frames [T, C, H, W] as base64 of a safetensors file."""
    from safetensors.torch import save

    return encode_bytes(save({"frames": frames.detach().cpu().contiguous()}))


def decode_frames(text: str) -> Tensor:
    """Return the frames of `encode_frames`.

    Args:
        text: base64 of a safetensors file.

    Returns:
        RGB [T, C, H, W] of one of `DTYPES`; values are not looked at.

    Raises:
        ValueError: no safetensors, other tensors than "frames", an empty one, or another type or number of axes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(decode_bytes(text))
    except SafetensorError as error:
        raise ValueError(f"not a safetensors file: {error}") from error
    if set(tensors) != {"frames"}:
        raise ValueError(f"expected one tensor named 'frames', got {sorted(tensors)[:4]}")
    frames = tensors["frames"]
    if frames.ndim != 4 or 0 in frames.shape:
        raise ValueError(f"frames must have 4 axes [T, C, H, W], none of them empty, got {list(frames.shape)[:8]}")
    if frames.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ValueError(f"frames must be one of {names}, got {str(frames.dtype).removeprefix('torch.')}")
    return frames


def reward_output(rows: Sequence[JsonRecord]) -> RewardOutput:
    """Return the record of B >= 1 rows; the inverse of `rows.output_records`, on the CPU."""
    names = list(rows[0]["scores"])
    texts = [row["text"] for row in rows]
    return RewardOutput(
        rewards=_column(row["reward"] for row in rows),
        scores=_columns(rows, "scores"),
        std=_columns(rows, "std"),
        level_probs={
            name: torch.stack([_vector(row["level_probs"][name]) for row in rows]) for name in rows[0]["level_probs"]
        },
        level_mass=_columns(rows, "level_mass"),
        valid={name: torch.tensor([row["valid_dimensions"][name] for row in rows]) for name in names},
        reasons={name: [row["reasons"].get(name, "") for row in rows] for name in names},
        texts=None if all(text is None for text in texts) else [text or "" for text in texts],
        frame_plan=[None if row["frames"] is None else _plan(row["frames"]) for row in rows],
        overall_from=[tuple(row["overall_from"]) for row in rows],
        warnings=[tuple(row["warnings"]) for row in rows],
    )


def comparison(rows: Sequence[JsonRecord]) -> Comparison:
    """Return the record of B rows; the inverse of `rows.comparison_records`, on the CPU."""
    return Comparison(
        p_first=_column(row["p_first"] for row in rows),
        p_tie=_column(row["p_tie"] for row in rows),
        margin=_column(row["margin"] for row in rows),
        valid=torch.tensor([row["valid"] for row in rows], dtype=torch.bool),
        reasons=[row["reason"] for row in rows],
        consistent=torch.tensor([bool(row["consistent"]) for row in rows], dtype=torch.bool),
    )


def explanation(row: JsonRecord) -> Explanation:
    """Return the record of a row with a text; the inverse of `rows.explanation_record`, on the CPU."""
    return Explanation(
        text=row["text"],
        quality={name: math.nan if value is None else value for name, value in row["scores"].items()},
        levels=row["levels"],
        labels={name: tuple(labels) for name, labels in row["labels"].items()},
        saliency={name: _vector(shares) for name, shares in row["saliency"].items()},
        reason=row["reason"],
    )


def _plan(frames: Mapping[str, Any]) -> FramePlan:
    return FramePlan(tuple(frames["indices"]), tuple(frames["times"]), tuple(frames["kinds"]), frames["fps"])


def _column(values: Any) -> Tensor:
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float32)


def _columns(rows: Sequence[JsonRecord], key: str) -> dict[str, Tensor]:
    return {name: _column(row[key][name] for row in rows) for name in rows[0][key]}


def _vector(values: Sequence[float | None] | None) -> Tensor:
    return _column(values) if values is not None else torch.full((len(LEVELS),), math.nan)
