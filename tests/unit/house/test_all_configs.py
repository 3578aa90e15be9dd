"""Every recipe loads, every setting is read somewhere, and what is no setting is refused by its full name."""

from __future__ import annotations

import ast
import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from generator_loop.config import JointConfig
from generator_loop.objectives import objective_configs
from generator_loop.run.build import read_config
from reward_model import load_config
from reward_model.training.recipe import RecipeConfig

ROOT = Path(__file__).resolve().parents[3]
JUDGE_RECIPES = sorted((ROOT / "configs" / "judge").glob("*.yaml"))
JOINT_RECIPES = sorted({*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs" / "joint").glob("*.yaml")})
SCHEMAS = (JointConfig, RecipeConfig, *objective_configs().values())
SECTIONS = [field.name for field in dataclasses.fields(JointConfig)]


def nested(schema: type) -> Iterator[type]:
    """Yield a schema and all schemas in its fields, whatever containers they stand in."""
    yield schema
    pending = list(typing.get_type_hints(schema).values())
    while pending:
        hint = pending.pop()
        pending.extend(typing.get_args(hint))
        if dataclasses.is_dataclass(hint):
            yield from nested(hint)


def attributes_read() -> set[str]:
    """Return the attribute names that the packages read, range checks in `__post_init__` aside."""
    names: set[str] = set()
    for package in ("reward_model", "generator_loop"):
        for path in (ROOT / package).rglob("*.py"):
            pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
            while pending:
                node = pending.pop()
                if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
                    continue
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    names.add(node.attr)
                pending.extend(ast.iter_child_nodes(node))
    return names


def test_there_are_recipes_of_both_kinds() -> None:
    assert JUDGE_RECIPES and JOINT_RECIPES


@pytest.mark.parametrize("path", JUDGE_RECIPES, ids=lambda path: path.stem)
def test_every_judge_recipe_loads(path: Path) -> None:
    assert load_config(RecipeConfig, path).stages


@pytest.mark.parametrize("path", JOINT_RECIPES, ids=lambda path: path.stem)
def test_every_joint_recipe_loads(path: Path) -> None:
    assert read_config(path, []).loop.num_rounds >= 1


def test_every_setting_is_read_somewhere() -> None:
    read = attributes_read()
    schemas = {found for schema in SCHEMAS for found in nested(schema)}
    fields = {(schema.__name__, field.name) for schema in schemas for field in dataclasses.fields(schema)}
    assert sorted(f"{schema}.{name}" for schema, name in fields if name not in read) == []


@pytest.mark.parametrize("section", SECTIONS)
def test_a_key_that_is_no_setting_is_refused_by_its_full_name(section: str) -> None:
    with pytest.raises(ValueError, match=rf"{section}\.no_such_setting"):
        read_config(ROOT / "configs" / "toy.yaml", [f"{section}.no_such_setting=1"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["update.advantages=per_reward", "reward.transform=shuffle"], "reads each reward by itself"),
        (["objective.name=draft", "reward.transform=negate"], "differentiates the judges alone"),
        (["reward.pessimism=0.5"], "needs other judges: name them in judge.ensemble"),
        (["judge.ensemble=[other]"], "judge.ensemble serves reward.pessimism or guards.kl_fraction"),
        (["reward.pessimism=1", "judge.ensemble=[a]", "update.advantages=per_reward"], "set reward.pessimism=0"),
        (
            ["refresh.every=0", "refresh.triggers={uncertainty: 2}", "prompts.world=null", "prompts.path=prompts.txt"],
            r"set refresh\.anchors\.path, or refresh\.every=0 without refresh\.triggers",
        ),
        (["refresh.readouts=[levles]"], r"toy\.yaml: refresh\.readouts holds 'levles'; did you mean 'levels'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_config(ROOT / "configs" / "toy.yaml", overrides)
