"""Files and folders that survive a kill: written beside their destination, flushed to disk, then renamed onto it.

A file is replaced in one step, so a reader sees the old one or the new one, each whole. A folder cannot be: renames do not
replace a folder that has content. The old folder is therefore renamed aside (`.replaced-NAME`), the new one renamed in, and
the old one deleted. A kill between the two renames leaves the old folder under its other name; `put_back`, which
`write_beside` calls first, returns it to its place. A write that was killed leaves `.unfinished-NAME`, which is never read
and which the next write of the same destination removes.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

UNFINISHED, REPLACED = ".unfinished-", ".replaced-"
"""Prefixes of the temporary names: work that is being written, and an old folder that is being replaced."""


def write_beside(path: str | Path, write: Callable[[Path], object], *, many_writers: bool = False) -> Path:
    """Write a file or a folder under a temporary name in the same place, flush it and rename it to its destination.

    Args:
        path: destination; a file or folder that stands there is replaced. The folder around it is made where missing.
        write: makes a file or a folder at the path that it is given, where nothing stands; the path keeps the
            destination's suffix. If it raises, its work is removed and the destination stays as it was.
        many_writers: several processes may write this file at the same time, each whole, and the last one stays. Their
            temporary names are unique, so a killed writer's file is left behind.

    Returns:
        The destination.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = f"{uuid.uuid4().hex}-" if many_writers else ""
    beside = path.with_name(f"{UNFINISHED}{unique}{path.name}")
    put_back(path)
    remove(beside)
    try:
        write(beside)
        _flush_all(beside)
        _move_in(beside, path)
    finally:
        remove(beside)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Replace a UTF-8 text file whole, see `write_beside`, and return its path."""
    return write_beside(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value: Any) -> Path:
    """Replace a JSON file whole and return its path; a number that is not finite is refused, since JSON has none."""
    return write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


class Lock:
    """The right to write to one place: one process at a time holds it, and loses it when it ends, however it ends."""

    def __init__(self, path: str | Path, *, purpose: str) -> None:
        """Take the lock, or refuse.

        Args:
            path: the folder or file that is written to; the lock is the file `.NAME.lock` beside it.
            purpose: subject of the refusal's sentence, such as "this run".

        Raises:
            ValueError: another process holds the lock; the message names its id.
        """
        path = Path(os.path.abspath(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path.with_name(f".{path.name}.lock")
        while True:
            self._file = self.path.open("a+", encoding="utf-8")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._file.seek(0)
                holder = self._file.read().strip() or "unknown"
                self._file.close()
                raise ValueError(f"{purpose} cannot write to {path}: process {holder} is writing to it") from None
            if self._is_in_place():
                break
            self._file.close()  # its holder deleted the file between our opening and locking it
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if not self._file.closed:
            self.path.unlink(missing_ok=True)
            self._file.close()

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def put_back(path: str | Path) -> None:
    """Return to its place a folder whose replacement was killed between the two renames; call it before reading one."""
    path = Path(path)
    aside = path.with_name(f"{REPLACED}{path.name}")
    if not os.path.lexists(aside):
        return
    if os.path.lexists(path):
        remove(aside)
    else:
        aside.rename(path)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with its content; nothing where nothing stands."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _move_in(beside: Path, path: Path) -> None:
    """Rename the finished work to its destination; the old content goes aside first if either of them is a folder."""
    aside = path.with_name(f"{REPLACED}{path.name}")
    if os.path.lexists(path) and (path.is_dir() or beside.is_dir()):
        path.rename(aside)
    beside.replace(path)
    _flush(path.parent)
    remove(aside)


def _flush_all(path: Path) -> None:
    """Flush a file, or each file and folder within a folder, to disk."""
    for folder, _, files in os.walk(path):
        for file in files:
            _flush(Path(folder) / file)
        _flush(Path(folder))
    if path.is_file():
        _flush(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
