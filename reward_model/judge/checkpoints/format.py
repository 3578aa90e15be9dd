"""The saved form of a judge: judge_config.json, base/ or a base id, adapters/<role>/, tokenizer. No pickle."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from reward_model.files import write_text
from reward_model.judge.checkpoints.location import CONFIG_FILE, Location, refuse_pickles
from reward_model.judge.checkpoints.released import released_settings
from reward_model.judge.families import family_of, family_type
from reward_model.language.requests import PROMPTS_VERSION
from reward_model.language.styles import OWN
from reward_model.records import CLIP_MEASURES, DIMENSIONS, LEVELS

BASE_FOLDER = "base"
SAME_FOLDER = "."


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
        """Write judge_config.json; an older one is replaced whole."""
        write_text(folder / CONFIG_FILE, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

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
        for name, bounds in values.get("trained_range", {}).items():
            if name not in CLIP_MEASURES or len(bounds) != 2 or not bounds[0] <= bounds[1]:
                raise ValueError(
                    f"{folder / CONFIG_FILE}: trained_range holds [lowest, highest] of {', '.join(CLIP_MEASURES)}, "
                    f"got {name!r}: {bounds!r}"
                )
        reasoned = {role: [tuple(one) for one in sets] for role, sets in values.get("reasoned", {}).items()}
        for role, sets in reasoned.items():
            if not sets or not all(one and set(one) <= set(values["dimensions"]) for one in sets):
                raise ValueError(
                    f"{folder / CONFIG_FILE}: reasoned holds sets of {', '.join(values['dimensions'])}, got {role!r}: {sets!r}"
                )
        values["reasoned"] = reasoned
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
        ValueError: an attention implementation that cannot take masks, weights in a pickle, or a model that cannot judge.
        OSError: neither a folder nor available from the hub.
    """
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    if attn_implementation not in ("sdpa", "eager"):
        raise ValueError(f"attn_implementation must be 'sdpa' or 'eager', got {attn_implementation!r}")
    if dtype == "auto" and device.type == "cpu":
        dtype = torch.float32
    folder = place.folder
    saved = JudgeConfig.load(folder) if folder is not None and (folder / CONFIG_FILE).is_file() else None
    source = place if saved is None or folder is None else _base_of(saved, folder)
    if source.folder is not None:
        refuse_pickles(source.folder)
    try:
        with quiet():
            model = AutoModelForImageTextToText.from_pretrained(
                source.path,
                subfolder=source.subfolder,
                revision=source.revision,
                dtype=dtype,
                attn_implementation=attn_implementation,
                use_safetensors=True,
            ).to(device)
    except OSError as error:
        if source.folder is not None:
            raise
        raise OSError(
            f"{source} is no folder, and is unavailable from the hub: {str(error).splitlines()[0]}"
        ) from error
    tokenizer = AutoTokenizer.from_pretrained(place.path, subfolder=place.subfolder, revision=place.revision)
    settings = released_settings(place.name, model.config.model_type)
    config = saved or JudgeConfig.for_model(model.config, **place.origin(), **settings)
    if config.prompt_style != OWN:
        warnings.warn(
            f"{place} was trained on {config.trained_on}, and never on level words: readout='level' means nothing there; use "
            "readout='reason', or compare for a comparator",
            stacklevel=3,
        )
    return model, tokenizer, config


def _base_of(config: JudgeConfig, folder: Path) -> Location:
    if config.base in (BASE_FOLDER, SAME_FOLDER):
        return Location(str(folder / config.base))
    return Location(config.base, config.base_subfolder, config.revision)
