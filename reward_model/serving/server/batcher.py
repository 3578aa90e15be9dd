"""Batching of jobs with equal options: one thread answers a batch, and each caller gets the result of its job."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

OptionsT = TypeVar("OptionsT", bound=Hashable)
JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class _QueuedJob(Generic[OptionsT, JobT, ResultT]):
    """A job in the queue; its batch starts at `deadline` (in seconds of the event loop) at the latest."""

    options: OptionsT
    job: JobT
    future: asyncio.Future[ResultT]
    deadline: float


class Batcher(Generic[OptionsT, JobT, ResultT]):
    """First-in first-out queue; the next batch holds the oldest job and others with the same options.

    All methods belong to one event loop; only `answer` runs elsewhere, in one thread.
    """

    def __init__(
        self,
        answer: Callable[[OptionsT, Sequence[JobT]], Sequence[ResultT]],
        *,
        batch_size: int,
        max_wait: float,
        on_batch: Callable[[int, float], None],
    ) -> None:
        """Start with an empty queue.

        Args:
            answer: returns the results of jobs with equal options, in their order.
            batch_size: maximum number of jobs per call.
            max_wait: seconds that a job waits for others while the thread is free.
            on_batch: called with the number of jobs and the seconds of every call.
        """
        self._answer, self._on_batch = answer, on_batch
        self._batch_size, self._max_wait = batch_size, max_wait
        self._queue: deque[_QueuedJob[OptionsT, JobT, ResultT]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judge")

    @property
    def num_waiting(self) -> int:
        """Number of jobs that no batch has taken yet."""
        return len(self._queue)

    async def ask(self, options: OptionsT, job: JobT) -> ResultT:
        """Wait for the result of one job; an exception of `answer` is raised here."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ResultT] = loop.create_future()
        self._queue.append(_QueuedJob(options, job, future, loop.time() + self._max_wait))
        self._arrived.set()
        return await future

    async def run(self) -> None:
        """Answer batches until cancelled."""
        while True:
            await self._settle(await self._next_batch())

    def close(self) -> None:
        """Wait for the thread to end."""
        self._thread.shutdown()

    async def _next_batch(self) -> list[_QueuedJob[OptionsT, JobT, ResultT]]:
        loop = asyncio.get_running_loop()
        while not (batch := self._ready()):
            await self._next_arrival(None)
        while len(batch) < self._batch_size and (left := batch[0].deadline - loop.time()) > 0:
            await self._next_arrival(left)
            batch = self._ready() or batch
        taken = {id(queued) for queued in batch}
        self._queue = deque(queued for queued in self._queue if id(queued) not in taken)
        return batch

    def _ready(self) -> list[_QueuedJob[OptionsT, JobT, ResultT]]:
        """Drop jobs whose caller has gone; return the oldest job and those after it with the same options."""
        self._queue = deque(queued for queued in self._queue if not queued.future.done())
        return [queued for queued in self._queue if queued.options == self._queue[0].options][: self._batch_size]

    async def _next_arrival(self, seconds: float | None) -> None:
        self._arrived.clear()
        # asyncio.wait, because wait_for raises on a timeout
        waiting = asyncio.ensure_future(self._arrived.wait())
        await asyncio.wait([waiting], timeout=seconds)
        waiting.cancel()

    async def _settle(self, batch: list[_QueuedJob[OptionsT, JobT, ResultT]]) -> None:
        """Answer a batch; if that fails, answer each job alone, so that one job cannot fail the others."""
        loop, jobs = asyncio.get_running_loop(), [queued.job for queued in batch]
        start = loop.time()
        call = loop.run_in_executor(self._thread, self._call, batch[0].options, jobs)
        await asyncio.wait([call])
        self._on_batch(len(batch), loop.time() - start)
        error = call.exception()
        if error is not None and len(batch) > 1:
            for queued in batch:
                await self._settle([queued])
            return
        for place, queued in enumerate(batch):
            if queued.future.done():
                continue
            if error is None:
                queued.future.set_result(call.result()[place])
            else:
                queued.future.set_exception(error)

    def _call(self, options: OptionsT, jobs: Sequence[JobT]) -> Sequence[ResultT]:
        results = self._answer(options, jobs)
        assert len(results) == len(jobs), f"{len(results)} results of {len(jobs)} jobs"
        return results
