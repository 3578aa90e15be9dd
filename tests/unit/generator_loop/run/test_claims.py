"""The folder of a run that goes on, held by another process; and the clock of the checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from generator_loop.run import launch
from generator_loop.run.launch import CheckpointClock, claim_output


def test_a_run_that_goes_on_is_refused_while_another_process_writes_to_it(tmp_path: Path) -> None:
    name, lock = claim_output(str(tmp_path / "run"), is_main=True, resume=True)
    assert name == str(tmp_path / "run") and lock is not None
    with pytest.raises(ValueError, match=f"this run cannot write to .*: process {os.getpid()} is writing to it"):
        claim_output(str(tmp_path / "run"), is_main=True, resume=True)
    lock.release()


def test_only_the_first_process_holds_the_lock(tmp_path: Path) -> None:
    assert claim_output(str(tmp_path / "run"), is_main=False, resume=False) == (str(tmp_path / "run"), None)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_due_after_its_minutes_and_counts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(launch.time, "monotonic", lambda: now)
    clock, never = CheckpointClock(2.0), CheckpointClock(None)
    for seconds, due in ((119.0, False), (120.0, True), (500.0, True)):
        now = 1000.0 + seconds
        assert clock.is_due() is due and never.is_due() is False
    clock.restart()
    assert not clock.is_due()
    now += 120
    assert clock.is_due()
