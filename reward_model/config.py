"""Loading of validated configuration: a frozen dataclass schema, a YAML file and `key=value` overrides.

Every setting of the project is a field of a frozen dataclass. A key that no field knows, a value of the wrong type and
a missing required field are refused with the key's full name; range checks live in the dataclasses' `__post_init__`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Schema = TypeVar("Schema")
Variants = Mapping[str, Mapping[str, type]]
"""Field -> name -> dataclass."""


def load_config(
    schema: type[Schema],
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    variants: Variants | None = None,
) -> Schema:
    """Return `schema` filled from a YAML file and then from command-line overrides.

    Args:
        schema: Frozen dataclass whose fields may be dataclasses themselves.
        path: YAML file; None starts from the schema's defaults.
        overrides: Items of the form "section.key=value"; values are read as YAML.
        variants: Fields of the schema (annotated `Any`) that hold one of several dataclasses, chosen by the `name` key
            in them; where such a field's default is an empty mapping it holds a mapping of variants.

    Returns:
        The checked settings.

    Raises:
        ValueError: Unreadable YAML, unknown key, wrong type, value out of range, or missing required field; the message
            names the file and the key.
    """
    import yaml  # type: ignore[import-untyped]
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    source = str(path) if path is not None else "command line"
    try:
        written = OmegaConf.load(path) if path is not None else OmegaConf.create({})
    except FileNotFoundError:
        raise ValueError(f"config file {source} does not exist; configs/ holds the recipes") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not valid YAML: {error}") from error
    if not isinstance(written, DictConfig):
        raise ValueError(f"{source} must hold a mapping of sections, got a {type(written).__name__}")
    try:
        raw = OmegaConf.merge(written, OmegaConf.from_dotlist(_checked_overrides(overrides)))
        found = OmegaConf.to_object(_merge(schema, raw, variants or {}))
    except OmegaConfBaseException as error:
        raise ValueError(f"{source}: {_explain(error)}") from error
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    assert isinstance(found, schema)
    return found


def to_yaml(config: Any) -> str:
    """Return a loaded config as YAML that `load_config` reads back to an equal one."""
    import yaml

    return yaml.safe_dump(plain(config), sort_keys=False, width=120)


def save_config(config: Any, path: str | Path) -> None:
    """Write the resolved config beside a run or a checkpoint."""
    Path(path).write_text(to_yaml(config), encoding="utf-8")


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known word, or the list of known words."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(sorted(known))}"


def plain(value: Any) -> Any:
    """Return a config as mappings, lists, numbers and strings."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _checked_overrides(overrides: Sequence[str]) -> list[str]:
    for item in overrides:
        if not item.partition("=")[1] or not item.partition("=")[0]:
            raise ValueError(f"override {item!r} must look like section.key=value")
    return list(overrides)


def _merge(schema: type, raw: Any, variants: Variants) -> Any:
    """Return the typed config of `schema` overlaid with `raw`, variant fields replaced by the variant they name."""
    from omegaconf import DictConfig, OmegaConf, read_write

    typed = OmegaConf.structured(schema)
    for field in dataclasses.fields(schema):
        choices, value = variants.get(field.name), raw.get(field.name)
        if choices is None or not isinstance(value, DictConfig):
            continue
        default = None if field.default_factory is dataclasses.MISSING else field.default_factory()
        if default == {}:
            for name in list(value):
                value[name] = _variant(choices, value[name], key=f"{field.name}.{name}", default=None)
            continue
        with read_write(typed):
            typed[field.name] = _variant(choices, value, key=field.name, default=default)
        del raw[field.name]
    return OmegaConf.merge(typed, raw)


def _variant(choices: Mapping[str, type], value: Any, *, key: str, default: Any) -> Any:
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(value, DictConfig) or ("name" not in value and default is None):
        raise ValueError(f"{key}.name is missing; expected one of {', '.join(sorted(choices))}")
    name = str(value["name"]) if "name" in value else default.name
    if name not in choices:
        raise ValueError(f"{key}.name is {name!r}{did_you_mean(name, list(choices))}")
    try:
        return OmegaConf.merge(OmegaConf.structured(choices[name]), value)
    except OmegaConfBaseException as error:
        raise ValueError(f"{key}.{_explain(error)}") from error


def _explain(error: Any) -> str:
    """Return the full key and the first line of an OmegaConf error."""
    first = str(error).splitlines()[0].rstrip(".")
    key = getattr(error, "full_key", None)
    return f"{key}: {first}" if key else first
