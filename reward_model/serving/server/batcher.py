"""Merges questions of like settings into batches that one thread answers, and returns each answer to its asker."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Work = TypeVar("Work", bound=Hashable)
Question = TypeVar("Question")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Job(Generic[Work, Question, Answer]):
    """A question that waits; the batch with it starts at `deadline` (the loop's seconds) at the latest."""

    work: Work
    question: Question
    future: asyncio.Future[Answer]
    deadline: float


class Batcher(Generic[Work, Question, Answer]):
    """Questions wait in the order in which they came; the oldest decides what the next batch is about.

    All methods are for one event loop; only `answer` runs elsewhere, in one thread.
    """

    def __init__(
        self,
        answer: Callable[[Work, Sequence[Question]], Sequence[Answer]],
        *,
        batch_size: int,
        max_wait: float,
        on_batch: Callable[[int, float], None],
    ) -> None:
        """Take the function that answers.

        Args:
            answer: answers questions of one work, one answer each in their order.
            batch_size: most questions of a call.
            max_wait: seconds that a question waits for others while the thread is free.
            on_batch: told the number of questions and the seconds of every call.
        """
        self._answer, self._on_batch = answer, on_batch
        self._batch_size, self._max_wait = batch_size, max_wait
        self._jobs: deque[_Job[Work, Question, Answer]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judge")

    @property
    def num_waiting(self) -> int:
        """Questions that no batch has taken yet."""
        return len(self._jobs)

    async def ask(self, work: Work, question: Question) -> Answer:
        """Wait for the answer to one question; whatever `answer` raises about it is raised here."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._jobs.append(_Job(work, question, future, loop.time() + self._max_wait))
        self._arrived.set()
        return await future

    async def run(self) -> None:
        """Answer batch after batch, until cancelled."""
        while True:
            await self._settle(await self._next_batch())

    def close(self) -> None:
        """Wait for the thread to end."""
        self._thread.shutdown()

    async def _next_batch(self) -> list[_Job[Work, Question, Answer]]:
        loop = asyncio.get_running_loop()
        while not (batch := self._ready()):
            await self._next_arrival(None)
        while len(batch) < self._batch_size and (left := batch[0].deadline - loop.time()) > 0:
            await self._next_arrival(left)
            batch = self._ready() or batch
        taken = {id(job) for job in batch}
        self._jobs = deque(job for job in self._jobs if id(job) not in taken)
        return batch

    def _ready(self) -> list[_Job[Work, Question, Answer]]:
        """Return the oldest questions of one work, without those that nobody waits for any more."""
        self._jobs = deque(job for job in self._jobs if not job.future.done())
        return [job for job in self._jobs if job.work == self._jobs[0].work][: self._batch_size]

    async def _next_arrival(self, seconds: float | None) -> None:
        self._arrived.clear()
        # not wait_for, which would raise where time runs out
        waiting = asyncio.ensure_future(self._arrived.wait())
        await asyncio.wait([waiting], timeout=seconds)
        waiting.cancel()

    async def _settle(self, batch: list[_Job[Work, Question, Answer]]) -> None:
        """Answer a batch; where that fails, each question by itself, so that one cannot fail its neighbours."""
        loop, questions = asyncio.get_running_loop(), [job.question for job in batch]
        start = loop.time()
        call = loop.run_in_executor(self._thread, self._call, batch[0].work, questions)
        await asyncio.wait([call])
        self._on_batch(len(batch), loop.time() - start)
        error = call.exception()
        if error is not None and len(batch) > 1:
            for job in batch:
                await self._settle([job])
            return
        for place, job in enumerate(batch):
            if job.future.done():
                continue
            if error is None:
                job.future.set_result(call.result()[place])
            else:
                job.future.set_exception(error)

    def _call(self, work: Work, questions: Sequence[Question]) -> Sequence[Answer]:
        answers = self._answer(work, questions)
        assert len(answers) == len(questions), f"{len(answers)} answers to {len(questions)} questions"
        return answers
