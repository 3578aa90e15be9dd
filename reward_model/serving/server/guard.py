"""Checks before a request is parsed: its token, the number of open requests, the size and duration of its body.

A plain ASGI layer in front of the routes, because a body that is too large must be refused before it is read.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from reward_model.serving.server.config import ServerConfig
from reward_model.serving.server.metrics import ServerMetrics
from reward_model.serving.server.uploads import BodyMemory, Upload, Uploads

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

HEALTH = "/health"
"""Route that needs no token, for process monitors."""

ROUTES = ("/score", "/compare", "/explain", HEALTH, "/metrics")

JSON, FORM = b"application/json", b"multipart/form-data"
"""Kinds of bodies."""

MAX_JSON_PARTS = 100_000
"""Most commas and brackets in a body; more would parse to many times its size. Base64 has none."""


class Refusal(Exception):
    """A refused request: status, reason and further headers."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers or {}


class Gone(Exception):
    """The client left before its body was complete."""


class RequestGuard:
    """Passes on complete requests within limits, and counts all requests."""

    def __init__(
        self, app: App, *, config: ServerConfig, metrics: ServerMetrics, token: str | None, forms: Sequence[str] = ()
    ) -> None:
        """Wrap an application.

        Args:
            app: the application.
            config: limits.
            metrics: counters of requests.
            token: bearer token that the Authorization header must hold; None admits every request.
            forms: routes whose body is a multipart form; that of all others is JSON.
        """
        self._app, self._config, self._metrics, self._forms = app, config, metrics, tuple(forms)
        self._memory = BodyMemory(int(config.bodies_mb * 10**6))
        self._uploads, self._num_complete = Uploads(config, self._memory), 0
        self._token = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handle one request of the ASGI protocol."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def send_and_record(message: Message) -> None:
            """Record the status of the answer and send it on."""
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.num_open += 1
        try:
            await self._let_in(scope, receive, send_and_record)
        except Refusal as refusal:
            await _refuse(send_and_record, refusal)
        except Gone:
            status = 499
        finally:
            self._metrics.num_open -= 1
            route = scope["path"] if scope["path"] in (*ROUTES, *self._forms) else "other"
            self._metrics.request(route, status, time.perf_counter() - start)

    async def _let_in(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self._token is not None and scope["path"] != HEALTH:
            if not hmac.compare_digest(headers.get(b"authorization", b""), self._token):
                raise Refusal(401, "a valid bearer token is required", {"WWW-Authenticate": "Bearer"})
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        kind = FORM if scope["path"] in self._forms else JSON
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != kind:
            raise Refusal(415, f"the Content-Type must be {kind.decode()}")
        client = (scope.get("client") or ("",))[0]
        body = await self._whole_body(headers, receive, client)
        try:
            await self._answer(scope, receive, send, body)
        finally:
            self._memory.held -= len(body)
            self._num_complete -= 1

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send, body: bytes) -> None:
        """Pass on a complete request; only these count as concurrent, since a body may take long to arrive."""
        self._num_complete += 1
        if self._num_complete > self._config.max_requests:
            raise Refusal(429, "too many concurrent requests; try again later", {"Retry-After": "1"})
        if scope["path"] not in self._forms and sum(body.count(mark) for mark in (b",", b"[", b"{")) > MAX_JSON_PARTS:
            raise Refusal(413, f"the body has more than {MAX_JSON_PARTS} parts")
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        await self._app(scope, lambda: _next(pending, receive), send)

    async def _whole_body(self, headers: Mapping[bytes, bytes], receive: Receive, client: str) -> bytes:
        """Return the body, whose bytes the memory counts until the caller takes them out."""
        limit, seconds = int(self._config.max_body_mb * 10**6), self._config.body_seconds
        if int(headers.get(b"content-length", b"0")) > limit:
            raise _too_large(limit)
        upload = None
        try:
            async with asyncio.timeout(seconds) as end:
                with self._uploads.arriving(client, end) as upload:
                    chunks = await self._chunks(receive, upload, limit)
        except BaseException as error:
            if upload is not None:
                self._memory.held -= upload.size
            if not isinstance(error, TimeoutError):
                raise
            if upload is not None and upload.dropped:
                raise _busy() from error
            raise Refusal(408, f"the body took more than {seconds:g} s", {"Connection": "close"}) from error
        body = b"".join(chunks)
        # a body that was dropped while its last bytes came is complete all the same, and counts again
        self._memory.held += len(body) - upload.size
        return body

    async def _chunks(self, receive: Receive, upload: Upload, limit: int) -> list[bytes]:
        chunks, more = [], True
        while more:
            try:
                async with asyncio.timeout(self._uploads.seconds_left(upload)):
                    message = await receive()
            except TimeoutError as error:
                rate = self._config.min_body_kb
                raise Refusal(408, f"the body came at less than {rate:g} kB/s", {"Connection": "close"}) from error
            if message["type"] == "http.disconnect":
                raise Gone
            chunks.append(message.get("body", b""))
            more = message.get("more_body", False)
            if upload.size + len(chunks[-1]) > limit:
                raise _too_large(limit)
            if not self._uploads.add(upload, len(chunks[-1])):
                raise _busy()
        return chunks


def _busy() -> Refusal:
    """Return the answer to a body that there is no room for, or that was dropped in favour of others."""
    reason = "the server holds too many bodies; try again later"
    return Refusal(503, reason, {"Retry-After": "1", "Connection": "close"})


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"the body is larger than {limit} bytes")


async def _next(pending: list[Message], receive: Receive) -> Message:
    return pending.pop() if pending else await receive()


async def _refuse(send: Send, refusal: Refusal) -> None:
    body = json.dumps({"error": refusal.reason}).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **refusal.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
