"""Bodies and answers of the server's routes; FastAPI checks them and describes them on its OpenAPI page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from reward_model.dimensions import BY_NAME

MAX_FPS = 1000.0
MAX_SAMPLES = 16

Prompt = Annotated[str, Field(max_length=4096)]
if TYPE_CHECKING:
    DimensionName = str
else:
    DimensionName = Literal[tuple(BY_NAME)]


class Strict(BaseModel):
    """A body: no other fields, and no values of other types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class FileVideo(Strict):
    """A video file."""

    file: str = Field(description="base64 of a whole MP4, WebM or other video file")


class FramesVideo(Strict):
    """Decoded frames."""

    frames: str = Field(
        description="base64 of a safetensors file with one tensor 'frames': RGB [T, C, H, W], uint8 or float in [0, 1]"
    )
    fps: float = Field(gt=0, le=MAX_FPS, allow_inf_nan=False, description="frame rate in Hz")


def _form(video: Any) -> str:
    if isinstance(video, FramesVideo):
        return "frames"
    return "frames" if isinstance(video, Mapping) and "frames" in video else "file"


Video = Annotated[Annotated[FileVideo, Tag("file")] | Annotated[FramesVideo, Tag("frames")], Discriminator(_form)]
Prompts = Annotated[
    Prompt | list[Prompt | None] | None,
    Field(description="generation prompts, one each; one string serves all, null is none"),
]


class ScoreBody(Strict):
    """What to score, and how."""

    videos: list[Video] = Field(min_length=1)
    prompts: Prompts = None
    dimensions: list[DimensionName] | None = Field(None, min_length=1, description="null: all of the judge's")
    weights: dict[DimensionName, Annotated[float, Field(allow_inf_nan=False)]] | None = Field(
        None, min_length=1, description="dimension to its weight in the reward; null makes the reward the overall score"
    )
    readout: Literal["level", "reason"] = Field("level", description="one forward pass, or a reasoned answer")
    num_samples: int = Field(1, ge=1, le=MAX_SAMPLES, description="reasoned answers to average")
    normalize: Literal["unit", "raw", "z"] = Field("unit", description="scale: [0, 1], 1 to 5, or standardised")


class CompareBody(Strict):
    """Pairs of videos, of which the better is asked."""

    first: list[Video] = Field(min_length=1)
    second: list[Video] = Field(min_length=1)
    prompts: Prompts = None
    swap: bool = Field(True, description="ask in both orders and average")


class ExplainBody(Strict):
    """A video whose scores are to be explained."""

    video: Video
    prompt: Prompt | None = None


class FramePlan(BaseModel):
    """Which frames the judge saw: indices into the source, seconds, kinds, and their rate in Hz."""

    indices: list[int]
    times: list[float]
    kinds: list[str]
    fps: float


class Score(BaseModel):
    """Scores of one video; null with a reason where one could not be had."""

    prompt: str | None
    valid: bool = Field(description="false if more than a prompt was missing")
    valid_dimensions: dict[str, bool]
    reward: float | None
    scores: dict[str, float | None]
    std: dict[str, float | None]
    level_probs: dict[str, list[float] | None]
    level_mass: dict[str, float | None]
    reasons: dict[str, str]
    overall_from: list[str]
    warnings: list[str] = Field(description="in what the video is unlike those of the judge's training")
    text: str | None
    frames: FramePlan | None


class Scores(BaseModel):
    """One result a video, in their order."""

    results: list[Score]


class Preference(BaseModel):
    """Outcome of one pair; null with a reason where there is none."""

    prompt: str | None
    valid: bool
    p_first: float | None
    p_tie: float | None
    margin: float | None
    consistent: bool | None = Field(description="whether both orders agree on the winner")
    reason: str


class Preferences(BaseModel):
    """One result a pair, in their order."""

    results: list[Preference]


class Reasons(BaseModel):
    """Explanation of one video."""

    prompt: str | None
    valid: bool
    reason: str = Field(description="empty, or why there is no explanation or no reasoned score")
    text: str | None
    levels: dict[str, str]
    scores: dict[str, float | None]
    labels: dict[str, list[str]]
    saliency: dict[str, list[float | None]]


class Health(BaseModel):
    """What the server answers with."""

    status: Literal["ok"]
    dimensions: list[str]
    roles: list[str]


class Problem(BaseModel):
    """Why a request was not answered."""

    error: str
