"""Checkpoints that survive a kill: written beside, flushed, renamed, then named by `LATEST`.

A checkpoint is a folder of safetensors and JSON files; nothing is pickled. `OUTPUT/checkpoints/LATEST` holds the name of
the newest finished one. A folder that a kill left half-written keeps its temporary name and is removed by the next save.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

LATEST = "LATEST"
_UNFINISHED = ".unfinished-"


def save(root: str | Path, name: str, write: Callable[[Path], None], *, keep: int) -> Path:
    """Write one checkpoint atomically and make it the latest.

    Args:
        root: folder of the checkpoints.
        name: name of this one; an existing one of that name is replaced.
        write: fills an empty folder with the checkpoint's files.
        keep: how many finished checkpoints stay, newest first; at least 1.

    Returns:
        The finished folder.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    for left_over in root.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left_over)
    beside, final = root / f"{_UNFINISHED}{name}", root / name
    beside.mkdir()
    write(beside)
    for folder, _, files in os.walk(beside):
        for file in files:
            _flush(Path(folder) / file)
        _flush(Path(folder))
    if final.exists():
        replaced = root / f"{_UNFINISHED}replaced-{name}"
        final.rename(replaced)
        beside.rename(final)
        shutil.rmtree(replaced)
    else:
        beside.rename(final)
    _flush(root)
    write_text(root / LATEST, name)
    for old in sorted(finished(root), key=lambda folder: folder.stat().st_mtime_ns)[:-keep]:
        if old != final:
            shutil.rmtree(old)
    return final


def latest(root: str | Path) -> Path | None:
    """Return the newest finished checkpoint.

    Args:
        root: folder of the checkpoints.

    Returns:
        Its folder, or None before the first.

    Raises:
        ValueError: `LATEST` names a folder that is not there.
    """
    marker = Path(root) / LATEST
    if not marker.exists():
        return None
    folder = Path(root) / marker.read_text(encoding="utf-8").strip()
    if not folder.is_dir():
        raise ValueError(
            f"{marker} names {folder.name}, which does not exist; write the name of another checkpoint in it"
        )
    return folder


def finished(root: str | Path) -> list[Path]:
    """Return the finished checkpoints of a folder, by name."""
    return sorted(path for path in Path(root).iterdir() if path.is_dir() and not path.name.startswith(_UNFINISHED))


def write_text(path: str | Path, text: str) -> None:
    """Replace a small text file atomically."""
    path = Path(path)
    beside = path.with_name(f"{_UNFINISHED}{path.name}")
    beside.write_text(text, encoding="utf-8")
    _flush(beside)
    beside.replace(path)


def write_json(path: str | Path, value: Any) -> None:
    """Replace a JSON file atomically; a number that is not finite is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as safetensors."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, str(path))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read named tensors onto the CPU."""
    from safetensors.torch import load_file

    return load_file(str(path))


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
