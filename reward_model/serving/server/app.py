"""The routes: bodies to questions, questions to the judge's batches, answers to JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Protocol

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from reward_model.records import Clip
from reward_model.scoring.json_records import JsonRecord
from reward_model.serving.server import schema
from reward_model.serving.server.batcher import Batcher
from reward_model.serving.server.guard import HEALTH, Guard
from reward_model.serving.server.judge import Comparing, Explaining, Question, Scoring, Work
from reward_model.serving.server.metrics import CONTENT_TYPE, Metrics
from reward_model.serving.server.settings import ServerSettings

DESCRIPTION = """Scores, compares and explains videos.

A video is `{"file": base64 of a video file}` or `{"frames": base64 of a safetensors file, "fps": Hz}`; nothing is ever
read from a path or URL. A video that is damaged or beyond the server's limits is answered with status 200, `valid` false
and the reason, so that the others of its request keep their scores. A request that is malformed gets a 4xx status and
`{"error": reason}`; after 429 or 503 it may be sent again."""

MAX_REASON = 300
"""Letters of a reason; the rest is cut."""

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.Problem, "description": meaning}
    for status, meaning in {
        400: "The body could not be parsed.",
        401: "The token is missing or wrong.",
        408: "The body took too long.",
        413: "The body is too large.",
        415: "The body is not called JSON.",
        422: "The body does not say what is needed, or holds no video.",
        429: "Too many requests at a time; see Retry-After.",
        500: "The judge failed.",
        504: "No answer in time.",
    }.items()
}


SentVideo = schema.FileVideo | schema.FramesVideo
Item = tuple[Sequence[tuple[str, SentVideo]], str | None]
"""One thing asked about: its videos, each with its place in the request, and the prompt."""


class Judge(Protocol):
    """What the routes need of `ServedJudge`."""

    dimensions: tuple[str, ...]
    roles: tuple[str, ...]

    def read(self, video: SentVideo) -> Clip | str:
        """Return the clip, or why there is none; ValueError for what is no video."""

    def answer(self, work: Work, questions: Sequence[Question]) -> list[JsonRecord]:
        """Return one row a question; ValueError for settings that the judge refuses."""


class Desk:
    """Reads the videos of requests, a bounded number of them ahead of the judge, and asks it about them."""

    def __init__(self, judge: Judge, settings: ServerSettings, metrics: Metrics) -> None:
        self._judge, self._settings, self._metrics = judge, settings, metrics
        self._readers = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="reader")
        # decoded clips are large: one batch with the judge, one behind it, one being read
        self._room = asyncio.Semaphore(3 * settings.batch_size)
        self.batcher: Batcher[Work, Question, JsonRecord] = Batcher(
            judge.answer,
            batch_size=settings.batch_size,
            max_wait=settings.max_wait_ms / 1000,
            on_batch=metrics.batch,
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Answer questions inside this context."""
        running = asyncio.create_task(self.batcher.run())
        try:
            yield
        finally:
            running.cancel()
            self.batcher.close()
            self._readers.shutdown()

    async def answer(self, work: Work, items: Sequence[Item]) -> list[JsonRecord]:
        """Return one row an item.

        Args:
            work: what is asked of all of them.
            items: of one request.

        Returns:
            The rows.

        Raises:
            HTTPException: what was sent is no video, settings that the judge refuses, or no answer in time.
        """
        seconds = self._settings.request_seconds
        try:
            async with asyncio.timeout(seconds):
                rows = await asyncio.gather(*(self._ask(work, *item) for item in items))
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        except TimeoutError as error:
            raise HTTPException(504, f"no answer within {seconds:g} s; the server is busy") from error
        for row in rows:
            self._metrics.result(row["valid"])
        return rows

    async def _ask(self, work: Work, videos: Sequence[tuple[str, SentVideo]], prompt: str | None) -> JsonRecord:
        async with self._room:
            clips = [await self._read(name, video) for name, video in videos]
            return await self.batcher.ask(work, Question(tuple(clips), prompt))

    async def _read(self, name: str, video: SentVideo) -> Clip | str:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._readers, self._judge.read, video)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def create_app(judge: Judge, settings: ServerSettings, *, token: str | None = None) -> FastAPI:
    """Return the application.

    Args:
        judge: what reads and answers.
        settings: limits and batching.
        token: bearer token that all routes but /health ask for; None asks for none.

    Returns:
        The ASGI application; its judge's thread runs within its lifespan.
    """
    metrics = Metrics()
    desk = Desk(judge, settings, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        """Keep the judge's thread while the application runs."""
        async with desk.open():
            yield

    app = FastAPI(title="video-judge", description=DESCRIPTION, lifespan=lifespan, redirect_slashes=False)
    app.add_middleware(Guard, settings=settings, metrics=metrics, token=token)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(StarletteHTTPException, _refused)
    app.add_exception_handler(Exception, _failed)

    @app.post("/score", response_model=schema.Scores, responses=PROBLEMS)
    async def score(body: schema.ScoreBody) -> dict[str, Any]:
        """Score videos; a score that could not be had is null with its reason."""
        _check_count(len(body.videos), settings)
        weights = None if body.weights is None else tuple(sorted(body.weights.items()))
        dimensions = None if body.dimensions is None else tuple(body.dimensions)
        work = Scoring(dimensions, weights, body.readout, body.num_samples, body.normalize)
        prompts = _one_each(body.prompts, len(body.videos))
        items = [([(f"videos[{i}]", video)], prompts[i]) for i, video in enumerate(body.videos)]
        return {"results": await desk.answer(work, items)}

    @app.post("/compare", response_model=schema.Preferences, responses=PROBLEMS)
    async def compare(body: schema.CompareBody) -> dict[str, Any]:
        """Say which video of each pair is better overall."""
        _check_count(len(body.first), settings)
        if len(body.first) != len(body.second):
            raise HTTPException(422, f"as many first as second videos, got {len(body.first)} and {len(body.second)}")
        prompts = _one_each(body.prompts, len(body.first))
        pairs = zip(body.first, body.second, prompts, strict=True)
        items = [([(f"first[{i}]", a), (f"second[{i}]", b)], prompt) for i, (a, b, prompt) in enumerate(pairs)]
        return {"results": await desk.answer(Comparing(body.swap), items)}

    @app.post("/explain", response_model=schema.Reasons, responses=PROBLEMS)
    async def explain(body: schema.ExplainBody) -> JsonRecord:
        """Say why a video scores as it does."""
        return (await desk.answer(Explaining(), [([("video", body.video)], body.prompt)]))[0]

    @app.get(HEALTH, response_model=schema.Health)
    async def health() -> dict[str, Any]:
        """Answer at once, also while the judge is busy."""
        return {"status": "ok", "dimensions": judge.dimensions, "roles": judge.roles}

    @app.get("/metrics", response_class=Response)
    async def read_metrics() -> Response:
        """Return counts in Prometheus' text format."""
        return Response(metrics.text(desk.batcher.num_waiting), media_type=CONTENT_TYPE)

    return app


def _check_count(num: int, settings: ServerSettings) -> None:
    if num > settings.max_videos:
        raise HTTPException(413, f"at most {settings.max_videos} videos or pairs a request, got {num}")


def _one_each(prompts: str | list[str | None] | None, num: int) -> list[str | None]:
    if not isinstance(prompts, list):
        return [prompts] * num
    if len(prompts) != num:
        raise HTTPException(422, f"prompts must be one each: got {len(prompts)} for {num}")
    return prompts


async def _malformed(_: Request, error: Exception) -> JSONResponse:
    """Name the first fault, never the input, which may be large or not JSON itself."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return _problem(422, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)
    return _problem(error.status_code, str(error.detail), error.headers)


async def _failed(_: Request, error: Exception) -> JSONResponse:
    """Name the kind of failure; uvicorn logs the rest."""
    return _problem(500, f"the judge failed: {type(error).__name__}")


def _problem(status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return a reason as JSON; names from a request may stand in it, which may be long."""
    short = reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]}..."
    return JSONResponse({"error": short}, status, headers)
