"""Pages that a script writes from stored figures: the text in docs/ is that of its JSON."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Return the script of this place and name under scripts/."""
    folder, name = request.param
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / folder))
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


@pytest.mark.parametrize("script", [("bench", "tournament")], indirect=True)
def test_the_page_of_the_knockout_is_that_of_its_json(script: ModuleType) -> None:
    results = json.loads((ROOT / "docs" / "bench_tournament.json").read_text(encoding="utf-8"))
    assert script.page(results) == (ROOT / "docs" / "bench_tournament.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", [("experiments", "mutation_page")], indirect=True)
def test_the_tables_of_mutants_are_those_of_their_json(script: ModuleType) -> None:
    samples = json.loads((ROOT / "docs" / "mutation.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "mutation.md").read_text(encoding="utf-8")
    assert script.page(text, samples) == text
    dead = [mutant for mutants in samples.values() for mutant in mutants if mutant["killed_after"]]
    assert all(mutant["killed_before"] or mutant["by"] for mutant in dead)
    with pytest.raises(ValueError, match="one pair of marks for the first sample"):
        script.page(text.replace("<!-- first sample -->", ""), samples)
    two = [
        {"part": "a", "killed_before": False, "killed_after": True},
        {"part": "b", "killed_before": True, "killed_after": True},
    ]
    assert script.table(two).splitlines()[2:] == [
        "| a | 1 | 0 | 1 | 0 % | 100 % |",
        "| b | 1 | 1 | 1 | 100 % | 100 % |",
        "| all | 2 | 1 | 2 | 50 % | 100 % |",
    ]
