"""What one request may cost the server, and how requests are merged; each field is an option of `video-judge serve`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


def _option(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Limits and batching of a server; a request beyond a limit is refused with the reason."""

    batch_size: int = 8
    """Most clips of one forward pass; raising it pays on a GPU and costs its memory. The option is that of all commands."""
    max_wait_ms: float = _option(5.0, "longest wait of a lone clip for others to share its forward pass, in ms")
    decode_threads: int = _option(2, "threads that decode videos")
    max_requests: int = _option(128, "requests at a time; more are answered 429")
    max_body_mb: float = _option(64.0, "largest request body in 10^6 bytes; a larger one is answered 413")
    max_videos: int = _option(32, "most videos, or pairs of them, of a request")
    max_frames: int = _option(1800, "most frames of a video, all of which are decoded")
    max_seconds: float = _option(120.0, "longest video in seconds")
    max_frame_pixels: int = _option(4096 * 2304, "most pixels of a frame")
    max_clip_pixels: int = _option(2**26, "most pixels of all frames that are kept of a video, 12 bytes each")
    body_seconds: float = _option(30.0, "longest time for a request body to arrive, in s; then it is answered 408")
    request_seconds: float = _option(120.0, "longest time from body to answer, in s; then it is answered 504")

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be > 0 and finite, got {value}")
