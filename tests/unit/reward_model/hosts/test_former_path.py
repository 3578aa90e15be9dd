"""The import path of the hosts before their move: one warning, and the modules themselves."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from reward_model.hosts import flow_grpo, trl

FORMER = "reward_model.serving.hosts"


@pytest.fixture
def fresh(monkeypatch):
    """Forget whatever an earlier import of the former path left behind, before and after the test."""
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not type(f).__module__.startswith(FORMER)])
    for name in [name for name in sys.modules if name.startswith(FORMER)]:
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in [name for name in sys.modules if name.startswith(FORMER)]:
        del sys.modules[name]


def test_a_former_name_is_the_very_module_of_the_new_place(fresh):
    spec = flow_grpo.__spec__
    with pytest.warns(DeprecationWarning, match="has moved to reward_model.hosts; the former path goes away"):
        former = importlib.import_module(f"{FORMER}.flow_grpo")
        from reward_model.serving.hosts import trl as former_trl
        from reward_model.serving.hosts.flow_grpo import reward_factory
    assert former is flow_grpo and former_trl is trl and reward_factory is flow_grpo.reward_factory
    assert flow_grpo.__name__ == "reward_model.hosts.flow_grpo" and flow_grpo.__spec__ is spec


def test_a_module_that_never_was_is_missing_under_the_name_that_was_asked_for(fresh):
    with pytest.warns(DeprecationWarning), pytest.raises(ModuleNotFoundError, match=rf"'{FORMER}\.nowhere'"):
        importlib.import_module(f"{FORMER}.nowhere")


PROGRAM = f"""
import {FORMER}.trl
from {FORMER}.flow_grpo import reward_factory
from {FORMER} import ddpo, vader
assert {FORMER}.trl.__name__ == "reward_model.hosts.trl"
"""


def test_a_program_hears_of_the_move_once_and_at_its_own_line():
    command = [sys.executable, "-W", "always::DeprecationWarning:__main__", "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.count("DeprecationWarning") == 1
    assert done.stderr.startswith("<string>:2: DeprecationWarning: reward_model.serving.hosts has moved")
