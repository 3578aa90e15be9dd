"""Files and folders written beside their destination: old or new, each whole, whatever a kill left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from reward_model.files import REPLACED, UNFINISHED, Lock, put_back, write_beside, write_json, write_text


def make_file(path: Path, text: str) -> None:
    path.write_text(text)


def make_folder(path: Path, text: str) -> None:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "text").write_text(text)


def content(path: Path) -> str:
    return (path / "inner" / "text" if path.is_dir() else path).read_text()


KINDS = pytest.mark.parametrize("make", [make_file, make_folder])


@KINDS
@pytest.mark.parametrize("make_old", [None, make_file, make_folder])
@pytest.mark.parametrize("make_leftover", [None, make_file, make_folder])
def test_the_destination_is_replaced_whole_whatever_stood_there_or_was_left_beside(
    tmp_path: Path, make: Callable, make_old: Callable | None, make_leftover: Callable | None
) -> None:
    if make_old:
        make_old(tmp_path / "out.txt", "old")
    if make_leftover:
        make_leftover(tmp_path / f"{UNFINISHED}out.txt", "half")
    assert write_beside(tmp_path / "out.txt", lambda path: make(path, "new")) == tmp_path / "out.txt"
    assert content(tmp_path / "out.txt") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]


@KINDS
def test_a_write_that_raises_leaves_the_old_content_and_nothing_beside_it(tmp_path: Path, make: Callable) -> None:
    make(tmp_path / "out", "old")

    def break_down(path: Path) -> None:
        make(path, "half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_beside(tmp_path / "out", break_down)
    assert content(tmp_path / "out") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


KILLED = """
import os, sys
from pathlib import Path
from reward_model.files import write_beside

place, kind, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
calls = 0

def watched(event, arguments):
    global calls
    if event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.mkdir", "open") and "out" in str(arguments[0]):
        calls += 1
        if calls > last:
            os._exit(9)

def write(path):
    if kind == "folder":
        path.mkdir()
        path = path / "text"
    path.write_text("new")

sys.addaudithook(watched)
write_beside(place / "out", write)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_content_whole(tmp_path: Path, kind: str) -> None:
    seen = []
    for step in range(20):
        place = tmp_path / str(step)
        inner = place / "out" / "text" if kind == "folder" else place / "out"
        inner.parent.mkdir(parents=True)
        inner.write_text("old")
        killed = subprocess.run([sys.executable, "-c", KILLED, str(place), kind, str(step)])
        if kind == "folder":
            put_back(place / "out")
        seen.append(inner.read_text())
        write_beside(place / "out", lambda path: make_file(path, "next"))
        assert [path.name for path in place.iterdir()] == ["out"]
        if killed.returncode == 0:
            break
    assert killed.returncode == 0
    assert seen == sorted(seen, reverse=True) and set(seen) == {"old", "new"}


def test_a_replacement_killed_between_its_renames_is_put_back(tmp_path: Path) -> None:
    make_folder(tmp_path / f"{REPLACED}out", "old")
    put_back(tmp_path / "out")
    assert content(tmp_path / "out") == "old"
    make_folder(tmp_path / f"{REPLACED}out", "older")
    put_back(tmp_path / "out")
    assert content(tmp_path / "out") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    make_folder(tmp_path / "target", "kept")
    (tmp_path / "out").symlink_to("target")
    write_beside(tmp_path / "out", lambda path: make_folder(path, "new"))
    assert (content(tmp_path / "out"), content(tmp_path / "target")) == ("new", "kept")
    assert not (tmp_path / "out").is_symlink()


def test_all_that_was_written_is_flushed_before_the_rename_and_the_rename_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        os,
        "fsync",
        lambda handle: flushed.append((os.readlink(f"/proc/self/fd/{handle}"), (tmp_path / "out").exists())),
    )
    write_beside(tmp_path / "out", lambda path: make_folder(path, "new"))
    beside = str(tmp_path / f"{UNFINISHED}out")
    expected = [(beside, False), (f"{beside}/inner", False), (f"{beside}/inner/text", False), (str(tmp_path), True)]
    assert sorted(flushed[:3]) == expected[:3] and flushed[3:] == expected[3:]


def test_a_file_alone_is_flushed_whole_before_the_rename_and_the_rename_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "out", "old")
    flushed: list[tuple[str, str, str]] = []

    def flush(handle: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{handle}"))
        flushed.append((name.name, name.read_text() if name.is_file() else "", (tmp_path / "out").read_text()))

    monkeypatch.setattr(os, "fsync", flush)
    write_text(tmp_path / "out", "new")
    assert flushed == [(f"{UNFINISHED}out", "new", "old"), (tmp_path.name, "", "new")]


def test_many_writers_of_one_file_do_not_take_each_others_work(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        make_file(path, "mine")
        write_beside(tmp_path / "out.bin", lambda other: make_file(other, "theirs"), many_writers=True)
        assert path.suffix == ".bin" and (tmp_path / "out.bin").read_text() == "theirs"

    write_beside(tmp_path / "out.bin", write, many_writers=True)
    assert (tmp_path / "out.bin").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out.bin"]


def test_text_and_json_are_written_into_a_new_folder(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "gr\u00fcn\n")
    write_json(tmp_path / "new" / "a.json", {"x": [1]})
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"gr\xc3\xbcn\n"
    assert (tmp_path / "new" / "a.json").read_text() == '{\n "x": [\n  1\n ]\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "new" / "a.json", {"score": float("nan")})


def test_one_process_at_a_time_holds_a_lock_and_loses_it_when_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with Lock(path, purpose="this run"):
        program = "import sys; from reward_model.files import Lock; Lock(sys.argv[1], purpose='that run')"
        done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
        assert f"that run cannot write to {path}: process {os.getpid()} is writing to it" in done.stderr
    assert list(tmp_path.iterdir()) == []
    child = os.fork()
    if child == 0:
        Lock(path, purpose="the killed run")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    Lock(path, purpose="this run").release()


def test_a_lock_works_for_a_folder_that_is_replaced_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with Lock(tmp_path / "out", purpose="first"):
        write_beside(tmp_path / "out", lambda folder: folder.mkdir())
        with pytest.raises(ValueError, match="second cannot write to"):
            Lock(tmp_path / "out", purpose="second")
