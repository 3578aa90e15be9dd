"""The embedded judge over the wire, set against the direct call and the command line."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from reward_model import cli
from reward_model.media.video_io import encode_video, write_video
from reward_model.records import VideoError
from reward_model.serving.client import VideoJudgeClient
from reward_model.serving.server.config import ServerConfig
from reward_model.serving.server.judge import JudgeService
from reward_model.toy_world import moving_shapes
from reward_model.video_reward import VideoJudgeReward
from tests.running_server import ask, frames_of, running

CLIPS = Path(__file__).resolve().parents[3] / "shared" / "clips"
CONFIG = ServerConfig(max_frames=200, max_seconds=20.0, max_body_mb=20.0, max_frame_pixels=2**19)


@pytest.fixture(scope="module")
def reward():
    return VideoJudgeReward.from_pretrained("toy")


@pytest.fixture(scope="module")
def url(reward):
    with running(JudgeService(reward, CONFIG), CONFIG) as address:
        yield address


@pytest.fixture(scope="module")
def clips():
    return list(moving_shapes.sample_rated(6, seed=3))


def assert_same_scores(one, other):
    """Compare two outputs; batches of another size change the last digits."""
    for name in ("rewards", "scores", "std", "level_probs", "level_mass"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-5, equal_nan=True)
    for name in ("valid", "reasons", "texts", "frame_plan", "overall_from", "warnings"):
        assert_equal(getattr(one, name), getattr(other, name))


def assert_equal(one, other):
    if isinstance(one, dict):
        assert {key: list(value) for key, value in one.items()} == {key: list(value) for key, value in other.items()}
    else:
        assert one == other


def test_frames_score_as_in_a_direct_call(url, reward, clips):
    frames = torch.stack([clip.video.frames for clip in clips])
    prompts = [*(clip.prompt for clip in clips[:4]), None, None]
    served = VideoJudgeClient(url)(frames, prompts, fps=8.0, batch_size=4)
    assert_same_scores(served, reward(frames, prompts, fps=8.0))
    assert served.rewards.isfinite().any()


def test_files_score_as_in_a_direct_call_and_one_that_is_damaged_keeps_its_reason(url, reward, clips):
    whole = encode_video(clips[0].video.frames, 8.0)
    videos = [whole, whole[: len(whole) // 2], encode_video(clips[1].video.frames, 8.0)]
    settings = {"dimensions": ["visual_quality", "overall"], "weights": {"visual_quality": 0.5}, "normalize": "raw"}
    served = VideoJudgeClient(url).score(videos, "a red ring moving up", **settings)
    assert_same_scores(served, reward(videos, "a red ring moving up", **settings))
    assert served.valid["overall"].tolist()[1] is False
    assert served.reasons["overall"][1].startswith("damaged")


def test_reasoned_answers_are_those_of_a_direct_call(url, reward, clips):
    frames = clips[0].video.frames[None]
    settings = {"fps": 8.0, "readout": "reason", "num_samples": 2}
    served, direct = (judge(frames, clips[0].prompt, **settings) for judge in (VideoJudgeClient(url), reward))
    assert_same_scores(served, direct)
    assert served.texts


def test_pairs_are_compared_by_the_comparator(url, reward, clips):
    first, second = (torch.stack([clip.video.frames for clip in half]) for half in (clips[:3], clips[3:]))
    prompts = [clip.prompt for clip in clips[:3]]
    served = VideoJudgeClient(url).compare(first, second, prompts, fps=8.0)
    direct = reward.with_role("comparator").compare(first, second, prompts, fps=8.0)
    for name in ("p_first", "p_tie", "margin"):
        torch.testing.assert_close(getattr(served, name), getattr(direct, name), rtol=0, atol=1e-5, equal_nan=True)
    assert served.valid.tolist() == direct.valid.tolist()
    assert (list(served.reasons), served.consistent.tolist()) == (list(direct.reasons), direct.consistent.tolist())


def test_explanations_are_those_of_a_direct_call(url, reward, clips):
    served = VideoJudgeClient(url).explain(clips[0].video, clips[0].prompt)
    direct = reward.explain(clips[0].video, clips[0].prompt)
    assert (served.text, served.levels, served.labels) == (direct.text, direct.levels, direct.labels)
    torch.testing.assert_close(dict(served.saliency), dict(direct.saliency), rtol=0, atol=1e-4)
    with pytest.raises(VideoError, match="damaged"):
        VideoJudgeClient(url).explain(encode_video(clips[0].video.frames, 8.0)[:500])


def test_a_result_has_all_that_the_command_line_prints(url, reward, clips, capsys, tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, clips[0].video.frames, 8.0)
    cli.main(["score", str(path), "--json"], judge_factory=lambda args: reward)
    printed = json.loads(capsys.readouterr().out)
    _, found, _ = ask(url, "/score", {"videos": [ask_file(path)]})
    (record,) = found["results"]
    of_a_file = {"path", "judged_by"}
    assert {name: record[name] for name in printed.keys() - of_a_file - {"frames"}} == {
        name: printed[name] for name in printed.keys() - of_a_file - {"frames"}
    }
    assert printed["frames"].items() <= record["frames"].items()


def ask_file(path):
    from reward_model.serving import wire

    return {"file": wire.encode_bytes(path.read_bytes())}


@pytest.mark.parametrize(
    ("video", "reason"),
    [
        (frames_of(0.5, num=201), "too long: more than 200 frames"),
        ({**frames_of(0.5, num=9), "fps": 0.1}, "too long: 90 s, more than 20 s"),
        (frames_of(0.5, num=1, side=725), "too large: 1 x 725x725 pixels"),
    ],
)
def test_a_video_beyond_the_limits_is_answered_with_the_reason(url, video, reason):
    status, found, _ = ask(url, "/score", {"videos": [video]})
    (record,) = found["results"]
    assert (status, record["valid"], set(record["reasons"].values())) == (200, False, {reason})


def test_files_beyond_the_limits_are_answered_with_the_reason(url):
    long = encode_video(torch.zeros(201, 3, 16, 16), 30.0)
    slow = encode_video(torch.zeros(9, 3, 16, 16), 0.25)
    served = VideoJudgeClient(url).score([long, slow])
    assert served.reasons["overall"][0] == "too long: more than 200 frames"
    assert served.reasons["overall"][1] == "too long: 32 s, more than 20 s"


def test_settings_that_the_judge_refuses_are_refused_with_its_words(url, clips):
    with pytest.raises(ValueError, match="422: weights name dimensions that are not scored"):
        VideoJudgeClient(url).score([clips[0].video], dimensions=["overall"], weights={"visual_quality": 1.0})
    with pytest.raises(ValueError, match="422: num_samples"):
        VideoJudgeClient(url).score([clips[0].video], num_samples=2)


def test_a_body_that_is_too_large_is_refused_with_the_servers_words(url):
    with pytest.raises(ValueError, match="413: the body is larger than 20000000 bytes"):
        VideoJudgeClient(url).score([bytes(20_000_000)])


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not at hand")
def test_a_real_clip_scores_as_in_a_direct_call(url, reward):
    clip = CLIPS / "videoscore_example.mp4"
    assert_same_scores(VideoJudgeClient(url).score([clip], "a person"), reward([clip], "a person"))
