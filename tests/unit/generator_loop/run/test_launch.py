"""Processes, threads and signals."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from generator_loop.run.launch import StopRequest, claim_output, refuse_lost_processes, set_threads

ACCELERATE_ONE_OF_TWO = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_a_launch_that_lost_its_processes_is_refused_with_the_right_line() -> None:
    with pytest.raises(ValueError, match="torchrun --standalone --nproc_per_node 2 joint_train.py"):
        refuse_lost_processes(ACCELERATE_ONE_OF_TWO)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"ACCELERATE_MIXED_PRECISION": "no"},
        {"MASTER_ADDR": "127.0.0.1"},
        {**ACCELERATE_ONE_OF_TWO, "WORLD_SIZE": "2"},
    ],
)
def test_other_launches_pass(environ: dict[str, str]) -> None:
    assert refuse_lost_processes(environ) is None  # it raises where it refuses


def test_threads_are_set_as_configured_and_to_one_otherwise() -> None:
    before = torch.get_num_threads()
    try:
        assert set_threads(2) == 2
        assert set_threads(None) == 1
    finally:
        torch.set_num_threads(before)


def test_sigterm_asks_for_a_stop_and_is_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = StopRequest(max_hours=None)
    assert not stop()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop()
    stop.close()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_out_of_time_asks_for_a_stop() -> None:
    stop = StopRequest(max_hours=1e-12)
    assert stop()
    stop.close()


def test_a_folder_that_holds_a_run_or_is_being_written_to_is_not_used_again(tmp_path: Path) -> None:
    first, held = claim_output(str(tmp_path / "run"), is_main=True, resume=False)
    assert first == str(tmp_path / "run") and held is not None
    second, lock = claim_output(str(tmp_path / "run"), is_main=True, resume=False)
    assert second == str(tmp_path / "run-2") and lock is not None
    held.release()
    lock.release()
    for taken, free in (("run", "run-2"), ("run-2", "run-3")):
        (tmp_path / taken).mkdir()
        (tmp_path / taken / "config.yaml").write_text("")
        name, lock = claim_output(str(tmp_path / "run"), is_main=True, resume=False)
        assert name == str(tmp_path / free) and lock is not None
        lock.release()
