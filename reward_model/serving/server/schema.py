"""Request and response bodies of the routes; FastAPI validates them and lists them on its OpenAPI page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from reward_model.dimensions import BY_NAME
from reward_model.serving.options import Normalize, Readout, ScoreOptions

MAX_FPS = 1000.0
MAX_SAMPLES = 16

Prompt = Annotated[str, Field(max_length=4096)]
if TYPE_CHECKING:
    DimensionName = str
else:
    DimensionName = Literal[tuple(BY_NAME)]


class StrictBody(BaseModel):
    """A request body; further fields and values of other types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class FileVideo(StrictBody):
    """A video file."""

    file: str = Field(description="base64 of a whole MP4, WebM or other video file")


class FramesVideo(StrictBody):
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
    Field(description="generation prompts, one per video; one string serves all, null is none"),
]


class ScoreBody(StrictBody):
    """Videos to score, and how to score them."""

    videos: list[Video] = Field(min_length=1)
    prompts: Prompts = None
    dimensions: list[DimensionName] | None = Field(
        None, min_length=1, description="dimensions to score; null: all of the judge's"
    )
    weights: dict[DimensionName, Annotated[float, Field(allow_inf_nan=False)]] | None = Field(
        None, min_length=1, description="dimension -> weight in the reward; null makes the reward the overall score"
    )
    readout: Readout = Field("level", description="level: one forward pass; reason: a reasoned answer")
    num_samples: int = Field(1, ge=1, le=MAX_SAMPLES, description="reasoned answers to average")
    normalize: Normalize = Field("unit", description="scale: [0, 1], 1 to 5, or standardised")

    def options(self) -> ScoreOptions:
        """Return the options of this request."""
        return ScoreOptions.of(
            dimensions=self.dimensions,
            weights=self.weights,
            readout=self.readout,
            num_samples=self.num_samples,
            normalize=self.normalize,
        )


class CompareBody(StrictBody):
    """Pairs of videos to compare."""

    first: list[Video] = Field(min_length=1)
    second: list[Video] = Field(min_length=1)
    prompts: Prompts = None
    swap: bool = Field(True, description="ask in both orders and average")


class ExplainBody(StrictBody):
    """A video whose scores to explain."""

    video: Video
    prompt: Prompt | None = None


class JudgedFrames(BaseModel):
    """Frames that the judge saw: indices into the source, times in seconds, kinds, and their rate in Hz."""

    indices: list[int]
    times: list[float]
    kinds: list[str]
    fps: float
    sampled_fps: float = 0.0


class Score(BaseModel):
    """Scores of one video; a missing score is null with a reason."""

    prompt: str | None
    valid: bool = Field(description="false if a score is missing for any reason but a missing prompt")
    valid_dimensions: dict[str, bool]
    reward: float | None
    scores: dict[str, float | None]
    std: dict[str, float | None]
    level_probs: dict[str, list[float] | None]
    level_mass: dict[str, float | None]
    reasons: dict[str, str]
    overall_from: list[str]
    warnings: list[str] = Field(description="properties of the video outside the judge's training range")
    text: str | None
    frames: JudgedFrames | None


class ScoreResults(BaseModel):
    """One result per video, in their order."""

    results: list[Score]


class Preference(BaseModel):
    """Result of one pair; missing values are null with a reason."""

    prompt: str | None
    valid: bool
    p_first: float | None
    p_tie: float | None
    margin: float | None
    consistent: bool | None = Field(description="whether both orders agree on the winner")
    reason: str


class PreferenceResults(BaseModel):
    """One result per pair, in their order."""

    results: list[Preference]


class Reasons(BaseModel):
    """Explanation of one video."""

    prompt: str | None
    valid: bool
    reason: str = Field(description="reason why the explanation or a reasoned score is missing; else empty")
    text: str | None
    levels: dict[str, str]
    scores: dict[str, float | None]
    labels: dict[str, list[str]]
    saliency: dict[str, list[float | None]]
    words: str = Field(
        description="source of the words in which a judge that was trained elsewhere was asked; empty for others"
    )


class Health(BaseModel):
    """State of the server, and the dimensions and roles of its judge."""

    status: Literal["ok"]
    dimensions: list[str]
    roles: list[str]


class Problem(BaseModel):
    """Reason why a request failed."""

    error: str
