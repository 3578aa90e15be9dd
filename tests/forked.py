"""Several gloo processes of a test, forked from it."""

from __future__ import annotations

import datetime
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import torch


def run_forked(work: Callable[[int], None], folder: Path, *, num_processes: int) -> list[int]:
    """Run `work(rank)` in processes that form a group, and return their exit codes: 0, or 1 after an exception.

    The caller computes on one thread: a forked child waits for ever for threads that its parent has started.
    """
    children = []
    for rank in range(num_processes):
        child = os.fork()
        if child == 0:
            os._exit(_exit_code(work, rank, folder, num_processes))
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _exit_code(work: Callable[[int], None], rank: int, folder: Path, num_processes: int) -> int:
    try:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_processes))  # for DeepSpeed
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder / 'rendezvous'}",
            rank=rank,
            world_size=num_processes,
            timeout=datetime.timedelta(seconds=120),
        )
        work(rank)
    except BaseException:  # noqa: BLE001 -- a child must never go on as a second test session
        traceback.print_exc()
        return 1
    return 0
