"""Weights from anyone's folder: names and shapes are compared before they count, and no code or pickle in it is ever run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
"""Suffixes of weight files that run code when they are read."""

INDEX_SUFFIX = ".safetensors.index.json"

CHECKSUMS = "checksums.json"
"""File that maps each other file of a folder to the SHA-256 of its bytes."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_BIG_JSON = ("tokenizer.json", "vocab.json", "added_tokens.json")


def refuse_pickles(folder: Path, *, beside: bool = True) -> None:
    """Refuse a folder with weights in a pickle (ValueError): reading one runs whatever code is in it.

    Args:
        folder: looked at without its sub-folders.
        beside: refuse a pickle that lies beside safetensors too; no pickle is read either way.
    """
    if not beside and any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in PICKLES)
    if pickles:
        raise ValueError(
            f"{folder} has {pickles[0]}, a pickle, which can run code when read; convert it to safetensors where you trust it "
            "(load it with weights_only=True, write it with safetensors.torch.save_file), and take it out of the folder"
        )


def refuse_code(folder: Path) -> None:
    """Refuse a folder one of whose JSON files names code to be run (ValueError); its sub-folders are not looked at."""
    for file in sorted(folder.glob("*.json")):
        if file.name in _BIG_JSON or file.name.endswith(INDEX_SUFFIX):
            continue
        if _names_code(read_json(file)):
            raise ValueError(
                f"{file} names code of its own (auto_map), which is never run; only models that transformers and diffusers "
                "know can be loaded"
            )


def read_json(file: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds; anything else raises ValueError with the file's name."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file} is missing") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {_first_line(error)}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold a JSON object, got {type(values).__name__}")
    return values


def check_weight_files(folder: Path, stem: str) -> Path:
    """Check that a model's folder has its weights, whole and in safetensors.

    Args:
        folder: of one model.
        stem: name of the weight file without its suffix, "model" in transformers.

    Returns:
        The weight file, or the index of several.

    Raises:
        ValueError: a missing, cut or malformed file, a name that the index promises and its file lacks, a pickle, or code.
    """
    refuse_pickles(folder)
    refuse_code(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder / 'config.json'} is missing")
    whole, index = folder / f"{stem}.safetensors", folder / f"{stem}{INDEX_SUFFIX}"
    if whole.is_file():
        tensor_shapes(whole)
        return whole
    if not index.is_file():
        raise ValueError(f"{whole} is missing")
    _check_index(index)
    return index


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes in a safetensors file, without its tensors.

    Args:
        file: its path.

    Returns:
        Name -> shape.

    Raises:
        ValueError: the file is missing, empty, cut or malformed.
    """
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise ValueError(f"{file} is missing")
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{file} is no whole safetensors file: {_first_line(error)}; fetch or write it again"
        ) from error


def tensor_notes(file: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file, ValueError as in `tensor_shapes`."""
    from safetensors import safe_open

    tensor_shapes(file)
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata() or {})


def read_tensors(file: Path, wanted: Mapping[str, Sequence[int]] | None = None) -> dict[str, Tensor]:
    """Read a safetensors file whose names and shapes are known.

    Args:
        file: its path.
        wanted: name -> shape, all that it must hold and no more; None takes any.

    Returns:
        Name -> tensor on the CPU.

    Raises:
        ValueError: the file is missing, cut or malformed; a name is missing or unexpected, or has another shape; a tensor
            holds no floating numbers, or one that is not finite.
    """
    from safetensors.torch import load_file

    shapes = tensor_shapes(file)
    if wanted is not None:
        refuse_difference(file, wanted, shapes)
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{file}: {name} holds {tensor.dtype}, expected floating numbers")
        if not tensor.isfinite().all():
            raise ValueError(f"{file}: {name} holds numbers that are not finite")
    return tensors


def refuse_difference(file: Path | str, wanted: Mapping[str, Sequence[int]], got: Mapping[str, Sequence[int]]) -> None:
    """Refuse names and shapes other than those wanted; the ValueError names the file and the first key of each fault."""
    refuse_faults(
        file,
        missing=sorted(wanted.keys() - got.keys()),
        unexpected=sorted(got.keys() - wanted.keys()),
        reshaped=[
            (name, got[name], wanted[name])
            for name in sorted(wanted.keys() & got.keys())
            if tuple(got[name]) != tuple(wanted[name])
        ],
    )


def refuse_faults(
    file: Path | str,
    *,
    missing: Iterable[str],
    unexpected: Iterable[str],
    reshaped: Iterable[tuple[str, Sequence[int], Sequence[int]]],
) -> None:
    """Refuse weights that do not fit their model.

    Args:
        file: the weights.
        missing: names that the model has and the file lacks.
        unexpected: names that the file has and the model lacks.
        reshaped: (name, shape in the file, shape in the model).

    Raises:
        ValueError: any of the three; the message names the first key of each.
    """
    faults = []
    for names, word in ((sorted(missing), "missing"), (sorted(unexpected), "unexpected")):
        if names:
            more = f" and {len(names) - 1} more are" if len(names) > 1 else " is"
            faults.append(f"{names[0]}{more} {word}")
    for name, got, expected in list(reshaped)[:1]:
        faults.append(f"{name} has the shape {list(got)}, the model's is {list(expected)}")
    if faults:
        raise ValueError(f"{file} does not hold this model's weights: {', '.join(faults)}")


