"""Readers of published files: columns, scales, splits, media paths, and what is wrong with a row."""

import csv
import json
import struct
import zlib

import pytest
import torch

from reward_model.datasets.natural import (
    read_json,
    read_koniq,
    read_lsvq,
    read_vqathinker,
    read_vqathinker_test,
    to_quality,
)
from reward_model.datasets.video_r1 import read_video_r1, read_visionreward
from reward_model.media.video_io import read_video
from reward_model.records import RatedClip, VideoPair, VideoQuestion


def write_csv(folder, name, header, *rows):
    path = folder / name
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def write_json(folder, name, content):
    path = folder / name
    lines = content if name.endswith("l") else [content]
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


KONIQ_SETS = "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set"
KONIQ_SCORES = "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,MOS_zscore"


def koniq_sets(folder):
    return write_csv(
        folder,
        "koniq10k_distributions_sets.csv",
        KONIQ_SETS,
        ("11.jpg", 0, 0, 0.2, 0.7, 0.1, 100, 75.25, 0.5, "training"),
        ("12.jpg", 0, 0, 1, 0, 0, 100, 50.5, 0.5, "test"),
        ("13.jpg", 1, 0, 0, 0, 0, 100, 1, 0.5, "validation"),
    )


def test_koniq_sets_give_quality_path_and_split(tmp_path):
    clips = read_koniq(koniq_sets(tmp_path), images=tmp_path / "1024x768")
    assert clips[0] == RatedClip(
        tmp_path / "1024x768" / "11.jpg", None, {"overall": 0.75}, "11.jpg", {"split": "training"}
    )
    # 1 + 0.75 * 99 = 75.25, 1 + 0.5 * 99 = 50.5
    assert [clip.quality["overall"] for clip in clips] == [0.75, 0.5, 0.0]


def test_koniq_keeps_the_asked_set_only(tmp_path):
    (clip,) = read_koniq(koniq_sets(tmp_path), split="test")
    assert clip.video == tmp_path / "12.jpg" and clip.facts == {"split": "test"}


def test_koniq_scores_are_read_from_the_column_on_the_long_scale(tmp_path):
    row = ("11.jpg", 0, 0, 20, 70, 10, 100, 3.9, 0.5, 75.25)
    path = write_csv(tmp_path, "koniq10k_scores_and_distributions.csv", KONIQ_SCORES, row)
    (clip,) = read_koniq(path)
    assert clip.quality == {"overall": 0.75} and clip.facts == {}
    with pytest.raises(ValueError, match="no record of split 'test'; is it a file without splits"):
        read_koniq(path, split="test")


