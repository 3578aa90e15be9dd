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
    parts: dict[str, float] = field(default_factory=lambda: {"whole": 1.0})


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
    shares: dict[str, float] = field(default_factory=lambda: {"overall": 1.0})


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


@dataclass(frozen=True, kw_only=True)
class Section:
    ways: dict[str, Any] = field(default_factory=lambda: {"slow": Slow()})
    way: Any = field(default_factory=Slow)
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Nested:
    section: Section = field(default_factory=Section)


CHOICES = {"slow": Slow, "fast": Fast}
NESTED = {"section.ways": CHOICES, "section.way": CHOICES}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], Section()),
        (["section.seed=3"], Section(seed=3)),
        (["section.ways={}"], Section(ways={})),
        (["section.ways={fast: {speed: 2}}"], Section(ways={"fast": Fast(speed=2.0)})),
        (["section.ways.fast.speed=2"], Section(ways={"fast": Fast(speed=2.0)})),
        (
            ["section.ways={a: {name: slow, patience: 1}, fast: {speed: 3}}"],
            Section(ways={"a": Slow(patience=1), "fast": Fast(speed=3.0)}),
        ),
        (["section.way={name: fast, speed: 4}", "section.seed=1"], Section(way=Fast(speed=4.0), seed=1)),
        (["section.way.patience=5"], Section(way=Slow(patience=5))),
    ],
)
def test_variants_of_a_section_are_named_by_their_keys(tmp_path: Path, overrides: list[str], expected: Section) -> None:
    loaded = load_config(Nested, None, overrides, variants=NESTED)
    assert loaded.section == expected
    save_config(loaded, tmp_path / "saved.yaml")
    assert load_config(Nested, tmp_path / "saved.yaml", variants=NESTED) == loaded


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("section.ways={a: {patience: 1}}", r"section\.ways\.a\.name is missing; expected one of fast, slow$"),
        ("section.ways={fats: {patience: 1}}", r"one of fast, slow; did you mean the key section\.ways\.fast\?$"),
        ("section.ways={a: {name: fats}}", r"section\.ways\.a\.name is 'fats'; did you mean 'fast'"),
        ("section.ways={slow: {patienc: 1}}", r"section\.ways\.slow\.patienc"),
        ("section.ways={fast: {speed: -1}}", r"section\.ways\.fast.*speed must be > 0"),
        ("section.ways={slow: 3}", r"section\.ways\.slow must be a mapping"),
        ("section.ways=[slow]", r"section\.ways must be a mapping, got a list"),
        ("section.wayz={}", r"section\.wayz"),
    ],
)
def test_a_wrong_variant_of_a_section_is_refused_by_its_full_name(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(Nested, None, [override], variants=NESTED)


def test_a_saved_config_loads_to_an_equal_one(tmp_path: Path) -> None:
    found = load(tmp_path, "seed: 1\nway: {name: fast, speed: 1.0e-5}\nsizes: {names: [x, y]}\n")
    save_config(found, tmp_path / "saved.yaml")
    assert load_config(Settings, tmp_path / "saved.yaml", variants=VARIANTS) == found


@dataclass(frozen=True, kw_only=True)
class Layer:
    name: str = ""
    width: int
    paths: list[Sizes] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.width <= 0:
            raise ValueError(f"width must be > 0, got {self.width}")
        if self.width > 99:
            raise ValueError("a layer this wide does not fit")


@dataclass(frozen=True, kw_only=True)
class Tower:
    layers: dict[str, Layer]
    first: Layer | None = None


def load_tower(tmp_path: Path, text: str, *overrides: str) -> Tower:
    path = tmp_path / "tower.yaml"
    path.write_text(text)
    return load_config(Tower, path, overrides)


def test_one_entry_of_a_mapping_is_overridden_by_its_name_and_the_order_stays(tmp_path: Path) -> None:
    text = "layers: {low: &low {width: 1, paths: [{width: 2}]}, high: *low}\n"
    found = load_tower(tmp_path, text, "layers.low.width=5", "layers.high.paths=[]", "layers.top.width=7")
    assert list(found.layers) == ["low", "high", "top"]
    assert found.layers["low"] == Layer(width=5, paths=[Sizes(width=2)])
    assert found.layers["high"] == Layer(width=1)


TOWER = "layers: {low: {width: 1, paths: [{width: 2}]}}\n"


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (
            "layers: [{name: low, width: 1}]\n",
            (),
            r"layers must be a mapping, got a list; .* 'low:' in place of '- name",
        ),
        ("layers: [1]\n", (), "layers must be a mapping, got a list$"),
        ("layers: 3\n", (), "layers must be a mapping, got a single value"),
        ("layers: {low: [1]}\n", (), r"layers\.low must be a mapping, got a list"),
        ("layers: {low: 3}\n", (), r"layers\.low must be a mapping, got a single value"),
        ("layers: {low: null}\n", (), r"layers\.low"),
        ("layers: {low: {width: [1]}}\n", (), r"layers\.low\.width must be a single value, got a list"),
        ("layers: {low: {width: {a: 1}}}\n", (), r"layers\.low\.width must be a single value, got a mapping"),
        ("layers: {low: {width: 1, paths: {a: 1}}}\n", (), r"layers\.low\.paths must be a list, got a mapping"),
        ("layers: {low: {width: 1, paths: [[1]]}}\n", (), r"layers\.low\.paths\[0\] must be a mapping, got a list"),
        ("layers: {low: {width: 0}}\n", (), r"layers\.low\.width must be > 0, got 0"),
        ("layers: {low: {width: 100}}\n", (), r"layers\.low: a layer this wide"),
        ("layers: {low: {width: 1}}\nfirst: [1]\n", (), "first must be a mapping, got a list"),
        ("layers: {low: {width: 1}}\nfirst: {width: 0}\n", (), r"first\.width must be > 0"),
        ("layers: {low: {width: 1}}\n1: 2\n", (), "1"),
        ("layers: {null: {width: 1}}\n", (), "layers"),
        ("layers: {low: {width: '${nowhere}'}}\n", (), r"layers\.low\.width.*nowhere"),
        ("3\n", (), "mapping of sections"),
        ("a: 1\na: 2\n", (), "not valid YAML.*"),
        (
            TOWER,
            ("layers.low.paths.0.width=3",),
            r"low\.paths must be a list.*as a whole: layers\.low\.paths=\[\.\.\.\]",
        ),
        (TOWER, ("layers.low.paths[0].width=3",), r"layers\.low\.paths must be a list, got a mapping"),
        (TOWER, ("layers.low.paths[0]=3",), r"layers\.low\.paths must be a list, got a mapping"),
        (TOWER, ("layers.low.width.deep=3",), r"layers\.low\.width must be a single value, got a mapping"),
        (TOWER, ("layers.low=3",), r"layers\.low must be a mapping, got a single value"),
        (TOWER, ("layers=[]",), "layers must be a mapping, got a list"),
        (TOWER, ("layers=null",), "layers"),
        (TOWER, ("layers.low.width=",), r"layers\.low\.width"),
        (TOWER, ("layers.low.widht=3",), r"layers\.low\.widht.*'width'"),
        (TOWER, ("layers.low.width=[1",), r"layers\.low\.width=\[1.*not valid YAML"),
        (TOWER, ("layers..width=3",), "'layers..width=3' must look like section.key=value"),
        (TOWER, ("=3",), "'=3' must look like section.key=value"),
        (TOWER, ("[=3",), "must look like section.key=value"),
        (TOWER, ("layers.low[=3",), "must look like section.key=value"),
        (TOWER, ("layers low=3",), "must look like section.key=value"),
    ],
)
def test_every_malformed_setting_ends_in_one_error_with_file_and_key(
    tmp_path: Path, text: str, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=f"tower.yaml: .*{message}"):
        load_tower(tmp_path, text, *overrides)


