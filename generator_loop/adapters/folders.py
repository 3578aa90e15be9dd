"""Loading of diffusers pipelines from anyone's folder or hub: every weight of every model is compared, and no code is run."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reward_model.weights import (
    check_weight_files,
    hub_is_away,
    is_hub_id,
    read_json,
    refuse_code,
    refuse_loading_faults,
    refuse_pickles,
)

_INDEX = "model_index.json"
_STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
_FAULTS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, IndexError, NotImplementedError)
"""Errors that libraries raise over a malformed folder."""


@dataclass(frozen=True)
class Source:
    """A pipeline's folder or hub id, its revision, and whether the hub is left alone."""

    path: str
    revision: str | None
    is_local: bool

    @property
    def folder(self) -> Path | None:
        """The folder; None on the hub."""
        return Path(self.path) if Path(self.path).is_dir() else None

    def options(self) -> dict[str, Any]:
        """Return the arguments of every `from_pretrained` but the path."""
        return {"revision": self.revision, "local_files_only": self.is_local}


def load_pipeline(
    name: str,
    path: str,
    *,
    revision: str | None,
    dtype: torch.dtype,
    transformer_dtype: torch.dtype,
    vae_dtype: torch.dtype,
) -> Any:
    """Load a pipeline whose models each got all of their weights and no others.

    Args:
        name: its class in diffusers.
        path: folder or hub id.
        revision: of a hub id.
        dtype: of all models but these.
        transformer_dtype: of the transformers.
        vae_dtype: of the VAE.

    Returns:
        The pipeline, on the CPU.

    Raises:
        ValueError: not available, another pipeline, code or a pickle, or weights that are missing, unexpected, cut or of other
            shapes.
    """
    import diffusers

    source = _source(path, revision)
    loader = getattr(diffusers, name)
    index = _index_of(loader, source)
    dtypes = {"vae": vae_dtype, "transformer": transformer_dtype, "transformer_2": transformer_dtype}
    models = {
        part: _load_model(source, part, library, kind, dtypes.get(part, dtype))
        for part, (library, kind) in _models_of(index, source).items()
    }
    try:
        with _quiet():
            pipeline = loader.from_pretrained(source.path, **models, **source.options(), trust_remote_code=False)
    except _FAULTS as error:
        raise ValueError(_why_unloaded(source, error)) from error
    _check_vocabulary(pipeline, source)
    return pipeline


def _source(path: str, revision: str | None) -> Source:
    if Path(path).is_dir():
        for folder in (Path(path), *(one for one in Path(path).iterdir() if one.is_dir())):
            refuse_pickles(folder)
            refuse_code(folder)
        return Source(path, revision, True)
    if not is_hub_id(path):
        raise ValueError(f"generator.path is {path!r}, which is neither a folder nor a hub id such as owner/name")
    return Source(path, revision, hub_is_away())


def _index_of(loader: Any, source: Source) -> dict[str, Any]:
    """Return model_index.json, which must be of the wanted pipeline."""
    from huggingface_hub import hf_hub_download

    if source.folder is not None:
        index = read_json(source.folder / _INDEX)
    else:
        try:
            index = read_json(Path(hf_hub_download(source.path, _INDEX, **source.options())))
        except _FAULTS as error:
            raise ValueError(_why_unloaded(source, error)) from error
    if index.get("_class_name") != loader.__name__:
        raise ValueError(
            f"{source.path}/{_INDEX} is of {index.get('_class_name')!r}, expected {loader.__name__}; generator.family names "
            "the kind of pipeline"
        )
    return index


def _models_of(index: Mapping[str, Any], source: Source) -> dict[str, tuple[str, str]]:
    """Return component -> (library, class) of those with weights; components of other libraries raise ValueError."""
    import torch.nn

    models = {}
    for part, entry in index.items():
        if part.startswith("_") or not isinstance(entry, list) or entry == [None, None]:
            continue
        if len(entry) != 2 or entry[0] not in _STEMS:
            raise ValueError(
                f"{source.path}/{_INDEX}: {part} is {entry!r}, only classes of diffusers and transformers are loaded"
            )
        kind = getattr(importlib.import_module(entry[0]), str(entry[1]), None)
        if kind is None:
            raise ValueError(f"{source.path}/{_INDEX}: {part} is {entry[1]!r}, which {entry[0]} does not have")
        if isinstance(kind, type) and issubclass(kind, torch.nn.Module):
            models[part] = (entry[0], entry[1])
        elif source.folder is not None and part.startswith("tokenizer"):
            read_json(source.folder / part / "tokenizer_config.json")
    return models


def _load_model(source: Source, part: str, library: str, kind: str, dtype: torch.dtype) -> Any:
    file = f"{source.path}/{part}"
    if source.folder is not None:
        file = str(check_weight_files(source.folder / part, _STEMS[library]))
    loader = getattr(importlib.import_module(library), kind)
    try:
        with _quiet():
            model, report = loader.from_pretrained(
                source.path,
                subfolder=part,
                torch_dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that the report names them
                **source.options(),
            )
    except _FAULTS as error:
        raise ValueError(_why_unloaded(source, error, file)) from error
    refuse_loading_faults(file, report)
    return model.eval()


def _check_vocabulary(pipeline: Any, source: Source) -> None:
    """Refuse a tokenizer with more tokens than its text encoder (ValueError)."""
    for suffix in ("", "_2"):
        tokenizer = getattr(pipeline, f"tokenizer{suffix}", None)
        encoder = getattr(pipeline, f"text_encoder{suffix}", None)
        if tokenizer is None or encoder is None:
            continue
        num = encoder.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > num:
            raise ValueError(
                f"{source.path}/tokenizer{suffix} knows {len(tokenizer)} tokens, text_encoder{suffix} has embeddings for {num}"
            )


def _why_unloaded(source: Source, error: Exception, file: str = "") -> str:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if source.folder is not None:
        return f"{file or source.path} cannot be loaded: {first}"
    if source.is_local:
        return (
            f"generator.path {source.path} is no folder, and is unavailable from the hub: the hub cannot be reached, and no "
            "copy is kept here"
        )
    return f"generator.path {source.path} is no folder, and is unavailable from the hub: {first}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep both libraries from printing bars, and tables of weights that did not fit, which are refused by name."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    libraries = (of_diffusers, of_transformers)
    before = [library.get_verbosity() for library in libraries]
    shown = of_transformers.is_progress_bar_enabled()
    for library in libraries:
        library.set_verbosity_error()
    of_transformers.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in zip(libraries, before, strict=True):
            library.set_verbosity(level)
        if shown:
            of_transformers.enable_progress_bar()
