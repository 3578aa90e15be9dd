"""Roles of one judge as LoRA adapters on a shared base: add, switch, save and load. PEFT is imported only here, when used."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

from torch import nn

from reward_model.weights import read_json, read_tensors, refuse_difference, tensor_shapes

ADAPTERS_FOLDER = "adapters"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_TEXT = r".*language_model\.layers\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
_VISION = r".*visual\.blocks\..*\.(qkv|proj|gate_proj|up_proj|down_proj|linear_fc1|linear_fc2|fc1|fc2)"
_MERGER = r".*visual\.(merger|deepstack_merger_list\.\d+)\.(mlp\.[02]|linear_fc1|linear_fc2)"

TARGETS = {"text": _TEXT, "vision": _VISION, "merger": _MERGER}
"""Parts of a model that a role may adapt -> pattern of their linear layers."""

_SAVED_PREFIX = "base_model.model."


class Roles:
    """The adapters of one model; none is active until `use` says so."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._lock = RLock()
        self._layers: list[Any] = []
        self._configs: dict[str, Any] = {}
        self._active: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Roles in the order in which they were added."""
        return tuple(self._configs)

    @property
    def active(self) -> str | None:
        """The role in use; None is the base."""
        return self._active

    def add(self, name: str, *, rank: int, alpha: int, targets: Sequence[str], copy_from: str | None) -> None:
        """Add a role; see `VideoJudge.add_role`."""
        if not _NAME.fullmatch(name) or name in self._configs:
            raise ValueError(f"a new role needs a new name of letters, digits, - and _, got {name!r}")
        if copy_from is not None:
            self.check(copy_from)
        from peft import LoraConfig, get_peft_model_state_dict

        if copy_from is None:
            check_targets(targets)
            pattern = "|".join(TARGETS[part] for part in TARGETS if part in targets)
            self._inject(name, LoraConfig(r=rank, lora_alpha=alpha, target_modules=pattern))
            return
        weights = get_peft_model_state_dict(self._model, adapter_name=copy_from)
        self._inject(name, self._configs[copy_from], {key: value.clone() for key, value in weights.items()})

    def widen(self, name: str, targets: Sequence[str]) -> None:
        """Let a role adapt further parts as well; see `VideoJudge.widen_role`."""
        self.check(name)
        check_targets(targets)
        from peft import get_peft_model_state_dict

        config, active = self._configs[name], self._active
        covered = _pattern(config.target_modules)
        if missing := [TARGETS[part] for part in TARGETS if part in targets and TARGETS[part] not in covered]:
            weights = get_peft_model_state_dict(self._model, adapter_name=name)
            self._active = None if active == name else active
            self.remove(name)
            wider = dataclasses.replace(config, target_modules="|".join([covered, *missing]))
            self._inject(name, wider, {key: value.clone() for key, value in weights.items()})
            self._switch(active)

    def remove(self, name: str) -> None:
        """Remove a role; see `VideoJudge.remove_role`."""
        self.check(name)
        if name == self._active:
            raise ValueError(f"role {name!r} is in use, it can be removed afterwards")
        with warnings.catch_warnings():
            # PEFT's own choice of the next adapter is undone below
            warnings.filterwarnings("ignore", message="Adapter .* was active which is now deleted")
            for layer in self._layers:
                layer.delete_adapter(name)
        del self._configs[name]
        configs: Any = self._model.peft_config
        configs.pop(name)
        self._switch(self._active)

    def check(self, name: str | None) -> None:
        """Refuse a name that is no role (None is the base)."""
        if name is not None and name not in self._configs:
            raise ValueError(f"unknown role {name!r}, this judge has {', '.join(self._configs) or 'none'}")

    @contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """Make a role active, hold the lock meanwhile, and leave every requires_grad as it was."""
        self.check(name)
        with self._lock:
            before = self._active
            self._switch(name)
            try:
                yield
            finally:
                self._switch(before)

    def hold(self) -> RLock:
        """Return the lock that `use` holds."""
        return self._lock

    def parameters(self, name: str | None) -> list[nn.Parameter]:
        """Return the adapter weights of a role; None is the base's own weights."""
        if name is None:
            return [p for _, p in _base_parameters(self._model)]
        # ...q_proj.lora_A.<name>.weight
        return [p for key, p in self._model.named_parameters() if ".lora_" in key and key.split(".")[-2] == name]

    def save(self, folder: Path, *, without: Collection[str] = ()) -> None:
        """Write adapters/<role>/ in PEFT's own layout, but for the roles of `without`."""
        if not self._configs:
            return
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        for name, config in self._configs.items():
            if name in without:
                continue
            place = folder / ADAPTERS_FOLDER / name
            place.mkdir(parents=True, exist_ok=True)
            config.save_pretrained(place)
            weights = get_peft_model_state_dict(self._model, adapter_name=name)
            named = {f"{_SAVED_PREFIX}{key}": value.detach().contiguous().cpu() for key, value in weights.items()}
            save_file(named, place / WEIGHTS_FILE)

    def load(self, folder: Path) -> None:
        """Add every role that `save` wrote.

        Args:
            folder: of the judge.

        Raises:
            ValueError: an adapter without settings or weights, or whose names or shapes are not those of its layers here.
        """
        places = folder / ADAPTERS_FOLDER
        for place in sorted(places.iterdir()) if places.is_dir() else ():
            if not place.is_dir() or not _NAME.fullmatch(place.name):
                raise ValueError(f"{place} is no folder of a role")
            self._load_role(place)

    def _load_role(self, place: Path) -> None:
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        name, file = place.name, place / WEIGHTS_FILE
        config = _lora_config(place / CONFIG_FILE)
        got = tensor_shapes(file)
        try:
            self._inject(name, config)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"{place / CONFIG_FILE} does not fit this model: {str(error).splitlines()[0]}") from error
        wanted = get_peft_model_state_dict(self._model, adapter_name=name)
        refuse_difference(file, {f"{_SAVED_PREFIX}{key}": value.shape for key, value in wanted.items()}, got)
        weights = {key.removeprefix(_SAVED_PREFIX): value for key, value in read_tensors(file).items()}
        set_peft_model_state_dict(self._model, weights, adapter_name=name)

    def _inject(self, name: str, config: Any, weights: dict[str, Any] | None = None) -> None:
        from peft import inject_adapter_in_model, set_peft_model_state_dict
        from peft.tuners.tuners_utils import BaseTunerLayer

        flags = {key: p.requires_grad for key, p in _base_parameters(self._model)}
        with warnings.catch_warnings():
            # several adapters are what roles are
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            inject_adapter_in_model(config, self._model, name)
        if weights is not None:
            set_peft_model_state_dict(self._model, weights, adapter_name=name)
        for key, parameter in _base_parameters(self._model):
            parameter.requires_grad_(flags[key])
        self._layers = [layer for layer in self._model.modules() if isinstance(layer, BaseTunerLayer)]
        self._configs[name] = config
        self._switch(self._active)

    def _switch(self, name: str | None) -> None:
        # peft's switches turn gradients on and off, which under DDP leaves some unaveraged
        flags = [(p, p.requires_grad) for layer in self._layers for p in layer.parameters()]
        for layer in self._layers:
            if name is None:
                layer.enable_adapters(False)
            else:
                layer.set_adapter([name])
                layer.enable_adapters(True)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        self._active = name


