"""Two processes of one training: they refuse, stop and write as one."""

import os
import signal
import socket
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from reward_model.files import Lock
from reward_model.records import RatedClip
from reward_model.training.processes import (
    TrainingStopped,
    TrainingStopRequest,
    claimed,
    gathered,
    refuse_other_files,
    together,
)
from reward_model.training.tasks.quarantine import FILE, Quarantine


def worker(rank, port, work, folder):
    """Do a named work as one of two processes, and write what came of it."""
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        done = WORK[work](rank, Path(folder))
    except (ValueError, TrainingStopped) as error:
        done = f"{type(error).__name__}: {error}"
    Path(folder, f"said-{rank}").write_text(str(done))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def both(work, folder):
    """Return what two processes say of a work."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    how = dict(args=(port, work, str(folder)), nprocs=2, start_method="forkserver")
    torch.multiprocessing.start_processes(worker, **how)
    return [Path(folder, f"said-{rank}").read_text() for rank in (0, 1)]


def write_both(rank, folder):
    with claimed(folder / "out"):
        (folder / f"in-{rank}").touch()
        gathered(rank)
        held = (folder / ".out.lock").is_file()
        gathered(rank)
    gathered(rank)
    return held, (folder / ".out.lock").exists(), [one.name for one in folder.glob(".out.*.shared")]


def other_output(rank, folder):
    with claimed(folder / f"machine-{rank}" / "out"):
        return "in"


def other_lock(rank, folder):
    place = folder / f"machine-{rank}" / "out"
    with Lock(place, purpose="another training") if rank == 1 else nullcontext():
        with claimed(place):
            return "in"


def one_refuses(rank, folder):
    with together():
        if rank == 1:
            raise OSError("the disk of the second one is full")
    return "went on"


def other_files(rank, folder):
    refuse_other_files({"a.csv": "1", "b.csv": str(rank)})
    return "went on"


def a_file_less(rank, folder):
    refuse_other_files({"a.csv": "1"} | ({} if rank else {"b.csv": "2"}))
    return "went on"


def equal_files(rank, folder):
    refuse_other_files({"a.csv": "1"})
    return "went on"


def one_is_stopped(rank, folder):
    stop = TrainingStopRequest()
    stop.listen()
    for step in range(50):
        if (rank, step) == (1, 7):
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            stop()
        except TrainingStopped:
            return step
    return "never"


def read_media(rank, folder):
    """Return the media that this process read, and the examples that both may use."""
    examples = [RatedClip(folder / f"{i}.mp4", None, {"overall": 0.5}, str(i), place="a.csv:1") for i in range(6)]
    read = []

    def plan(file):
        read.append(int(file.stem))
        if file.stem in "14":
            raise ValueError("damaged")

    quarantine = Quarantine(folder, max_unreadable=0.5)
    kept = quarantine.keep("a.csv", examples, [], plan=plan, attempt=lambda example, clip_of: None)
    gathered(rank)
    return sorted(read), [one.source_id for one in kept], len((folder / FILE).read_text().splitlines())


WORK = {
    work.__name__: work
    for work in (
        write_both,
        other_output,
        other_lock,
        one_refuses,
        other_files,
        a_file_less,
        equal_files,
        one_is_stopped,
        read_media,
    )
}


def test_two_processes_share_the_lock_of_one_training(tmp_path):
    first, second = both("write_both", tmp_path)
    assert first == "(True, False, [])"
    assert second.startswith("(True, ")


def test_a_lock_of_another_training_ends_both(tmp_path):
    with Lock(tmp_path / "out", purpose="another training"):
        said = both("write_both", tmp_path)
    assert (
        said
        == [f"ValueError: this training cannot write to {tmp_path / 'out'}: process {os.getpid()} is writing to it"] * 2
    )
    assert not (tmp_path / "in-0").exists() and not (tmp_path / "in-1").exists()


def test_outputs_that_are_not_shared_end_both(tmp_path):
    first, second = both("other_output", tmp_path)
    assert first == second and "process 1 of the training" in first and "an output that all machines share" in first


def test_a_lock_that_only_the_second_process_sees_ends_both(tmp_path):
    first, second = both("other_lock", tmp_path)
    assert first == second and "process 1 of the training" in first and "is writing to it" in first


@pytest.mark.parametrize(
    ("work", "said"),
    [
        ("one_refuses", "process 1 of the training: the disk of the second one is full"),
        ("other_files", "b.csv differs between process 1 and the first one"),
        ("a_file_less", "b.csv differs between process 1 and the first one"),
        ("equal_files", "went on"),
    ],
)
def test_what_one_process_refuses_all_refuse(tmp_path, work, said):
    first, second = both(work, tmp_path)
    assert first == second and said in first


def test_two_processes_read_half_of_the_media_each_and_both_leave_out_what_either_cannot_read(tmp_path):
    kept = "['0', '2', '3', '5']"
    assert both("read_media", tmp_path) == [f"([0, 2, 4], {kept}, 2)", f"([1, 3, 5], {kept}, 2)"]


def test_a_signal_to_one_process_stops_both_after_the_same_step(tmp_path):
    assert both("one_is_stopped", tmp_path) == ["7", "7"]


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_that_a_launcher_passes_on_again_is_the_same_request(handlers, monkeypatch):
    stop, killed = TrainingStopRequest(), []
    stop.listen()
    monkeypatch.setattr(os, "kill", lambda process, number: killed.append(number))
    for _ in range(3):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert stop.is_signalled and not killed
    start = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: start + 10)
    signal.raise_signal(signal.SIGINT)
    assert killed == [signal.SIGINT] and signal.getsignal(signal.SIGINT) == signal.SIG_DFL
