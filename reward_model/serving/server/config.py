"""Limits of a request and batching of the server; each field is an option of `video-judge serve`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


def _option(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Limits and batching of a server; a request beyond a limit is refused with a reason."""

    batch_size: int = 8
    """Maximum clips per forward pass; a larger batch is faster on a GPU and takes more of its memory. Option of all commands."""
    max_wait_ms: float = _option(5.0, "longest time that a clip waits for others to share its forward pass, in ms")
    decode_threads: int = _option(2, "threads that decode videos")
    max_requests: int = _option(128, "concurrent requests whose bodies are complete; further ones are answered 429")
    max_body_mb: float = _option(64.0, "largest request body in 10^6 bytes; larger ones are answered 413")
    max_videos: int = _option(32, "most videos, or pairs of videos, in a request")
    max_frames: int = _option(1800, "most frames of a video; all of them are decoded")
    max_seconds: float = _option(120.0, "longest video in seconds")
    max_frame_pixels: int = _option(4096 * 2304, "most pixels of a frame")
    max_clip_pixels: int = _option(2**26, "most pixels of all frames kept of a video, at 12 bytes each")
    memory_mb: float = _option(
        1024.0, "memory of all clips that wait or are judged, in 10^6 bytes; further clips wait for room"
    )
    bodies_mb: float = _option(
        512.0, "all request bodies together, in 10^6 bytes, each until it is answered; further ones are answered 503"
    )
    max_uploads: int = _option(
        128, "bodies that arrive at a time; of more, those of the client with the most that stand still go first"
    )
    max_connections: int = _option(
        256,
        "connections without a whole request head; of more, those of the client with the most that wait longest go first",
    )
    header_seconds: float = _option(
        15.0, "longest time for a request's head to arrive, from the connection's begin or its last answer, in s"
    )
    min_body_kb: float = _option(
        16.0, "lowest mean rate of a body after 5 s, in 10^3 bytes/s; slower ones are answered 408"
    )
    body_seconds: float = _option(30.0, "longest time for a request body to arrive, in s; slower ones are answered 408")
    request_seconds: float = _option(120.0, "longest time from body to answer, in s; after it the answer is 504")

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be > 0 and finite, got {value}")
