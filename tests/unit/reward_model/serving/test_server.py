"""The server over a real socket, with a judge that needs no weights: answers, refusals, limits, counts."""

import argparse
import re
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from reward_model.serving import wire
from reward_model.serving.options import CompareOptions, ScoreOptions
from reward_model.serving.server import main as server
from reward_model.serving.server.config import ServerConfig
from tests.running_server import MeanJudge, ask, frames_of, running

DAMAGED = {"file": wire.encode_bytes(b"a file")}


def score(url, *values, **more):
    return ask(url, "/score", {"videos": [frames_of(value) for value in values], **more})


@pytest.fixture(scope="module")
def shared():
    """A server with small limits, for tests that leave it as it was."""
    judge = MeanJudge(fail=RuntimeError("secret"))
    settings = ServerConfig(max_body_mb=0.1, max_videos=3, body_seconds=0.3, batch_size=4)
    with running(judge, settings) as url:
        yield url, judge


def test_every_video_of_a_request_gets_its_score_in_order(shared):
    status, found, _ = score(shared[0], 0.25, 0.75, 0.5, prompts=["x", None, "y"])
    assert status == 200
    assert [record["reward"] for record in found["results"]] == [0.25, 0.75, 0.5]
    assert [record["prompt"] for record in found["results"]] == ["x", None, "y"]
    assert found["results"][0]["frames"] == {
        "indices": [0, 1],
        "times": [0.0, 0.0],
        "kinds": ["slow", "slow"],
        "fps": 8.0,
        "sampled_fps": 0.0,
    }


def test_one_prompt_serves_all(shared):
    _, found, _ = score(shared[0], 0.25, 0.75, prompts="x")
    assert [record["prompt"] for record in found["results"]] == ["x", "x"]


def test_a_damaged_video_is_an_answer_and_leaves_the_others_their_scores(shared):
    status, found, _ = ask(shared[0], "/score", {"videos": [frames_of(0.5), DAMAGED]})
    assert status == 200
    good, bad = found["results"]
    assert (good["valid"], good["reward"]) == (True, 0.5)
    assert (bad["valid"], bad["reward"], set(bad["scores"].values())) == (False, None, {None})
    assert set(bad["reasons"].values()) == {"damaged: cut"}
    assert set(bad["valid_dimensions"].values()) == {False}


def test_pairs_are_compared(shared):
    body = {"first": [frames_of(0.75), frames_of(0.5)], "second": [frames_of(0.25), DAMAGED], "prompts": "x"}
    status, found, _ = ask(shared[0], "/compare", body)
    assert status == 200
    first, second = found["results"]
    assert (first["p_first"], first["margin"], first["consistent"], first["valid"]) == (0.75, 0.5, True, True)
    assert (second["p_first"], second["reason"], second["valid"]) == (None, "damaged: cut", False)


def test_an_explanation_is_an_answer_too(shared):
    status, found, _ = ask(shared[0], "/explain", {"video": frames_of(0.5), "prompt": "x"})
    assert (status, found["valid"], found["reason"], found["prompt"]) == (200, False, "damaged: cut", "x")


def test_settings_reach_the_judge(shared):
    url, judge = shared
    settings = {"dimensions": ["overall"], "weights": {"overall": 2.0}, "readout": "reason", "num_samples": 3}
    assert score(url, 0.5, **settings, normalize="raw")[0] == 200
    assert judge.batches[-1] == (ScoreOptions(("overall",), (("overall", 2.0),), "reason", 3, "raw"), 1)
    assert ask(url, "/compare", {"first": [DAMAGED], "second": [DAMAGED], "swap": False})[0] == 200
    assert judge.batches[-1] == (CompareOptions(swap=False), 1)


def test_a_failure_of_the_judge_is_a_500_that_names_its_kind_and_costs_nobody_else(shared):
    url, _ = shared
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda value: score(url, value), [0.5, 0.0, 0.25]))
    assert [status for status, _, _ in answers] == [200, 500, 200]
    assert answers[1][1] == {"error": "the judge failed: RuntimeError"}
    assert [answers[place][1]["results"][0]["reward"] for place in (0, 2)] == [0.5, 0.25]


