"""The former path of `reward_model.hosts`: each name below it is the very module of the new place, for one release."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from types import ModuleType
from typing import Any

HOME = "reward_model.hosts"

__path__ = []  # a package without files of its own: its modules come from the finder below


class _AliasLoader(importlib.abc.Loader):
    """Loads a module of the new place under its former name."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Leave the creation to the import system."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of the new place where the import system takes its result from."""
        sys.modules[module.__name__] = importlib.import_module(_new_name(module.__name__))


class _AliasFinder(importlib.abc.MetaPathFinder):
    """Finds a module under the former path where `reward_model.hosts` has one of that name."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a former name, None for all other modules."""
        if not fullname.startswith(f"{__name__}.") or importlib.util.find_spec(_new_name(fullname)) is None:
            return None
        return importlib.machinery.ModuleSpec(fullname, _AliasLoader())


def _new_name(name: str) -> str:
    return HOME + name.removeprefix(__name__)


sys.meta_path.append(_AliasFinder())
warnings.warn(
    f"{__name__} has moved to {HOME}; the former path goes away in the next release", DeprecationWarning, stacklevel=2
)
