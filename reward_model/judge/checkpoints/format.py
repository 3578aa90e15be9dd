"""The saved form of a judge: judge_config.json, base/ or a base id, adapters/<role>/, tokenizer. No pickle."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from reward_model.files import write_text
from reward_model.judge.checkpoints.location import CONFIG_FILE, Location
from reward_model.judge.checkpoints.manifest import (
    FILES,
    FORMAT,
    FORMAT_VERSION,
    check_folder,
    checksums,
    refuse_missing_tokenizer,
)
from reward_model.judge.checkpoints.released import PARAPHRASE, released_settings
from reward_model.judge.families import family_of, family_type
from reward_model.language.requests import PROMPTS_VERSION
from reward_model.language.styles import OWN, style_of
from reward_model.media.frame_sampling import FramePolicy
from reward_model.records import CLIP_MEASURES, DIMENSIONS, LEVELS
from reward_model.weights import check_weight_files, hub_is_away, is_hub_id, read_json, refuse_loading_faults

BASE_FOLDER = "base"
SAME_FOLDER = "."

PARTS_OF_JUDGES = ("adapters", "extra.safetensors", "score_head.safetensors")
"""Files and folders that only judges have."""

FAULTS_OF_LOADING = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, IndexError)
"""Errors that libraries raise over a malformed folder."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """The saved description of a judge: how it is shown clips, how it is asked, and its history."""

    family: str
    """Model type of the base, a key of `judge.families.FAMILIES`."""
    base: str = BASE_FOLDER
    """Hub id or path of the base; "base" is the sub-folder that is saved with the judge, "." the judge's own folder."""
    base_subfolder: str = ""
    """Sub-folder of a hub base."""
    revision: str | None = None
    """Revision of a hub base."""
    origin: Mapping[str, str | None] = field(default_factory=dict)
    """Source of a merged judge: "role", and "base", "base_subfolder" and "revision" of a base on the hub."""
    min_pixels: int
    """Least pixels that clips are resized to, as the family's official processor counts them."""
    max_pixels: int
    """Most pixels; raising it shows finer detail and costs tokens."""
    position_rule: str
    """Name of the family's rule for position ids; a judge is read with the rule it was trained with."""
    prompts_version: str = PROMPTS_VERSION
    """Version of the prompts that it was trained with."""
    prompt_style: str = OWN
    """How it is asked for reasoned answers and comparisons, a key of `language.styles.STYLES`; others than "own" are of
    judges that were trained elsewhere."""
    wording: Mapping[str, str] = field(default_factory=dict)
    """Texts that replace those of its style, by their names (fields of `language.styles.Wording`)."""
    levels: tuple[str, ...] = LEVELS
    """Level words, worst first."""
    dimensions: tuple[str, ...] = DIMENSIONS
    """Dimensions that it can be asked for."""
    reasoned: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    """Role ("" is the base) -> sets of dimensions that it was taught to rate in one reasoned answer; a missing role
    rates the base's sets, and a missing base all dimensions."""
    frame_policy: Mapping[str, Any] = field(default_factory=lambda: {"mode": "fps", "fps": 2.0, "max_frames": 16})
    """Fields of the frame planner's policy, the same at training and use."""
    motion: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the motion encoder whose features it is shown (fields of `MotionConfig` in media) and
    "feature_size"; empty for a judge that sees frames only."""
    calibration: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Dimension -> {"mean", "std"} of its quality, for z scores."""
    trained_range: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Name of `CLIP_MEASURES` -> [lowest, highest] of the clips that it was trained on; missing names are unknown."""
    max_answer_tokens: int = 512
    """Longest reasoned answer."""
    trained_on: str = ""
    """One line for users: its training data."""
    lineage: tuple[str, ...] = ()
    """Training stages, oldest first."""

    @classmethod
    def for_model(cls, config: Any, **changes: Any) -> JudgeConfig:
        """Return the configuration of an untrained judge on a model config, with `changes` to single fields."""
        low, high = family_type(config.model_type).default_pixels
        low, high = changes.pop("min_pixels", low), changes.pop("max_pixels", high)
        rule = family_of(config, low, high, changes.pop("position_rule", None)).position_rule
        return cls(family=config.model_type, min_pixels=low, max_pixels=high, position_rule=rule, **changes)

    def taught(self, role: str | None) -> list[tuple[str, ...]]:
        """Return the sets of dimensions that a role (None is the base) was taught to rate at once; old judges record none."""
        return [tuple(one) for one in self.reasoned.get(role or "", self.reasoned.get("", []))]

    def reasons_about(self, role: str | None, wanted: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the set of dimensions that a reasoned question must name, one that the role was taught.

        Args:
            role: None is the base.
            wanted: dimensions to be rated; none for as many as possible.

        Returns:
            The smallest set that a role was taught and that holds all of `wanted`, or the largest where nothing is wanted.

        Raises:
            ValueError: no such set.
        """
        sets = self.taught(role) or [tuple(self.dimensions)]
        fitting = [one for one in sets if set(wanted) <= set(one)]
        if not fitting:
            known = " or ".join(", ".join(one) for one in sets)
            raise ValueError(f"this judge's reasoned answers rate {known}, not {', '.join(wanted)}")
        return min(fitting, key=len) if wanted else max(fitting, key=len)

    def save(self, folder: Path) -> None:
        """Write judge_config.json with the checksums of the folder's other files, so last; an older one is replaced whole."""
        values = {FORMAT: FORMAT_VERSION} | dataclasses.asdict(self) | {FILES: checksums(folder)}
        write_text(folder / CONFIG_FILE, json.dumps(values, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> JudgeConfig:
        """Read judge_config.json; malformed or unknown fields, prompts or levels of another version raise ValueError."""
        file = folder / CONFIG_FILE
        values = read_json(file)
        for name in (FORMAT, FILES):
            values.pop(name, None)
        fields = {f.name: f for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - set(fields)):
            raise ValueError(f"{file} has unknown fields {unknown}")
        hints = typing.get_type_hints(cls)
        for name, given in fields.items():
            if name in values:
                _check_kind(file, name, values[name], hints[name])
            elif given.default is dataclasses.MISSING and given.default_factory is dataclasses.MISSING:
                raise ValueError(f"{file}: {name} is missing")
        for name in ("levels", "dimensions", "lineage"):
            values[name] = tuple(values.get(name, ()))
        for name, mine in (("prompts_version", PROMPTS_VERSION), ("levels", LEVELS)):
            if values.get(name, mine) != mine:
                raise ValueError(f"{file}: {name} is {values[name]!r}, this version speaks {mine!r}")
        values["reasoned"] = {role: [tuple(one) for one in sets] for role, sets in values.get("reasoned", {}).items()}
        config = cls(**values)
        _check_values(file, config)
        return config


def _check_kind(file: Path, name: str, value: Any, hint: Any) -> None:
    """Refuse a field whose JSON value is of another kind than the field (ValueError)."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = tuple(typing.get_origin(kind) or kind for kind in kinds)
    accepted = {Mapping: dict, tuple: list}
    if isinstance(value, bool) or not isinstance(value, tuple(accepted.get(kind, kind) for kind in kinds)):
        names = " or ".join(accepted.get(kind, kind).__name__ for kind in kinds)
        raise ValueError(f"{file}: {name} must be {names}, got {value!r}")


def _check_values(file: Path, config: JudgeConfig) -> None:
    """Refuse values out of range (ValueError); the message names file and field."""
    for name in config.dimensions:
        if name not in DIMENSIONS:
            raise ValueError(f"{file}: dimensions holds some of {', '.join(DIMENSIONS)}, got {name!r}")
    if not config.dimensions:
        raise ValueError(f"{file}: dimensions is empty")
    if not 1 <= config.min_pixels <= config.max_pixels or config.max_answer_tokens < 1:
        raise ValueError(
            f"{file}: expected 1 <= min_pixels <= max_pixels and max_answer_tokens >= 1, got {config.min_pixels}, "
            f"{config.max_pixels} and {config.max_answer_tokens}"
        )
    for name, bounds in config.trained_range.items():
        if name not in CLIP_MEASURES or not _are_numbers(bounds, 2) or not bounds[0] <= bounds[1]:
            raise ValueError(
                f"{file}: trained_range holds [lowest, highest] of {', '.join(CLIP_MEASURES)}, got {name!r}: {bounds!r}"
            )
    for role, sets in config.reasoned.items():
        if not sets or not all(one and set(one) <= set(config.dimensions) for one in sets):
            raise ValueError(f"{file}: reasoned holds sets of {', '.join(config.dimensions)}, got {role!r}: {sets!r}")
    for name, scale in config.calibration.items():
        known = isinstance(scale, dict) and scale.keys() == {"mean", "std"} and _are_numbers([*scale.values()], 2)
        if name not in DIMENSIONS or not known or scale["std"] <= 0:
            raise ValueError(f"{file}: calibration holds a mean and a std > 0 of a dimension, got {name!r}: {scale!r}")
    try:
        style_of(config.prompt_style, config.wording)
        FramePolicy.from_dict(config.frame_policy)
        family_type(config.family)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error


def _are_numbers(values: Any, num: int) -> bool:
    plain = isinstance(values, (list, tuple)) and len(values) == num
    return plain and all(isinstance(one, (int, float)) and math.isfinite(one) for one in values)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing progress bars inside this context."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def load_parts(
    place: Location, *, dtype: str | torch.dtype, device: torch.device, attn_implementation: str
) -> tuple[Any, Any, JudgeConfig]:
    """Return the base model, its tokenizer and the configuration of a judge folder or of a stock checkpoint.

    Args:
        place: of a folder that `VideoJudge.save_pretrained` wrote, or of a stock checkpoint, as `locate` returns it.
        dtype: of the weights; "auto" is float32 on CPU and the checkpoint's own elsewhere.
        device: where the model goes.
        attn_implementation: "sdpa" or "eager"; others cannot take the mask of a shared prefix.

    Returns:
        Model, tokenizer, configuration.

    Raises:
        ValueError: an attention implementation that cannot take masks, a folder that is malformed or incomplete, weights that
            do not fit, a place that is not available, or a model that cannot judge.
    """
    if attn_implementation not in ("sdpa", "eager"):
        raise ValueError(f"attn_implementation must be 'sdpa' or 'eager', got {attn_implementation!r}")
    if dtype == "auto" and device.type == "cpu":
        dtype = torch.float32
    saved = None if place.folder is None else _saved_config(place.folder)
    source = place if saved is None or place.folder is None else _base_of(saved, place.folder)
    if place.folder is not None:
        refuse_missing_tokenizer(place.folder)
    model = load_stock_model(source, dtype=dtype, attn_implementation=attn_implementation).to(device)
    if saved is not None and saved.family != model.config.model_type:
        raise ValueError(f"{place}: family is {saved.family!r}, the base {source} is a {model.config.model_type}")
    tokenizer = load_tokenizer(place)
    _check_vocabulary(place, tokenizer, model)
    settings = released_settings(place.name, model.config.model_type)
    config = saved or JudgeConfig.for_model(model.config, **place.origin(), **settings)
    if config.prompt_style != OWN:
        warnings.warn(
            f"{place} was trained on {config.trained_on}, and never on level words: readout='level' means nothing there; use "
            f"readout='reason', or compare for a comparator{_asked_in(config)}",
            stacklevel=3,
        )
    return model, tokenizer, config


def _asked_in(config: JudgeConfig) -> str:
    source = config.wording.get("source", "")
    return f"; it is asked in {source} (see judge.checkpoints.authors)" if source == PARAPHRASE else ""


def load_stock_model(source: Location, *, dtype: str | torch.dtype, attn_implementation: str) -> Any:
    """Return a vision-language model all of whose weights came from its checkpoint, and all of the checkpoint's went into it.

    Args:
        source: of the checkpoint.
        dtype: of the weights.
        attn_implementation: of transformers.

    Returns:
        The model, on the CPU.

    Raises:
        ValueError: not available, code or a pickle, or weights that are missing, unexpected, cut or of other shapes.
    """
    from transformers import AutoModelForImageTextToText

    file = source.path if source.folder is None else str(check_weight_files(source.folder, "model"))
    try:
        with quiet(), without_reports():
            model, report = AutoModelForImageTextToText.from_pretrained(
                source.path,
                subfolder=source.subfolder,
                revision=source.revision,
                dtype=dtype,
                attn_implementation=attn_implementation,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=source.folder is not None or source.is_offline,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that the report names them
            )
    except FAULTS_OF_LOADING as error:
        raise ValueError(_why_unloaded(source, error)) from error
    refuse_loading_faults(file, report)
    return model


def load_tokenizer(source: Location) -> Any:
    """Return the tokenizer of a checkpoint or judge; ValueError where it is malformed or not available."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            source.path,
            subfolder=source.subfolder,
            revision=source.revision,
            trust_remote_code=False,
            local_files_only=source.folder is not None or source.is_offline,
        )
    except FAULTS_OF_LOADING as error:
        raise ValueError(f"the tokenizer of {_why_unloaded(source, error)}") from error


@contextmanager
def without_reports() -> Iterator[None]:
    """Keep transformers from printing tables of the weights that did not fit, which are refused by name."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _why_unloaded(source: Location, error: Exception) -> str:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if source.folder is not None:
        return f"{source} cannot be loaded: {first}"
    if source.is_offline:
        return f"{source} is no folder, and is unavailable from the hub: the hub cannot be reached, and no copy is kept here"
    return f"{source} is no folder, and is unavailable from the hub: {first}"


def _saved_config(folder: Path) -> JudgeConfig | None:
    """Return the checked configuration of a judge folder, None of a stock checkpoint."""
    file = folder / CONFIG_FILE
    if file.is_file():
        config = JudgeConfig.load(folder)
        check_folder(folder, read_json(file), file)
        return config
    check_folder(folder, {}, file)
    if parts := [name for name in (BASE_FOLDER, *PARTS_OF_JUDGES) if (folder / name).exists()]:
        raise ValueError(f"{file} is missing: {folder / parts[0]} is part of a judge")
    return None


def _check_vocabulary(place: Location, tokenizer: Any, model: Any) -> None:
    """Refuse a tokenizer of another model: more words than the model has, or no vision tokens (ValueError).

    The ids of the vision tokens may differ from the base's: the engine takes the base's.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ValueError(f"{place}: the tokenizer knows {len(tokenizer)} tokens, the base has embeddings for {rows}")
    known = tokenizer.get_vocab()
    for token in ("<|video_pad|>", "<|image_pad|>"):
        if token not in known:
            raise ValueError(f"{place}: the tokenizer does not know {token}")


def _base_of(config: JudgeConfig, folder: Path) -> Location:
    """Return the place of a judge's base; a relative path starts at the judge's folder, wherever the program runs."""
    base = Path(config.base)
    if base.is_absolute() or (folder / base).is_dir():
        if not (folder / base).is_dir():
            raise ValueError(f"{folder / CONFIG_FILE}: base {config.base!r} is no folder")
        return Location(str(folder / base))
    if not is_hub_id(config.base):
        raise ValueError(
            f"{folder / CONFIG_FILE}: base {config.base!r} is neither a folder beside it nor a hub id such as owner/name"
        )
    if base.is_dir():
        raise ValueError(
            f"{folder / CONFIG_FILE}: base {config.base!r} is a hub id, and a folder of that name stands in the working "
            "directory; start the program elsewhere, or give the base as an absolute path"
        )
    return Location(config.base, config.base_subfolder, config.revision, hub_is_away())
