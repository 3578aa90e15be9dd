"""FastVideo's reward service: routes to which its PromptRL trainer uploads one clip at a time as a multipart form.

A clip's score is the judge's overall one, in [0, 1]. The judge scores each clip by itself, so a clip does not wait for the rest
of its group, and a repeated request gets the same answer. A clip without a score is answered 422 with its reason: the trainer
then fails the step on all ranks, before any weight changes.

Source: hao-ai-lab/FastVideo, fastvideo/train/methods/rl/promptrl/rewards/{provider,service}.py, commits b1b0372 and d98cc67.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Form, HTTPException, UploadFile
from pydantic import BaseModel, ConfigDict, Field

from reward_model.scoring.json_records import JsonRecord
from reward_model.serving import wire
from reward_model.serving.options import RequestOptions, ScoreOptions
from reward_model.serving.server.schema import MAX_FPS, FileVideo, Prompt

SCORE_ROUTE = "/v1/rewards:score"
HEALTH_ROUTE = "/healthz"

RATE_TOLERANCE = 0.02
"""Largest relative difference between the rate that a request states and the one at which its file plays."""

OPTIONS = ScoreOptions.of(dimensions=None, weights=None, readout="level", num_samples=1, normalize="unit")

Answer = Callable[[RequestOptions, Sequence[Any]], Awaitable[list[JsonRecord]]]
Name = Annotated[str, Field(min_length=1, max_length=1024)]


class RewardForm(BaseModel):
    """The form of one clip; further fields are refused, because they may change what is asked."""

    model_config = ConfigDict(extra="forbid")

    group_id: Name
    request_id: Name
    sample_id: Name
    expected_group_size: int = Field(ge=1, description="clips of the group; each is scored by itself")
    original_prompt: Prompt
    reward_tag: str = Field("", max_length=1024, description="not used")
    fps: float = Field(gt=0, le=MAX_FPS, allow_inf_nan=False, description="frame rate in Hz of the file")
    video: UploadFile


class Reward(BaseModel):
    """Score of one clip, and that of each dimension."""

    request_id: str
    sample_id: str
    score: float
    details: dict[str, float]


def add_routes(app: FastAPI, answer: Answer, problems: dict[int | str, dict[str, Any]]) -> None:
    """Add the routes to an application.

    Args:
        app: the server's application.
        answer: returns one record per item, as `RequestReader.answer`.
        problems: statuses of refused requests, for the OpenAPI page.
    """

    @app.post(SCORE_ROUTE, response_model=Reward, responses=problems)
    async def score_upload(form: Annotated[RewardForm, Form(media_type="multipart/form-data")]) -> Reward:
        """Score one clip for FastVideo's PromptRL trainer."""
        video = FileVideo(file=wire.encode_bytes(await form.video.read()))
        (record,) = await answer(OPTIONS, [([("video", video)], form.original_prompt)])
        if record["reward"] is None or not record["valid"]:
            reason = next((reason for reason in record["reasons"].values() if reason), "no finite score")
            raise HTTPException(422, f"{_named(form)} has no score: {reason}")
        _check_rate(record["frames"], form)
        details = {name: value for name, value in record["scores"].items() if value is not None}
        return Reward(request_id=form.request_id, sample_id=form.sample_id, score=record["reward"], details=details)

    @app.get(HEALTH_ROUTE)
    async def healthz() -> dict[str, str]:
        """Answer FastVideo's health check."""
        return {"status": "ok"}


def _check_rate(plan: JsonRecord, form: RewardForm) -> None:
    """Refuse a clip whose file plays at another rate than the request states: its motion would be judged at the wrong speed."""
    indices, times = plan["indices"], plan["times"]
    seconds = max(times) - min(times)
    if seconds == 0:
        return
    rate = (max(indices) - min(indices)) / seconds
    if abs(rate - form.fps) > RATE_TOLERANCE * form.fps:
        raise HTTPException(422, f"{_named(form)} plays at {rate:.4g} Hz, but the request says fps={form.fps:g}")


def _named(form: RewardForm) -> str:
    return f"sample {form.sample_id[:64]!r} of group {form.group_id[:64]!r}"