def test_a_folder_and_a_binary_file_are_refused_by_their_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path.name}: must be a file"):
        load_config(Tower, tmp_path)
    (tmp_path / "tower.yaml").write_bytes(b"layers: \xff")
    with pytest.raises(ValueError, match=r"tower\.yaml"):
        load_config(Tower, tmp_path / "tower.yaml")


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("seed: 1\nway: 3\n", (), "way must be a mapping with the key name, one of fast, slow"),
        ("seed: 1\nway: [1]\n", (), "way must be a mapping"),
        ("seed: 1\n", ("way=null",), "way must be a mapping"),
        ("seed: 1\nway: {name: fast, speed: [1]}\n", (), r"way\.speed must be a single value, got a list"),
        ("seed: 1\nstages: [1]\n", (), "stages must be a mapping"),
        ("seed: 1\nstages: {one: 1}\n", (), r"stages\.one must be a mapping"),
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
    with pytest.raises(ValueError, match=r"nowhere\.yaml: config file does not exist"):
        load_config(Settings, tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("text", ["${oc.env:SECRET}", "a ${oc.env:SECRET,x}", "${..first}", "${oc.decode:1}"])
def test_a_reference_is_refused_and_no_variable_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("SECRET", "5")
    for yaml_text, overrides in (
        (f"layers: {{low: {{width: '{text}'}}}}\n", ()),
        (TOWER, (f"layers.low.width='{text}'",)),
        (f"layers: {{low: {{width: 1, paths: ['{text}']}}}}\n", ()),
        (f"layers: '{text}'\n", ()),
    ):
        with pytest.raises(ValueError, match=r"tower\.yaml: layers.* references to other settings") as caught:
            load_tower(tmp_path, yaml_text, *overrides)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        "*bad",
        "[1",
        "!!python/object:os.system a",
        "&a [*a]",
        "{a: 1, a: 2}",
        "%",
        "!!int z",
        "!!timestamp z",
        "!!set {a}",
    ],
)
def test_a_malformed_value_is_refused_in_one_line(tmp_path: Path, value: str) -> None:
    for text, overrides in ((TOWER, (f"layers.low.width={value}",)), (f"layers: {value}\n", ())):
        with pytest.raises(ValueError, match=r"tower\.yaml: ") as caught:
            load_tower(tmp_path, text, *overrides)
        assert "\n" not in str(caught.value)


