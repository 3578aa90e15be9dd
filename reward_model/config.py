"""Loading of validated configuration: a frozen dataclass schema, a YAML file and `key=value` overrides.

Every setting of the project is a field of a frozen dataclass. A key that no field knows, a value of the wrong type and
a missing required field are refused with the key's full name; range checks live in the dataclasses' `__post_init__`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]

_MOST_NODES = 100_000
_FAULTS_OF_YAML = (yaml.YAMLError, ValueError, AttributeError, RecursionError)
"""Errors of the parser; the last three are of tags that do not fit their value, and of deep nesting."""

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
        variants: Fields of the schema (annotated `Any`), or of a section of it as "section.field", that hold one of several
            dataclasses, chosen by the `name` key in them. Where such a field's default is a mapping it holds a mapping of
            variants, whose names are their keys unless they are stated.

    Returns:
        The checked settings.

    Raises:
        ValueError: Unreadable YAML, malformed override, unknown key, wrong type, value out of range or not finite, missing required field, or
            a reference to the environment or another setting; the message names the file and the key.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    source = str(path) if path is not None else "command line"
    try:
        written = {} if path is None else _read_yaml(path)
        for item in overrides:
            written = _overlaid(written, _parse_override(item))
        _refuse_references(written, "")
        _check_kinds(schema, written, "")
        config = _build(_merge(schema, OmegaConf.create(written), variants or {}))
        _refuse_non_finite(config, "")
    except OmegaConfBaseException as error:
        raise ValueError(f"{source}: {_explain(error)}") from error
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    assert isinstance(config, schema)
    return config


def to_yaml(config: Any) -> str:
    """Return a loaded config as YAML that `load_config` reads back to an equal one."""
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


def _read_yaml(path: str | Path) -> dict[Any, Any]:
    """Return the mapping that a YAML file holds, as plain containers."""
    from omegaconf import DictConfig, OmegaConf

    file = Path(path)
    if not file.exists():
        raise ValueError("config file does not exist; configs/ holds the recipes")
    if not file.is_file():
        raise ValueError("must be a file that holds a mapping of sections, got a folder or a device")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"must be a text file in UTF-8: {error}") from error
    _refuse_expansion(text)
    try:
        content = OmegaConf.load(file)
    except _FAULTS_OF_YAML as error:
        raise ValueError(f"not valid YAML: {_one_line(error)}") from error
    except OSError as error:  # an unreadable file, or a bare number, which omegaconf reports so
        raise ValueError(f"must be a file that holds a mapping of sections ({_one_line(error)})") from error
    if not isinstance(content, DictConfig):
        raise ValueError("must hold a mapping of sections, got a list")
    plain_content: Any = OmegaConf.to_container(content)
    return plain_content


def _refuse_expansion(text: str) -> None:
    """Refuse YAML whose aliases stand for more than `_MOST_NODES` values (ValueError), before they are copied out."""
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        """Return the number of values of a node with its aliases copied out; a node inside itself counts as one."""
        if id(node) not in sizes:
            sizes[id(node)] = 1
            items = node.value if isinstance(node.value, list) else []
            children = [child for item in items for child in (item if isinstance(item, tuple) else (item,))]
            sizes[id(node)] = 1 + sum(size(child) for child in children)
        return sizes[id(node)]

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        num = 0 if root is None else size(root)
    except _FAULTS_OF_YAML as error:
        raise ValueError(f"not valid YAML: {_one_line(error)}") from error
    if num > _MOST_NODES:
        raise ValueError(f"its aliases stand for {num} values, at most {_MOST_NODES} are read")


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__


_OVERRIDE_KEY = re.compile(r"[^\s.=\[\]]+(\.[^\s.=\[\]]+|\[[^\s.=\[\]]+\])*")


def _parse_override(item: str) -> Any:
    """Return the nested mapping of one "section.key=value"."""
    from omegaconf import OmegaConf

    key, equals, value = item.partition("=")
    if not equals or not _OVERRIDE_KEY.fullmatch(key):
        raise ValueError(f"override {item!r} must look like section.key=value")
    try:
        _refuse_expansion(value)
        return OmegaConf.to_container(OmegaConf.from_dotlist([item]))
    except _FAULTS_OF_YAML as error:
        raise ValueError(f"the value of override {item!r} is not valid YAML: {_one_line(error)}") from error


def _refuse_references(value: Any, key: str) -> None:
    """Refuse `${...}` wherever it stands: it could copy a variable of the environment, a token perhaps, into saved settings."""
    if isinstance(value, dict):
        for name, item in value.items():
            _refuse_references(str(name), f"{key}.{name}".lstrip("."))
            _refuse_references(item, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _refuse_references(item, f"{key}[{number}]")
    elif isinstance(value, str) and "${" in value:
        raise ValueError(
            f"{key} is {value!r}: references to other settings or to the environment are not read; write the value"
        )


def _refuse_non_finite(value: Any, key: str) -> None:
    """Refuse a number that is NaN or infinite: it passes every comparison with a limit, or none."""
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        for name, item in value.items():
            _refuse_non_finite(item, f"{key}.{name}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            _refuse_non_finite(item, f"{key}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key} is {value}; expected a finite number")


def _overlaid(base: Any, over: Any) -> Any:
    """Return `base` with the entries of `over` put in; anything but a mapping over a mapping replaces it as a whole."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return base | {key: _overlaid(base.get(key), value) for key, value in over.items()}


