"""Checkpoints of a training run that survive a kill: written whole by `write_beside`, then named by `LATEST`.

A checkpoint is a folder of safetensors and JSON files; nothing is pickled. `OUTPUT/checkpoints/LATEST` holds the name of
the newest finished one. A folder that a kill left half-written keeps its temporary name and is removed by the next save.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from reward_model.files import UNFINISHED, put_back, remove, write_beside, write_text

LATEST = "LATEST"


def save(root: str | Path, name: str, write: Callable[[Path], None], *, keep: int) -> Path:
    """Write one checkpoint, whole or not at all, and make it the latest.

    Args:
        root: folder of the checkpoints.
        name: name of this one; an existing one of that name is replaced.
        write: fills an empty folder with the checkpoint's files.
        keep: how many finished checkpoints stay, newest first; at least 1.

    Returns:
        The finished folder.
    """
    root = Path(root)
    for leftover in root.glob(f"{UNFINISHED}*"):
        remove(leftover)

    def fill(folder: Path) -> None:
        """Make the folder and let the caller fill it."""
        folder.mkdir()
        write(folder)

    final = write_beside(root / name, fill)
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
    put_back(folder)
    if not folder.is_dir():
        raise ValueError(
            f"{marker} names {folder.name}, which does not exist; write the name of another checkpoint in it"
        )
    return folder


def finished(root: str | Path) -> list[Path]:
    """Return the finished checkpoints of a folder, by name."""
    return sorted(path for path in Path(root).iterdir() if path.is_dir() and not path.name.startswith("."))


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as safetensors."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, str(path))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read named tensors onto the CPU."""
    from safetensors.torch import load_file

    return load_file(str(path))
