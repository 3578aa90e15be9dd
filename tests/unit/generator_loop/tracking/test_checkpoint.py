"""Checkpoints: whole or not there."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


def test_a_marker_that_points_nowhere_gives_way_to_the_newest_intact_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "LATEST").write_text("round-9")
    assert checkpoint.latest(tmp_path) is None
    for number in range(2):
        checkpoint.save(tmp_path, f"round-{number}", write_number(number), keep=5)
    (tmp_path / "LATEST").write_text("round-9")
    assert checkpoint.latest(tmp_path) == tmp_path / "round-1"


def test_a_marker_is_followed_to_an_older_checkpoint_but_never_out_of_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "run" / "checkpoints"
    for number in range(2):
        checkpoint.save(root, f"round-{number}", write_number(number), keep=5)
    checkpoint.save(tmp_path / "other", "round-7", write_number(7), keep=5)
    (root / "LATEST").write_text("round-0\n")
    assert checkpoint.latest(root) == root / "round-0"
    for marker in ("../../other/round-7", str(tmp_path / "other" / "round-7"), "", "."):
        (root / "LATEST").write_text(marker)
        assert checkpoint.latest(root) == root / "round-1"


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "checksums"])
def test_a_damaged_checkpoint_is_passed_over_with_a_sentence(tmp_path: Path, damage: str) -> None:
    for number in range(2):
        checkpoint.save(tmp_path, f"round-{number}", write_number(123), keep=5)
    file = tmp_path / "round-1" / "number.json"
    if damage == "missing":
        file.unlink()
    elif damage == "checksums":
        (tmp_path / "round-1" / "checksums.json").write_text("{")
    else:
        file.write_text("12" if damage == "truncated" else "124")
    folder, notes = checkpoint.newest_intact(tmp_path)
    assert folder == tmp_path / "round-0"
    reason = {"missing": "number.json is missing", "checksums": "checksums.json cannot be read"}
    expected = reason.get(damage, "number.json has changed since it was written")
    assert notes == (f"checkpoint round-1 is passed over: {expected}",)


def test_a_whole_checkpoint_that_was_not_renamed_is_taken_and_a_half_one_is_not(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, "round-0", write_number(0), keep=5)
    checkpoint.save(tmp_path, "round-1", write_number(1), keep=5)
    (tmp_path / "round-1").rename(tmp_path / ".unfinished-round-1")
    (tmp_path / ".unfinished-round-2").mkdir()
    (tmp_path / ".unfinished-round-2" / "number.json").write_text("2")
    assert checkpoint.latest(tmp_path) == tmp_path / "round-1"
    checkpoint.save(tmp_path, "round-2", write_number(2), keep=5)
    assert [path.name for path in checkpoint.finished(tmp_path)] == ["round-0", "round-1", "round-2"]


def test_a_kill_at_any_moment_leaves_a_checkpoint_to_load_and_lets_the_next_one_be_saved(tmp_path: Path) -> None:
    root, moments = tmp_path / "checkpoints", random.Random(0)
    checkpoint.save(root, "round-0000", write_number(0), keep=2)
    saved = 0
    for _ in range(100):
        child = os.fork()
        if child == 0:
            for number in itertools.count(saved + 1):
                # every other one replaces the folder of the one before, which takes two renames
                checkpoint.save(root, f"round-{number // 2:04d}", write_number(number), keep=2)
        time.sleep(moments.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        folder = checkpoint.latest(root)
        assert folder is not None
        number = json.loads((folder / "number.json").read_text())
        assert number >= saved
        saved = number
    checkpoint.save(root, "round-9999", write_number(-1), keep=2)
    assert checkpoint.latest(root) == root / "round-9999"
    assert {path.name for path in root.iterdir()} >= {"LATEST", "round-9999"}
    assert not [path for path in root.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_at_any_step_leaves_a_checkpoint_to_load_and_lets_the_next_one_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """The k-th call that changes the disk fails, and so do all later ones, for every k."""
    steps = [
        (os, "fsync"),
        (Path, "write_text"),
        (Path, "rename"),
        (Path, "replace"),
        (Path, "mkdir"),
        (Path, "unlink"),
    ]
    for number in itertools.count(1):
        root, calls = tmp_path / str(number), itertools.count(1)
        checkpoint.save(root, "round-0", write_number(0), keep=1)
        with monkeypatch.context() as patch:
            for owner, name in steps:
                patch.setattr(owner, name, failing(getattr(owner, name), calls, after=number, error=error))
            try:
                checkpoint.save(root, "round-0", write_number(1), keep=1)
                whole = True
            except OSError as failure:
                whole = failure.errno != error
                assert not whole
        folder = checkpoint.latest(root)
        assert folder == root / "round-0" and json.loads((folder / "number.json").read_text()) in (0, 1)
        checkpoint.save(root, "round-1", write_number(2), keep=1)
        assert [path.name for path in checkpoint.finished(root)] == ["round-1"]
        if whole:
            break
    assert number > 8


def failing(function: Callable, calls: Iterator[int], *, after: int, error: int) -> Callable:
    """Return the function, which raises from the `after`-th call on."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) >= after:
            raise OSError(error, os.strerror(error))
        return function(*args, **kwargs)

    return call


def test_tensors_come_back_exactly_and_json_refuses_what_is_no_number(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 2), "b": torch.tensor(5, dtype=torch.int64)}
    checkpoint.write_tensors(tmp_path / "x.safetensors", {"a": tensors["a"].T.T, "b": tensors["b"]})
    torch.testing.assert_close(checkpoint.read_tensors(tmp_path / "x.safetensors"), tensors, rtol=0, atol=0)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"score": float("nan")})


def test_a_disk_that_is_full_is_an_error_of_the_system_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        checkpoint.write_tensors(folder / "gone" / "a.safetensors", {"a": torch.zeros(2)})

    kept = checkpoint.save(tmp_path, "one", lambda folder: None, keep=1)
    with pytest.raises(OSError, match="checkpoint .*two cannot be written"):
        checkpoint.save(tmp_path, "two", full, keep=1)
    assert checkpoint.latest(tmp_path) == kept
