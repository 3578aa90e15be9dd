"""Memory of `video-judge serve` at its default limits, under many clips, large frames, and bodies that never end."""

import http.client
import io
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from reward_model.media.video_io import encode_video
from reward_model.serving import wire
from reward_model.serving.options import CompareOptions, ScoreOptions
from reward_model.serving.server.config import ServerConfig
from reward_model.serving.server.judge import JudgeJob, JudgeService
from reward_model.serving.server.schema import FileVideo, FramesVideo
from reward_model.video_reward import VideoJudgeReward
from tests.running_server import MeanJudge, ask, frames_of, running

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ScoreOptions.of(dimensions=None, weights=None, readout="level", num_samples=1, normalize="unit")
PLAIN = "POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"


def clip_file(side, num_frames=9, height=None, seed=0):
    """Return an MP4 of smooth noise."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(num_frames, 3, 16, 16, generator=generator)
    return encode_video(torch.nn.functional.interpolate(small, size=(height or side, side), mode="bilinear"), 8.0)


def sent(data):
    return {"file": wire.encode_bytes(data)}


class Process:
    """A server in a process of its own, and the memory that it has taken."""

    def __init__(self):
        command = [sys.executable, "-m", "reward_model.cli", "serve", "--port", "0", "--json"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
        )
        self.url = json.loads(self.process.stdout.readline())["url"]

    def megabytes(self, key):
        """Return VmRSS or VmHWM (its peak) in 10^6 bytes."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024 / 10**6

    def post(self, route, body):
        """Return the status and the results of one request."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=120)
        connection.request("POST", route, json.dumps(body).encode(), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())["results"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def service():
    return JudgeService(VideoJudgeReward.from_pretrained("toy"), ServerConfig())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_eight_requests_of_many_clips_and_a_file_of_huge_frames_stay_small():
    files = [sent(clip_file(320, seed=seed)) for seed in range(4)]
    many, huge = [files[place % 4] for place in range(32)], sent(clip_file(3840, 7, height=2160))
    bodies = [("/score", {"videos": many})] * 5 + [("/compare", {"first": many, "second": many[::-1]})] * 3
    with Process() as server:
        assert server.post("/score", {"videos": many[:1]})[0] == 200
        before = server.megabytes("VmRSS")
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda one: server.post(*one), bodies))
        assert [(status, len(results)) for status, results in answers] == [(200, 32)] * 8
        assert all(result["valid"] for _, results in answers for result in results)
        assert server.megabytes("VmHWM") < 4000  # what was asked for
        assert server.megabytes("VmHWM") - before < 700  # in full size the frames of one comparison took as much
        assert server.post("/score", {"videos": [huge] * 3})[0] == 200
        assert server.megabytes("VmHWM") - before < 1200  # one such file took 3,600
        assert server.megabytes("VmRSS") - before < 400


def test_a_shrunk_clip_scores_as_the_whole_one(service):
    """The judge resizes 8-bit pixels itself, so that the size at which a clip waits changes nothing."""
    whole = VideoJudgeReward(service._judge)
    for data in (clip_file(50, height=70), clip_file(200, height=120, seed=2), clip_file(34, height=30, seed=3)):
        clip = service.read(FileVideo(file=wire.encode_bytes(data)))
        assert clip.frames.dtype == torch.uint8
        assert clip.frames.numel() <= 9 * 3 * 1024
        (record,) = service.answer(OPTIONS, [JudgeJob((clip,), "a red circle")])
        direct = whole([data], ["a red circle"])
        assert record["scores"]["overall"] == pytest.approx(float(direct.scores["overall"][0]), abs=1e-6)
        assert record["warnings"] == list(direct.warnings[0])


def test_room_of_a_video_is_known_from_its_header(service):
    small, large = (service.room(FileVideo(file=wire.encode_bytes(clip_file(side)))) for side in (32, 640))
    assert small.kept == large.kept == 9 * 1024 * 40  # the judge sees nine frames of 32x32
    assert large.reading == 400 * small.reading


def test_an_animated_webp_has_its_room_and_its_scores(service):
    image = pytest.importorskip("PIL.Image")
    pictures = [image.new("RGB", (64, 64), (20 * n, 0, 0)) for n in range(6)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "WEBP", save_all=True, append_images=pictures[1:], duration=100, lossless=True)
    video = FileVideo(file=wire.encode_bytes(buffer.getvalue()))
    room = service.room(video)
    assert room.kept == 6 * 1024 * 40 and room.reading == 4 * service.room(sent_file(32)).reading
    clip = service.read(video)
    assert len(clip.frames) == 6 and service.answer(OPTIONS, [JudgeJob((clip,), None)])[0]["valid"]


def sent_file(side):
    return FileVideo(file=wire.encode_bytes(clip_file(side)))


@pytest.mark.parametrize(
    "bad",
    [
        FramesVideo(frames=wire.encode_frames(torch.rand(9, 3, 8, 2048)), fps=8.0),
        FramesVideo(frames=wire.encode_frames((torch.rand(9, 3, 8, 2048) * 255).to(torch.uint8)), fps=8.0),
        FramesVideo(frames=wire.encode_frames(torch.full((9, 3, 32, 32), float("nan"))), fps=8.0),
        FileVideo(file=wire.encode_bytes(clip_file(2048, height=8))),
    ],
)
def test_a_clip_that_cannot_be_judged_has_its_reason_and_the_others_their_scores(service, bad):
    good = FileVideo(file=wire.encode_bytes(clip_file(32)))
    service.room(bad)
    clips = [service.read(one) for one in (good, bad, good)]
    assert isinstance(clips[1], str)
    jobs = [JudgeJob((clip,), None) for clip in clips]
    first, second, third = service.answer(OPTIONS, jobs)
    assert first["valid"]
    assert third["valid"]
    assert second["reward"] is None
    assert clips[1] in second["reasons"].values()
    pairs = [JudgeJob((clips[0], clips[1]), None), JudgeJob((clips[0], clips[2]), None)]
    refused, compared = service.answer(CompareOptions(True), pairs)
    assert (refused["valid"], refused["reason"]) == (False, clips[1])
    assert compared["valid"]


def test_a_video_that_never_fits_is_refused_and_others_wait_for_room(service):
    config = ServerConfig(memory_mb=0.5)
    toy = JudgeService(VideoJudgeReward(service._judge), config)
    small, large = sent(clip_file(32)), sent(clip_file(640))
    with running(toy, config) as url:
        status, answer, _ = ask(url, "/score", {"videos": [large]})
        assert status == 413
        assert "MB for all clips" in answer["error"]
        status, answer, _ = ask(url, "/score", {"videos": [small] * 9})
        assert status == 200
        assert all(result["valid"] for result in answer["results"])


@pytest.mark.parametrize("num", [140, 300])
def test_bodies_that_never_end_keep_no_complete_request_out(num):
    with ExitStack() as stack:
        url = stack.enter_context(running(MeanJudge(), ServerConfig(body_seconds=5.0)))
        host, _, port = urlsplit(url).netloc.partition(":")
        for _ in range(num):
            connection = stack.enter_context(socket.create_connection((host, int(port))))
            connection.sendall(f"{PLAIN}{{".encode())
        for _ in range(5):
            status, answer, _ = ask(url, "/score", {"videos": [frames_of(0.5)]})
            assert (status, answer["results"][0]["reward"]) == (200, 0.5)


def test_bodies_that_drip_are_told_why_they_are_given_up():
    with running(MeanJudge(), ServerConfig()) as url:
        host, _, port = urlsplit(url).netloc.partition(":")
        with socket.create_connection((host, int(port)), timeout=15) as connection:
            connection.sendall(f"{PLAIN}{{".encode())
            answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408")


def test_unfinished_bodies_share_the_memory_and_idle_ones_make_way():
    with ExitStack() as stack:
        url = stack.enter_context(running(MeanJudge(), ServerConfig(bodies_mb=0.5)))
        host, _, port = urlsplit(url).netloc.partition(":")
        for _ in range(4):
            connection = stack.enter_context(socket.create_connection((host, int(port))))
            connection.sendall(PLAIN.encode() + b"{" * 200_000)
        for _ in range(3):
            assert ask(url, "/score", {"videos": [frames_of(0.5, side=64)]})[0] == 200
        status, answer, headers = ask(url, "/score", b" " * 600_000)
        assert (status, headers["retry-after"]) == (503, "1")
        assert "too many bodies" in answer["error"]
        assert ask(url, "/score", {"videos": [frames_of(0.5)]})[0] == 200