def test_aliases_that_stand_for_millions_of_values_and_deep_nesting_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(ValueError, match="aliases stand for .* values, at most 100000"):
        load_tower(tmp_path, "\n".join(lines))
    with pytest.raises(ValueError, match=r"tower\.yaml: not valid YAML"):
        load_tower(tmp_path, "layers: " + "[" * 5000 + "]" * 5000)


def test_other_files_than_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist; configs/ holds the recipes"):
        load_config(Tower, tmp_path / "none.yaml")
    (tmp_path / "tower.yaml").write_bytes("layers: {low: {width: 1}} # \u00e9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"tower\.yaml: must be a text file in UTF-8"):
        load_config(Tower, tmp_path / "tower.yaml")


def test_a_mapping_that_is_written_replaces_its_default(tmp_path: Path) -> None:
    text = (
        "seed: 1\nsizes: {shares: {motion: 0.5}}\nway: {name: slow, parts: {half: 0.5}}\nstages: {slow: {parts: {}}}\n"
    )
    found = load(tmp_path, text, "sizes.shares.look=0.25")
    assert found.sizes.shares == {"motion": 0.5, "look": 0.25} and found.way.parts == {"half": 0.5}
    assert found.stages["slow"].parts == {}
    assert load(tmp_path, "seed: 1\n").sizes.shares == {"overall": 1.0} and Slow().parts == {"whole": 1.0}


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "nan", "1e999"])
@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("sizes: {weights: {a: NUMBER}}", "sizes.weights.a"),
        ("way: {name: fast, speed: NUMBER}", "way.speed"),
        ("stages: {fast: {speed: NUMBER}}", "stages.fast.speed"),
    ],
)
def test_a_number_that_is_not_finite_is_refused(tmp_path: Path, text: str, key: str, number: str) -> None:
    with pytest.raises(ValueError, match=rf"{key} (is|must be)|must be > 0"):
        load(tmp_path, "seed: 1\n" + text.replace("NUMBER", number))
