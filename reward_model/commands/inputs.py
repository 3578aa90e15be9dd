"""What a command line names: files, folders and lists, spelt out as videos with their prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg", ".flv", ".ogv", ".wmv", ".gif"}
"""What counts as a video when a folder is given; files named one by one are always tried."""

LISTS = (".csv", ".jsonl")


@dataclass(frozen=True)
class Item:
    """A video and the prompt that it was generated from."""

    path: str
    prompt: str | None


def list_items(
    inputs: Sequence[str], *, prompt: str | None = None, path_column: str = "path", prompt_column: str = "prompt"
) -> list[Item]:
    """Spell out inputs.

    Args:
        inputs: video files, folders (searched in depth, in order of name), and CSV or JSONL lists, whose paths are
            relative to the list's folder.
        prompt: of every video that has none in a list; an empty one is none.
        path_column: column or key of a list with the video.
        prompt_column: column or key with the prompt.

    Returns:
        The videos in the order given.

    Raises:
        ValueError: a folder without videos, or a list that cannot be read.
    """
    found: list[Item] = []
    prompt = prompt or None
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            if not files:
                raise ValueError(f"{name}: no video files in this folder")
            found += [Item(str(file), prompt) for file in files]
        elif path.suffix.lower() in LISTS:
            found += [Item(video, own or prompt) for video, own in _listed(path, path_column, prompt_column)]
        else:
            found.append(Item(name, prompt))
    return found


def _listed(path: Path, path_column: str, prompt_column: str) -> Iterator[tuple[str, str | None]]:
    from reward_model.datasets.base import read_records

    for number, row in enumerate(read_records(path), start=1):
        if path_column not in row:
            raise ValueError(f"{path}: no column {path_column!r}; it has {sorted(row)}; see --path-column")
        video = str(row[path_column] or "").strip()
        if not video:
            raise ValueError(f"{path}, row {number}: no video in column {path_column!r}")
        yield str(path.parent / video), str(row.get(prompt_column) or "").strip() or None
