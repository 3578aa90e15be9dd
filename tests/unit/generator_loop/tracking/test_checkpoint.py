"""Checkpoints: whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from generator_loop.tracking import checkpoint
from reward_model.files import write_json


def write_number(number: int):
    return lambda folder: (folder / "number.json").write_text(json.dumps(number))


def test_the_latest_checkpoint_is_the_last_one_finished(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    for number in range(2):
        checkpoint.save(tmp_path, f"round-{number}", write_number(number), keep=5)
    assert checkpoint.latest(tmp_path) == tmp_path / "round-1"


def test_a_failure_while_writing_leaves_the_former_checkpoint_the_latest(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, "round-0", write_number(0), keep=5)

    def break_down(folder: Path) -> None:
        (folder / "half.json").write_text("{")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path, "round-1", break_down, keep=5)
    assert checkpoint.latest(tmp_path) == tmp_path / "round-0"
    assert checkpoint.finished(tmp_path) == [tmp_path / "round-0"]


def test_leftovers_of_killed_saves_are_removed_by_the_next_one(tmp_path: Path) -> None:
    (tmp_path / ".unfinished-round-0").mkdir()
    (tmp_path / ".unfinished-LATEST").write_text("round-")
    checkpoint.save(tmp_path, "round-0", write_number(0), keep=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", "round-0"]


def test_a_checkpoint_whose_replacement_was_killed_is_still_the_latest(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, "round-0", write_number(0), keep=5)
    (tmp_path / "round-0").rename(tmp_path / ".replaced-round-0")
    assert checkpoint.finished(tmp_path) == []
    assert checkpoint.latest(tmp_path) == tmp_path / "round-0"
    assert (tmp_path / "round-0" / "number.json").read_text() == "0"


def test_a_checkpoint_of_the_same_name_is_replaced_and_old_ones_go(tmp_path: Path) -> None:
    for number, name in enumerate(("round-0", "round-1", "round-2", "round-2")):
        checkpoint.save(tmp_path, name, write_number(number), keep=2)
    assert [path.name for path in checkpoint.finished(tmp_path)] == ["round-1", "round-2"]
    assert json.loads((tmp_path / "round-2" / "number.json").read_text()) == 3


def test_a_marker_that_points_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "LATEST").write_text("round-9")
    with pytest.raises(ValueError, match="names round-9, which does not exist"):
        checkpoint.latest(tmp_path)


def test_tensors_come_back_exactly_and_json_refuses_what_is_no_number(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 2), "b": torch.tensor(5, dtype=torch.int64)}
    checkpoint.write_tensors(tmp_path / "x.safetensors", {"a": tensors["a"].T.T, "b": tensors["b"]})
    torch.testing.assert_close(checkpoint.read_tensors(tmp_path / "x.safetensors"), tensors, rtol=0, atol=0)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"score": float("nan")})
