"""The routes: a request body becomes jobs, the judge answers jobs in batches, the results become JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from reward_model.records import Clip
from reward_model.scoring.json_records import JsonRecord
from reward_model.serving.options import CompareOptions, ExplainOptions, RequestOptions
from reward_model.serving.server import schema
from reward_model.serving.server.batcher import Batcher
from reward_model.serving.server.config import ServerConfig
from reward_model.serving.server.fastvideo import SCORE_ROUTE, add_routes
from reward_model.serving.server.guard import HEALTH, RequestGuard
from reward_model.serving.server.judge import JudgeJob, Room
from reward_model.serving.server.memory import MemoryPool, return_free_memory
from reward_model.serving.server.metrics import CONTENT_TYPE, ServerMetrics

DESCRIPTION = """Scores, compares and explains videos.

A video is `{"file": base64 of a video file}` or `{"frames": base64 of a safetensors file, "fps": Hz}`; paths
and URLs are never read. A video that is damaged or beyond the server's limits is answered with status 200, `valid` false
and the reason; the other videos of the request keep their scores. A malformed request gets a 4xx status and
`{"error": reason}`. After 429 or 503, retry."""

MAX_REASON = 300
"""Maximum length of a reason, in characters; the rest is cut."""

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.Problem, "description": meaning}
    for status, meaning in {
        400: "The body could not be parsed.",
        401: "The token is missing or wrong.",
        408: "The body took too long.",
        413: "The body is too large, or a video needs more memory than all clips may take.",
        415: "The Content-Type is not that of the route.",
        422: "A field is missing or wrong, or the bytes are not a video.",
        429: "Too many concurrent requests; see Retry-After.",
        500: "The judge failed.",
        503: "The memory for request bodies is full; see Retry-After.",
        504: "The judge did not answer in time.",
    }.items()
}


ResultT = TypeVar("ResultT")
SentVideo = schema.FileVideo | schema.FramesVideo
Item = tuple[Sequence[tuple[str, SentVideo]], str | None]
"""One clip or pair of a request: its videos, each with the name of its field, and the prompt."""


class JudgeInterface(Protocol):
    """The methods of `JudgeService` that the routes call."""

    dimensions: tuple[str, ...]
    roles: tuple[str, ...]

    def room(self, video: SentVideo) -> Room:
        """Return the bytes that the video needs; ValueError if the bytes are not a video."""

    def read(self, video: SentVideo) -> Clip | str:
        """Return the clip, or the reason why it is unreadable; ValueError if the bytes are not a video."""

    def answer(self, options: RequestOptions, jobs: Sequence[JudgeJob]) -> list[JsonRecord]:
        """Return one record per job; ValueError for options that the judge refuses."""


class RequestReader:
    """Reads the videos of requests, a bounded number ahead of the judge, and queues them as jobs."""

    def __init__(self, judge: JudgeInterface, config: ServerConfig, metrics: ServerMetrics) -> None:
        self._judge, self._config, self._metrics = judge, config, metrics
        self._threads = ThreadPoolExecutor(config.decode_threads, thread_name_prefix="reader")
        # one batch with the judge, one in the queue, one being read, as far as the memory allows
        self._slots = asyncio.Semaphore(3 * config.batch_size)
        self._memory = MemoryPool(int(config.memory_mb * 10**6))
        self.batcher: Batcher[RequestOptions, JudgeJob, JsonRecord] = Batcher(
            judge.answer,
            batch_size=config.batch_size,
            max_wait=config.max_wait_ms / 1000,
            on_batch=metrics.batch,
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Answer jobs inside this context."""
        running = asyncio.create_task(self.batcher.run())
        try:
            yield
        finally:
            running.cancel()
            self.batcher.close()
            self._threads.shutdown()

    async def answer(self, options: RequestOptions, items: Sequence[Item]) -> list[JsonRecord]:
        """Return one record per item.

        Args:
            options: options of the request.
            items: clips or pairs of one request.

        Returns:
            The records.

        Raises:
            HTTPException: bytes that are not a video, options that the judge refuses, or no answer in time.
        """
        seconds = self._config.request_seconds
        try:
            async with asyncio.timeout(seconds):
                records = await asyncio.gather(*(self._ask(options, *item) for item in items))
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        except TimeoutError as error:
            raise HTTPException(504, f"no answer within {seconds:g} s; the server is busy") from error
        for record in records:
            self._metrics.result(record["valid"])
        if not self.batcher.num_waiting:
            await asyncio.get_running_loop().run_in_executor(self._threads, return_free_memory)
        return records

    async def _ask(
        self, options: RequestOptions, videos: Sequence[tuple[str, SentVideo]], prompt: str | None
    ) -> JsonRecord:
        async with self._slots:
            rooms = [await self._run(self._judge.room, name, video) for name, video in videos]
            kept, reading = sum(room.kept for room in rooms), max(room.reading for room in rooms)
            if kept + reading > self._memory.size:
                need = (
                    f"needs {(kept + reading) / 10**6:.0f} MB of the {self._memory.size / 10**6:.0f} MB for all clips"
                )
                raise HTTPException(413, f"{videos[0][0]} {need}; send a smaller video")
            async with self._memory.holding(kept, reading) as share:
                clips = [await self._run(self._judge.read, name, video) for name, video in videos]
                share.passed()
                return await self.batcher.ask(options, JudgeJob(tuple(clips), prompt))

    async def _run(self, work: Callable[[SentVideo], ResultT], name: str, video: SentVideo) -> ResultT:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, video)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def create_app(
    judge: JudgeInterface, config: ServerConfig, *, token: str | None = None, fastvideo: bool = False
) -> FastAPI:
    """Return the application.

    Args:
        judge: reads the videos and answers the jobs.
        config: limits and batching.
        token: bearer token that all routes but /health require; None requires none.
        fastvideo: add the routes of FastVideo's reward service.

    Returns:
        The ASGI application; the thread of the judge runs within its lifespan.
    """
    metrics = ServerMetrics()
    reader = RequestReader(judge, config, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        """Keep the thread of the judge while the application runs."""
        async with reader.open():
            yield

    app = FastAPI(title="video-judge", description=DESCRIPTION, lifespan=lifespan, redirect_slashes=False)
    forms = (SCORE_ROUTE,) if fastvideo else ()
    app.add_middleware(RequestGuard, config=config, metrics=metrics, token=token, forms=forms)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(StarletteHTTPException, _refused)
    app.add_exception_handler(Exception, _failed)

    @app.post("/score", response_model=schema.ScoreResults, responses=PROBLEMS)
    async def score(body: schema.ScoreBody) -> dict[str, Any]:
        """Score videos; a missing score is null with its reason."""
        _check_count(len(body.videos), config)
        prompts = _one_each(body.prompts, len(body.videos))
        items = [([(f"videos[{i}]", video)], prompts[i]) for i, video in enumerate(body.videos)]
        return {"results": await reader.answer(body.options(), items)}

    @app.post("/compare", response_model=schema.PreferenceResults, responses=PROBLEMS)
    async def compare(body: schema.CompareBody) -> dict[str, Any]:
        """Compare the two videos of each pair by overall quality."""
        _check_count(len(body.first), config)
        if len(body.first) != len(body.second):
            raise HTTPException(
                422, f"first and second must have equal lengths, got {len(body.first)} and {len(body.second)}"
            )
        prompts = _one_each(body.prompts, len(body.first))
        pairs = zip(body.first, body.second, prompts, strict=True)
        items = [([(f"first[{i}]", a), (f"second[{i}]", b)], prompt) for i, (a, b, prompt) in enumerate(pairs)]
        return {"results": await reader.answer(CompareOptions(body.swap), items)}

    @app.post("/explain", response_model=schema.Reasons, responses=PROBLEMS)
    async def explain(body: schema.ExplainBody) -> JsonRecord:
        """Explain the scores of a video."""
        return (await reader.answer(ExplainOptions(), [([("video", body.video)], body.prompt)]))[0]

    @app.get(HEALTH, response_model=schema.Health)
    async def health() -> dict[str, Any]:
        """Answer at once, even while the judge is busy."""
        return {"status": "ok", "dimensions": judge.dimensions, "roles": judge.roles}

    @app.get("/metrics", response_class=Response)
    async def read_metrics() -> Response:
        """Return the counters in Prometheus' text format."""
        return Response(metrics.text(reader.batcher.num_waiting), media_type=CONTENT_TYPE)

    if fastvideo:
        add_routes(app, reader.answer, PROBLEMS)
    return app


def _check_count(num: int, config: ServerConfig) -> None:
    if num > config.max_videos:
        raise HTTPException(413, f"at most {config.max_videos} videos or pairs per request, got {num}")


def _one_each(prompts: str | list[str | None] | None, num: int) -> list[str | None]:
    if not isinstance(prompts, list):
        return [prompts] * num
    if len(prompts) != num:
        raise HTTPException(422, f"prompts must be one string or one per video: got {len(prompts)} for {num}")
    return prompts


async def _malformed(_: Request, error: Exception) -> JSONResponse:
    """Name the first error, never the input, which may be large or not valid JSON."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return _problem(422, f"{'.'.join(str(key) for key in first['loc'])}: {first['msg']}")


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)
    return _problem(error.status_code, str(error.detail), error.headers)


async def _failed(_: Request, error: Exception) -> JSONResponse:
    """Name the type of the exception; uvicorn logs the rest."""
    return _problem(500, f"the judge failed: {type(error).__name__}")


def _problem(status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return a reason as JSON, shortened because it may quote long names of the request."""
    short = reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]}..."
    return JSONResponse({"error": short}, status, headers)
