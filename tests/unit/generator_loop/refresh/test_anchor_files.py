"""Anchors from a file: the datasets' manifest reader, with our own columns or a column map, CSV or JSONL."""

import json

import pytest

from generator_loop.config import AnchorConfig
from generator_loop.refresh.anchors import read_anchors
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
