"""The client: what it sends, what it returns, when it tries again and when it gives up."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reward_model.records import Video, VideoError
from reward_model.scoring.json_records import unexplained_record
from reward_model.serving import client as module
from reward_model.serving import wire
from reward_model.serving.client import VideoJudgeClient

FRAMES = torch.full((3, 2, 3, 4, 4), 0.5)


@contextmanager
def scripted(*answers: tuple[int, dict[str, str], object] | None) -> Iterator[tuple[str, list[tuple[str, dict]]]]:
    """Serve answers one after the other, the last one for good; None hangs up. Yields the address and the requests."""
    pending, seen = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, body, self.headers))
            answer = pending.pop(0) if len(pending) > 1 else pending[0]
            if answer is None:
                self.connection.close()
                return
            status, headers, found = answer
            payload = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(payload)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def record(reward: float | None = 0.5) -> wire.JsonRecord:
    return {
        "prompt": None,
        "valid": reward is not None,
        "valid_dimensions": {"overall": reward is not None},
        "reward": reward,
        "scores": {"overall": reward},
        "std": {"overall": None},
        "level_probs": {},
        "level_mass": {"overall": None},
        "reasons": {} if reward is not None else {"overall": "damaged: cut"},
        "overall_from": ["overall"],
        "warnings": [],
        "text": None,
        "frames": None,
    }


def scored(*rewards: float | None) -> tuple[int, dict[str, str], object]:
    return 200, {}, {"results": [record(reward) for reward in rewards]}


BUSY = (429, {"Retry-After": "1"}, {"error": "too many"})


@pytest.fixture
def pauses(monkeypatch):
    """Seconds that the client slept, without sleeping."""
    found: list[float] = []
    monkeypatch.setattr(module.time, "sleep", found.append)
    return found


def test_a_batch_of_frames_is_sent_and_its_scores_come_back():
    with scripted(scored(0.25, None, 0.75)) as (url, seen):
        out = VideoJudgeClient(url, token="t")(FRAMES, ["x", None, "y"], fps=8.0, dimensions=["overall"])
    ((path, body, headers),) = seen
    assert (path, headers["Authorization"], headers["Content-Type"]) == ("/score", "Bearer t", "application/json")
    assert (body["prompts"], body["dimensions"], body["readout"]) == (["x", None, "y"], ["overall"], "level")
    assert torch.equal(wire.decode_frames(body["videos"][0]["frames"]), FRAMES[0])
    assert body["videos"][0]["fps"] == 8.0
    torch.testing.assert_close(out.rewards, torch.tensor([0.25, torch.nan, 0.75]), equal_nan=True)
    assert out.reasons == {"overall": ["", "damaged: cut", ""]}
    assert out.valid["overall"].tolist() == [True, False, True]


@pytest.mark.parametrize("layout", ["BCTHW", "CBTHW", "HWCTB"])
def test_layouts_are_sent_as_one(layout):
    frames = torch.rand(2, 4, 3, 5, 6)  # B, T, C, H, W
    given = frames.permute(*("BTCHW".index(axis) for axis in layout))
    with scripted(scored(0.5, 0.5)) as (url, seen):
        VideoJudgeClient(url).score(given, fps=[8.0, 4.0], layout=layout)
    videos = seen[0][1]["videos"]
    assert [video["fps"] for video in videos] == [8.0, 4.0]
    for place in (0, 1):
        assert torch.equal(wire.decode_frames(videos[place]["frames"]), frames[place])


def test_files_bytes_and_records_are_sent_as_they_are(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    with scripted(scored(0.5, 0.5, 0.5, 0.5)) as (url, seen):
        VideoJudgeClient(url).score([path, str(path), b"two", Video(FRAMES[0], 4.0)])
    first, second, third, last = seen[0][1]["videos"]
    assert first == second == {"file": wire.encode_bytes(b"one")}
    assert third == {"file": wire.encode_bytes(b"two")}
    assert last["fps"] == 4.0


def test_many_videos_go_in_several_requests():
    with scripted(scored(0.1, 0.2), scored(0.3)) as (url, seen):
        out = VideoJudgeClient(url).score(FRAMES, ["x", "y", "z"], fps=8.0, batch_size=2)
    assert [body["prompts"] for _, body, _ in seen] == [["x", "y"], ["z"]]
    torch.testing.assert_close(out.rewards, torch.tensor([0.1, 0.2, 0.3]))


def test_pairs_are_compared():
    found = {
        "prompt": "x",
        "valid": True,
        "p_first": 0.7,
        "p_tie": 0.1,
        "margin": 0.5,
        "consistent": True,
        "reason": "",
    }
    with scripted((200, {}, {"results": [found]})) as (url, seen):
        out = VideoJudgeClient(url).compare([b"a"], [b"b"], "x", swap=False)
    path, body, _ = seen[0]
    assert (path, body["swap"], body["prompts"]) == ("/compare", False, "x")
    assert (body["first"], body["second"]) == ([{"file": "YQ=="}], [{"file": "Yg=="}])
    assert (round(out.p_first.item(), 6), out.valid.tolist(), out.consistent.tolist()) == (0.7, [True], [True])


def test_an_explanation_of_a_video_that_cannot_be_read_raises_as_at_home():
    with scripted((200, {}, unexplained_record("damaged: cut", None))) as (url, _):
        with pytest.raises(VideoError, match="damaged: cut"):
            VideoJudgeClient(url).explain(b"a")


@pytest.mark.parametrize("busy", [BUSY, (503, {}, b"<html>busy</html>"), None])
def test_a_busy_or_lost_server_is_asked_again(pauses, busy):
    with scripted(busy, busy, scored(0.5)) as (url, seen):
        out = VideoJudgeClient(url).score([b"a"])
    assert out.rewards.tolist() == [0.5]
    assert len(seen) == 3
    assert len(pauses) == 2


def test_pauses_grow_and_are_no_shorter_than_the_server_asks(pauses):
    with scripted((429, {}, {"error": "busy"})) as (url, _), pytest.raises(RuntimeError, match="429: busy"):
        VideoJudgeClient(url, retries=8).score([b"a"])
    assert len(pauses) == 8
    for number, pause in enumerate(pauses):
        longest = min(0.1 * 2**number, 5.0)
        assert longest / 2 <= pause <= longest
    pauses.clear()
    with scripted(BUSY, scored(0.5)) as (url, _):
        VideoJudgeClient(url).score([b"a"])
    assert pauses == [1.0]


def test_a_server_that_is_not_there_is_given_up_in_the_end(pauses):
    with scripted(None) as (url, seen), pytest.raises(ConnectionError):
        VideoJudgeClient(url, retries=2).score([b"a"])
    assert (len(seen), len(pauses)) == (3, 2)


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (
            (422, {}, {"error": "videos[0]: not base64"}),
            ValueError,
            r"/score was answered 422: videos\[0\]: not base64",
        ),
        ((401, {}, {"error": "a valid bearer token is required"}), ValueError, "bearer token"),
        ((500, {}, {"error": "the judge failed: RuntimeError"}), RuntimeError, "answered 500: the judge failed"),
        ((504, {}, {"error": "no answer within 1 s"}), RuntimeError, "answered 504"),
        ((502, {}, b"<html>Bad gateway</html>"), RuntimeError, "answered 502: <html>"),
        ((301, {"Location": "http://elsewhere"}, b""), RuntimeError, "answered 301"),
    ],
)
def test_other_refusals_are_raised_at_once(pauses, answer, kind, message):
    with scripted(answer) as (url, seen), pytest.raises(kind, match=message):
        VideoJudgeClient(url).score([b"a"])
    assert (len(seen), pauses) == (1, [])


def test_an_answer_that_comes_before_the_body_is_sent_is_read():
    refusal = b'HTTP/1.1 413 Content Too Large\r\nContent-Length: 18\r\n\r\n{"error": "large"}'

    def answer_early(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(refusal)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_early, args=(listener,))
        thread.start()
        with pytest.raises(ValueError, match="413: large"):
            VideoJudgeClient(f"http://127.0.0.1:{listener.getsockname()[1]}", retries=0).score([bytes(30_000_000)])
        thread.join()


@pytest.mark.parametrize(
    ("videos", "settings", "message"),
    [
        (FRAMES, {"fps": 8.0, "differentiable": True}, "no gradient"),
        (FRAMES, {}, "fps is required"),
        (FRAMES[0, 0], {"fps": 8.0}, "5 axes BTCHW"),
        ([FRAMES], {"fps": 8.0}, "each video must have the axes TCHW"),
        ([FRAMES[0, 0]], {"fps": 8.0}, "3 channels"),
        (FRAMES[0].permute(0, 2, 3, 1), {"fps": 8.0}, "3 channels"),
        (FRAMES, {"fps": [8.0]}, "got 1 rates for 3 videos"),
        (FRAMES, {"fps": 8.0, "prompts": ["x"]}, "got 1 for 3 videos"),
        (FRAMES, {"fps": 8.0, "batch_size": 0}, "batch_size >= 1"),
        ([], {}, "expected videos"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(videos, settings, message):
    with scripted(scored(0.5)) as (url, seen), pytest.raises(ValueError, match=message):
        VideoJudgeClient(url).score(videos, **settings)
    assert seen == []


def test_a_video_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="got int"):
        VideoJudgeClient("http://127.0.0.1:1").score([3])


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="got 1 and 2"):
        VideoJudgeClient("http://127.0.0.1:1").compare([b"a"], [b"b", b"c"])


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", ""])
def test_an_address_must_be_http(url):
    with pytest.raises(ValueError, match="url must be like"):
        VideoJudgeClient(url)


def test_a_path_before_the_routes_is_kept():
    with scripted(scored(0.5)) as (url, seen):
        VideoJudgeClient(f"{url}/judge/").score([b"a"])
    assert seen[0][0] == "/judge/score"


def in_every_form(tmp_path):
    """Return the same four-frame clip in the forms that a local judge takes, one video or a batch each."""
    pixels = torch.randint(0, 256, (4, 3, 6, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    array = pixels.permute(0, 2, 3, 1).numpy()
    pictures = [Image.fromarray(frame) for frame in array]
    return pixels, {
        "one array": array,
        "an array of one": array[None],
        "arrays": [array],
        "one list of arrays": list(array),
        "pictures": pictures,
        "lists of pictures": [pictures],
        "one tensor": pixels,
        "a tensor of one": pixels[None],
        "tensors": [pixels],
    }


def test_whatever_form_a_video_has_the_server_gets_what_a_local_judge_would(tmp_path):
    pixels, forms = in_every_form(tmp_path)
    with scripted(scored(0.5)) as (url, seen):
        for form, videos in forms.items():
            seen.clear()
            assert len(VideoJudgeClient(url).score(videos, fps=8.0).rewards) == 1, form
            (sent,) = seen[0][1]["videos"]
            assert torch.equal(wire.decode_frames(sent["frames"]), pixels) and sent["fps"] == 8.0, form


@pytest.mark.parametrize("kind", [str, Path, bytes])
def test_one_path_is_one_video(tmp_path, kind):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"a file")
    video = b"a file" if kind is bytes else kind(path)
    with scripted(scored(0.5)) as (url, seen):
        assert len(VideoJudgeClient(url).score(video, "a dog").rewards) == 1
        assert [wire.decode_bytes(one["file"]) for one in seen[0][1]["videos"]] == [b"a file"]
        assert seen[0][1]["prompts"] == "a dog"


def test_floats_of_arrays_are_sent_in_single_precision_and_pairs_and_explanations_take_arrays_too():
    array = np.random.default_rng(0).random((4, 6, 8, 3))
    wanted = torch.from_numpy(array.astype(np.float32)).permute(0, 3, 1, 2)
    pair = {
        "prompt": None,
        "valid": True,
        "p_first": 0.5,
        "p_tie": 0.0,
        "margin": 0.0,
        "consistent": True,
        "reason": "",
    }
    with scripted((200, {}, {"results": [pair]})) as (url, seen):
        VideoJudgeClient(url).compare(array, [array], fps=4.0)
        for side in ("first", "second"):
            assert torch.equal(wire.decode_frames(seen[0][1][side][0]["frames"]), wanted)
    with scripted((200, {}, unexplained_record("damaged", None))) as (url, seen):
        with pytest.raises(VideoError):
            VideoJudgeClient(url).explain(array, fps=4.0)
        assert torch.equal(wire.decode_frames(seen[0][1]["video"]["frames"]), wanted)