def test_koniq_refuses_a_file_whose_scale_it_cannot_know(tmp_path):
    path = write_csv(tmp_path, "a.csv", "image_name,MOS", ("1.jpg", 3.9))
    with pytest.raises(ValueError, match="expected a column 'MOS_zscore'"):
        read_koniq(path)
    path = write_csv(tmp_path, "b.csv", KONIQ_SCORES, ("1.jpg", 0, 0, 1, 0, 0, 1, 3, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"line 2: 'MOS_zscore' is 0.5, outside its scale \[1, 100\]"):
        read_koniq(path)


def png(pixels):
    """Return a PNG of uint8 pixels [H, W, 3]."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_an_image_opens_as_a_video_of_one_frame(tmp_path):
    pixels = torch.randint(256, (12, 18, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    (tmp_path / "1.png").write_bytes(png(pixels.numpy()))
    (clip,) = read_koniq(write_csv(tmp_path, "a.csv", "image_name,MOS,set", ("1.png", 50, "training")))
    video, plan = read_video(clip.video)
    assert plan.indices == (0,)
    torch.testing.assert_close(video.frames[0], pixels.permute(2, 0, 1) / 255)


LSVQ = "name,p1,height,width,mos_p1,mos,frame_number,is_test,is_valid"


def lsvq(folder, value="True"):
    return write_csv(
        folder,
        "labels_train_test.csv",
        LSVQ,
        ("yfcc-batch1/722", "[1, 2]", 720, 1280, 57.9, 75, 200, "False", "False"),
        ("ia-batch1/a_video.part.2", "[1, 2]", 720, 1280, 52.3, 50, 240, value, "True"),
    )


def test_lsvq_names_become_files_and_means_quality(tmp_path):
    first, second = read_lsvq(lsvq(tmp_path), videos=tmp_path / "LSVQ")
    source = "yfcc-batch1/722"
    video = tmp_path / "LSVQ" / "yfcc-batch1" / "722.mp4"
    assert first == RatedClip(video, None, {"overall": 0.75}, source, {"split": "train"})
    assert second.video == tmp_path / "LSVQ" / "ia-batch1" / "a_video.part.2.mp4"
    assert second.quality == {"overall": 0.5}


@pytest.mark.parametrize(("split", "expected"), [("train", "yfcc-batch1/722"), ("test", "ia-batch1/a_video.part.2")])
def test_lsvq_keeps_the_asked_split_only(tmp_path, split, expected):
    assert [clip.source_id for clip in read_lsvq(lsvq(tmp_path), split=split)] == [expected]


def test_lsvq_1080p_has_no_split(tmp_path):
    path = write_csv(tmp_path, "labels_test_1080p.csv", "name,mos,is_valid", ("yfcc-batch1/1", 17.5, "True"))
    (clip,) = read_lsvq(path)
    assert clip.quality == {"overall": 0.175} and clip.facts == {}
    with pytest.raises(ValueError, match="without splits"):
        read_lsvq(path, split="test")


def test_lsvq_refuses_another_mark_of_the_split(tmp_path):
    with pytest.raises(ValueError, match="'is_test' must be True or False, got '2'"):
        read_lsvq(lsvq(tmp_path, "2"))


def turns(answer):
    return [{"from": "human", "value": "What is your overall rating?"}, {"from": "gpt", "value": answer}]


def test_vqathinker_rows_become_clips(tmp_path):
    rows = [
        {"id": 0, "dataset_name": "LSVQ", "image": ["yfcc-batch6/4.mp4"], "conversations": turns(2.5)},
        {"id": 1, "dataset_name": "LSVQ", "image": "ia/5.mp4", "conversations": turns("<answer>4</answer>")},
    ]
    first, second = read_vqathinker(write_json(tmp_path, "train.jsonl", rows), videos="/data")
    assert str(first.video) == "/data/yfcc-batch6/4.mp4" and first.source_id == "yfcc-batch6/4.mp4"
    assert (first.quality, second.quality) == ({"overall": 0.375}, {"overall": 0.75})
    assert first.facts == {"dataset": "LSVQ"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": ["a.mp4", "b.mp4"], "conversations": turns(3)}, "line 1: 'image' must be one path"),
        ({"image": [], "conversations": turns(3)}, "line 1: 'image' must be one path"),
        (
            {"image": "a.mp4", "conversations": turns(3)[:1]},
            "line 1: 'conversations' must be a question and an answer",
        ),
        ({"image": "a.mp4", "conversations": turns("good")}, "line 1: a rating must be a number, got 'good'"),
        ({"image": "a.mp4", "conversations": turns(62.4)}, r"line 1: 62.4 is outside the scale \[1, 5\]"),
        ({"image": "a.mp4", "conversations": turns("nan")}, "line 1: nan is outside the scale"),
    ],
)
def test_a_bad_vqathinker_row_is_refused_with_its_place(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        read_vqathinker(write_json(tmp_path, "train.jsonl", [row]))


def annotation(score, **other):
    return {"image_id": "B155.mp4", "ann_type": "score", "score": score} | other


def test_vqathinker_test_sets_need_their_scale(tmp_path):
    path = write_json(tmp_path, "set.json", {"annotations": [annotation("43.5")]})
    assert read_vqathinker_test(path, scale=(0, 100)) == [
        RatedClip(tmp_path / "B155.mp4", None, {"overall": 0.435}, "B155.mp4")
    ]
    with pytest.raises(ValueError, match=r"annotation 1: 43.5 is outside the scale \[1, 5\]"):
        read_vqathinker_test(path, scale=(1, 5))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([annotation("3")], "expected an object with a list 'annotations'"),
        ({"annotations": []}, "expected an object with a list 'annotations'"),
        ({"annotations": ["a"]}, "annotation 1: expected 'image_id'"),
        ({"annotations": [annotation("3", ann_type="class")]}, "annotation 1: expected 'image_id'"),
        ({"annotations": [annotation(None)]}, "annotation 1: a rating must be a number, got None"),
    ],
)
def test_a_bad_test_set_is_refused_with_its_place(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_vqathinker_test(write_json(tmp_path, "set.json", content), scale=(1, 5))


def test_the_ends_of_a_scale_are_zero_and_one():
    assert [to_quality(value, (1, 5), "here") for value in (1, "3", 5.0)] == [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="low < high"):
        to_quality(3, (5, 1), "here")


def test_json_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("{oops")
    (tmp_path / "b.json").write_bytes(b'"\xff"')
    for name, message in (("a.json", "not JSON in UTF-8"), ("b.json", "not JSON in UTF-8"), ("c.json", "no such file")):
        with pytest.raises(ValueError, match=message):
            read_json(tmp_path / name)


def row(kind, answer, **other):
    solution = f"<answer>{answer}</answer>"
    return {
        "problem_id": 1,
        "problem": "Why?",
        "data_type": "video",
        "problem_type": kind,
        "solution": solution,
    } | other


def pair(answer, **other):
    return row(
        "multiple choice", answer, data_source="video_fusion", path1="./a.mp4", path2="b.mp4", options=[], **other
    )


def test_video_r1_rows_are_told_apart_by_what_they_hold(tmp_path):
    rows = [
        row("regression", "75.0", path="x/a.mp4"),
        pair("A"),
        row("multiple choice", "A", path="c.mp4", options=["A. yes", "B. no"]),
        row("regression", "50", path=None, data_type="image", image_list=["1.png"]),
        row("free-form", "a cat", path="d.mp4"),
    ]
    found = read_video_r1(write_json(tmp_path, "rows.json", rows), scale=(0, 100))
    assert found.clips == (
        RatedClip(tmp_path / "x" / "a.mp4", None, {"overall": 0.75}, "x/a.mp4", {"problem": "Why?"}),
        RatedClip(tmp_path / "1.png", None, {"overall": 0.5}, "1.png", {"problem": "Why?"}),
    )
    assert found.pairs == (VideoPair(tmp_path / "a.mp4", tmp_path / "b.mp4", None, {"overall": 1.0}, "./a.mp4|b.mp4"),)
    assert found.questions == (
        VideoQuestion(tmp_path / "c.mp4", "Why?", ("A. yes", "B. no"), "A", "multiple choice", "c.mp4"),
        VideoQuestion(tmp_path / "d.mp4", "Why?", (), "a cat", "free-form", "d.mp4"),
    )


def test_jsonl_is_read_alike_and_absolute_paths_stay(tmp_path):
    rows = [row("regression", "1", path=path) for path in ("/elsewhere/a.mp4", "./b.mp4")]
    first, second = read_video_r1(write_json(tmp_path, "rows.jsonl", rows), scale=(1, 5), folder="/data").clips
    assert (str(first.video), str(second.video)) == ("/elsewhere/a.mp4", "/data/b.mp4")
    assert first.quality == {"overall": 0.0}


@pytest.mark.parametrize(
    "answer",
    [
        '{"spatial": 40, "temporal": 30.5, "consistency": 56}',
        '"consistency": 56, "spatial": 40, "temporal": 30.5',
        '{"temporal": 30.5, "alignment": 56.0, "spatial": 40}',
    ],
)
def test_dimensions_are_renamed_whatever_their_order_and_braces(tmp_path, answer):
    path = write_json(tmp_path, "rows.json", [row("multi-dimension", answer, path="a.mp4")])
    (clip,) = read_video_r1(path, scale=(0, 100)).clips
    assert clip.quality == {"visual_quality": 0.4, "motion_quality": 0.305, "text_alignment": 0.56}


def test_scores_without_a_dimension_of_ours_are_kept_as_facts(tmp_path):
    answer = '{"color": 3, "blur": 2, "overall": 4}'
    path = write_json(tmp_path, "rows.json", [row("multi-dimension", answer, path="a.mp4")])
    (clip,) = read_video_r1(path, scale=(1, 5)).clips
    assert clip.quality == {"overall": 0.75}
    assert clip.facts == {"problem": "Why?", "scores": {"color": 3, "blur": 2}}


@pytest.mark.parametrize(("answer", "expected"), [("A", 1.0), ("Video A", 1.0), ("B", 0.0), ("Video B", 0.0)])
def test_both_ways_to_name_a_video_are_read(tmp_path, answer, expected):
    (found,) = read_video_r1(write_json(tmp_path, "rows.json", [pair(answer)])).pairs
    assert found.preference == {"overall": expected}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("regression", "3", path="a.mp4"), r"record 1: a rating needs its scale"),
        (row("free-form", "3"), "record 1: 'path' must be text, got None"),
        (row("regression", "3", solution="3"), "record 1: 'solution' must hold <answer>"),
        (row("multi-dimension", "[1, 2]", path="a.mp4"), "record 1: a rating needs its scale"),
        (row(None, "3", path="a.mp4"), "record 1: 'problem_type' must be text"),
        (row("free-form", "x", image_list=["a", "b"]), "record 1: 'image_list' must hold one image"),
        (row("free-form", "x", path="a.mp4", options="A"), "record 1: 'options' must be a list of texts"),
        (pair("C"), "record 1: a pair needs a 'multiple choice' between A and B, got 'multiple choice' with 'C'"),
        (pair("A") | {"problem_type": "regression"}, "record 1: a pair needs a 'multiple choice'"),
        (pair("A") | {"path2": ""}, "record 1: 'path2' must be text"),
        (pair("A") | {"options": ["A. Video B is better"]}, "names another video than its letter"),
    ],
)
def test_a_bad_video_r1_row_is_refused_with_its_place(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        read_video_r1(write_json(tmp_path, "rows.json", [bad]))


@pytest.mark.parametrize(("answer", "message"), [("[1, 2]", "must be JSON"), ('{"blur": 3}', "no score of")])
def test_scores_that_cannot_be_told_apart_are_refused(tmp_path, answer, message):
    path = write_json(tmp_path, "rows.json", [row("multi-dimension", answer, path="a.mp4")])
    with pytest.raises(ValueError, match=message):
        read_video_r1(path, scale=(1, 5))


def test_a_file_of_other_things_than_rows_is_refused(tmp_path):
    for name, content in (("a.json", {"rows": []}), ("b.json", []), ("c.json", [1])):
        with pytest.raises(ValueError, match="expected a list of objects"):
            read_video_r1(write_json(tmp_path, name, content))


def preference(answer, prompt="a dog runs"):
    return {
        "internal_id": "7",
        "prompt": prompt,
        "standard_answer": answer,
        "video1_path": "videos/1.mp4",
        "video2_path": "videos/2.mp4",
    }


def test_visionreward_answers_become_preferences(tmp_path):
    rows = [preference(answer) for answer in ("video1", "video2", "tie")]
    found = read_visionreward(write_json(tmp_path, "pairs.jsonl", rows), videos="/data")
    assert [one.preference["overall"] for one in found] == [1.0, 0.0, 0.5]
    assert (str(found[0].first), str(found[0].second)) == ("/data/videos/1.mp4", "/data/videos/2.mp4")
    assert found[0].prompt == found[0].source_id == "a dog runs"


def test_visionreward_is_read_from_parquet_as_published(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "test-00000-of-00001.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([preference("video2")]), path)
    assert read_visionreward(path) == read_visionreward(write_json(tmp_path, "a.jsonl", [preference("video2")]))
    with pytest.raises(ValueError, match="no such file"):
        read_visionreward(tmp_path / "none.parquet")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (preference("A"), r"line 1: 'standard_answer' must be one of \['video1', 'video2', 'tie'\], got 'A'"),
        (preference("tie", prompt=" "), "line 1: 'prompt' must be text"),
        ({"prompt": "x", "standard_answer": "tie"}, "line 1: 'video1_path' must be text, got None"),
    ],
)
def test_a_bad_visionreward_row_is_refused_with_its_place(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        read_visionreward(write_json(tmp_path, "pairs.jsonl", [bad]))


@pytest.mark.parametrize(
    ("problem", "prompt"),
    [
        ("a red fox jumps over a fence", "a red fox jumps over a fence"),
        ('The video was generated from the prompt: "a dog\'s bowl, full". Please rate it.', "a dog's bowl, full"),
        ("Text prompt: a dog runs. Please rate the spatial and temporal quality.", "a dog runs."),
        ("Rate the video.\nCaption: two cats\nAnswer in <answer> tags.", "two cats"),
        ("The generation prompt is 'a boat at sea'. Score it.", "a boat at sea"),
        ("The video shows the prompt \u201cA man\u201d. Rate its alignment.", "A man"),
        ("Please rate spatial quality, temporal quality and text-video alignment.", None),
    ],
)
def test_the_generation_prompt_stands_in_the_problem(problem, prompt):
    from reward_model.datasets.video_r1 import generation_prompt

    assert generation_prompt(problem) == prompt


def test_vq_insights_three_dimensions_carry_their_prompt(tmp_path):
    solution = '<answer>"spatial": 61.5, "temporal": 40, "alignment": 80</answer>'
    record = {"problem_type": "multi-dimension", "data_type": "video", "path": "a.mp4", "solution": solution}
    path = tmp_path / "lgvq.json"
    path.write_text(json.dumps([{**record, "problem": "a red fox"}]))
    (clip,) = read_video_r1(path, scale=(0, 100)).clips
    assert clip.prompt == "a red fox"
    assert clip.quality == pytest.approx({"visual_quality": 0.615, "motion_quality": 0.4, "text_alignment": 0.8})
    path.write_text(json.dumps([{**record, "problem": "Please rate the video's quality."}]))
    with pytest.raises(ValueError, match="record 1: 'problem' names no generation prompt"):
        read_video_r1(path, scale=(0, 100))
