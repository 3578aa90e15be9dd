"""Whole runs on tiny random models, as tests open them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from generator_loop.run.build import open_session, read_config
from generator_loop.run.launch import Processes
from generator_loop.run.session import Session
from tests.tiny_models import RECIPE, save_tiny_judge, save_tiny_wan

Recipe = Callable[..., list[str]]
"""recipe(output, section__key=value, ...) -> overrides."""


def tiny_recipe(root: Path) -> Recipe:
    """Write tiny models to a folder and return the function that gives the overrides of a tiny run on them."""
    models = {
        "generator.path": save_tiny_wan(root / "wan"),
        "judge.path": save_tiny_judge(root / "judge"),
        "judge.audit_path": save_tiny_judge(root / "audit", family="qwen3_vl", roles=()),
    }

    def overrides(output: Path, **changes: object) -> list[str]:
        named = {name.replace("__", "."): value for name, value in changes.items()}
        return [f"{name}={value}" for name, value in {**RECIPE, **models, "run.output": output, **named}.items()]

    return overrides


def opened(overrides: list[str], processes: Processes | None = None) -> Session:
    """Return the session of a tiny run."""
    return open_session(read_config(None, overrides), processes or Processes(device=torch.device("cpu")))


def never() -> bool:
    """Never ask a run to stop."""
    return False


def scores(output: Path) -> dict[str, Any]:
    """Return a summary without what may differ between equal runs."""
    found = json.loads((output / "summary.json").read_text())
    del found["config"]["run"]
    for record in found["rounds"]:
        del record["seconds"]
    return found
