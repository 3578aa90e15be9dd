"""The start of a run on one or several processes, its threads, and requests to stop it."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, TypeVar

import torch

from generator_loop.tracking.metric_log import is_distributed

Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """This process among those of the run: its device, its place, and how many there are."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def wait(self) -> None:
        """Return once every process has come here."""
        if is_distributed():
            torch.distributed.barrier()


def gather(items: list[Item]) -> list[Item]:
    """Return the items of all processes, in the order of their ranks; they are pickled on the way."""
    if not is_distributed():
        return items
    shares: list[list[Item]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(shares, items)
    return [item for share in shares for item in share]


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
            "accelerate was asked for several processes but started one (it does so with --cpu or without GPUs); use\n"
            "  torchrun --standalone --nproc_per_node 2 joint_train.py CONFIG.yaml"
        )


def set_threads(num_threads: int | None) -> int:
    """Set and return the CPU threads of this process: as configured, else one.

    One is the default because small models gain little from two, and two lose more than half as soon as another
    process keeps a core busy (the threads spin while they wait for each other).
    """
    torch.set_num_threads(num_threads or 1)
    return torch.get_num_threads()


def start_processes(device: Literal["auto", "cpu", "cuda"]) -> Processes:
    """Join the process group if there is one, and choose the device of this process.

    Args:
        device: `run.device`.

    Returns:
        This process among the others.

    Raises:
        ValueError: a GPU was asked for and there is none.
    """
    from accelerate import PartialState  # type: ignore[import-untyped]

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("run.device=cuda, but torch sees no GPU; use run.device=cpu or a CUDA build of torch")
    use_cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=True) if use_cpu else PartialState()
    return Processes(device=state.device, rank=state.process_index, count=state.num_processes)


class StopRequest:
    """Says at each iteration, on all processes alike, whether the run should save and exit."""

    def __init__(self, *, max_hours: float | None) -> None:
        self._deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
        self._signalled = False
        self._previous = signal.signal(signal.SIGTERM, self._on_signal)

    def __call__(self) -> bool:
        """Return whether any process was told to stop or is out of time."""
        due = self._signalled or (self._deadline is not None and time.monotonic() >= self._deadline)
        if is_distributed():
            flag = torch.tensor(float(due))
            if torch.distributed.get_backend() == "nccl":
                flag = flag.cuda()
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            due = bool(flag)
        return due

    def close(self) -> None:
        """Give SIGTERM back to whoever had it."""
        signal.signal(signal.SIGTERM, self._previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True


def unused_output(folder: str) -> str:
    """Return the folder, or with -2, -3, ... appended if it already holds a run; the first process decides for all."""
    name, number = folder, 1
    while (Path(name) / "config.yaml").exists():
        number += 1
        name = f"{folder}-{number}"
    chosen = [name]
    if is_distributed():
        torch.distributed.broadcast_object_list(chosen, src=0)
    return chosen[0]
