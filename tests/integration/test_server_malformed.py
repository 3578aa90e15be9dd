"""Hundreds of malformed requests: each gets a 4xx with a reason, or the plain answer that a video is damaged.

None crashes the server, and none makes it read a file: a video whose path the requests name is never scored, and the
interpreter's audit sees no file of its folder being opened.
"""

import json
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from safetensors.torch import save

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from reward_model.media.video_io import encode_video
from reward_model.serving import wire
from reward_model.serving.server.config import ServerConfig
from reward_model.serving.server.judge import JudgeService
from reward_model.toy_world import moving_shapes
from reward_model.video_reward import VideoJudgeReward
from tests.running_server import ask, frames_of, running

CONFIG = ServerConfig(
    max_body_mb=1.0,
    max_videos=4,
    max_frames=60,
    max_seconds=20.0,
    max_frame_pixels=2**14,
    max_clip_pixels=2**18,
    body_seconds=0.5,
    request_seconds=60.0,
)
WRONG: tuple[Any, ...] = (
    *(
        True,
        0,
        -1,
        1.5,
        2**70,
        "",
        "x",
        "\x00",
        "../../etc/passwd",
        "\u202e",
        [],
        [[]],
        [None],
        ["x"],
        [0],
        {},
        {"x": 1},
    ),
    *(
        {"file": None},
        {"file": ["AAAA"]},
        {"frames": "AAAA", "fps": "8"},
        {"__class__": "x"},
        "\ud800",
        "a" * 5000,
        1e300,
    ),
)
"""Values that no field takes, but for those named in `FITTING`."""

FITTING = {
    "prompts": ("", "x", "\x00", "../../etc/passwd", "\u202e", [None], ["x"]),
    "prompt": ("", "x", "\x00", "../../etc/passwd", "\u202e"),
    "num_samples": (),
    "swap": (True,),
}
NEEDED = ("videos", "video", "first", "second", "readout", "num_samples", "normalize", "swap")
"""Fields that do not take null."""

opened: list[str] = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)


@pytest.fixture(scope="module")
def canary(tmp_path_factory):
    """A good video in a folder of its own, which no request may get at."""
    path = tmp_path_factory.mktemp("canary") / "canaryvideo.mp4"
    clip = next(iter(moving_shapes.sample_rated(1, seed=5)))
    path.write_bytes(encode_video(clip.video.frames, 8.0))
    return path


@pytest.fixture(scope="module")
def url(canary):
    with running(JudgeService(VideoJudgeReward.from_pretrained("toy"), CONFIG), CONFIG) as address:
        yield address


@pytest.fixture(scope="module")
def mp4() -> bytes:
    return encode_video(next(iter(moving_shapes.sample_rated(1, seed=6))).video.frames, 8.0)


@pytest.fixture(autouse=True)
def unharmed(url, canary, mp4) -> Iterator[None]:
    """After each test the server still answers, and has opened nothing of the canary's folder."""
    before = ask(url, "/score", {"videos": [{"file": wire.encode_bytes(mp4)}]})[1]["results"][0]["scores"]
    opened.clear()
    yield
    assert [path for path in opened if canary.parent.name in path] == []
    after = ask(url, "/score", {"videos": [{"file": wire.encode_bytes(mp4)}]})[1]["results"][0]["scores"]
    assert after == pytest.approx(before, abs=1e-5)
    assert ask(url, "/health")[0] == 200


def assert_refused(url: str, route: str, body: Any, **how: Any) -> None:
    """Send a request and expect a 4xx status with one short reason."""
    status, found, _ = ask(url, route, body, **how)
    shown = f"{route} {str(body)[:200]} -> {status} {str(found)[:200]}"
    assert 400 <= status < 500, shown
    assert list(found) == ["error"] and 0 < len(found["error"]) < 400, shown


def assert_damaged(url: str, video: dict[str, Any], *, or_refused: bool = False) -> str:
    """Send a video and expect a plain answer without scores, or where that is allowed a refusal. Return the reason."""
    status, found, _ = ask(url, "/score", {"videos": [video]})
    if or_refused and 400 <= status < 500:
        return found["error"]
    assert status == 200, (status, found)
    (record,) = found["results"]
    assert (record["valid"], record["reward"], set(record["scores"].values())) == (False, None, {None}), record
    (reason,) = set(record["reasons"].values())
    assert reason
    return reason


