"""FastVideo's reward service over loopback: a hand-written double of its client posts a group of clips to the embedded judge."""

from __future__ import annotations

import argparse
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
import torch

pytest.importorskip("fastapi")
pytest.importorskip("python_multipart")
requests = pytest.importorskip("requests")

from reward_model.media.video_io import encode_video
from reward_model.serving.server import main as server
from reward_model.serving.server.config import ServerConfig
from reward_model.serving.server.judge import JudgeService
from reward_model.video_reward import VideoJudgeReward
from tests.host_clips import PROMPTS, clips
from tests.running_server import MeanJudge, ask, running

FPS = 16


@dataclass(frozen=True)
class RewardSample:
    """A sample as the host's trainer submits it."""

    group_id: str
    request_id: str
    sample_id: str
    expected_group_size: int
    original_prompt: str
    reward_tag: str
    fps: int
    video_bytes: bytes
    video_filename: str = "sample.mp4"


class RewardServiceError(RuntimeError):
    pass


class HttpRewardProvider:
    """The host's client: a form for each sample, all at once, with retries; it checks what comes back."""

    def __init__(self, endpoint_url, retries=2):
        self.endpoint_url, self.retries = endpoint_url, retries

    def health(self):
        return requests.get(f"{self.endpoint_url}/healthz", timeout=30).status_code == 200

    def score(self, samples):
        for attempt in range(self.retries + 1):
            try:
                with ThreadPoolExecutor(len(samples)) as executor:
                    results = list(executor.map(self._score_one, samples))
                for sample, (score, details, sample_id, request_id) in zip(samples, results, strict=True):
                    assert (sample_id, request_id) == (sample.sample_id, sample.request_id)
                    assert all(math.isfinite(value) for value in (score, *details.values()))
                return results
            except RewardServiceError as error:
                if attempt == self.retries:
                    raise RewardServiceError(
                        f"Reward service failed after {attempt + 1} attempt(s): {error}"
                    ) from error
        return None

    def _score_one(self, sample):
        form = {
            "group_id": sample.group_id,
            "request_id": sample.request_id,
            "sample_id": sample.sample_id,
            "expected_group_size": str(sample.expected_group_size),
            "original_prompt": sample.original_prompt,
            "reward_tag": sample.reward_tag,
            "fps": str(sample.fps),
        }
        files = {"video": (sample.video_filename, sample.video_bytes, "video/mp4")}
        response = requests.post(f"{self.endpoint_url}/v1/rewards:score", data=form, files=files, timeout=60)
        if response.status_code != 200:
            raise RewardServiceError(f"Reward service returned HTTP {response.status_code}: {response.text[:500]}")
        payload = response.json()
        return (
            float(payload["score"]),
            {name: float(value) for name, value in payload["details"].items()},
            str(payload["sample_id"]),
            str(payload["request_id"]),
        )


def group(num=3, prompt=PROMPTS[0], tag=""):
    """Return the samples of one group, as the trainer encodes them."""
    videos = [encode_video(frames, FPS) for frames in clips(num)]
    return [
        RewardSample("step-7:p3", "step-7:p3", f"slot-{slot}", num, prompt, tag, FPS, video)
        for slot, video in enumerate(videos)
    ]


@pytest.fixture(scope="module")
def judge():
    return VideoJudgeReward.from_pretrained("toy", device="cpu")


@pytest.fixture(scope="module")
def url(judge):
    config = ServerConfig(max_body_mb=1.0)
    with running(JudgeService(judge, config), config, fastvideo=True) as address:
        yield address


def test_a_group_gets_its_scores_and_those_of_each_dimension(url, judge):
    provider, samples = HttpRewardProvider(url), group(tag="motion")
    assert provider.health()
    found = provider.score(samples)
    direct = judge([sample.video_bytes for sample in samples], PROMPTS[0])
    assert [score for score, *_ in found] == pytest.approx(direct.rewards.tolist(), abs=1e-5)
    assert [details["motion_quality"] for _, details, *_ in found] == pytest.approx(
        direct.scores["motion_quality"].tolist(), abs=1e-5
    )
    assert set(found[0][1]) == {"visual_quality", "motion_quality", "text_alignment", "overall"}


def test_a_clip_does_not_wait_for_its_group_and_a_repeated_request_has_the_same_answer(url):
    alone = [replace(group()[1], expected_group_size=8)]
    first, again = (HttpRewardProvider(url).score(alone) for _ in range(2))
    assert first == again


def bad_video(kind):
    good = encode_video(clips(1)[0], FPS)
    return {
        "cut": good[: len(good) // 3],
        "no video": b"not a video",
        "narrow": encode_video(torch.rand(5, 3, 8, 2048), FPS),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "said"), [("cut", "has no score: damaged"), ("no video", "not a video file"), ("narrow", "too narrow")]
)
def test_one_bad_clip_fails_the_step_with_its_reason(url, kind, said):
    samples = group()
    samples[1] = replace(samples[1], video_bytes=bad_video(kind))
    with pytest.raises(RewardServiceError, match=rf"failed after 3 attempt\(s\): .*HTTP 422.*({said})"):
        HttpRewardProvider(url).score(samples)
    assert len(HttpRewardProvider(url).score([samples[0], samples[2]])) == 2


