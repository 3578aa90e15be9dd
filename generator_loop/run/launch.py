"""The start of a run on one or several processes, its threads, and requests to stop it."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal

import torch

from generator_loop.processes import any_process, is_distributed, wait
from generator_loop.run.sharding import Layout, requested
from reward_model.files import Lock


@dataclass(frozen=True)
class Processes:
    """This process among those of the run: its device, its place, how many there are, and what of the weights each holds."""

    device: torch.device
    rank: int = 0
    count: int = 1
    layout: Layout = field(default_factory=Layout)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def wait(self) -> None:
        """Return once every process has come here."""
        wait()


def refuse_lost_processes(environ: Mapping[str, str]) -> None:
    """Refuse a launch that asked for several processes and silently got one.

    `accelerate launch --cpu --num_processes 2` exports a rendezvous address, starts one process and sets no WORLD_SIZE.

    Args:
        environ: the environment of this process.

    Raises:
        ValueError: several processes were asked for and this one is alone.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in environ and "MASTER_ADDR" in environ
    counted = any(name in environ for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"))
    if launched and not counted:
        raise ValueError(
            "accelerate was asked for several processes but started one (it does so with --cpu or without GPUs); use "
            "torchrun --standalone --nproc_per_node 2 joint_train.py CONFIG.yaml"
        )


def set_threads(num_threads: int | None) -> int:
    """Set and return the CPU threads of this process: as configured, else one.

    One is the default because small models gain little from two, and two lose more than half as soon as another
    process keeps a core busy (the threads spin while they wait for each other).
    """
    torch.set_num_threads(num_threads or 1)
    return torch.get_num_threads()


def start_processes(device: Literal["auto", "cpu", "cuda"], environ: Mapping[str, str]) -> Processes:
    """Join the process group if there is one, and choose the device of this process.

    Args:
        device: `run.device`.
        environ: the environment of this process, in which accelerate's launcher says how the weights are laid out.

    Returns:
        This process among the others.

    Raises:
        ValueError: a GPU was asked for and there is none; or accelerate asks for something that a run does not do.
    """
    from accelerate import PartialState  # type: ignore[import-untyped]

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("run.device=cuda, but torch sees no GPU; use run.device=cpu or a CUDA build of torch")
    layout = requested(environ)
    use_cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=True) if use_cpu else PartialState()
    layout.check()
    return Processes(device=state.device, rank=state.process_index, count=state.num_processes, layout=layout)


class Stopped(Exception):
    """The run was told to stop; raised on all processes alike, at a point from which a resumed run continues."""


class StopRequest:
    """Says on all processes alike whether the run should save and exit: after SIGTERM, Ctrl-C or `run.max_hours`.

    A second Ctrl-C interrupts at once, without saving.
    """

    def __init__(self, *, max_hours: float | None) -> None:
        self._deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
        self.is_signalled = False
        """Whether this process was told to stop; the others may not know yet."""
        self._previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}

    def __call__(self) -> bool:
        """Return whether any process was told to stop or is out of time."""
        return any_process(self.is_signalled or (self._deadline is not None and time.monotonic() >= self._deadline))

    def close(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.is_signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_signalled = True


class CheckpointClock:
    """Says on all processes alike whether `run.checkpoint_minutes` have passed since the last checkpoint."""

    def __init__(self, minutes: float | None) -> None:
        self._seconds = None if minutes is None else 60 * minutes
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """Return whether a checkpoint is due within a round."""
        return self._seconds is not None and any_process(time.monotonic() - self._last >= self._seconds)

    def restart(self) -> None:
        """Count from now on."""
        self._last = time.monotonic()


def claim_output(folder: str, *, is_main: bool, resume: bool) -> tuple[str, Lock | None]:
    """Return the folder of a run and its lock, which the first process holds until it ends.

    Args:
        folder: `run.output`.
        is_main: this process is the first, which decides for all.
        resume: the folder's own run goes on; otherwise -2, -3, ... is appended where it holds a run or is being written to.

    Returns:
        The folder, the same on all processes, and on the first one the lock.

    Raises:
        ValueError: on all processes, if another process is writing to the folder of a run that should go on.
    """
    name, lock, refusal = folder, None, ""
    if is_main:
        try:
            name, lock = (folder, Lock(folder, purpose="this run")) if resume else _free_folder(folder)
        except ValueError as error:
            refusal = str(error)
    chosen = [name, refusal]
    if is_distributed():
        torch.distributed.broadcast_object_list(chosen, src=0)
    if chosen[1]:
        raise ValueError(chosen[1])
    return chosen[0], lock


def _free_folder(folder: str) -> tuple[str, Lock]:
    """Return the first of folder, folder-2, ... that holds no run, and its lock."""
    for number in itertools.count(1):
        name = folder if number == 1 else f"{folder}-{number}"
        try:
            lock = Lock(name, purpose="this run")
        except ValueError:
            continue
        if not (Path(name) / "config.yaml").exists():
            return name, lock
        lock.release()
    raise AssertionError("the names never end")
