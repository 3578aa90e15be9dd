"""The saved form of a judge: judge_config.json, base/ or a base id, adapters/<role>/, tokenizer. No pickle."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from reward_model.judge.families import DEFAULT_PIXELS, family_of
from reward_model.language.prompts import PROMPTS_VERSION
from reward_model.records import DIMENSIONS, LEVELS

CONFIG_FILE = "judge_config.json"
BASE_FOLDER = "base"


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """What a saved judge says of itself."""

    family: str
    """Model type of the base, a key of `judge.families.FAMILIES`."""
    base: str = BASE_FOLDER
    """Hub id or path of the base; "base" means the sub-folder that is saved with the judge."""
    revision: str | None = None
    """Revision of a hub base."""
    min_pixels: int
    """Least pixels that clips are resized to, as the family's official processor counts them."""
    max_pixels: int
    """Most pixels; raising it shows finer detail and costs tokens."""
    position_rule: str
    """Name of the family's rule for position ids; a judge is read with the rule it was trained with."""
    prompts_version: str = PROMPTS_VERSION
    """Version of the prompts that it was trained with."""
    levels: tuple[str, ...] = LEVELS
    """Level words, worst first."""
    dimensions: tuple[str, ...] = DIMENSIONS
    """Dimensions that it can be asked for."""
    frame_policy: Mapping[str, Any] = field(default_factory=lambda: {"mode": "fps", "fps": 2.0, "max_frames": 16})
    """Fields of the frame planner's policy, the same at training and use."""
    motion: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the motion encoder whose features it is shown (fields of `MotionConfig` in media) and
    "feature_size"; empty for a judge that sees frames only."""
    calibration: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Dimension -> {"mean", "std"} of its quality, for z scores."""
    max_answer_tokens: int = 512
    """Longest reasoned answer."""
    trained_on: str = ""
    """One line for users: what it has seen."""
    lineage: tuple[str, ...] = ()
    """Training stages, oldest first."""

    @classmethod
    def for_model(cls, config: Any, **changes: Any) -> JudgeConfig:
        """Return the configuration of an untrained judge on a model config, with `changes` to single fields."""
        low, high = DEFAULT_PIXELS.get(config.model_type, (1, 1))
        low, high = changes.pop("min_pixels", low), changes.pop("max_pixels", high)
        rule = family_of(config, low, high).position_rule
        return cls(family=config.model_type, min_pixels=low, max_pixels=high, position_rule=rule, **changes)

    def save(self, folder: Path) -> None:
        """Write judge_config.json."""
        (folder / CONFIG_FILE).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> JudgeConfig:
        """Read judge_config.json; unknown fields, prompts or levels that this version does not speak raise ValueError."""
        values = json.loads((folder / CONFIG_FILE).read_text())
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{folder / CONFIG_FILE} has unknown fields {unknown}")
        for name in ("levels", "dimensions", "lineage"):
            values[name] = tuple(values.get(name, ()))
        for name, mine in (("prompts_version", PROMPTS_VERSION), ("levels", LEVELS)):
            if values[name] != mine:
                raise ValueError(f"{folder / CONFIG_FILE}: {name} is {values[name]!r}, this version speaks {mine!r}")
        return cls(**values)


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
    path_or_id: str | Path, *, dtype: str | torch.dtype, device: torch.device, attn_implementation: str
) -> tuple[Any, Any, JudgeConfig]:
    """Return the base model, its tokenizer and the configuration of a judge folder or of a stock checkpoint.

    Args:
        path_or_id: a folder written by `VideoJudge.save_pretrained`, or a stock checkpoint's folder or hub id.
        dtype: of the weights; "auto" is float32 on CPU and the checkpoint's own elsewhere.
        device: where the model goes.
        attn_implementation: "sdpa" or "eager"; others cannot take the mask of a shared prefix.

    Returns:
        Model, tokenizer, configuration.

    Raises:
        ValueError: an attention implementation that cannot take masks, or a model that cannot judge.
        OSError: neither a folder nor to be had from the hub.
    """
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    if attn_implementation not in ("sdpa", "eager"):
        raise ValueError(f"attn_implementation must be 'sdpa' or 'eager', got {attn_implementation!r}")
    if dtype == "auto" and device.type == "cpu":
        dtype = torch.float32
    folder = Path(path_or_id)
    saved = JudgeConfig.load(folder) if (folder / CONFIG_FILE).is_file() else None
    if saved is None:
        source, revision = str(path_or_id), None
    else:
        source, revision = (str(folder / BASE_FOLDER) if saved.base == BASE_FOLDER else saved.base), saved.revision
    try:
        with quiet():
            model = AutoModelForImageTextToText.from_pretrained(
                source, revision=revision, dtype=dtype, attn_implementation=attn_implementation, use_safetensors=True
            ).to(device)
    except OSError as error:
        if Path(source).is_dir():
            raise
        raise OSError(f"{source} is no folder, and cannot be had from the hub: {str(error).splitlines()[0]}") from error
    tokenizer = AutoTokenizer.from_pretrained(str(path_or_id))
    config = saved or JudgeConfig.for_model(model.config, **_origin(path_or_id))
    return model, tokenizer, config


def local_copy(path_or_id: str | Path) -> str | Path:
    """Return the folder of a judge: the given one, or the snapshot of a hub repository that holds a saved judge.

    Args:
        path_or_id: a folder, or a hub id.

    Returns:
        A local folder; a hub id that is no saved judge (a stock checkpoint, or nothing) as it is.
    """
    if Path(path_or_id).is_dir():
        return path_or_id
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

    try:
        hf_hub_download(str(path_or_id), CONFIG_FILE)
    except (EntryNotFoundError, HFValidationError, RepositoryNotFoundError):
        return path_or_id
    return Path(snapshot_download(str(path_or_id), allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt"]))


def _origin(path_or_id: str | Path) -> dict[str, str | None]:
    """Return where a stock checkpoint came from: an absolute path, or a hub id and the commit that was loaded."""
    if Path(path_or_id).is_dir():
        return {"base": str(Path(path_or_id).resolve())}
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(str(path_or_id), "config.json")
    return {"base": str(path_or_id), "revision": Path(found).parent.name if isinstance(found, str) else None}
