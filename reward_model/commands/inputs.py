"""Inputs of a command line: files, folders and lists, expanded to videos with prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg", ".flv", ".ogv", ".wmv", ".gif"}
"""Suffixes of videos in folders; files named one by one may have any suffix."""

LISTS = (".csv", ".jsonl")

PAIR_COLUMNS = (("path_A", "path_B"), ("first", "second"), ("video_A", "video_B"))
"""Columns of both videos of a list of pairs, where none are named; the first two that the list has count."""


@dataclass(frozen=True)
class Item:
    """A video and its generation prompt."""

    path: str
    prompt: str | None


def list_items(
    inputs: Sequence[str], *, prompt: str | None = None, path_column: str | None = None, prompt_column: str = "prompt"
) -> list[Item]:
    """Expand inputs to videos.

    Args:
        inputs: video files, folders (searched recursively, sorted by name), and CSV or JSONL lists, whose paths are
            relative to the folder of the list.
        prompt: prompt of videos without one in a list; an empty string is none.
        path_column: column or key of a list with the video; None takes path, video or path_A, the first that it has.
        prompt_column: column or key with the prompt.

    Returns:
        The videos in the order given.

    Raises:
        ValueError: a folder without videos, or an invalid list.
    """
    items: list[Item] = []
    prompt = prompt or None
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            if not files:
                raise ValueError(f"{name}: no video files in this folder")
            items += [Item(str(file), prompt) for file in files]
        elif path.suffix.lower() in LISTS:
            items += [Item(video, own or prompt) for video, own in _listed(path, path_column, prompt_column)]
        else:
            items.append(Item(name, prompt))
    return items


def _listed(path: Path, named: str | None, prompt_column: str) -> Iterator[tuple[str, str | None]]:
    from reward_model.datasets.base import VIDEO_COLUMNS, read_records

    for number, record in enumerate(read_records(path), start=1):
        path_column = named or next((name for name in VIDEO_COLUMNS if name in record), VIDEO_COLUMNS[0])
        if path_column not in record:
            raise ValueError(f"{path}: no column {path_column!r}; its columns are {sorted(record)}; see --path-column")
        video = str(record[path_column] or "").strip()
        if not video:
            raise ValueError(f"{path}, record {number}: no video in column {path_column!r}")
        yield str(path.parent / video), str(record.get(prompt_column) or "").strip() or None
