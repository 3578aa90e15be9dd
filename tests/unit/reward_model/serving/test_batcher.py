"""Batching of jobs: which jobs share a batch, who gets which result, and whom a failure affects."""

import asyncio
import threading
import time

import pytest

from reward_model.serving.server.batcher import Batcher


class Doubler:
    """Returns twice the number after the name of the options; records its batches and threads."""

    def __init__(self, seconds=0.0):
        self.seconds, self.batches, self.threads = seconds, [], set()

    def __call__(self, options, jobs):
        self.batches.append((options, list(jobs)))
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        if "poison" in jobs:
            raise RuntimeError("poisoned")
        return [f"{options}{2 * job}" for job in jobs]


def run(answer, ask, *, batch_size=4, max_wait=0.01):
    """Run `ask(batcher)` beside a batcher and return its result."""

    async def main():
        batcher = Batcher(answer, batch_size=batch_size, max_wait=max_wait, on_batch=lambda num, seconds: None)
        running = asyncio.create_task(batcher.run())
        try:
            async with asyncio.timeout(20):
                return await ask(batcher)
        finally:
            running.cancel()
            batcher.close()

    return asyncio.run(main())


def test_jobs_at_one_time_share_a_batch_and_each_gets_its_answer():
    answer = Doubler()

    async def ask(batcher):
        return await asyncio.gather(*(batcher.ask("w", number) for number in range(4)))

    assert run(answer, ask) == ["w0", "w2", "w4", "w6"]
    assert answer.batches == [("w", [0, 1, 2, 3])]


def test_no_batch_is_larger_than_its_size():
    answer = Doubler()

    async def ask(batcher):
        return await asyncio.gather(*(batcher.ask("w", number) for number in range(10)))

    assert run(answer, ask) == [f"w{2 * number}" for number in range(10)]
    assert [len(jobs) for _, jobs in answer.batches] == [4, 4, 2]


def test_options_do_not_mix_and_the_oldest_goes_first():
    answer = Doubler()

    async def ask(batcher):
        return await asyncio.gather(*(batcher.ask("ab"[number % 2], number) for number in range(6)))

    assert run(answer, ask) == ["a0", "b2", "a4", "b6", "a8", "b10"]
    assert answer.batches == [("a", [0, 2, 4]), ("b", [1, 3, 5])]


def test_a_lone_job_waits_no_longer_than_it_must():
    async def ask(batcher):
        start = time.perf_counter()
        await batcher.ask("w", 1)
        return time.perf_counter() - start

    assert 0.05 <= run(Doubler(), ask, max_wait=0.05) < 2.0


def test_a_full_batch_does_not_wait():
    async def ask(batcher):
        start = time.perf_counter()
        await asyncio.gather(*(batcher.ask("w", number) for number in range(4)))
        return time.perf_counter() - start

    assert run(Doubler(), ask, max_wait=5.0) < 2.0


def test_jobs_gather_while_the_thread_is_busy():
    answer = Doubler(seconds=0.5)  # ten times what the jobs take to come

    async def ask(batcher):
        first = asyncio.create_task(batcher.ask("w", 0))
        await asyncio.sleep(0.05)
        later = []
        for number in (1, 2, 3):
            later.append(asyncio.create_task(batcher.ask("w", number)))
            await asyncio.sleep(0.01)
        return await asyncio.gather(first, *later)

    assert run(answer, ask, max_wait=0.001) == ["w0", "w2", "w4", "w6"]
    assert [jobs for _, jobs in answer.batches] == [[0], [1, 2, 3]]
    assert len(answer.threads) == 1
    assert answer.threads != {threading.get_ident()}


def test_a_failure_reaches_only_the_job_that_caused_it():
    answer = Doubler()

    async def ask(batcher):
        asked = [batcher.ask("w", job) for job in (1, "poison", 3)]
        return await asyncio.gather(*asked, return_exceptions=True)

    first, failed, last = run(answer, ask)
    assert (first, last) == ("w2", "w6")
    assert isinstance(failed, RuntimeError)
    assert [jobs for _, jobs in answer.batches] == [[1, "poison", 3], [1], ["poison"], [3]]


def test_it_goes_on_after_a_failure():
    async def ask(batcher):
        with pytest.raises(RuntimeError, match="poisoned"):
            await batcher.ask("w", "poison")
        return await batcher.ask("w", 2)

    assert run(Doubler(), ask) == "w4"


def test_too_few_answers_are_a_failure_and_not_an_answer_to_another():
    async def ask(batcher):
        with pytest.raises(AssertionError, match="1 results of 2 jobs"):
            await asyncio.gather(batcher.ask("w", 1), batcher.ask("w", 2))

    seen = []

    def short(options, jobs):
        seen.append(jobs)
        return ["one"] if len(jobs) == 2 else []

    with pytest.raises(AssertionError):
        run(short, ask)
    assert len(seen) == 3


def test_a_job_that_nobody_waits_for_is_not_asked():
    answer = Doubler(seconds=0.5)

    async def ask(batcher):
        first = asyncio.create_task(batcher.ask("w", 0))
        await asyncio.sleep(0.02)
        left = asyncio.create_task(batcher.ask("w", 1))
        stays = asyncio.create_task(batcher.ask("w", 2))
        await asyncio.sleep(0)
        left.cancel()
        assert batcher.num_waiting == 2
        return await asyncio.gather(first, stays)

    assert run(answer, ask) == ["w0", "w4"]
    assert [jobs for _, jobs in answer.batches] == [[0], [2]]
