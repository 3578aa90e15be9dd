"""Constants of z scores in a judge's folder: written whole or not at all."""

from __future__ import annotations

import dataclasses
import os
import shutil

import pytest

from reward_model import cli
from reward_model.judge.checkpoints.format import JudgeConfig
from reward_model.video_reward import TOY_JUDGE
from tests.fake_judge import FakeJudge

KNOWN = {"a.mp4": 0.75, "b.mp4": 0.5, "c.mp4": 0.25}


@pytest.fixture
def folder(tmp_path):
    """A folder with the configuration of a judge, and a list of clips beside it."""
    (tmp_path / "judge").mkdir()
    shutil.copy(TOY_JUDGE / "judge_config.json", tmp_path / "judge")
    (tmp_path / "list.csv").write_text("video\na.mp4\nb.mp4\nc.mp4\n", encoding="utf-8")
    return tmp_path / "judge"


def calibrate(folder):
    argv = ["calibrate", str(folder.parent / "list.csv"), "--judge", str(folder), "--pairs", "0"]
    return cli.main(argv, judge_factory=lambda args: FakeJudge(KNOWN))


def test_constants_replace_those_of_the_configuration_and_nothing_else(folder):
    before = JudgeConfig.load(folder)
    assert calibrate(folder) == 0
    after = JudgeConfig.load(folder)
    assert after.calibration["visual_quality"]["mean"] == pytest.approx(0.5)
    assert dataclasses.replace(after, calibration=before.calibration) == before
    assert [path.name for path in folder.iterdir()] == ["judge_config.json"]


def test_a_full_disk_leaves_the_old_configuration(folder, monkeypatch, capsys):
    def full(handle):
        raise OSError("no space left")

    before = (folder / "judge_config.json").read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    assert calibrate(folder) == 2
    assert capsys.readouterr().err.endswith("video-judge calibrate: no space left\n")
    assert (folder / "judge_config.json").read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["judge_config.json"]
