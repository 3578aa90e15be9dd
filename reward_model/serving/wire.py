"""Wire format of client and server: pixels and files as text, and records from the JSON of `scoring.json_records`.

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
"""Dtypes of frames."""


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
        ValueError: any other text, such as a path or a URL.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError("not base64; send the bytes of the video, not a path or URL") from error


def encode_frames(frames: Tensor) -> str:
    """Return frames [T, C, H, W] as base64 of a safetensors file."""
    from safetensors.torch import save

    return encode_bytes(save({"frames": frames.detach().cpu().contiguous()}))


def decode_frames(text: str) -> Tensor:
    """Return the frames of `encode_frames`.

    Args:
        text: base64 of a safetensors file.

    Returns:
        RGB [T, C, H, W] of one of `DTYPES`; values are not checked.

    Raises:
        ValueError: no safetensors file, tensors other than "frames", an empty axis, or a wrong dtype or number of axes.
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


def reward_output(results: Sequence[JsonRecord]) -> RewardOutput:
    """Return the record of B >= 1 results, on the CPU; the inverse of `json_records.output_records`."""
    names = list(results[0]["scores"])
    texts = [result["text"] for result in results]
    return RewardOutput(
        rewards=_tensor(result["reward"] for result in results),
        scores=_tensors(results, "scores"),
        std=_tensors(results, "std"),
        level_probs={
            name: torch.stack([_tensor_or_nan(result["level_probs"][name]) for result in results])
            for name in results[0]["level_probs"]
        },
        level_mass=_tensors(results, "level_mass"),
        valid={name: torch.tensor([result["valid_dimensions"][name] for result in results]) for name in names},
        reasons={name: [result["reasons"].get(name, "") for result in results] for name in names},
        texts=None if all(text is None for text in texts) else [text or "" for text in texts],
        frame_plan=[None if result["frames"] is None else _plan(result["frames"]) for result in results],
        overall_from=[tuple(result["overall_from"]) for result in results],
        warnings=[tuple(result["warnings"]) for result in results],
    )


def comparison(results: Sequence[JsonRecord]) -> Comparison:
    """Return the record of B results, on the CPU; the inverse of `json_records.comparison_records`."""
    return Comparison(
        p_first=_tensor(result["p_first"] for result in results),
        p_tie=_tensor(result["p_tie"] for result in results),
        margin=_tensor(result["margin"] for result in results),
        valid=torch.tensor([result["valid"] for result in results], dtype=torch.bool),
        reasons=[result["reason"] for result in results],
        consistent=torch.tensor([bool(result["consistent"]) for result in results], dtype=torch.bool),
    )


def explanation(result: JsonRecord) -> Explanation:
    """Return the record of a result with a text, on the CPU; the inverse of `json_records.explanation_record`."""
    return Explanation(
        text=result["text"],
        quality={name: math.nan if value is None else value for name, value in result["scores"].items()},
        levels=result["levels"],
        labels={name: tuple(labels) for name, labels in result["labels"].items()},
        saliency={name: _tensor_or_nan(shares) for name, shares in result["saliency"].items()},
        reason=result["reason"],
        words=result.get("words", ""),
    )


def _plan(frames: Mapping[str, Any]) -> FramePlan:
    rate, sampled = frames["fps"], frames.get("sampled_fps", 0.0)
    return FramePlan(tuple(frames["indices"]), tuple(frames["times"]), tuple(frames["kinds"]), rate, sampled)


def _tensor(values: Any) -> Tensor:
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float32)


def _tensors(results: Sequence[JsonRecord], key: str) -> dict[str, Tensor]:
    return {name: _tensor(result[key][name] for result in results) for name in results[0][key]}


def _tensor_or_nan(values: Sequence[float | None] | None) -> Tensor:
    return _tensor(values) if values is not None else torch.full((len(LEVELS),), math.nan)
