"""Bodies that are still arriving: many, slow or unfinished ones must not keep complete requests out.

No body has a place of its own. Where there are too many at a time, the one that has stood still longest goes, of the client
with the most of them; so whoever opens many connections loses them to whoever sends.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from reward_model.serving.server.config import ServerConfig

GRACE = 5.0
"""Seconds before a body's mean rate is looked at."""


class BodyMemory:
    """The bytes of all request bodies, from their arrival to their answer."""

    def __init__(self, size: int) -> None:
        """Start with room for `size` bytes."""
        self.size, self.held = size, 0


class Upload:
    """One body that is arriving."""

    def __init__(self, client: str, end: asyncio.Timeout) -> None:
        self.client, self.end = client, end
        self.start = self.moved = time.monotonic()
        self.size, self.dropped = 0, False

    def drop(self) -> None:
        """End the upload now, which raises TimeoutError where it is awaited."""
        self.dropped = True
        self.end.reschedule(asyncio.get_running_loop().time())


class Uploads:
    """All bodies that are arriving, for one event loop."""

    def __init__(self, config: ServerConfig, memory: BodyMemory) -> None:
        """Start with none.

        Args:
            config: limits.
            memory: filled by the bodies.
        """
        self._config, self._memory = config, memory
        self._open: set[Upload] = set()

    @contextmanager
    def arriving(self, client: str, end: asyncio.Timeout) -> Iterator[Upload]:
        """Count a body inside this context; drop another one if there are too many.

        Args:
            client: address of the sender.
            end: timeout around the context.

        Yields:
            The upload.
        """
        upload = Upload(client, end)
        self._open.add(upload)
        try:
            if len(self._open) > self._config.max_uploads:
                self._drop_one()
            yield upload
        finally:
            self._open.discard(upload)

    def add(self, upload: Upload, num_bytes: int) -> bool:
        """Count bytes that have come; return whether there is room for them, once idle bodies are dropped if need be."""
        upload.size += num_bytes
        upload.moved = time.monotonic()
        self._memory.held += num_bytes
        arriving = sum(other.size for other in self._open if other is not upload)
        if self._memory.held - arriving > self._memory.size:
            return False  # complete requests hold it: to drop others would not help
        while self._memory.held > self._memory.size:
            if self._drop_one() is upload:
                return False
        return True

    def seconds_left(self, upload: Upload) -> float:
        """Return how long the next bytes may take before the mean rate is too low."""
        due = max(upload.size / (self._config.min_body_kb * 1000), GRACE)
        return upload.start + due - time.monotonic()

    def _drop_one(self) -> Upload:
        counts = Counter(upload.client for upload in self._open)
        busy = max(counts.values())
        victim = min((one for one in self._open if counts[one.client] == busy), key=lambda one: one.moved)
        self._open.discard(victim)
        self._memory.held -= victim.size
        victim.size = 0
        victim.drop()
        return victim
