"""Connections that send no whole request head: each is closed after a time, and only so many are open at once.

A connection waits from its beginning, or from its last answer, to the end of the next request's head; from there on the limits
of bodies and requests hold. Where too many wait, the one that has waited longest goes, of the client with the most of them.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from reward_model.serving.server.config import ServerConfig


def limited_connections(config: ServerConfig) -> type[asyncio.Protocol]:
    """Return the protocol of a server's connections, with `max_connections` and `header_seconds` of its limits."""
    waiting: dict[H11Protocol, float] = {}

    class LimitedConnection(H11Protocol):
        """One connection; it is in `waiting`, with the time since when, while no request's head is whole."""

        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            """Begin to wait, and make room."""
            super().connection_made(transport)
            self._wait()
            if len(waiting) > config.max_connections:
                _longest(waiting).transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            """Leave."""
            self._end_wait()
            super().connection_lost(exc)

        def handle_events(self) -> None:
            """Stop to wait where a head is whole."""
            super().handle_events()
            if self.cycle is not None and not self.cycle.response_complete:
                self._end_wait()

        def on_response_complete(self) -> None:
            """Wait for the next request, unless it has come already."""
            if not self.transport.is_closing():
                self._wait()
            super().on_response_complete()

        def _wait(self) -> None:
            self._end_wait()
            waiting[self] = time.monotonic()
            self._timer = self.loop.call_later(config.header_seconds, self.transport.abort)

        def _end_wait(self) -> None:
            waiting.pop(self, None)
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return LimitedConnection


def _longest(waiting: dict[H11Protocol, float]) -> H11Protocol:
    """Return the connection that has waited longest, of the client with the most; it no longer counts as waiting."""
    clients = {one: (one.client or ("",))[0] for one in waiting}
    counts = Counter(clients.values())
    busy = max(counts.values())
    victim = min((one for one in waiting if counts[clients[one]] == busy), key=waiting.__getitem__)
    del waiting[victim]
    return victim
