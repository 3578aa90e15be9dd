"""Memory of `video-judge serve` at its default limits, under many clips, large frames, and bodies that never end."""

import http.client
import io
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from reward_model.judge.model import VideoJudge
from reward_model.media.motion_encoders import MotionConfig, build_encoder
from reward_model.media.video_io import encode_video
from reward_model.serving import wire
from reward_model.serving.options import CompareOptions, ScoreOptions
from reward_model.serving.server.config import ServerConfig
from reward_model.serving.server.judge import JudgeJob, JudgeService
from reward_model.serving.server.schema import FileVideo, FramesVideo
from reward_model.video_reward import TOY_JUDGE, VideoJudgeReward
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

    def __init__(self, judge="toy", *options):
        command = [
            sys.executable,
            "-m",
            "reward_model.cli",
            "serve",
            "--port",
            "0",
            "--json",
            "--judge",
            str(judge),
            *options,
        ]
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
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=1800)
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


@pytest.fixture(scope="module")
def motion_judge(tmp_path_factory):
    """Write the embedded judge with motion tokens, as a folder."""
    judge = VideoJudge.from_pretrained(TOY_JUDGE, device="cpu")
    feature_size = build_encoder(MotionConfig()).feature_size
    judge.add_motion({"encoder": "temporal_differences", "feature_size": feature_size})
    judge.save_pretrained(folder := tmp_path_factory.mktemp("motion"))
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_motion_judge_of_default_limits_stays_below_4_gb_under_8_requests_of_32_long_clips(motion_judge):
    """The 48 frames of a clip are 38 MB in float32 as the encoder gets them; 256 clips would be 9.7 GB."""
    files = [sent(clip_file(256, 48, seed=seed)) for seed in range(2)]
    bodies = [("/score", {"videos": [files[place % 2] for place in range(32)]})] * 8
    with Process(motion_judge, "--request-seconds", "1800") as server:
        assert server.post("/score", {"videos": files[:1]})[0] == 200
        before = server.megabytes("VmRSS")
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda one: server.post(*one), bodies))
        peak = server.megabytes("VmHWM")
    assert [(status, len(results)) for status, results in answers] == [(200, 32)] * 8
    assert all(result["valid"] for _, results in answers for result in results)
    assert peak < 4000
    assert peak - before < 1024 + 300  # the pool of all clips, and one batch with the judge


def test_the_frames_of_a_motion_encoder_count_as_memory(service, motion_judge):
    moving = JudgeService(VideoJudgeReward.from_pretrained(motion_judge), ServerConfig())
    short, long = (FileVideo(file=wire.encode_bytes(clip_file(64, num))) for num in (9, 90))
    rooms = [service.room(short), moving.room(short), moving.room(long)]
    assert rooms[1].kept == rooms[0].kept
    assert rooms[1].reading - rooms[0].reading == (9 + 9) * 64 * 64 * 16
    assert rooms[2].reading - rooms[0].reading == (90 + 32) * 64 * 64 * 16
    wide = FileVideo(file=wire.encode_bytes(clip_file(1024, 9, height=512)))
    assert moving.room(wide).reading - service.room(wide).reading == (9 + 9) * 256 * 128 * 16
    frames = FramesVideo(frames=wire.encode_frames(torch.zeros(40, 3, 32, 32, dtype=torch.uint8)), fps=8.0)
    pixels, planned = 40 * 32 * 32, 32 * 32 * 32  # the judge sees at most 32 frames
    assert service.room(frames).reading == 6 * pixels + 15 * planned
    assert moving.room(frames).reading == (6 + 15) * pixels + 27 * planned + 32 * 32 * 32 * 16


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


@pytest.mark.parametrize("begin", ["", "POST /score HTTP/1.1\r\nHost: x\r\n", "GET /health HTTP/1.1\r\nX: "])
def test_connections_without_a_head_are_closed_in_time_and_keep_no_request_out(begin):
    with ExitStack() as stack:
        url = stack.enter_context(running(MeanJudge(), ServerConfig(header_seconds=2.0, max_connections=20)))
        host, _, port = urlsplit(url).netloc.partition(":")
        idle = []
        for _ in range(60):
            idle.append(stack.enter_context(socket.create_connection((host, int(port)), timeout=10)))
            idle[-1].sendall(begin.encode())
        for _ in range(3):
            assert ask(url, "/score", {"videos": [frames_of(0.5)]})[0] == 200
        assert sum(map(is_closed, idle[:39])) == 39  # the number of them alone
        assert not is_closed(idle[-1])
        end = time.monotonic() + 8
        while not all(map(is_closed, idle)):
            assert time.monotonic() < end
            for one in idle:
                with suppress(OSError):
                    one.sendall(b"x")  # dripping buys no time
            time.sleep(0.3)
        assert ask(url, "/score", {"videos": [frames_of(0.5)]})[0] == 200


def is_closed(connection):
    """Return whether the other side has closed a connection."""
    connection.setblocking(False)
    try:
        return connection.recv(1024) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.setblocking(True)


def test_a_connection_serves_several_requests_and_a_slow_answer_is_no_wait():
    with running(MeanJudge(seconds=1.5), ServerConfig(header_seconds=1.0)) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
        for _ in range(3):
            body = json.dumps({"videos": [frames_of(0.5)]})
            connection.request("POST", "/score", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200 and json.loads(answer.read())["results"][0]["reward"] == 0.5
            time.sleep(0.3)
        time.sleep(1.5)
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            connection.request("POST", "/score", "{}", {"Content-Type": "application/json"})
            connection.getresponse()


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
