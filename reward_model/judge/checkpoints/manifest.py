"""The files of a judge folder with their checksums, as `judge_config.json` records them, and the check of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reward_model.weights import digest, refuse_code, refuse_pickles, tensor_shapes

FILES = "files"
"""Entry of `judge_config.json`: path in the folder -> SHA-256 of each file that a load reads; older judges have none."""

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
_READ = (
    *_TOKENIZER,
    *("merges.txt", "chat_template.jinja", "config.json", "generation_config.json", "*.safetensors"),
    *("model.safetensors.index.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("base/*.json", "base/*.safetensors", "adapters/*/adapter_config.json", "adapters/*/*.safetensors"),
)


def checksums(folder: Path) -> dict[str, str]:
    """Return path in the folder -> SHA-256 of each file that loading the judge reads, judge_config.json aside."""
    return {name: digest(folder / name) for name in _names(folder)}


def check_folder(folder: Path, recorded: Any, source: Path) -> None:
    """Check a judge folder before anything in it is used.

    Args:
        folder: the judge.
        recorded: the entry `files` of its judge_config.json, {} in judges that were saved before there was one.
        source: judge_config.json, for messages.

    Raises:
        ValueError: a pickle, code of its own, or a file that is missing, unexpected, or other than when it was saved.
    """
    adapters = folder / "adapters"
    places = sorted(place for place in adapters.iterdir() if place.is_dir()) if adapters.is_dir() else []
    for place in (folder, folder / "base", adapters, *places):
        if place.is_dir():
            refuse_pickles(place)
            refuse_code(place)
    if recorded:
        _compare(folder, _checked(recorded, source), source)


def refuse_missing_tokenizer(folder: Path) -> None:
    """Refuse a folder without a tokenizer's files (ValueError), which transformers would look for on the hub."""
    whole: tuple[str, ...] = (
        ("tokenizer.json",) if not (folder / "vocab.json").is_file() else ("vocab.json", "merges.txt")
    )
    if (folder / "tokenizer.json").is_file():
        whole = ()
    for name in (*whole, "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing")


def _checked(recorded: Any, source: Path) -> dict[str, str]:
    if not isinstance(recorded, Mapping) or not all(isinstance(value, str) for value in recorded.values()):
        raise ValueError(f"{source}: {FILES} must hold a checksum for each file")
    for name in recorded:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{source}: {FILES} names {name!r}, which is no path inside the folder")
    return dict(recorded)


def _compare(folder: Path, recorded: Mapping[str, str], source: Path) -> None:
    for name, expected in recorded.items():
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{file} is missing; {source} names it")
        if digest(file) != expected:
            if file.suffix == ".safetensors":
                tensor_shapes(file)
            raise ValueError(
                f"{file} is not the file that was saved with this judge: {source} records another checksum"
            )
    if unexpected := [name for name in _names(folder) if name not in recorded]:
        raise ValueError(f"{folder / unexpected[0]} was not saved with this judge; {source} does not name it")


def _names(folder: Path) -> list[str]:
    files = {file for pattern in _READ for file in folder.glob(pattern) if file.is_file()}
    return sorted(file.relative_to(folder).as_posix() for file in files)
