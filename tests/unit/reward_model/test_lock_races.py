"""Locks whose file is deleted by its last holder between opening and locking it, and files that are replaced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reward_model import files
from reward_model.files import Lock, put_back, remove, write_beside, write_text


def test_a_lock_whose_file_was_just_deleted_is_taken_on_a_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, num_calls = files.fcntl.flock, 0

    def flock(file: object, flags: int) -> None:
        nonlocal num_calls
        num_calls += 1
        plain(file, flags)  # type: ignore[arg-type]
        if num_calls == 1:
            (tmp_path / ".run.lock").unlink()

    monkeypatch.setattr(files.fcntl, "flock", flock)
    lock = Lock(tmp_path / "run", purpose="this run")
    assert num_calls == 2 and lock.path == tmp_path / ".run.lock"
    assert lock.path.read_text() == str(os.getpid())
    with pytest.raises(ValueError, match=f"^this run cannot write to .*/run: process {os.getpid()} is writing to it$"):
        Lock(tmp_path / "run", purpose="this run")
    lock.release()
    lock.release()
    assert not lock.path.exists()
    with Lock(tmp_path / "run", purpose="this run") as other:
        assert other.path.exists()
    assert not other.path.exists()


def test_a_lock_overwrites_the_id_of_a_holder_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / ".run.lock").write_text("999999999999")
    with Lock(tmp_path / "run", purpose="this run") as lock:
        assert lock.path.read_text() == str(os.getpid())


def test_a_folder_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    def folder(name: str) -> Path:
        return write_beside(tmp_path / "kept", lambda beside: (beside.mkdir(), (beside / name).write_text(name)))

    folder("old")
    (tmp_path / ".unfinished-kept").mkdir()  # a writer was killed
    (tmp_path / ".unfinished-kept" / "part").write_text("")
    folder("new")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["new"]
    write_text(tmp_path / "kept", "a file in its place")
    assert (tmp_path / "kept").read_text() == "a file in its place"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_writer_that_raises_leaves_the_destination_and_no_rest(tmp_path: Path) -> None:
    write_text(tmp_path / "kept", "old")

    def write(beside: Path) -> None:
        beside.write_text("half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_beside(tmp_path / "kept", write)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"] and (tmp_path / "kept").read_text() == "old"


def test_a_replaced_folder_comes_back_only_where_nothing_took_its_place(tmp_path: Path) -> None:
    aside = tmp_path / ".replaced-kept"
    put_back(tmp_path / "kept")  # nothing stands aside
    aside.mkdir()
    put_back(tmp_path / "kept")
    assert (tmp_path / "kept").is_dir() and not aside.exists()
    (tmp_path / "kept" / "new").write_text("")
    aside.mkdir()
    put_back(tmp_path / "kept")
    assert (tmp_path / "kept" / "new").exists() and not aside.exists()


def test_a_link_is_removed_and_not_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    remove(tmp_path / "link")
    remove(tmp_path / "nothing")
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "target" / "file").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_lacks_is_not_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "kept.json", {"reward": value})
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_puts_a_folder_back_whose_replacement_was_killed(tmp_path: Path) -> None:
    (tmp_path / ".replaced-kept").mkdir()
    (tmp_path / ".replaced-kept" / "old").write_text("")

    def write(_beside: Path) -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_beside(tmp_path / "kept", write)
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "old"]