def _check_kinds(hint: Any, value: Any, key: str) -> None:
    """Refuse a mapping, list or single value where the schema's type asks for another of the three."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [other for other in typing.get_args(hint) if other is not types.NoneType]
        hint = inner[0] if len(inner) == 1 else Any
    expected = _kind_of_type(hint)
    if expected is None or value is None:
        return
    got = "mapping" if isinstance(value, dict) else "list" if isinstance(value, list) else "single value"
    if got != expected:
        raise ValueError(f"{key} must be a {expected}, got a {got}{_advice(expected, value, key)}")
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        for name, item in value.items():
            _check_kinds(hints.get(name, Any), item, f"{key}.{name}" if key else str(name))
    elif expected == "mapping":
        for name, item in value.items():
            _check_kinds((*typing.get_args(hint), Any, Any)[1], item, f"{key}.{name}")
    elif expected == "list":
        for number, item in enumerate(value):
            _check_kinds((*typing.get_args(hint), Any)[0], item, f"{key}[{number}]")


def _kind_of_type(hint: Any) -> str | None:
    """Return "mapping", "list" or "single value", as a field of this type is written; None for `Any`."""
    if hint is Any:
        return None
    kind = typing.get_origin(hint) or hint
    if dataclasses.is_dataclass(kind) or kind is dict:
        return "mapping"
    return "list" if kind in (list, tuple) else "single value"


def _advice(expected: str, value: Any, key: str) -> str:
    """Return the next move for the two likely mistakes, else nothing."""
    if expected == "list" and isinstance(value, dict):
        return f"; an override gives a list as a whole: {key}=[...]"
    first = value[0] if isinstance(value, list) and value else None
    if expected == "mapping" and isinstance(first, dict) and "name" in first:
        return f"; write each item by its name: '{first['name']}:' in place of '- name: {first['name']}'"
    return ""


def _merge(schema: type, raw: Any, variants: Variants) -> Any:
    """Return the typed config of `schema` overlaid with `raw`, variant fields replaced by the variant they name."""
    from omegaconf import DictConfig, OmegaConf, read_write

    typed = OmegaConf.structured(schema)
    for path, choices in variants.items():
        section, _, name = path.rpartition(".")
        owner = typing.get_type_hints(schema)[section] if section else schema
        given, target = (OmegaConf.select(tree, section) if section else tree for tree in (raw, typed))
        if not isinstance(given, DictConfig) or name not in given:
            continue
        default, value = _default_of(owner, name), given[name]
        with read_write(target):
            if isinstance(default, Mapping) and isinstance(value, DictConfig):
                target[name] = {
                    str(key): _variant(choices, item, key=f"{path}.{key!s}", default=None, called=str(key))
                    for key, item in value.items()
                }
            else:
                target[name] = _variant(choices, value, key=path, default=default)
        del given[name]
    return _put_over(schema, typed, raw)


def _put_over(schema: type, typed: Any, raw: Any) -> Any:
    """Return the typed defaults overlaid with `raw`; a mapping of names that is written replaces its default as a whole."""
    from omegaconf import OmegaConf

    _drop_replaced(schema, typed, raw)
    return OmegaConf.merge(typed, raw)


def _drop_replaced(schema: type, typed: Any, raw: Any) -> None:
    """Empty the default mappings in `typed` that `raw` writes, or the default's entries would stay beside those written."""
    from omegaconf import DictConfig, OmegaConf, read_write

    for name, hint in typing.get_type_hints(schema).items():
        if not isinstance(raw, DictConfig) or name not in raw or not isinstance(raw._get_node(name), DictConfig):
            continue
        with read_write(typed):
            if dataclasses.is_dataclass(hint):
                if OmegaConf.is_missing(typed, name):
                    typed[name] = OmegaConf.structured(hint)
                _drop_replaced(typing.cast(type, hint), typed[name], raw[name])
            elif typing.get_origin(hint) is dict and not OmegaConf.is_missing(typed, name):
                typed[name] = {}


