"""Inputs of a command line: files, folders and lists, expanded to videos with prompts."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reward_model.terminal import visible

SUFFIXES = {
    *(
        ".mp4",
        ".m4v",
        ".mov",
        ".qt",
        ".3gp",
        ".3g2",
        ".mkv",
        ".webm",
        ".avi",
        ".divx",
        ".flv",
        ".f4v",
        ".ogv",
        ".ogg",
        ".ogm",
    ),
    *(".ts", ".mts", ".m2ts", ".m2t", ".mpg", ".mpeg", ".mpe", ".m2v", ".vob", ".wmv", ".asf", ".gif", ".apng"),
}
"""Suffixes of videos in folders, in any case; files named one by one may have any suffix."""

MAX_NAMED = 5
"""Files left out of a folder that are named one by one."""

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
            files = _videos_in(path)
            items += [Item(str(file), prompt) for file in files]
        elif path.suffix.lower() in LISTS:
            items += [Item(video, own or prompt) for video, own in _listed(path, path_column, prompt_column)]
        else:
            items.append(Item(name, prompt))
    return items


def _videos_in(folder: Path) -> list[Path]:
    """Return the videos of a folder in order, and say on stderr which files it leaves out."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    videos = [file for file in files if file.suffix.lower() in SUFFIXES and not file.name.startswith("._")]
    kept = set(videos)
    others = [str(file.relative_to(folder)) for file in files if file not in kept]
    if others:
        more = f" and {len(others) - MAX_NAMED} more" if len(others) > MAX_NAMED else ""
        named = ", ".join(others[:MAX_NAMED])
        told = f"{folder}: {len(others)} files left out, which are no videos by their names: {named}{more}"
        print(visible(told), file=sys.stderr)
    if not videos:
        raise ValueError(f"{folder}: no video files in this folder")
    return videos


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
