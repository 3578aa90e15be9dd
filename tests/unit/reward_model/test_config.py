"""Loading of settings: what is refused, and how the refusal reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from reward_model.config import load_config, save_config


@dataclass(frozen=True, kw_only=True)
class Slow:
    name: Literal["slow"] = "slow"
    patience: int = 3


@dataclass(frozen=True, kw_only=True)
class Fast:
    name: Literal["fast"] = "fast"
    speed: float

    def __post_init__(self) -> None:
        if self.speed <= 0:
            raise ValueError(f"way.speed must be > 0, got {self.speed}")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    width: int = 4
    names: tuple[str, ...] = ("a",)
    weights: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Settings:
    seed: int
    sizes: Sizes = field(default_factory=Sizes)
    way: Any = field(default_factory=Slow)
    stages: dict[str, Any] = field(default_factory=dict)


VARIANTS = {"way": {"slow": Slow, "fast": Fast}, "stages": {"slow": Slow, "fast": Fast}}


def load(tmp_path: Path, text: str, *overrides: str) -> Settings:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return load_config(Settings, path, overrides, variants=VARIANTS)


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    found = load(tmp_path, "seed: 1\nsizes: {width: 5}\n", "seed=2", "sizes.weights.overall=1e-4")
    assert found == Settings(seed=2, sizes=Sizes(width=5, weights={"overall": 1e-4}))


def test_a_variant_is_chosen_by_its_name(tmp_path: Path) -> None:
    assert load(tmp_path, "seed: 1\nway: {name: fast, speed: 2}\n").way == Fast(speed=2.0)
    assert load(tmp_path, "seed: 1\n", "way.patience=9").way == Slow(patience=9)


def test_a_mapping_may_hold_several_variants(tmp_path: Path) -> None:
    found = load(
        tmp_path, "seed: 1\nstages: {one: {name: slow}, two: {name: fast, speed: 1}}\n", "stages.one.patience=5"
    )
    assert found.stages == {"one": Slow(patience=5), "two": Fast(speed=1.0)}


def test_a_saved_config_loads_to_an_equal_one(tmp_path: Path) -> None:
    found = load(tmp_path, "seed: 1\nway: {name: fast, speed: 1.0e-5}\nsizes: {names: [x, y]}\n")
    save_config(found, tmp_path / "saved.yaml")
    assert load_config(Settings, tmp_path / "saved.yaml", variants=VARIANTS) == found


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("seed: 1\nsizes: {widht: 5}\n", (), r"sizes\.widht.*'width'"),
        ("seed: 1\nsizs: {width: 5}\n", (), r"sizs.*'sizes'"),
        ("seed: 1\n", ("sizes.width=wide",), r"sizes\.width.*wide"),
        ("seed: 1\nway: {name: fst}\n", (), r"way\.name is 'fst'; did you mean 'fast'"),
        ("seed: 1\nway: {name: fast, sped: 1}\n", (), r"way\.sped.*'speed'"),
        ("seed: 1\nway: {name: fast}\n", (), r"way\.speed.*missing"),
        ("seed: 1\nway: {name: fast, speed: -1}\n", (), r"way\.speed must be > 0"),
        ("seed: 1\nstages: {one: {patience: 1}}\n", (), r"stages\.one\.name is missing"),
        ("sizes: {width: 5}\n", (), r"seed.*missing"),
        ("seed: 1\n", ("sizes.width",), r"'sizes\.width' must look like section\.key=value"),
        ("- 1\n", (), "must hold a mapping"),
        ("seed: [1\n", (), "not valid YAML"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_full_name(
    tmp_path: Path, text: str, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=f"settings.yaml.*{message}"):
        load(tmp_path, text, *overrides)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere.yaml does not exist"):
        load_config(Settings, tmp_path / "nowhere.yaml")
