"""video-judge from files to lines, on a tiny judge of the real architecture."""

import json
from pathlib import Path

import pytest
import torch

from reward_model import cli
from reward_model.media.video_io import write_video
from reward_model.video_reward import VideoJudgeReward
from tests.tiny_judge import build_judge

CLIPS = Path(__file__).resolve().parents[3] / "shared" / "clips"


@pytest.fixture(scope="module")
def reward():
    """A reward whose random judge puts nearly all probability on its answer words."""
    judge = build_judge("qwen2_5_vl")
    plain = judge.next_token_logits
    lift = torch.zeros(judge.model.lm_head.weight.shape[0])
    lift[torch.tensor(list(judge.level_ids))] = 50.0

    def lifted(requests, **options):
        return [logits + lift for logits in plain(requests, **options)]

    judge.next_token_logits = lifted
    return VideoJudgeReward(judge.requires_grad_(False))


def score(capsys, reward, *argv):
    status = cli.main(["score", *map(str, argv), "--json"], judge_factory=lambda args: reward)
    streams = capsys.readouterr()
    return status, [json.loads(line) for line in streams.out.splitlines()], streams.err


def test_good_files_are_scored_and_bad_ones_named(reward, capsys, tmp_path):
    write_video(tmp_path / "good.mp4", torch.rand(9, 3, 32, 32), 8.0)
    whole = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video")
    status, found, warning = score(capsys, reward, tmp_path)
    found = {Path(item["path"]).name: item for item in found}
    assert status == 1
    assert {name: item["valid"] for name, item in found.items()} == {
        "empty.mp4": False,
        "good.mp4": True,
        "half.mp4": False,
        "text.mp4": False,
    }
    assert found["empty.mp4"]["reasons"]["overall"] == "empty: the file has 0 bytes"
    assert "not a video" in found["text.mp4"]["reasons"]["overall"]
    assert found["good.mp4"]["reasons"] == {"text_alignment": "no prompt"}
    assert 0 <= found["good.mp4"]["scores"]["overall"] <= 1
    assert warning.count("warning:") == 1


def test_a_prompt_makes_every_score_present(reward, capsys, tmp_path):
    write_video(tmp_path / "good.mp4", torch.rand(9, 3, 32, 32), 8.0)
    status, (found,), _ = score(capsys, reward, tmp_path / "good.mp4", "--prompt", "a red circle moving left")
    assert status == 0
    assert found["reasons"] == {}
    assert None not in found["scores"].values()


def test_a_judge_folder_is_loaded_by_its_path(capsys, tmp_path):
    build_judge("qwen2_5_vl").save_pretrained(tmp_path / "judge")
    write_video(tmp_path / "good.mp4", torch.rand(9, 3, 32, 32), 8.0)
    cli.main(["score", str(tmp_path / "good.mp4"), "--judge", str(tmp_path / "judge"), "--json"])
    streams = capsys.readouterr()
    found = json.loads(streams.out)
    # A random judge does not answer with level words, and says so instead of giving a number.
    assert "of the probability is on the five level words" in found["reasons"]["visual_quality"]
    assert found["scores"]["visual_quality"] is None
    assert "warning" not in streams.err


def test_a_missing_judge_ends_with_a_line(capsys, tmp_path):
    assert cli.main(["score", "a.mp4", "--judge", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not at hand")
def test_real_clips_are_scored(reward, capsys):
    names = ("pair3_B.mp4", "videoscore_example.mp4")  # the smallest; each takes the time of its decoding
    status, found, _ = score(capsys, reward, *(CLIPS / name for name in names))
    assert status == 0
    assert all(item["valid"] and item["scores"]["text_alignment"] is None for item in found)
    assert all(0 <= item["scores"]["overall"] <= 1 for item in found)