def test_what_the_judge_calls_wrong_is_a_422():
    with running(MeanJudge(fail=ValueError("this judge has no calibration constants"))) as url:
        status, found, _ = score(url, 0.0)
        assert (status, found) == (422, {"error": "this judge has no calibration constants"})


@pytest.mark.parametrize(
    ("route", "body", "status", "message"),
    [
        ("/score", b"{", 422, "JSON"),
        ("/score", b'{"videos": []}', 422, "body.videos"),
        ("/score", {}, 422, "body.videos"),
        ("/score", {"videos": ["/etc/passwd"]}, 422, "body.videos.0"),
        ("/score", {"videos": [{"file": 1}]}, 422, "body.videos.0.file.file"),
        ("/score", {"videos": [{"file": "AAAA", "fps": 8}]}, 422, "body.videos.0.file.fps"),
        ("/score", {"videos": [{"path": "/etc/passwd"}]}, 422, "body.videos.0.file"),
        ("/score", {"videos": [{"frames": "AAAA"}]}, 422, "body.videos.0.frames.fps"),
        ("/score", {"videos": [{"frames": "/etc/passwd", "fps": 8}]}, 422, r"videos\[0\]: not base64"),
        ("/score", {"videos": [DAMAGED], "prompt": "x"}, 422, "body.prompt"),
        ("/score", {"videos": [DAMAGED], "prompts": ["x", "y"]}, 422, "got 2 for 1"),
        ("/score", {"videos": [DAMAGED], "prompts": "x" * 5000}, 422, "4096"),
        ("/score", {"videos": [DAMAGED], "dimensions": ["beauty"]}, 422, "body.dimensions.0"),
        ("/score", {"videos": [DAMAGED], "num_samples": "2"}, 422, "body.num_samples"),
        ("/score", b'{"videos": [{"frames": "AAAA", "fps": NaN}]}', 422, "body.videos.0.frames.fps"),
        ("/score", b'{"videos": [{"frames": "AAAA", "fps": 1e999}]}', 422, "body.videos.0.frames.fps"),
        ("/score", {"videos": [DAMAGED] * 4}, 413, "at most 3"),
        ("/score", {"videos": [DAMAGED], "prompts": "x" * 100_000}, 413, "larger than 100000"),
        ("/score", b"[" * 90_000, 400, "body"),
        ("/score", b'{"videos": "\xff"}', 400, "body"),
        ("/compare", {"first": [DAMAGED], "second": []}, 422, "body.second"),
        ("/compare", {"first": [DAMAGED], "second": [DAMAGED] * 2}, 422, "got 1 and 2"),
        ("/explain", {"video": [DAMAGED]}, 422, "body.video"),
        ("/other", {}, 404, "Not Found"),
    ],
)
def test_a_malformed_request_is_refused_with_a_reason(shared, route, body, status, message):
    found_status, found, _ = ask(shared[0], route, body)
    assert (found_status, list(found)) == (status, ["error"])
    assert re.search(message, found["error"])


def test_the_answer_to_a_malformed_request_does_not_repeat_it(shared):
    _, found, _ = ask(shared[0], "/score", {"videos": [{"file": "s" * 50_000, "more": "secret"}]})
    assert "secret" not in found["error"]
    assert len(found["error"]) < 200


def test_a_body_of_very_many_parts_is_refused_before_it_is_parsed():
    with running(MeanJudge()) as url:
        status, found, _ = ask(url, "/score", b'{"videos": [' + b"[]," * 60_000 + b"[]]}")
        assert (status, "parts" in found["error"]) == (413, True)


@pytest.mark.parametrize("kind", ["text/plain", "", "multipart/form-data; boundary=x", "application/x-pickle"])
def test_a_body_must_be_called_json(shared, kind):
    status, found, _ = ask(shared[0], "/score", b'{"videos": []}', headers={"Content-Type": kind})
    assert (status, found) == (415, {"error": "the Content-Type must be application/json"})


def test_a_wrong_method_is_refused(shared):
    assert ask(shared[0], "/score")[0] == 405
    assert ask(shared[0], "/health", {})[0] == 405


