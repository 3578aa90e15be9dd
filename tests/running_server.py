"""A server on a free port for a block of a test, and a judge for it that needs no weights."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import torch

from reward_model.records import DIMENSIONS, Clip, Comparison, FramePlan, RewardOutput
from reward_model.scoring.json_records import comparison_records, output_records, unexplained_record
from reward_model.serving import wire
from reward_model.serving.options import CompareOptions, RequestOptions, ScoreOptions
from reward_model.serving.server.app import create_app
from reward_model.serving.server.config import ServerConfig
from reward_model.serving.server.judge import JudgeJob, Room
from reward_model.serving.server.main import make_server
from reward_model.serving.server.schema import FileVideo, FramesVideo


class MeanJudge:
    """Scores a clip by its mean pixel; files are unreadable. Records the batches that it answers.

    Reading a clip takes `reading` seconds, answering a batch `seconds`.
    """

    dimensions = DIMENSIONS
    roles = ("generated",)

    def __init__(self, seconds: float = 0.0, *, reading: float = 0.0, fail: BaseException | None = None) -> None:
        self.seconds, self.reading, self.fail = seconds, reading, fail
        self.batches: list[tuple[RequestOptions, int]] = []

    def room(self, video: FileVideo | FramesVideo) -> Room:
        """Return no bytes: clips of tests are small."""
        return Room(0, 0)

    def read(self, video: FileVideo | FramesVideo) -> Clip | str:
        """Return the clip of frames, and no clip of a file."""
        time.sleep(self.reading)
        if isinstance(video, FileVideo):
            return "damaged: cut"
        frames = wire.decode_frames(video.frames).float()
        num = len(frames)
        return Clip(frames, FramePlan(tuple(range(num)), (0.0,) * num, ("slow",) * num, video.fps))

    def answer(self, options: RequestOptions, jobs: Sequence[JudgeJob]) -> list[wire.JsonRecord]:
        """Answer after `seconds`; fail for a batch with a clip that is black."""
        self.batches.append((options, len(jobs)))
        time.sleep(self.seconds)
        values = [[float("nan") if isinstance(c, str) else float(c.frames.mean()) for c in job.clips] for job in jobs]
        if self.fail is not None and any(0.0 in means for means in values):
            raise self.fail
        prompts = [job.prompt for job in jobs]
        if isinstance(options, ScoreOptions):
            return output_records(_output([means[0] for means in values], jobs), prompts)
        if isinstance(options, CompareOptions):
            margin = torch.tensor([first - second for first, second in values])
            good = ~margin.isnan()
            reasons = ["" if ok else "damaged: cut" for ok in good]
            return comparison_records(Comparison((1 + margin) / 2, margin * 0, margin, good, reasons, good), prompts)
        return [unexplained_record("damaged: cut", prompt) for prompt in prompts]


def _output(values: list[float], jobs: Sequence[JudgeJob]) -> RewardOutput:
    scores = torch.tensor(values)
    reasons = ["damaged: cut" if score != score else "" for score in values]
    return RewardOutput(
        rewards=scores,
        scores=dict.fromkeys(DIMENSIONS, scores),
        std=dict.fromkeys(DIMENSIONS, scores * 0),
        level_probs={},
        level_mass={},
        valid=dict.fromkeys(DIMENSIONS, ~scores.isnan()),
        reasons=dict.fromkeys(DIMENSIONS, reasons),
        texts=None,
        frame_plan=[None if isinstance(job.clips[0], str) else job.clips[0].plan for job in jobs],
        overall_from=[("overall",)] * len(values),
    )


@contextmanager
def running(
    judge: Any, config: ServerConfig | None = None, *, token: str | None = None, fastvideo: bool = False
) -> Iterator[str]:
    """Serve a judge from another thread and yield the address; the end of the block is a clean shutdown."""
    config = config or ServerConfig()
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = make_server(create_app(judge, config, token=token, fastvideo=fastvideo), config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive(), "the server did not shut down"


def ask(
    url: str, route: str, body: Any = None, *, headers: dict[str, str] | None = None, method: str | None = None
) -> tuple[int, Any, dict[str, str]]:
    """Send one request; a body that is not bytes goes as JSON. Return status, parsed answer and headers."""
    payload = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    method = method or ("GET" if body is None else "POST")
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)) as connection:
        connection.request(method, route, payload, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        text, answered = response.read(), {name.lower(): value for name, value in response.headers.items()}
        is_json = answered.get("content-type", "").startswith("application/json")
        return response.status, json.loads(text) if is_json else text.decode("utf-8", "replace"), answered


def frames_of(value: float, num: int = 2, side: int = 2) -> dict[str, object]:
    """Return a video of one grey as it goes into a body."""
    return {"frames": wire.encode_frames(torch.full((num, 3, side, side), value)), "fps": 8.0}
