"""Client of a served judge, with the calls and records of `VideoJudgeReward`; needs only the base requirements.

Shapes: B videos; frames are RGB [T, C, H, W], float in [0, 1] or uint8.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPSConnection, IncompleteRead
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from reward_model.media.intake import NO_RATE, as_frames, items_of, refuse_other_shapes
from reward_model.records import Comparison, Explanation, RewardOutput, Video, VideoError
from reward_model.scoring.json_records import JsonRecord
from reward_model.serving import wire
from reward_model.serving.options import Normalize, Readout, ScoreOptions

if TYPE_CHECKING:
    from reward_model.media.intake import VideoLike

RETRY_STATUSES = (429, 503)
"""Statuses of a busy server, after which a request is sent again."""

FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0
"""Seconds before the first retry, doubled for each further retry, and their maximum."""


class VideoJudgeClient:
    """Client of `video-judge serve`; several threads may share one.

    Files are read here and sent whole. Files that are damaged or beyond the server's limits come back as NaN with the
    reason, as from a local judge. Frames keep their dtype on the wire: uint8 takes a quarter of the bytes of float32.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 150.0, retries: int = 8) -> None:
        """Store the address; nothing is sent yet.

        Args:
            url: address of the server, such as "http://127.0.0.1:8000".
            token: content of the server's token file; None if it has none.
            timeout: seconds that one attempt waits for the network or the answer.
            retries: further attempts after a busy answer or a lost connection, up to 5 s apart.

        Raises:
            ValueError: `url` is not an http or https address.
        """
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(f"url must be like 'http://host:8000', got {url!r}")
        self._kind = HTTPSConnection if address.scheme == "https" else HTTPConnection
        self._host, self._port, self._path = address.hostname, address.port, address.path.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._timeout, self._retries = timeout, retries
        self._jitter = random.Random()

    def score(
        self,
        videos: VideoLike | Sequence[VideoLike],
        prompts: str | Sequence[str | None] | None = None,
        *,
        fps: float | Sequence[float] | None = None,
        layout: str = "BTCHW",
        dimensions: Sequence[str] | None = None,
        weights: Mapping[str, float] | None = None,
        readout: Readout = "level",
        num_samples: int = 1,
        normalize: Normalize = "unit",
        differentiable: bool = False,
        batch_size: int = 8,
    ) -> RewardOutput:
        """Score B videos, with the arguments of `VideoJudgeReward.forward`.

        Args:
            videos: tensor [B, T, C, H, W], numpy array [B, T, H, W, C], or a sequence of tensors, arrays [T, H, W, C], lists of
                pictures, paths, bytes or `Video` records; or one such video.
            prompts: the generation prompts, one per video or one string for all; None for no prompt.
            fps: frame rate in Hz; required for tensors, arrays and pictures.
            layout: axes of tensors.
            dimensions: dimensions to score; None for all of the judge's.
            weights: dimension -> weight of `rewards`; None makes `rewards` the overall score.
            readout: "level" or "reason".
            num_samples: number of answers to average, for the readout "reason".
            normalize: "unit", "raw" or "z".
            differentiable: must be False: no gradient crosses the wire.
            batch_size: videos per request; the server limits it.

        Returns:
            `RewardOutput` on the CPU.

        Raises:
            ValueError: no videos, differentiable=True, or a request that the server refuses.
            OSError: a file cannot be read, or there is no connection.
            RuntimeError: the server failed or stayed busy.
        """
        if differentiable:
            raise ValueError(
                "a served judge has no gradient; load the judge with VideoJudgeReward.from_pretrained instead"
            )
        items = _items(videos, fps, layout)
        options = ScoreOptions.of(
            dimensions=dimensions, weights=weights, readout=readout, num_samples=num_samples, normalize=normalize
        )
        results = self._in_batches("/score", {"videos": items}, prompts, options.fields(), batch_size)
        return wire.reward_output(results)

    __call__ = score

    def compare(
        self,
        a: VideoLike | Sequence[VideoLike],
        b: VideoLike | Sequence[VideoLike],
        prompts: str | Sequence[str | None] | None = None,
        *,
        swap: bool = True,
        fps: float | Sequence[float] | None = None,
        layout: str = "BTCHW",
        batch_size: int = 8,
    ) -> Comparison:
        """Compare pairs of videos by overall quality; the server uses its comparator role.

        Args:
            a: B first videos, in the forms of `score`.
            b: B second videos.
            prompts: the generation prompts of the pairs.
            swap: compare in both orders and average.
            fps: frame rate in Hz of tensors.
            layout: axes of tensors.
            batch_size: pairs per request.

        Returns:
            `Comparison` on the CPU.

        Raises:
            ValueError: different numbers of videos, or a request that the server refuses.
        """
        first, second = _items(a, fps, layout), _items(b, fps, layout)
        if len(first) != len(second):
            raise ValueError(f"a and b must have equally many videos, got {len(first)} and {len(second)}")
        videos = {"first": first, "second": second}
        return wire.comparison(self._in_batches("/compare", videos, prompts, {"swap": swap}, batch_size))

    def explain(
        self, video: VideoLike, prompt: str | None = None, *, fps: float | None = None, layout: str = "TCHW"
    ) -> Explanation:
        """Explain the scores of one video.

        Args:
            video: one video, in a form of `score`.
            prompt: its generation prompt.
            fps: frame rate in Hz of a tensor.
            layout: axes of a tensor.

        Returns:
            `Explanation` on the CPU.

        Raises:
            VideoError: the server cannot read the video.
        """
        result = self._post("/explain", {"video": _items([video], fps, layout)[0], "prompt": prompt})
        if result["text"] is None:
            raise VideoError(result["reason"])
        return wire.explanation(result)

    def _in_batches(
        self,
        route: str,
        videos: Mapping[str, Sequence[object]],
        prompts: str | Sequence[str | None] | None,
        options: Mapping[str, object],
        batch_size: int,
    ) -> list[JsonRecord]:
        """Return the results of lists of videos of equal length, one request after the other."""
        num = len(next(iter(videos.values())))
        if num == 0 or batch_size < 1:
            raise ValueError(f"expected videos and a batch_size >= 1, got {num} and {batch_size}")
        if isinstance(prompts, Sequence) and not isinstance(prompts, str) and len(prompts) != num:
            raise ValueError(f"prompts must be one string or one per video: got {len(prompts)} for {num} videos")
        results = []
        for start in range(0, num, batch_size):
            batch = slice(start, start + batch_size)
            texts = prompts if prompts is None or isinstance(prompts, str) else list(prompts[batch])
            body = {name: items[batch] for name, items in videos.items()} | {"prompts": texts} | dict(options)
            results += self._post(route, body)["results"]
        return results

    def _post(self, route: str, body: Mapping[str, object]) -> Any:
        """Return the answer to a request; retry while the server is busy or unreachable."""
        payload = json.dumps(body).encode()
        for attempt in range(self._retries + 1):
            delay = min(FIRST_DELAY * 2**attempt, LONGEST_DELAY) * self._jitter.uniform(0.5, 1.0)
            try:
                status, wait, text = self._send(self._path + route, payload)
            except (ConnectionError, IncompleteRead):
                if attempt == self._retries:
                    raise
            else:
                if status == 200:
                    return json.loads(text)
                if status not in RETRY_STATUSES or attempt == self._retries:
                    raise _failure(route, status, text)
                delay = max(delay, wait)
            time.sleep(delay)
        raise AssertionError("the last attempt returns or raises")

    def _send(self, path: str, payload: bytes) -> tuple[int, float, bytes]:
        """Return status, seconds to wait before another attempt, and body of one attempt."""
        with closing(self._kind(self._host, self._port, timeout=self._timeout)) as connection:
            # a server that refuses a body may answer and close the connection before all of it is sent
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request("POST", path, payload, self._headers)
            response = connection.getresponse()
            return response.status, _seconds(response.headers["Retry-After"]), response.read()


