"""video-judge from files to lines, on a tiny judge of the real architecture."""

import io
import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from reward_model import cli
from reward_model.commands import score_worker
from reward_model.commands.results import Reading
from reward_model.evaluation.sanity import clean_shapes
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


def nearly(found):
    """Return the same with its numbers to be compared within 1e-5: processes may compute with other kernels."""
    if isinstance(found, dict):
        return {name: nearly(value) for name, value in found.items()}
    if isinstance(found, list):
        return [nearly(value) for value in found]
    return pytest.approx(found, rel=0, abs=1e-5) if isinstance(found, float) else found


@pytest.mark.slow
def test_two_processes_write_the_file_of_one(capsys, tmp_path):
    clips = clean_shapes(5, seed=0)
    lines = ["path,prompt"]
    for place, clip in enumerate(clips):
        # the last but one is of another rate than the judge was trained with
        write_video(tmp_path / f"{place}.mp4", clip.video.frames, 16.0 if place == 3 else 8.0)
        lines.append(f"{place}.mp4,{clip.prompt}")
    (tmp_path / "half.mp4").write_bytes((tmp_path / "0.mp4").read_bytes()[:500])
    (tmp_path / "list.csv").write_text("\n".join([*lines, "half.mp4,x"]) + "\n", encoding="utf-8")
    argv = ["score", str(tmp_path / "list.csv"), "--batch-size", "2", "--output"]
    assert cli.main([*argv, str(tmp_path / "one.jsonl")]) == 1
    assert cli.main([*argv, str(tmp_path / "two.jsonl"), "--jobs", "2"]) == 1
    lines = [(tmp_path / name).read_text().splitlines() for name in ("one.jsonl", "two.jsonl")]
    found, again = ([json.loads(line) for line in part] for part in lines)
    assert again == nearly(found)
    assert [item["valid"] for item in found] == [True] * 5 + [False]
    assert [item["warnings"] for item in found[:5]] == [[], [], [], ["16 judged frames a second (trained with 8)"], []]
    assert all(None not in item["scores"].values() for item in found[:5])


def test_a_process_answers_with_results_or_with_what_is_wrong(tmp_path):
    (clip,) = clean_shapes(1, seed=0)
    write_video(tmp_path / "good.mp4", clip.video.frames, 8.0)
    request = json.dumps({"items": [[str(tmp_path / "good.mp4"), clip.prompt], ["none.mp4", None]]}) + "\n"

    def answer(judge):
        settings = {"judge": judge, "role": "generated", "threads": 1, "allow_damaged": False, "device": "cpu"}
        replies = io.StringIO()
        score_worker.serve(Namespace(**settings), Reading(), io.StringIO(request * 2), replies)
        return [json.loads(line) for line in replies.getvalue().splitlines()]

    first, second = answer("toy")
    assert first == second
    assert [item["valid"] for item in first["results"]] == [True, False]
    assert first["results"][0]["judged_by"] == "toy role=generated readout=level scores=unit"
    assert list(answer(str(tmp_path / "none"))[0]) == ["error"]


def test_bench_times_the_batch_sizes(reward, capsys, tmp_path):
    write_video(tmp_path / "good.mp4", torch.rand(9, 3, 32, 32), 8.0)
    (tmp_path / "empty.mp4").write_bytes(b"")
    argv = ["bench", str(tmp_path), "--batch-sizes", "2", "1", "--repeats", "1", "--json"]
    assert cli.main(argv, judge_factory=lambda args: reward) == 1
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["batch_size"] for record in found] == [1, 2]
    assert all(record["clips_per_second"] == pytest.approx(1 / record["seconds"]) for record in found)
    assert all(record["peak_mib"] > 100 for record in found)  # torch alone takes more
    assert (found[0]["num_clips"], found[0]["num_failed"]) == (1, 1)
    assert (
        cli.main(["bench", "--num", "2", "--batch-sizes", "2", "--repeats", "1"], judge_factory=lambda a: reward) == 0
    )
    head, names, line = capsys.readouterr().out.splitlines()
    assert "9 frames of 32x32" in head
    assert names.split() == ["batch", "size", "clips", "per", "second", "seconds", "peak", "mib"]
    assert line.split()[0] == "2"


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not at hand")
def test_a_list_of_real_pairs_is_compared(capsys, tmp_path):
    head, *_, last = (CLIPS / "pairs.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "pairs.csv").write_text(f"{head}\n{last}\n", encoding="utf-8")
    (tmp_path / "pair3_A.mp4").symlink_to(CLIPS / "pair3_B.mp4")  # the smaller one: what is compared does not matter
    (tmp_path / "pair3_B.mp4").symlink_to(CLIPS / "pair3_B.mp4")
    reward = VideoJudgeReward(build_judge("qwen2_5_vl").requires_grad_(False))
    status = cli.main(["compare", str(tmp_path / "pairs.csv"), "--json"], judge_factory=lambda args: reward)
    (found,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (status, found["valid"], found["p_first"]) == (1, False, None)  # a random judge does not answer
    assert "of the probability is on the answer words" in found["reason"]
    assert found["prompt"].startswith("A first-person view of an astronaut")


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not at hand")
def test_real_clips_are_scored(reward, capsys):
    names = ("pair3_B.mp4", "videoscore_example.mp4")  # the smallest; each takes the time of its decoding
    status, found, _ = score(capsys, reward, *(CLIPS / name for name in names))
    assert status == 0
    assert all(item["valid"] and item["scores"]["text_alignment"] is None for item in found)
    assert all(0 <= item["scores"]["overall"] <= 1 for item in found)