def good_bodies(video: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a body of each route that is all right, with all its fields."""
    score = {"videos": [video], "prompts": ["x"], "dimensions": ["overall"], "weights": {"overall": 1.0}}
    score |= {"readout": "level", "num_samples": 1, "normalize": "unit"}
    return {
        "/score": score,
        "/compare": {"first": [video], "second": [video], "prompts": ["x"], "swap": True},
        "/explain": {"video": video, "prompt": "x"},
    }


@pytest.mark.parametrize("route", ["/score", "/compare", "/explain"])
def test_a_field_of_a_wrong_type_or_range_is_refused(url, route):
    body = good_bodies(frames_of(0.5, num=4, side=16))[route]
    num = 0
    for name in ("", "more", "x" * 100_000, "\ud800", "__class__", "videos "):
        assert_refused(url, route, {**body, name: 1})
    for name in body:
        wrong = [value for value in WRONG if not any(value is fit or value == fit for fit in FITTING.get(name, ()))]
        for value in [*wrong, *([None] if name in NEEDED else [])]:
            assert_refused(url, route, {**body, name: value})
            num += 1
    assert num >= 2 * len(WRONG) - 10


def test_a_video_of_a_wrong_form_is_refused(url):
    num = 0
    for key in ("file", "frames", "path", "url", "video_path", "data"):
        for value in WRONG:
            if key == "file" and value == "":
                continue  # no bytes are no video either, as below
            assert_refused(url, "/score", {"videos": [{key: value}]})
            num += 1
    frames = frames_of(0.5)["frames"]
    for fps in (None, "8", True, 0, -8, -0.0, 1e-400, 1001, 1e300, [8], {}):
        assert_refused(url, "/score", {"videos": [{"frames": frames, "fps": fps}]})
    for fps in ("NaN", "Infinity", "-Infinity", "1e999", "0x8", "08", "8_0"):
        assert_refused(url, "/score", f'{{"videos": [{{"frames": "{frames}", "fps": {fps}}}]}}'.encode())
    assert num > 130


def test_a_path_or_url_is_never_read(url, canary):
    paths = [
        *(str(canary), f"file://{canary}", f"file:{canary}", canary.name, f"./{canary.name}", f"../{canary.name}"),
        *(f"{'../' * depth}{str(canary).lstrip('/')}" for depth in (1, 4, 12)),
        *(f"concat:{canary}|{canary}", f"subfile,,start,0,end,99,,:{canary}", f"crypto:{canary}", f"async:{canary}"),
        *(f"%2e%2e%2f{canary}", f"....//{canary}", f"{canary}\x00.mp4", f"\\\\host\\{canary}", f"~root/{canary}"),
        *(
            "http://127.0.0.1:1/a.mp4",
            "https://example.com/a.mp4",
            "ftp://x/a",
            "s3://bucket/a.mp4",
            "data:video/mp4,A",
        ),
        *(
            "rtsp://127.0.0.1/a",
            "tcp://127.0.0.1:22",
            "pipe:0",
            "fd:0",
            "/dev/zero",
            "/proc/self/environ",
            "/dev/stdin",
        ),
        *("etc/passwd", "AAAA/etc/passwd/", "tmp/canary/mp4/", str(canary).replace(".", "/").replace("_", "/")[:40]),
    ]
    for path in paths:
        for video in ({"file": path}, {"frames": path, "fps": 8.0}):
            assert_refused(url, "/score", {"videos": [video]})
            assert_refused(url, "/explain", {"video": video})
        assert_refused(url, "/compare", {"first": [path], "second": [{"file": path}]})
        assert_refused(url, "/score", {"videos": [path]})
        assert_refused(url, f"/{path.encode('unicode_escape').decode().replace(' ', '')}", {})


def test_playlists_and_scripts_that_name_files_open_none(url, canary):
    scripts = [
        f"#EXTM3U\n#EXTINF:1,\n{canary}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile {canary}\n",
        f"file '{canary}'\n",
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 1 RTP/AVP 96\na={canary}\n",
        f'<?xml version="1.0"?><MPD><BaseURL>{canary}</BaseURL></MPD>',
        f'<!DOCTYPE x [<!ENTITY e SYSTEM "{canary}">]><x>&e;</x>',
        "%PDF-1.4",
        "\x7fELF",
        "PK\x03\x04",
        "\x80\x04\x95",
        "\x89PNG\r\n\x1a\n",
        "\x1f\x8b\x08",
    ]
    for script in scripts:
        assert_refused(url, "/score", {"videos": [{"file": wire.encode_bytes(script.encode("latin-1"))}]})
        for start in (b"\0\0\0\x18ftypmp42\0\0\0\0", b"\x1a\x45\xdf\xa3", b"GIF89a"):
            assert_damaged(url, {"file": wire.encode_bytes(start + script.encode("latin-1"))})


def test_bytes_that_are_no_video_are_refused(url):
    torch.manual_seed(0)
    for size in (0, 1, 7, 8, 100, 5000):
        noise = bytes(torch.randint(1, 64, (size,)).tolist())
        assert_refused(url, "/score", {"videos": [{"file": wire.encode_bytes(noise)}]})


def test_a_cut_or_altered_file_is_damaged_or_judged_but_never_a_failure(url, mp4):
    end = mp4.index(b"udta")  # behind it are but names
    for cut in range(12, end, end // 50):
        assert_damaged(url, {"file": wire.encode_bytes(mp4[:cut])}, or_refused=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        places = torch.randint(8, len(mp4), (20,), generator=generator).tolist()
        altered = bytearray(mp4)
        for place in places:
            altered[place] ^= 0xFF
        status, found, _ = ask(url, "/score", {"videos": [{"file": wire.encode_bytes(bytes(altered))}]})
        assert status == 200 or (400 <= status < 500 and found["error"])


def test_files_that_promise_more_than_they_hold_cost_nothing(url, mp4):
    start = time.monotonic()
    for count in (2**24, 2**31 - 1, 2**32 - 1):
        bomb = bytearray(mp4)
        place = mp4.index(b"stsz") + 8
        bomb[place : place + 8] = struct.pack(">II", 1, count)
        assert "samples" in assert_damaged(url, {"file": wire.encode_bytes(bytes(bomb))})
    for name in (b"stts", b"stsc", b"stco", b"avc1", b"avcC", b"tkhd", b"mdhd", b"hdlr"):
        bomb = bytearray(mp4)
        place = mp4.index(name) + 8
        bomb[place : place + 8] = b"\x7f\xff\xff\xff" * 2
        status, found, _ = ask(url, "/score", {"videos": [{"file": wire.encode_bytes(bytes(bomb))}]})
        assert status == 200, (name, found)
    assert_damaged(url, {"file": wire.encode_bytes(b"GIF89a\xff\xff\xff\xff\xf7\0\0" + bytes(2000))})
    assert time.monotonic() - start < 10


def header(text: str | bytes, tensors: bytes = b"") -> str:
    """Return base64 of a safetensors file with this header."""
    raw = text.encode() if isinstance(text, str) else text
    return wire.encode_bytes(struct.pack("<Q", len(raw)) + raw + tensors)


def test_tensors_that_lie_are_refused(url):
    def entry(dtype: object = "U8", shape: object = (1, 3, 1, 1), offsets: object = (0, 3)) -> str:
        return json.dumps({"frames": {"dtype": dtype, "shape": shape, "data_offsets": offsets}})

    huge = [2**20, 3, 2**20, 2**20]
    attacks = [
        *(
            wire.encode_bytes(struct.pack("<Q", size) + b"{}")
            for size in (0, 1, 3, 100, 2**27, 2**40, 2**63, 2**64 - 1)
        ),
        *(header(text) for text in ("", "{", "[]", "null", "1", '"x"', "{}", '{"__metadata__": {"a": "b"}}', "\xff")),
        *(header(b"[" * size) for size in (200, 100_000)),
        *(header(b'{"a":' * size) for size in (200, 100_000)),
        header(entry(shape=huge, offsets=(0, 3)), b"abc"),
        header(entry(shape=huge, offsets=(0, 3 * 2**60)), b"abc"),
        header(entry(shape=[2**63, 3, 2, 2]), b"abc"),
        header(entry(shape=[-1, 3, 1, 1]), b"abc"),
        header(entry(shape=[0, 3, 1, 1], offsets=(0, 0))),
        header(entry(shape=[1, 3, 0, 1], offsets=(0, 0))),
        header(entry(shape=[1.5, 2, 1, 1]), b"abc"),
        header(entry(shape="x"), b"abc"),
        header(entry(shape=[3]), b"abc"),
        header(entry(shape=[1] * 3000 + [3]), b"abc"),
        header(entry(offsets=(0, 4)), b"abc"),
        header(entry(offsets=(3, 0)), b"abc"),
        header(entry(offsets=(-3, 0)), b"abc"),
        header(entry(offsets=(0, 2**64)), b"abc"),
        header(entry(), b"ab"),
        header(entry(), b"abcd"),
        *(header(entry(dtype=kind), b"abc") for kind in ("X", "", None, 7, "BOOL", "I8", "F8_E4M3", "F8_E5M2")),
        header(entry(dtype="F64", offsets=(0, 24)), bytes(24)),
        header(entry(dtype="C64", offsets=(0, 24)), bytes(24)),
        wire.encode_bytes(save({"video": torch.zeros(1, 3, 4, 4)})),
        wire.encode_bytes(save({f"t{number}": torch.zeros(1) for number in range(500)})),
        wire.encode_bytes(b"\x80\x04\x95" + bytes(20)),
        *(wire.encode_frames(torch.zeros(shape)) for shape in ((4, 1, 16, 16), (4, 16, 16, 3), (4, 4, 8, 8))),
        wire.encode_bytes(save({"t" * 50_000: torch.zeros(1)})),
    ]
    for attack in attacks:
        assert_refused(url, "/score", {"videos": [{"frames": attack, "fps": 8.0}]})
        assert_refused(url, "/explain", {"video": {"frames": attack, "fps": 8.0}})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 255.0])
def test_pixels_that_are_no_picture_are_answered_with_the_reason(url, value):
    frames = wire.encode_frames(torch.full((4, 3, 16, 16), value))
    assert "frames" in assert_damaged(url, {"frames": frames, "fps": 8.0})


def test_a_clip_too_narrow_for_the_family_is_answered_with_the_reason(url):
    assert "narrow" in assert_damaged(url, {"frames": wire.encode_frames(torch.zeros(4, 3, 1, 400)), "fps": 8.0})


def test_clips_beyond_the_limits_are_answered_with_the_reason(url):
    clips = [frames_of(0.5, num=61, side=4), frames_of(0.5, num=1, side=129)]
    clips += [{**frames_of(0.5), "fps": fps} for fps in (0.01, 1e-300)]
    for clip in clips:
        assert assert_damaged(url, clip).startswith("too l")


def test_bodies_that_are_no_json_are_refused(url):
    good = json.dumps(good_bodies(frames_of(0.5))["/score"]).encode()
    bodies = [
        *(
            b"",
            b" ",
            b"null",
            b"true",
            b"1",
            b'"x"',
            b"[]",
            b"{}",
            b"{",
            b"}",
            b"{]",
            b"\x00",
            b"\xff\xfe",
            b"\xef\xbb\xbf",
        ),
        *(b'{"videos"', b'{"videos":}', b"{'videos': []}", b'{"videos": [],}', b"{} {}", b"NaN", b"-", b"1e", b'"\\x"'),
        *(good[: len(good) * part // 20] for part in range(1, 20)),
        *(good + more for more in (b"}", b"x", b"\x00", good)),
        *(b"[" * depth for depth in (10, 1000, 99_000)),
        *(b'{"videos":' * depth for depth in (10, 1000, 90_000)),
        *(b"[" * depth + b"]" * depth for depth in (1000, 49_000)),
        b'{"videos": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"videos": [' + b"[]," * 90_000 + b"[]]}",
        b'{"videos": [' + b'{"file": ""},' * 30_000 + b"{}]}",
        b'{"videos": [], "num_samples": ' + b"9" * 10_000 + b"}",
        b'{"num_samples": 1' + b"0" * 500 + b"}",
        b'{"videos": ' + b'"' + b"A" * 900_000 + b'"}',
        good.decode().encode("utf-16"),
        good.decode().encode("utf-32"),
        b'{"videos": [{"file": "\xc3\x28"}]}',
        b"<videos/>",
        b"videos=1&file=2",
        b"--x\r\nContent-Disposition: form-data; name=videos\r\n\r\n1\r\n--x--",
    ]
    for body in bodies:
        status, found, _ = ask(url, "/score", body, headers={"Content-Length": str(len(body))})
        utf = body[:2] in (b"\xff\xfe", b"\xfe\xff") and len(body) > 4  # JSON may be UTF-16 or UTF-32
        assert 400 <= status < 500 or (utf and status == 200), (body[:80], status, found)
        assert status == 200 or 0 < len(found["error"]) < 400
    assert_refused(url, "/score", bytes(1_000_001))


def test_wrong_content_types_methods_and_routes_are_refused(url):
    good = good_bodies(frames_of(0.5))["/score"]
    kinds = (
        "",
        "text/plain",
        "text/json",
        "application/xml",
        "application/octet-stream",
        "image/png",
        "multipart/form-data",
    )
    for kind in (
        *kinds,
        "application/x-www-form-urlencoded",
        "application/json-patch+json",
        "json",
        "\x01",
        "a" * 1000,
    ):
        assert_refused(url, "/score", good, headers={"Content-Type": kind})
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"):
        for route in ("/score", "/compare", "/explain"):
            assert_refused(url, route, good, method=method)
    for route in (
        "/",
        "//",
        "/score/",
        "/score/x",
        "/SCORE",
        "/score%00",
        "/..%2fscore",
        "/static/../score",
        "/%",
        "/metrics/x",
    ):
        assert_refused(url, route, good)


def exchange(url: str, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send bytes by hand, a part at a time, and return what comes back until the server closes or goes quiet."""
    host, _, port = urlsplit(url).netloc.partition(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=3) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            while b"\r\n\r\n" not in answer and (more := connection.recv(65_536)):
                answer += more
        except (ConnectionError, TimeoutError):
            return answer
    return answer


def test_broken_http_is_answered_or_hung_up_on(url):
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    attacks = [
        *(b"\r\n\r\n", b"\x00\r\n\r\n", b"GET\r\n\r\n", b"POST /score\r\n\r\n", b"POST /score HTTP/9.9\r\n\r\n"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        head + b"Content-Length: -1\r\n\r\n",
        head + b"Content-Length: x\r\n\r\n",
        head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        head + b"Content-Length: 99999999999999999999\r\n\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        head + b"Transfer-Encoding: gzip\r\n\r\n",
        head + b"X: " + b"a" * 200_000 + b"\r\n\r\n",
        head + b"A: b\r\n" * 20_000 + b"\r\n",
        b"POST /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /score HTTP/1.1\r\n\r\n",
    ]
    for attack in attacks:
        answer = exchange(url, attack)
        assert answer == b"" or answer.split(b" ")[1][:1] == b"4", (attack[:80], answer[:80])
    assert exchange(url, head + b"Content-Length: 1000001\r\n\r\n").split(b" ")[1] == b"413"


def test_slow_bodies_are_given_up(url):
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    for parts in ([head], [head, *([b" "] * 4)]):
        start = time.monotonic()
        assert exchange(url, *parts, pause=0.05).split(b" ")[1] == b"408"
        assert time.monotonic() - start < 3


def test_whatever_fits_the_schema_or_nearly_is_answered(url):
    schemathesis = pytest.importorskip("schemathesis")
    hypothesis = pytest.importorskip("hypothesis")
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    settings = hypothesis.settings(
        max_examples=15,
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    num = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.method == "get":
            continue  # they take nothing
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):

            @settings
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def answers(case):
                nonlocal num
                num += 1
                response = case.call(timeout=30)
                assert response.status_code < 500, (case.path, case.body, response.text)
                if response.status_code >= 400:
                    assert response.json()["error"]

            answers()
    assert num > 50