def raw(url: str, head: str, *parts: bytes, pause: float = 0.0) -> tuple[int, str | None, bytes]:
    """Send a request by hand, a part at a time, and return the answer's status, Connection header and body."""
    host, _, port = urlsplit(url).netloc.partition(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(f"POST /score HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
        for part in parts:
            time.sleep(pause)
            connection.sendall(part)
        answer = HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.getheader("connection"), answer.read()


JSON = "Content-Type: application/json\r\n"


def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(shared):
    assert raw(shared[0], f"{JSON}Content-Length: 100001")[0] == 413


def test_a_body_that_does_not_say_its_size_is_counted(shared):
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    assert raw(shared[0], f"{JSON}Transfer-Encoding: chunked", chunk, chunk)[0] == 413


def test_a_slow_body_is_given_up_and_the_connection_closed(shared):
    status, connection, body = raw(shared[0], f"{JSON}Content-Length: 50", b"{", b'"', pause=0.1)
    assert (status, connection) == (408, "close")
    assert b"more than 0.3 s" in body


def test_a_client_that_leaves_in_mid_body_harms_nobody(shared):
    url = shared[0]
    host, _, port = urlsplit(url).netloc.partition(":")
    for _ in range(5):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"POST /score HTTP/1.1\r\nHost: x\r\n{JSON}Content-Length: 50\r\n\r\n{{".encode())
    assert score(url, 0.5)[0] == 200
    end = time.monotonic() + 5
    while 'video_judge_requests_total{route="/score",status="499"} 5' not in ask(url, "/metrics")[1]:
        assert time.monotonic() < end, "they are not counted as gone"


def test_requests_of_many_clients_share_batches_and_answers_are_not_swapped():
    judge = MeanJudge(seconds=0.02)
    values = [(number + 1) / 64 for number in range(32)]
    with running(judge, ServerConfig(batch_size=8)) as url, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda value: score(url, value)[1]["results"][0]["reward"], values))
    assert found == values
    assert max(num for _, num in judge.batches) > 1
    assert max(num for _, num in judge.batches) <= 8


@pytest.mark.parametrize("judge", [MeanJudge(seconds=2.0), MeanJudge(reading=2.0)])
def test_health_answers_while_the_judge_or_a_reader_is_busy(judge):
    with running(judge) as url, ThreadPoolExecutor(1) as pool:
        busy = pool.submit(score, url, 0.5)
        time.sleep(0.2)
        start = time.perf_counter()
        status, found, _ = ask(url, "/health")
        assert time.perf_counter() - start < 1.0  # half of what the judge takes
        assert (status, found["status"], found["roles"]) == (200, "ok", ["generated"])
        assert not busy.done()


def test_more_requests_than_allowed_are_told_to_come_back():
    settings = ServerConfig(max_requests=2)
    with running(MeanJudge(seconds=0.5), settings) as url, ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(score, url, 0.5) for _ in range(4)]
        statuses = sorted(answer.result()[0] for answer in answers)
        refused = next(answer.result() for answer in answers if answer.result()[0] == 429)
        assert statuses == [200, 200, 429, 429]
        assert refused[2]["retry-after"] == "1"
        assert score(url, 0.5)[0] == 200


def test_a_request_that_takes_too_long_is_given_up():
    with running(MeanJudge(seconds=0.6), ServerConfig(request_seconds=0.2)) as url:
        status, found, _ = score(url, 0.5)
        assert (status, found["error"]) == (504, "no answer within 0.2 s; the server is busy")


def test_decoded_clips_wait_in_a_bounded_number():
    seen, held = [], threading.Semaphore(0)

    class HeldJudge(MeanJudge):
        def read(self, video):
            seen.append(video)
            return super().read(video)

        def answer(self, options, jobs):
            held.acquire(timeout=5)
            return super().answer(options, jobs)

    settings = ServerConfig(batch_size=1, max_videos=20)
    with running(HeldJudge(), settings) as url, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(score, url, *[0.5] * 12)
        time.sleep(0.5)
        assert len(seen) == 3
        held.release(12)
        assert len(answer.result()[1]["results"]) == 12


