"""Scoring in several processes, each with its own judge; free workers take batches, results come back in order.

A worker is a program that reads one JSON object per line, `{"items": [[path, prompt], ...]}`, and answers each with one
line: `{"results": [...]}`, or `{"error": "..."}` for a user error. The death of a worker is reported, and its batch goes
to another worker; a batch that has killed two workers is given up.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import selectors
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence

from reward_model.commands.inputs import Item
from reward_model.commands.results import Reading, Result

Report = Callable[[str], None]
"""Called with one line about the death of a worker."""

MAX_DEATHS = 2
"""Deaths after which a batch is given up; the first may have had another cause."""


class WorkersGoneError(RuntimeError):
    """No worker is left while batches remain."""


def commands(args: argparse.Namespace, reading: Reading, *, num: int) -> list[list[str]]:
    """Return the command lines of `num` workers for the judge of the arguments; several devices are assigned in turn."""
    names = ("judge", "role", "threads", "allow_damaged")
    settings = {name: getattr(args, name) for name in names} | {"reading": dataclasses.asdict(reading)}
    devices = args.device.split(",") if args.device else [None]
    return [
        [sys.executable, "-m", "reward_model.commands.score_worker", json.dumps(settings | {"device": device})]
        for device in (devices[place % len(devices)] for place in range(num))
    ]


class Worker:
    """One running process; `place` is the number of its current batch."""

    def __init__(self, command: Sequence[str], number: int) -> None:
        self.number, self.place = number, -1
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def ask(self, place: int, items: Sequence[Item]) -> None:
        """Send a batch; the death of a worker is noticed when its answer is read."""
        self.place = place
        with contextlib.suppress(BrokenPipeError):
            self.stdin.write(json.dumps({"items": [[item.path, item.prompt] for item in items]}).encode() + b"\n")
            self.stdin.flush()

    def answer(self) -> list[Result] | None:
        """Return the results of the batch, None if the worker has died; ValueError for a user error."""
        line = self.stdout.readline()
        if not line.endswith(b"\n"):
            return None
        reply = json.loads(line)
        if "error" in reply:
            raise ValueError(reply["error"])
        return reply["results"]

    def epitaph(self) -> str:
        """Return how a dead worker ended."""
        status = self.process.wait()
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return f"process {self.number} {how}"

    def stop(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.wait()
        self.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()


def scatter(
    command_lines: Sequence[Sequence[str]], batches: Sequence[Sequence[Item]], *, report: Report
) -> Iterator[list[Result] | str]:
    """Yield the results of each batch in order, or the reason why there are none.

    Args:
        command_lines: one per worker.
        batches: items to score.
        report: called when a worker dies.

    Yields:
        Results of one batch, or a reason.

    Raises:
        WorkersGoneError: all workers died before the last batch.
        ValueError: a worker refused the judge or the options.
    """
    waiting, deaths = deque(range(len(batches))), Counter[int]()
    answers: dict[int, list[Result] | str] = {}
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as running:
        idle = []
        for number, command in enumerate(command_lines, start=1):
            idle.append(worker := Worker(command, number))
            running.callback(worker.stop)
        for due in range(len(batches)):
            while due not in answers:
                while waiting and idle:
                    worker = idle.pop(0)
                    selector.register(worker.stdout, selectors.EVENT_READ, worker)
                    worker.ask(place := waiting.popleft(), batches[place])
                if not selector.get_map():
                    raise WorkersGoneError("no process is left")
                for key, _ in selector.select():
                    worker = key.data
                    selector.unregister(worker.stdout)
                    if (results := worker.answer()) is not None:
                        answers[worker.place] = results
                        idle.append(worker)
                    elif (reason := _record_death(worker, batches[worker.place], deaths, report)) is None:
                        waiting.appendleft(worker.place)
                    else:
                        answers[worker.place] = reason
            yield answers.pop(due)


def _record_death(worker: Worker, batch: Sequence[Item], deaths: Counter[int], report: Report) -> str | None:
    """Report a death; return why the batch is given up, None if another worker shall retry it."""
    deaths[worker.place] += 1
    names = batch[0].path + (f" and the {len(batch) - 1} items after it" if len(batch) > 1 else "")
    given_up = deaths[worker.place] >= MAX_DEATHS
    report(f"{worker.epitaph()} at {names}; {'given up' if given_up else 'its items go to another process'}")
    return (
        f"{MAX_DEATHS} processes died while scoring this batch; the last one, {worker.epitaph()}" if given_up else None
    )
