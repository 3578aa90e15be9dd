"""The files of a judge folder with their checksums, as `judge_config.json` records them, and the check of a folder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reward_model.judge.checkpoints.location import CONFIG_FILE
from reward_model.weights import (
    check_files,
    checked_names,
    digest,
    read_json,
    refuse_code,
    refuse_pickles,
    refuse_unlisted,
)

FILES = "files"
"""Entry of `judge_config.json`: path in the folder -> SHA-256 of each file that a load reads; older judges have none."""

FORMAT, FORMAT_VERSION = "format", 1
"""Entry of `judge_config.json` with the version of a judge folder, and its value now; 0, or none, has no checksums as a rule."""

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


def check_folder(folder: Path, values: Mapping[str, Any], source: Path) -> None:
    """Check a judge folder before anything in it is used; of weights, only that they are there.

    Args:
        folder: the judge.
        values: its judge_config.json, {} of a stock checkpoint.
        source: judge_config.json, for messages.

    Raises:
        ValueError: a pickle, code of its own, a file that is missing, unexpected, or other than when it was saved, or a format
            that this version does not know or that has checksums which are not there.
    """
    adapters = folder / "adapters"
    places = sorted(place for place in adapters.iterdir() if place.is_dir()) if adapters.is_dir() else []
    for place in (folder, folder / "base", adapters, *places):
        if place.is_dir():
            refuse_pickles(place)
            refuse_code(place)
    if not values:
        return
    recorded = recorded_files(values, source)
    if recorded is None:
        warnings.warn(
            f"{folder} is a judge of an earlier format, without checksums: another adapter of the same shapes, another vocabulary "
            "or a missing head cannot be noticed; save it again where you trust it",
            stacklevel=2,
        )
        return
    check_files(folder, recorded, source, weights=False)
    refuse_unlisted(folder, _names(folder), recorded, source)


def check_weights(folder: Path) -> None:
    """Compare the weights of a judge folder with their checksums, once a load has compared names and shapes (ValueError)."""
    source = folder / CONFIG_FILE
    recorded = recorded_files(read_json(source), source) if source.is_file() else None
    if recorded is not None:
        check_files(folder, recorded, source, weights=True)


def recorded_files(values: Mapping[str, Any], source: Path) -> dict[str, str] | None:
    """Return the checksums that a judge_config.json holds, None of a format without.

    Args:
        values: its content.
        source: its path, for messages.

    Returns:
        Path in the folder -> SHA-256.

    Raises:
        ValueError: an unknown format, or one that has checksums which are missing or malformed.
    """
    version = values.get(FORMAT, 0)
    if isinstance(version, bool) or not isinstance(version, int) or not 0 <= version <= FORMAT_VERSION:
        raise ValueError(f"{source}: {FORMAT} is {version!r}, this version reads up to {FORMAT_VERSION}")
    if FILES not in values and version == 0:
        return None
    if not values.get(FILES):
        raise ValueError(
            f"{source}: {FILES} holds no checksums, which every judge of format {FORMAT_VERSION} has; fetch or save it again"
        )
    return checked_names(values[FILES], source)


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


def _names(folder: Path) -> list[str]:
    files = {file for pattern in _READ for file in folder.glob(pattern) if file.is_file()}
    return sorted(file.relative_to(folder).as_posix() for file in files)