def _default_of(schema: type, name: str) -> Any:
    field = next(field for field in dataclasses.fields(schema) if field.name == name)
    return None if field.default_factory is dataclasses.MISSING else field.default_factory()


def _variant(choices: Mapping[str, type], value: Any, *, key: str, default: Any, called: str = "") -> Any:
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(value, DictConfig):
        raise ValueError(f"{key} must be a mapping with the key name, one of {', '.join(sorted(choices))}")
    if "name" not in value and called in choices:
        value["name"] = called
    if "name" not in value and default is None:
        near = difflib.get_close_matches(called, choices, n=1)
        instead = f"; did you mean the key {key.removesuffix(called)}{near[0]}?" if near else ""
        raise ValueError(f"{key}.name is missing; expected one of {', '.join(sorted(choices))}{instead}")
    name = str(value["name"]) if "name" in value else default.name
    if name not in choices:
        raise ValueError(f"{key}.name is {name!r}{did_you_mean(name, list(choices))}")
    _check_kinds(choices[name], OmegaConf.to_container(value), key)
    try:
        return _put_over(choices[name], OmegaConf.structured(choices[name]), value)
    except OmegaConfBaseException as error:
        raise ValueError(f"{key}.{_explain(error)}") from error


def _build(config: Any, key: str = "") -> Any:
    """Return the dataclass, mapping or list of a typed config; the message of a refused section starts with its key."""
    from omegaconf import ListConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_object(config)
    except OmegaConfBaseException:
        raise
    except ValueError as error:
        entries = range(len(config)) if isinstance(config, ListConfig) else list(config)
        for name in entries:
            if OmegaConf.is_config(config[name]):
                _build(
                    config[name], f"{key}[{name}]" if isinstance(config, ListConfig) else f"{key}.{name}".lstrip(".")
                )
        raise ValueError(_with_key(str(error), key, OmegaConf.get_type(config))) from error


def _with_key(message: str, key: str, section: type | None) -> str:
    """Return a section's message with the section's full key in front, joined to a field's name that it begins with."""
    if not key or message.startswith(f"{key}."):
        return message
    last = re.sub(r"\[\d+\]$", "", key.rpartition(".")[2])
    first = re.split(r"[\s.\[:]", message)[0]
    if message.startswith(f"{last}."):
        return f"{key}.{message.removeprefix(f'{last}.')}"
    named = dataclasses.is_dataclass(section) and first in {field.name for field in dataclasses.fields(section)}
    return f"{key}.{message}" if named else f"{key}: {message}"


def _explain(error: Any) -> str:
    """Return the full key and the first line of an OmegaConf error."""
    first = str(error).splitlines()[0].rstrip(".")
    key = getattr(error, "full_key", None)
    return f"{key}: {first}" if key else first