def test_a_judge_without_a_score_fails_the_step():
    with running(MeanJudge(), fastvideo=True) as address:  # it cannot read files
        with pytest.raises(RewardServiceError, match="sample 'slot-0' of group 'step-7:p3' has no score: damaged: cut"):
            HttpRewardProvider(address, retries=0).score(group(1))


@pytest.mark.parametrize("fps", [8, 24, 17])
def test_a_clip_that_plays_at_another_rate_than_the_request_says_is_refused(url, fps):
    with pytest.raises(RewardServiceError, match=f"plays at 16 Hz, but the request says fps={fps}"):
        HttpRewardProvider(url, retries=0).score([replace(group(1)[0], fps=fps)])


def post(url, changes=(), files=None, **rest):
    sample = group(1)[0]
    form = {
        "group_id": "g",
        "request_id": "r",
        "sample_id": "s",
        "expected_group_size": "1",
        "original_prompt": "a",
        "reward_tag": "",
        "fps": "16",
        **dict(changes),
    }
    form = {name: value for name, value in form.items() if value is not None}
    files = {"video": ("v.mp4", sample.video_bytes, "video/mp4")} if files is None else files
    return requests.post(f"{url}/v1/rewards:score", data=form, files=files, timeout=60, **rest)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"expected_group_size": "0"}, "expected_group_size"),
        ({"expected_group_size": "x"}, "expected_group_size"),
        ({"fps": "0"}, "fps"),
        ({"fps": "nan"}, "fps"),
        ({"original_prompt": None}, "original_prompt"),
        ({"original_prompt": ""}, "original_prompt"),
        ({"original_prompt": "x" * 5000}, "original_prompt"),
        ({"sample_id": None}, "sample_id"),
        ({"video_path": "/etc/passwd"}, "video_path"),
    ],
)
def test_a_malformed_form_is_refused_with_a_reason(url, changes, said):
    found = post(url, changes)
    assert (found.status_code, list(found.json())) == (422, ["error"]) and said in found.json()["error"]


def test_other_bodies_are_refused(url):
    assert post(url, files={}).status_code == 415  # requests sends no multipart form without a file
    assert "video" in post(url, files={"other": ("v.mp4", b"x", "video/mp4")}).json()["error"]
    assert post(url, files={"video": ("v.mp4", b"", "video/mp4")}).status_code == 422
    assert post(url, files={"video": ("v.mp4", bytes(1_100_000), "video/mp4")}).status_code == 413
    pickled = requests.post(f"{url}/v1/rewards:score", data=b"\x80\x04N.", timeout=60)
    assert (pickled.status_code, pickled.json()) == (415, {"error": "the Content-Type must be multipart/form-data"})
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    for body in (b"", b"--x\r\n", b"--y--\r\n", b"--x\r\n\r\n--x--"):
        assert requests.post(f"{url}/v1/rewards:score", data=body, headers=broken, timeout=60).status_code in (400, 422)
    status, found, _ = ask(url, "/score", b"--x--", headers=broken)
    assert (status, found) == (415, {"error": "the Content-Type must be application/json"})


def test_a_body_of_many_commas_is_a_video_like_any_other(url):
    padded = encode_video(clips(1)[0], FPS) + b"\x00\x03\x0d\x48free" + b"," * 199_992  # a box that players skip
    assert post(url, files={"video": ("v.mp4", padded, "video/mp4")}).status_code == 200


def test_the_routes_are_there_only_if_asked_for(url):
    with running(MeanJudge()) as address:
        assert ask(address, "/v1/rewards:score", {})[0] == 404 and ask(address, "/healthz")[0] == 404
        assert ask(address, "/v1/rewards:score", b"", headers={"Content-Type": "multipart/form-data"})[0] == 415
    status, text, _ = ask(url, "/metrics")
    assert status == 200 and 'route="/v1/rewards:score",status="200"' in text


def test_a_token_and_a_client_without_one_exclude_each_other(tmp_path):
    (tmp_path / "token").write_text("secret\n")
    parser = argparse.ArgumentParser()
    server.add_arguments(parser)
    args = parser.parse_args(["--fastvideo", "--token-file", str(tmp_path / "token"), "--port", "0"])
    with pytest.raises(ValueError, match="--fastvideo and --token-file exclude each other"):
        server.run(argparse.Namespace(**vars(args), batch_size=8, json=False), lambda args: pytest.fail("loaded"))


def test_the_option_reaches_the_server(monkeypatch, capsys):
    served = []
    monkeypatch.setattr(server, "_serve", lambda made, listener: (served.append(made), listener.close()))
    parser = argparse.ArgumentParser()
    server.add_arguments(parser)
    for options, there in ((["--fastvideo"], True), ([], False)):
        args = parser.parse_args([*options, "--port", "0"])
        judge = VideoJudgeReward.from_pretrained("toy", device="cpu")
        assert server.run(argparse.Namespace(**vars(args), batch_size=8, json=False), lambda args, j=judge: j) == 0
        paths = {getattr(route, "path", "") for route in served[-1].config.app.routes}
        assert ("/v1/rewards:score" in paths) is there
    assert "serving on" in capsys.readouterr().out