def _items(videos: Any, fps: float | Sequence[float] | None, layout: str) -> list[dict[str, object]]:
    return [_item(*item) for item in items_of(videos, fps, layout)]


def _item(video: Any, fps: float | None, layout: str) -> dict[str, object]:
    if isinstance(video, (str, Path)):
        video = Path(video).read_bytes()
    if isinstance(video, bytes):
        return {"file": wire.encode_bytes(video)}
    if isinstance(video, Video):
        return {"frames": wire.encode_frames(video.frames), "fps": video.fps}
    frames = as_frames(video, layout)
    if fps is None:
        raise ValueError(NO_RATE)
    refuse_other_shapes(frames)
    return {"frames": wire.encode_frames(frames), "fps": float(fps)}


def _failure(route: str, status: int, text: bytes) -> Exception:
    """Return the exception of a status: ValueError for a fault of the request, RuntimeError for one of the server."""
    try:
        reason = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        # not the JSON of our server: the answer is a proxy's or uvicorn's own
        reason = text[:200].decode("utf-8", "replace")
    kind: Callable[[str], Exception] = (
        ValueError if 400 <= status < 500 and status not in RETRY_STATUSES else RuntimeError
    )
    return kind(f"{route} was answered {status}: {reason}")


def _seconds(header: str | None) -> float:
    """Return the seconds of a Retry-After header; 0 if it is missing or names a date."""
    return float(header) if header is not None and header.isdigit() else 0.0