def test_without_the_token_only_health_answers():
    with running(MeanJudge(), token="right") as url:
        assert ask(url, "/health")[0] == 200
        for route, body in (("/score", {"videos": [DAMAGED]}), ("/metrics", None), ("/openapi.json", None)):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "right"}):
                status, found, answered = ask(url, route, body, headers=headers)
                assert (status, answered["www-authenticate"]) == (401, "Bearer")
                assert "right" not in str(found)
            assert ask(url, route, body, headers={"Authorization": "Bearer right"})[0] == 200


def test_counts_are_in_prometheus_text():
    with running(MeanJudge()) as url:
        ask(url, "/score", {"videos": [frames_of(0.5), DAMAGED]})
        ask(url, "/score", b"{")
        ask(url, "/etc/passwd")
        status, text, headers = ask(url, "/metrics")
    assert status == 200
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = text.splitlines()
    for line in (
        'video_judge_requests_total{route="/score",status="200"} 1',
        'video_judge_requests_total{route="/score",status="422"} 1',
        'video_judge_requests_total{route="other",status="404"} 1',
        'video_judge_results_total{valid="true"} 1',
        'video_judge_results_total{valid="false"} 1',
        "video_judge_open_requests 1",
        "video_judge_waiting_questions 0",
        "video_judge_batch_size_sum 2",
        'video_judge_request_seconds_bucket{le="+Inf"} 3',
        "video_judge_request_seconds_count 3",
    ):
        assert line in lines, line
    assert all(re.fullmatch(r'# (HELP|TYPE) .+|[a-z_]+(\{([a-z]+="[^"]*",?)+\})? [0-9.e+-]+', line) for line in lines)


def test_the_routes_are_described():
    with running(MeanJudge()) as url:
        status, found, _ = ask(url, "/openapi.json")
    assert status == 200
    assert set(found["paths"]) == {"/score", "/compare", "/explain", "/health", "/metrics"}
    assert {"200", "401", "408", "413", "422", "429", "500", "504"} <= set(
        found["paths"]["/score"]["post"]["responses"]
    )


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    server.add_arguments(parser)
    args = parser.parse_args(argv)
    return argparse.Namespace(**vars(args), batch_size=8, json=False)


def test_options_have_the_settings_defaults():
    args = parse("--max-seconds", "7.5", "--max-videos", "3")
    assert (args.host, args.port, args.token_file) == ("127.0.0.1", 8000, None)
    assert (args.max_seconds, args.max_videos) == (7.5, 3)
    assert args.max_body_mb == ServerConfig().max_body_mb


@pytest.mark.parametrize(
    "argv", [("--max-wait-ms", "0"), ("--max-videos", "-1"), ("--max-seconds", "nan"), ("--body-seconds", "inf")]
)
def test_an_option_out_of_range_is_refused(argv):
    name = argv[0].removeprefix("--").replace("-", "_")
    with pytest.raises(ValueError, match=f"{name} must be > 0"):
        server.run(parse(*argv), lambda args: pytest.fail("the judge was loaded"))


def test_a_port_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="port must be in 0..65535, got 70000"):
        server.run(parse("--port", "70000"), lambda args: pytest.fail("the judge was loaded"))


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ValueError, match=r"serve needs uvicorn: pip install 'video-judge\[serve\]'"):
        server.run(parse(), lambda args: pytest.fail("the judge was loaded"))


def test_an_address_in_use_is_said_before_the_judge_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError):
        port = str(taken.getsockname()[1])
        server.run(parse("--port", port), lambda args: pytest.fail("the judge was loaded"))


def test_the_token_is_read_from_a_file(tmp_path):
    path = tmp_path / "token"
    path.write_text("  abc-123\n", encoding="utf-8")
    assert server.read_token(path) == "abc-123"
    for text in ("", " \n", "two words", "schl\u00fcssel"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="expected a token"):
            server.read_token(path)


def test_the_command_warns_of_the_toy_judge_before_it_serves(monkeypatch, capsys):
    from reward_model import cli

    made = []
    monkeypatch.setattr(server, "run", lambda args, judge_factory: made.append(judge_factory(args)) or 0)
    assert cli.main(["serve", "--port", "0"], judge_factory=lambda args: args.role) == 0
    assert made == ["generated"]
    assert "toy judge is for moving shapes" in capsys.readouterr().err
