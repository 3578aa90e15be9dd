"""Rests of killed writes: the next save removes them, whichever checkpoint they were of, and keeps what is whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from generator_loop.tracking import checkpoint


def number(value: int) -> Callable[[Path], object]:
    """Return a writer of one number."""
    return lambda folder: (folder / "number.json").write_text(json.dumps(value))


def test_a_save_removes_the_unfinished_rests_of_other_checkpoints(tmp_path: Path) -> None:
    for name in (".unfinished-round-000", ".unfinished-round-007"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("")
    (tmp_path / ".unfinished-LATEST").write_text("round-0")
    checkpoint.save(tmp_path, "round-001", number(1), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", "round-001"]
    assert (tmp_path / "LATEST").read_text() == "round-001"


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_checkpoints_are_kept(tmp_path: Path, keep: int) -> None:
    for value in range(4):
        folder = checkpoint.save(tmp_path, f"round-{value}", number(value), keep=keep)
        assert folder == tmp_path / f"round-{value}"
    assert [path.name for path in checkpoint.finished(tmp_path)] == [f"round-{n}" for n in range(4 - keep, 4)]


def test_damage_is_named_by_its_file(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, "round-0", number(0), keep=1)
    assert checkpoint.damage_of(folder) == ""
    (folder / "number.json").write_text("1")
    assert checkpoint.damage_of(folder) == "number.json has changed since it was written"
    (folder / "number.json").unlink()
    assert checkpoint.damage_of(folder) == "number.json is missing"
    (folder / "checksums.json").write_text("{")
    assert checkpoint.damage_of(folder) == "checksums.json cannot be read"
    (folder / "checksums.json").unlink()
    assert checkpoint.damage_of(folder) == ""
