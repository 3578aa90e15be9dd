"""The bytes that requests hold: bodies are refused where there is no room, clips wait for it."""

from __future__ import annotations

import asyncio
import ctypes
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class MemoryPool:
    """A number of bytes that clips share; those who wait are served in their order. For one event loop."""

    def __init__(self, size: int) -> None:
        """Start empty, with room for `size` bytes."""
        self.size, self.held = size, 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def holding(self, num_bytes: int, passing: int = 0) -> AsyncIterator[Share]:
        """Wait for room, and hold it inside this context.

        Args:
            num_bytes: held to the end.
            passing: held until `Share.passed`, or to the end.

        Yields:
            The share of the pool.
        """
        assert num_bytes + passing <= self.size, "a share that never fits is refused before"
        await self._take(num_bytes + passing)
        share = Share(self, num_bytes, passing)
        try:
            yield share
        finally:
            share.passed()
            self._give(num_bytes)

    async def _take(self, num_bytes: int) -> None:
        if not self._waiting and self.held + num_bytes <= self.size:
            self.held += num_bytes
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((num_bytes, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give(num_bytes)
            else:
                self._waiting = deque(entry for entry in self._waiting if entry[1] is not turn)
                self._give(0)
            raise

    def _give(self, num_bytes: int) -> None:
        self.held -= num_bytes
        while self._waiting and self.held + self._waiting[0][0] <= self.size:
            wanted, turn = self._waiting.popleft()
            if not turn.done():
                self.held += wanted
                turn.set_result(None)


class Share:
    """A part of a pool."""

    def __init__(self, pool: MemoryPool, num_bytes: int, passing: int) -> None:
        self._pool, self._passing = pool, passing
        self.num_bytes = num_bytes

    def passed(self) -> None:
        """Give back the bytes that were needed for a time only."""
        self._pool._give(self._passing)
        self._passing = 0


def return_free_memory() -> None:
    """Give freed memory back to the system; glibc keeps much of it otherwise. Other C libraries have no such call."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return
    trim(0)
