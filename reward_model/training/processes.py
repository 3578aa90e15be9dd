"""Agreement of the processes of one training: they refuse, stop and write as one, or not at all."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from reward_model.files import Lock
from reward_model.training.fit import rank_and_world

ECHO_SECONDS = 3.0
"""Within this time a second signal is the same request: a launcher passes on what the terminal has sent to all processes."""


class TrainingStopped(Exception):
    """Training was told to stop, and has left its output as the last finished stage made it."""


class TrainingStopRequest:
    """Tells a training, between its steps and batches, that a signal asked it to stop; called, it raises `TrainingStopped`."""

    def __init__(self) -> None:
        """Begin without a request."""
        self.is_signalled = False
        self._since = 0.0

    def listen(self) -> None:
        """Take SIGTERM and SIGINT as requests; a second one, some seconds after the first, ends the process at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.is_signalled:
            self.is_signalled, self._since = True, time.monotonic()
        elif time.monotonic() - self._since > ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def __call__(self) -> None:
        """Raise `TrainingStopped` where any process was asked; all processes must call it alike."""
        asked = torch.tensor(int(self.is_signalled))
        if rank_and_world()[1] > 1:
            asked = asked.to("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
            torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        if asked:
            raise TrainingStopped

    def alone(self) -> None:
        """Raise `TrainingStopped` where this process was asked, whatever the others do."""
        if self.is_signalled:
            raise TrainingStopped


def gathered(own: Any) -> list[Any]:
    """Return what each process gave, in the order of their ranks; it is pickled on the way."""
    world = rank_and_world()[1]
    if world == 1:
        return [own]
    shares: list[Any] = [None] * world
    torch.distributed.all_gather_object(shares, own)
    return shares


def refuse_together(refusal: str) -> None:
    """Raise the first process's ValueError on all; all processes call it.

    Args:
        refusal: why this process cannot go on; empty where it can.

    Raises:
        ValueError: any process refuses.
    """
    for rank, said in enumerate(gathered(refusal)):
        if said:
            raise ValueError(said if rank == 0 else f"process {rank} of the training: {said}")


@contextmanager
def together() -> Iterator[None]:
    """Let all processes end alike: a ValueError or OSError of one inside this context is raised as a ValueError on all.

    No collective call may stand inside it.

    Yields:
        Nothing.
    """
    refusal = ""
    try:
        yield
    except (ValueError, OSError) as error:
        refusal = str(error).strip() or type(error).__name__
    refuse_together(refusal)


@contextmanager
def claimed(output: Path) -> Iterator[None]:
    """Hold the lock of a training's output, which the first process takes and every process sees.

    Args:
        output: folder of the training, on a file system that all processes share.

    Yields:
        Nothing.

    Raises:
        ValueError: on all processes, where another training writes to the folder as any of them sees it, or the folder of one
            of them is not the folder of the others.
    """
    rank, lock, refusal = rank_and_world()[0], None, ""
    mark = output.with_name(f".{output.name}.{uuid.uuid4().hex}.shared")
    if rank == 0:
        try:
            lock = Lock(output, purpose="this training")
            mark.touch()
        except (ValueError, OSError) as error:
            refusal = str(error)
    try:
        refuse_together(refusal)
        first: tuple[Path, str] = gathered((mark, str(os.getpid())))[0]
        refuse_together("" if rank == 0 else _not_shared(output, *first))
    except BaseException:
        _let_go(lock, mark)
        raise
    mark.unlink(missing_ok=True)
    try:
        yield
    finally:
        _let_go(lock, mark)


def _let_go(lock: Lock | None, mark: Path) -> None:
    mark.unlink(missing_ok=True)
    if lock is not None:
        lock.release()


def _not_shared(output: Path, mark: Path, holder: str) -> str:
    """Return why this process cannot write where the first one does; empty where it can."""
    seen = output.with_name(f".{output.name}.lock")
    here = seen.read_text(encoding="utf-8").strip() if seen.is_file() else ""
    if here and here != holder:
        return f"this training cannot write to {output}: process {here} is writing to it"
    if not here or not output.with_name(mark.name).exists():
        return f"{output} is not the folder that the first process writes to; give an output that all machines share"
    return ""


def refuse_other_files(digests: Mapping[str, str]) -> None:
    """Refuse to train where the processes read other files under the same names.

    Args:
        digests: path -> SHA-256 of the files that this process reads.

    Raises:
        ValueError: on all processes, with the first file that differs.
    """
    first, *others = gathered(dict(digests))
    for rank, other in enumerate(others, start=1):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise ValueError(f"{name} differs between process {rank} and the first one; share it, or copy it anew")