def _pattern(targets: Any) -> str:
    """Return the layers that an adapter covers as one pattern; PEFT reads a list as the ends of their names."""
    if isinstance(targets, str):
        return targets
    return rf"(.*\.)?({'|'.join(map(re.escape, sorted(targets)))})"


def check_targets(targets: Sequence[str]) -> None:
    """Refuse targets that are not some of `TARGETS`, each once (ValueError)."""
    if not targets or len(set(targets)) < len(targets) or not set(targets) <= set(TARGETS):
        raise ValueError(f"lora.targets must be one or more of {', '.join(TARGETS)}, each once, got {list(targets)}")


def _lora_config(file: Path) -> Any:
    """Return the adapter's settings; anything but a LoRA's own raises ValueError with the file's name."""
    from peft import LoraConfig

    values = read_json(file)
    if values.get("peft_type") != "LORA":
        raise ValueError(f"{file}: peft_type must be 'LORA', got {values.get('peft_type')!r}")
    if missing := [key for key in ("r", "lora_alpha", "target_modules") if not values.get(key)]:
        raise ValueError(f"{file}: {missing[0]} is missing")
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    if unknown := sorted(key for key, value in values.items() if key not in known and value):
        raise ValueError(f"{file}: unknown setting {unknown[0]!r}")
    try:
        return LoraConfig(**{key: value for key, value in values.items() if key in known})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {str(error).splitlines()[0]}") from error


def base_state(model: nn.Module) -> dict[str, Any]:
    """Return the base's weights under their own names, without any adapter."""
    return {key.replace(".base_layer.", "."): v for key, v in model.state_dict().items() if ".lora_" not in key}


def _base_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for key, parameter in model.named_parameters():
        if ".lora_" not in key:
            yield key.replace(".base_layer.", "."), parameter
