"""Two runs never write to one file of scores; versions, devices and columns of the command line."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import reward_model
from reward_model import cli
from reward_model.commands.inputs import Item, list_items
from reward_model.commands.judge_options import check_device
from reward_model.commands.result_file import ResultFile
from tests.fake_judge import FakeJudge

ROOT = Path(__file__).resolve().parents[4]


def judge(_):
    return FakeJudge({"a.mp4": 0.75, "b.mp4": 0.25})


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_a_second_run_into_one_output_is_refused(tmp_path, capsys, resume, jobs):
    output = tmp_path / "scores.csv"
    first = ResultFile(output, [Item("a.mp4", None)], maker="judge", resume=False)
    given = ["score", "a.mp4", "--output", str(output), "--jobs", jobs, *resume]
    assert cli.main(given, judge_factory=judge) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert "is writing to it" in error[-1]
    assert output.read_bytes() == b""
    first.close()
    assert cli.main(["score", "a.mp4", "--output", str(output)], judge_factory=judge) == 0
    assert len(output.read_text().splitlines()) == 2
    assert list(tmp_path.iterdir()) == [output]


def test_a_link_to_an_output_has_the_lock_of_its_file(tmp_path):
    output, link = tmp_path / "scores.csv", tmp_path / "link.csv"
    link.symlink_to(output)
    first = ResultFile(output, [], maker="judge", resume=False)
    with pytest.raises(ValueError, match="is writing to it"):
        ResultFile(link, [], maker="judge", resume=True)
    first.close()


def test_a_refused_file_keeps_no_lock(tmp_path):
    output = tmp_path / "scores.csv"
    output.write_text("something else\n")
    for _ in range(2):
        with pytest.raises(ValueError, match="exists already"):
            ResultFile(output, [], maker="judge", resume=False)


def test_version_is_that_of_the_installed_package(capsys, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"video-judge": "1.2.3"}[name])
    assert reward_model.__version__ == "1.2.3"
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == "video-judge 1.2.3\n"


@pytest.mark.parametrize("device", ["cudaa", "cuda:x", "", " ", "meta"])
def test_a_wrong_device_is_one_sentence(device):
    with pytest.raises(ValueError, match="--device"):
        check_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "cudaa"])
def test_a_device_that_is_not_here_ends_a_command_with_status_2(device):
    done = subprocess.run(
        [sys.executable, "-m", "reward_model.cli", "score", "a.mp4", "--device", device],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("video-judge score: --device")


@pytest.mark.parametrize("column", ["path", "video", "path_A"])
def test_a_list_names_its_videos_by_any_known_column(tmp_path, column):
    listed = tmp_path / "list.csv"
    listed.write_text(f"{column},prompt\na.mp4,a dog\n")
    assert list_items([str(listed)]) == [Item(str(tmp_path / "a.mp4"), "a dog")]


@pytest.mark.parametrize("columns", ["path_A,path_B", "first,second", "video_A,video_B"])
def test_a_list_of_pairs_names_its_videos_by_any_known_columns(tmp_path, capsys, columns):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(f"{columns},prompt\na.mp4,b.mp4,a dog\n")
    assert cli.main(["compare", str(pairs)], judge_factory=judge) == 0
    assert "a.mp4 is better" in capsys.readouterr().out


def test_a_reward_tells_its_device_and_dtype():
    reward = reward_model.VideoJudgeReward.from_pretrained("toy", device="cpu")
    assert reward.device == torch.device("cpu")
    assert reward.dtype == torch.float32


@pytest.mark.parametrize("column", ["path", "video", "path_A"])
def test_a_manifest_names_its_videos_by_any_known_column(tmp_path, column):
    listed = tmp_path / "rated.csv"
    listed.write_text(f"{column},overall\na.mp4,0.5\n")
    (clip,) = reward_model.read_manifest(listed)
    assert clip.video == tmp_path / "a.mp4"
