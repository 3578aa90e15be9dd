"""docs/architecture.md and the table of places: they are what their scripts write now, and the scripts notice what is wrong."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


def load(name: str) -> ModuleType:
    """Return a program of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


architecture, count_places = load("architecture"), load("count_places")


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """Return a package of three rooms on three floors."""
    files = {"__init__": "A house.", "ground": "The ground.", "middle": "The middle.", "top": "The top. More of it."}
    imports = {"middle": "from house.ground import x", "top": "from house import ground, middle"}
    (tmp_path / "house").mkdir()
    for name, phrase in files.items():
        (tmp_path / "house" / f"{name}.py").write_text(f'"""{phrase}"""\n{imports.get(name, "")}\n', encoding="utf-8")
    return tmp_path


def test_the_architecture_page_and_its_drawings_are_up_to_date() -> None:
    assert architecture.stale(ROOT) == [], "run python scripts/architecture.py"


def test_the_table_of_places_is_up_to_date() -> None:
    text = count_places.CONTRIBUTING.read_text(encoding="utf-8")
    assert count_places.page(text) == text, "run python scripts/count_places.py --write"


def test_every_thing_that_is_counted_exists() -> None:
    assert [kind for kind, names in count_places.THINGS.items() if not count_places.places(ROOT, names)] == []


def test_floors_follow_from_imports(house: Path) -> None:
    graph = architecture.rooms(house, "house")
    assert architecture.floors(graph) == {"ground": 0, "middle": 1, "top": 2}


def test_an_import_that_follows_from_others_is_not_drawn(house: Path) -> None:
    arrows = architecture.direct(architecture.rooms(house, "house"))
    assert arrows == {"ground": frozenset(), "middle": {"ground"}, "top": {"middle"}}
    assert architecture.floor_drawing(architecture.rooms(house, "house")).count("marker-end") == 2


def test_rooms_in_a_circle_are_named(house: Path) -> None:
    (house / "house" / "ground.py").write_text("import house.top\n", encoding="utf-8")
    with pytest.raises(ValueError, match="ground -> top"):
        architecture.floors(architecture.rooms(house, "house"))


def test_a_phrase_is_the_first_sentence(house: Path) -> None:
    assert architecture.first_sentence(house / "house" / "top.py") == "The top"


def test_a_file_without_a_sentence_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="must open with a sentence"):
        architecture.first_sentence(tmp_path / "empty.py")


def test_a_flow_that_names_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere.py"):
        architecture.flow_lines(tmp_path, [architecture.Stage("lost", ("nowhere.py",), "Gone.")])


def test_docstrings_do_not_count_as_places(tmp_path: Path) -> None:
    (tmp_path / "reward_model").mkdir()
    (tmp_path / "reward_model" / "told.py").write_text('"""The mochi."""\n# mochi\n', encoding="utf-8")
    (tmp_path / "reward_model" / "used.py").write_text("FAMILY = 'mochi'\n", encoding="utf-8")
    assert count_places.places(tmp_path, ["mochi"]) == ["reward_model/used.py"]
