"""Checkpoints of a training run that survive a kill, a full disk and a flipped bit.

A checkpoint is a folder of safetensors and JSON files with `checksums.json`; nothing is pickled. It is written whole by
`write_beside`, then `LATEST` names it. Whatever was interrupted, `newest_intact` finds the newest checkpoint whose files
are as they were written: it completes renames that a kill cut short, and passes over folders that were damaged.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from reward_model.files import REPLACED, UNFINISHED, put_back, remove, write_beside, write_text
from reward_model.weights import CHECKSUMS, checksums_below, write_checksums

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

    Raises:
        OSError: it cannot be written; the checkpoints before it stay.
    """
    from safetensors import SafetensorError

    root = Path(root)
    _complete_renames(root)
    for leftover in root.glob(f"{UNFINISHED}*"):
        remove(leftover)

    def fill(folder: Path) -> None:
        """Make the folder, let the caller fill it, and note the checksums."""
        folder.mkdir()
        try:
            write(folder)
        except SafetensorError as error:  # a full disk, which for all other files is an OSError
            raise OSError(f"checkpoint {root / name} cannot be written: {error}") from error
        write_checksums(folder)

    final = write_beside(root / name, fill)
    write_text(root / LATEST, name)
    for old in sorted(finished(root), key=lambda folder: folder.stat().st_mtime_ns)[:-keep]:
        if old != final:
            shutil.rmtree(old)
    return final


def newest_intact(root: str | Path) -> tuple[Path | None, tuple[str, ...]]:
    """Return the checkpoint to resume from: the one that `LATEST` names, else the newest whose files are intact.

    Args:
        root: folder of the checkpoints.

    Returns:
        Its folder (None where there is none) and a sentence for each one that was passed over.
    """
    root, notes = Path(root), list[str]()
    _complete_renames(root)
    for folder in _newest_first(root):
        damage = damage_of(folder)
        if not damage:
            return folder, tuple(notes)
        notes.append(f"checkpoint {folder.name} is passed over: {damage}")
    return None, tuple(notes)


def latest(root: str | Path) -> Path | None:
    """Return the folder of `newest_intact`; None before the first checkpoint."""
    return newest_intact(root)[0]


def damage_of(folder: Path) -> str:
    """Return how a checkpoint differs from its checksums, "" where it does not or where it has none to compare with."""
    noted = folder / CHECKSUMS
    if not noted.is_file():
        return ""
    try:
        expected = json.loads(noted.read_text(encoding="utf-8"))
    except ValueError:
        return f"{CHECKSUMS} cannot be read"
    there = checksums_below(folder)
    for name, digest in expected.items():
        if name not in there:
            return f"{name} is missing"
        if there[name] != digest:
            return f"{name} has changed since it was written"
    return ""


def finished(root: str | Path) -> list[Path]:
    """Return the finished checkpoints of a folder, oldest first."""
    root = Path(root)
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as safetensors."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, str(path))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read named tensors onto the CPU."""
    from safetensors.torch import load_file

    return load_file(str(path))


def _newest_first(root: Path) -> list[Path]:
    """Return the finished checkpoints, the one that `LATEST` names first and the others from the newest on."""
    folders = finished(root)[::-1]
    marker = root / LATEST
    name = marker.read_text(encoding="utf-8", errors="replace").strip() if marker.is_file() else ""
    # comparing with the names that are there keeps a marker such as "../elsewhere" from being followed
    return sorted(folders, key=lambda folder: folder.name != name)


def _complete_renames(root: Path) -> None:
    """Do what a kill kept from being done: put a replaced folder back, and rename a whole one that was not renamed."""
    for aside in root.glob(f"{REPLACED}*"):
        put_back(root / aside.name.removeprefix(REPLACED))
    for beside in root.glob(f"{UNFINISHED}*"):
        place = root / beside.name.removeprefix(UNFINISHED)
        if beside.is_dir() and (beside / CHECKSUMS).is_file() and not place.exists() and not damage_of(beside):
            beside.rename(place)
