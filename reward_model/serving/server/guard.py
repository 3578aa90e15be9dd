"""What happens before a request is understood: who asks, how many at a time, how large and how slow their bodies are.

A plain ASGI layer in front of the routes, because a body has to be refused before it is read, not after.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from reward_model.serving.server.metrics import Metrics
from reward_model.serving.server.settings import ServerSettings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

HEALTH = "/health"
"""Answers without a token, for those who watch over the process."""

ROUTES = ("/score", "/compare", "/explain", HEALTH, "/metrics")

MAX_JSON_PARTS = 100_000
"""Most commas and brackets of a body, beyond which its parsed form would be many times its size; base64 has none."""


class Refusal(Exception):
    """A request that is not let in: status, reason and further headers."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers or {}


class Gone(Exception):
    """The client left before its body was complete."""


class Guard:
    """Lets requests in, whole and within limits, and counts them."""

    def __init__(self, app: App, *, settings: ServerSettings, metrics: Metrics, token: str | None) -> None:
        """Stand before an application.

        Args:
            app: the application.
            settings: limits.
            metrics: where requests are counted.
            token: what an Authorization header must bear; None lets everybody in.
        """
        self._app, self._settings, self._metrics = app, settings, metrics
        self._token = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handle one request of the ASGI protocol."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def watch(message: Message) -> None:
            """Note the status of the answer and pass it on."""
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.num_open += 1
        try:
            await self._let_in(scope, receive, watch)
        except Refusal as refusal:
            await _refuse(watch, refusal)
        except Gone:
            status = 499
        finally:
            self._metrics.num_open -= 1
            route = scope["path"] if scope["path"] in ROUTES else "other"
            self._metrics.request(route, status, time.perf_counter() - start)

    async def _let_in(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self._token is not None and scope["path"] != HEALTH:
            if not hmac.compare_digest(headers.get(b"authorization", b""), self._token):
                raise Refusal(401, "a valid bearer token is required", {"WWW-Authenticate": "Bearer"})
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._metrics.num_open > self._settings.max_requests:
            raise Refusal(429, "too many requests at a time; try again later", {"Retry-After": "1"})
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            raise Refusal(415, "the Content-Type must be application/json")
        body = await self._whole_body(headers, receive)
        if sum(body.count(mark) for mark in (b",", b"[", b"{")) > MAX_JSON_PARTS:
            raise Refusal(413, f"the body has more than {MAX_JSON_PARTS} parts")
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        await self._app(scope, lambda: _next(pending, receive), send)

    async def _whole_body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        limit, seconds = int(self._settings.max_body_mb * 10**6), self._settings.body_seconds
        too_large = Refusal(413, f"the body is larger than {limit} bytes")
        if int(headers.get(b"content-length", b"0")) > limit:
            raise too_large
        parts, size, more = [], 0, True
        try:
            async with asyncio.timeout(seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    parts.append(message.get("body", b""))
                    size, more = size + len(parts[-1]), message.get("more_body", False)
                    if size > limit:
                        raise too_large
        except TimeoutError as error:
            raise Refusal(408, f"the body took more than {seconds:g} s", {"Connection": "close"}) from error
        return b"".join(parts)


async def _next(pending: list[Message], receive: Receive) -> Message:
    return pending.pop() if pending else await receive()


async def _refuse(send: Send, refusal: Refusal) -> None:
    body = json.dumps({"error": refusal.reason}).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **refusal.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
