"""Anchors from a file: the datasets' manifest reader, with our own columns or a column map, CSV or JSONL."""

import json
from functools import partial

import pytest
import torch

from generator_loop.config import AnchorConfig
from generator_loop.refresh.anchors import read_anchors
from generator_loop.run.build import _reason_of
from reward_model import VideoJudgeReward, write_video
from reward_model.records import RatedClip


def settings(path, **changes):
    return AnchorConfig(path=str(path), num_train=1, num_held_out=1, **changes)


def test_a_csv_of_our_own_columns_is_split_in_order(tmp_path):
    path = tmp_path / "anchors.csv"
    path.write_text('video,prompt,overall,motion_quality\na.mp4,"a cat, asleep",0.25,\nb.mp4,,1,0.5\nc.mp4,,0,\n')
    anchors = read_anchors(settings(path))
    assert anchors.train == (RatedClip(tmp_path / "a.mp4", "a cat, asleep", {"overall": 0.25}, "a.mp4"),)
    second = RatedClip(tmp_path / "b.mp4", None, {"motion_quality": 0.5, "overall": 1.0}, "b.mp4")
    assert anchors.held_out == (second,)


def test_a_jsonl_with_a_column_map_is_read_on_its_own_scale(tmp_path):
    path = tmp_path / "anchors.jsonl"
    path.write_text("\n".join(json.dumps({"file": name, "MOS": mos}) for name, mos in (("a.mp4", 2), ("b.mp4", 5))))
    anchors = read_anchors(settings(path, columns={"video": "file", "overall": "MOS[1,5]"}))
    assert [clip.quality["overall"] for clip in anchors.train + anchors.held_out] == [0.25, 1.0]
    assert anchors.train[0].video == tmp_path / "a.mp4"


def test_a_quality_outside_its_scale_is_refused_with_file_and_line(tmp_path):
    path = tmp_path / "anchors.csv"
    path.write_text("video,overall\na.mp4,0.5\nb.mp4,1.5\n")
    with pytest.raises(ValueError, match=r"anchors\.csv, line 3: 'overall' is 1\.5, outside its scale \[0, 1\]"):
        read_anchors(settings(path))


def test_too_few_anchors_are_refused(tmp_path):
    path = tmp_path / "anchors.csv"
    path.write_text("video,overall\na.mp4,0.5\n")
    with pytest.raises(ValueError, match=r"holds 1 clips, refresh\.anchors asks for 2"):
        read_anchors(settings(path))


def test_a_column_map_without_a_file_is_refused():
    with pytest.raises(ValueError, match="refresh.anchors.columns describes the file"):
        AnchorConfig(columns={"video": "file"})


def test_anchors_that_the_judge_cannot_use_are_left_out_and_listed(tmp_path):
    good = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for number in range(12):
        write_video(tmp_path / f"{number}.mp4", torch.rand(4, 3, 8, 2048) if number == 4 else good, fps=8)
    (tmp_path / "7.mp4").write_bytes(b"no video")
    lines = [f"{number}.mp4,a dog,{'good' if number == 9 else 0.5}" for number in range(12)]
    path, listed = tmp_path / "anchors.csv", tmp_path / "quarantine.jsonl"
    path.write_text("\n".join(["video,prompt,overall", *lines]))
    wanted = AnchorConfig(path=str(path), num_train=4, num_held_out=4)
    reason_of = partial(_reason_of, VideoJudgeReward.from_pretrained("toy"))
    with pytest.raises(ValueError, match=r"3 of 11 anchors cannot be used, more than 20%"):
        read_anchors(wanted, reason_of=reason_of, quarantine=listed)
    entries = [json.loads(line) for line in listed.read_text().splitlines()]
    assert {entry["line"] for entry in entries} == {6, 9, 11}
    path.write_text(path.read_text().replace("good", "0.5"))
    anchors = read_anchors(wanted, reason_of=reason_of, quarantine=listed)
    assert [clip.source_id for clip in anchors.train + anchors.held_out] == [
        f"{n}.mp4" for n in (0, 1, 2, 3, 5, 6, 8, 9)
    ]