def refuse_loading_faults(file: Path | str, report: Mapping[str, Any]) -> None:
    """Refuse what transformers or diffusers report of a load (`output_loading_info=True`) if any weight did not fit."""
    refuse_faults(
        file,
        missing=report["missing_keys"],
        unexpected=report["unexpected_keys"],
        reshaped=report["mismatched_keys"],
    )
    if report.get("error_msgs"):
        raise ValueError(f"{file}: {_first_line(report['error_msgs'][0])}")


def digest(file: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def checksums_below(folder: Path) -> dict[str, str]:
    """Return relative path -> SHA-256 of every file in a folder and its sub-folders but the checksums themselves."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / CHECKSUMS)
    return {path.relative_to(folder).as_posix(): digest(path) for path in files}


def write_checksums(folder: Path) -> None:
    """Write `checksums.json` for all files that a folder holds now."""
    (folder / CHECKSUMS).write_text(json.dumps(checksums_below(folder), indent=1) + "\n", encoding="utf-8")


def check_checksums(folder: Path, *, weights: bool) -> bool:
    """Check the files of a folder that `write_checksums` listed.

    Weights are best checked after a load has compared their names and shapes, so that a refusal names the key.

    Args:
        folder: beside the listed files it may hold others that no load reads, which are not looked at.
        weights: check the content of the safetensors files, else that of the others and that all are there.

    Returns:
        Whether the folder has checksums.

    Raises:
        ValueError: a file is missing, unexpected, or other than when the checksums were written; or their file is malformed.
    """
    source = folder / CHECKSUMS
    if not source.is_file():
        return False
    check_files(folder, checked_names(read_json(source), source), source, weights=weights)
    refuse_unlisted(folder, filter(_may_be_read, _names_below(folder)), read_json(source), source)
    return True


def _names_below(folder: Path) -> Iterator[str]:
    return (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _may_be_read(name: str) -> bool:
    """Return whether libraries may read a file of this relative path: weights, and whatever a model's sub-folder holds."""
    path = Path(name)
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and (path.suffix == ".safetensors" or len(path.parts) > 1)


def checked_names(recorded: Any, source: Path) -> dict[str, str]:
    """Return recorded checksums, each of a path inside its folder; ValueError otherwise."""
    if not isinstance(recorded, Mapping) or not all(isinstance(value, str) for value in recorded.values()):
        raise ValueError(f"{source}: expected a checksum for each file")
    for name in recorded:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{source} names {name!r}, which is no path inside the folder")
    return dict(recorded)


def check_files(folder: Path, recorded: Mapping[str, str], source: Path, *, weights: bool) -> None:
    """Compare files with their checksums.

    Args:
        folder: holds the files.
        recorded: path in the folder -> SHA-256.
        source: file of these checksums, for messages.
        weights: compare safetensors files, else all others and whether every file is there.

    Raises:
        ValueError: a file is missing or differs.
    """
    for name, expected in recorded.items():
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{file} is missing; {source} names it")
        if (file.suffix == ".safetensors") == weights and digest(file) != expected:
            raise ValueError(f"{file} is not the file that was saved: {source} records another checksum")


def refuse_unlisted(folder: Path, names: Iterable[str], recorded: Mapping[str, str], source: Path) -> None:
    """Refuse a folder with files that its checksums do not name (ValueError)."""
    if unexpected := sorted(set(names) - recorded.keys()):
        raise ValueError(f"{folder / unexpected[0]} was not saved with this folder; {source} does not name it")


def is_hub_id(text: str) -> bool:
    """Return whether a text has the form "owner/name"."""
    return _HUB_ID.fullmatch(text) is not None


def hub_is_away() -> bool:
    """Return whether the hub cannot be reached within seconds, so that only files on this machine are looked for."""
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return True
    session = get_session()
    faults: tuple[type[Exception], ...] = (OSError, OfflineModeIsEnabled, *_network_errors(session))
    try:
        session.head(constants.ENDPOINT, timeout=5)
    except faults:
        return True
    return False


def _network_errors(session: Any) -> tuple[type[Exception], ...]:
    """Return the error of the HTTP library that made a session: httpx, or requests in older hub clients."""
    import importlib

    library = importlib.import_module(type(session).__module__.partition(".")[0])
    return tuple(getattr(library, name) for name in ("TransportError", "RequestException") if name in vars(library))


def _check_index(index: Path) -> None:
    """Check that the files of an index are there, each with the names that it should hold."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index} has no weight_map")
    for part in sorted({str(part) for part in names.values()}):
        if Path(part).name != part:
            raise ValueError(f"{index} names {part!r}, which is no file of its folder")
        held = tensor_shapes(index.with_name(part))
        for name in sorted(name for name, place in names.items() if place == part):
            if name not in held:
                raise ValueError(f"{index.with_name(part)} does not hold this model's weights: {name} is missing")


def _names_code(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value.get("auto_map")) or any(_names_code(item) for item in value.values())
    return isinstance(value, list) and any(_names_code(item) for item in value)


def _first_line(error: object) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
