"""Annotation files: columns, scales, labels and what is wrong with a row."""

import json
from pathlib import Path

import pytest

from reward_model.datasets.base import read_manifest, read_pairs, read_records
from reward_model.records import RatedClip

CLIPS = Path(__file__).resolve().parents[5] / "shared" / "clips"


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_own_names_need_no_map(tmp_path):
    path = write(tmp_path, "a.csv", 'video,prompt,overall\na.mp4,"a cat, asleep",0.25\nb.mp4,,\n')
    assert read_manifest(path) == [
        RatedClip(tmp_path / "a.mp4", "a cat, asleep", {"overall": 0.25}, "a.mp4"),
        RatedClip(tmp_path / "b.mp4", None, {}, "b.mp4"),
    ]


def test_a_stated_scale_becomes_quality(tmp_path):
    path = write(tmp_path, "a.csv", "path,VQ,src\nx/a.mp4,4,film7\n")
    columns = {"video": "path", "visual_quality": "VQ[1,5]", "source_id": "src"}
    (clip,) = read_manifest(path, columns=columns)
    assert clip.quality == {"visual_quality": 0.75}
    assert clip.video == tmp_path / "x" / "a.mp4"
    assert clip.source_id == "film7"


def test_jsonl_rows_are_read_alike(tmp_path):
    rows = [{"video": "a.mp4", "motion_quality": 0.5, "prompt": None}, {"video": "b.mp4", "motion_quality": 1}]
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    assert [clip.quality for clip in read_manifest(path)] == [{"motion_quality": 0.5}, {"motion_quality": 1.0}]


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("video,overall\na.mp4,3\n", None, r"line 2: 'overall' is 3, outside its scale \[0, 1\]"),
        ("video,overall\na.mp4,good\n", None, "line 2: column 'overall' must hold a number, got 'good'"),
        ("video,overall\na.mp4,nan\n", None, "outside its scale"),
        ("video,overall\n,0.5\n", None, "line 2: no video"),
        ("video,overall\n", None, "no records"),
        ("clip,overall\na.mp4,0.5\n", None, "no column 'path'"),
        ("video,mos\na.mp4,0.5\n", None, "no rated dimension"),
        ("video,mos\na.mp4,3\n", {"video": "video", "overall": "mos[5,1]"}, "low < high"),
        ("video,mos\na.mp4,3\n", {"video": "video", "quality": "mos"}, "unknown name 'quality'"),
        ("video,mos\na.mp4,3\n", {"overall": "mos[1,5]"}, "'video' must be mapped"),
    ],
)
def test_a_bad_manifest_is_refused_with_its_place(tmp_path, text, columns, message):
    with pytest.raises(ValueError, match=message):
        read_manifest(write(tmp_path, "a.csv", text), columns=columns)


def test_bad_json_names_its_line(tmp_path):
    with pytest.raises(ValueError, match="line 2: not JSON"):
        read_manifest(write(tmp_path, "a.jsonl", '{"video": "a", "overall": 1}\n{oops\n'))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_text_that_is_no_utf_8_is_refused_with_its_file_and_byte(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"video,overall\nGr\xfcn.mp4,0.5\n")
    with pytest.raises(ValueError, match=f"{name}: not UTF-8 text \\(invalid start byte at byte 16\\)$"):
        read_manifest(path)


def test_files_of_other_kinds_and_missing_ones_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a .csv or .jsonl"):
        read_manifest(write(tmp_path, "a.txt", ""))
    with pytest.raises(ValueError, match="no such file"):
        read_manifest(tmp_path / "b.csv")


def test_pair_labels_become_preferences(tmp_path):
    text = "path_A,path_B,prompt,VQ,MQ,TA\na.mp4,b.mp4,a dog,A,B,same\nc.mp4,d.mp4,,same,,A\n"
    first, second = read_pairs(write(tmp_path, "pairs.csv", text))
    assert first.preference == {"visual_quality": 1.0, "motion_quality": 0.0, "text_alignment": 0.5}
    assert second.preference == {"visual_quality": 0.5, "text_alignment": 1.0}
    assert (first.prompt, second.prompt) == ("a dog", None)
    assert (first.first, first.second) == (tmp_path / "a.mp4", tmp_path / "b.mp4")


def test_an_unknown_pair_label_is_refused(tmp_path):
    with pytest.raises(ValueError, match="line 2: visual_quality must be A, B or same, got 'C'"):
        read_pairs(write(tmp_path, "pairs.csv", "path_A,path_B,VQ\na.mp4,b.mp4,C\n"))


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not at hand")
def test_videoalign_pairs_are_read_as_published():
    pairs = read_pairs(CLIPS / "pairs.csv")
    assert len(pairs) == 3
    assert pairs[0].preference == {"visual_quality": 0.0, "motion_quality": 0.0, "text_alignment": 1.0}
    assert all(Path(pair.first).is_file() and Path(pair.second).is_file() for pair in pairs)


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0b"])
def test_what_only_unicode_calls_a_line_end_ends_no_row_of_a_csv(tmp_path, mark):
    path = write(tmp_path, "list.csv", f"path,prompt\nclip.mp4,a{mark}b\n")
    assert read_records(path) == [{"path": "clip.mp4", "prompt": f"a{mark}b"}]


def test_what_only_unicode_calls_a_line_end_ends_no_row_of_a_jsonl(tmp_path):
    path = write(tmp_path, "list.jsonl", '{"path": "clip.mp4", "prompt": "a\u2028b"}\n')
    assert read_records(path) == [{"path": "clip.mp4", "prompt": "a\u2028b"}]
