"""Data sections of a recipe reach their readers: media folders, scales, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reward_model.datasets.natural import read_json
from reward_model.datasets.readers import DataConfig, open_source
from reward_model.records import RatedClip, VideoPair


def examples(section: DataConfig) -> list[Any]:
    """Return the distinct training examples of a section."""
    drawn = open_source(section)(0, 200)
    return list({example.source_id: example for example in drawn}.values())


def write(path: Path, records: list[dict[str, object]]) -> str:
    """Write a JSON list and return its path."""
    path.write_text(json.dumps(records) if path.suffix == ".json" else "\n".join(map(json.dumps, records)))
    return str(path)


def rating(value: object, name: str) -> dict[str, object]:
    return {"problem_type": "regression", "problem": "Rate.", "solution": f"<answer>{value}</answer>", "path": name}


@pytest.mark.parametrize("media", ["", "elsewhere"])
def test_video_r1_ratings_are_read_on_the_scale_and_from_the_media_folder(tmp_path: Path, media: str) -> None:
    path = write(tmp_path / "ratings.json", [rating(30, f"{n}.mp4") for n in range(20)])
    folder = str(tmp_path / media) if media else ""
    for clip in examples(DataConfig(kind="video_r1", path=path, media=folder, scale=[10, 50])):
        assert isinstance(clip, RatedClip) and clip.quality == {"overall": 0.5}
        assert isinstance(clip.video, Path) and clip.video.parent == tmp_path / media


@pytest.mark.parametrize("media", ["", "elsewhere"])
def test_visionreward_pairs_come_from_the_media_folder(tmp_path: Path, media: str) -> None:
    records: list[dict[str, object]] = [
        {"video1_path": f"a{n}.mp4", "video2_path": f"b{n}.mp4", "prompt": f"dog {n}", "standard_answer": "video2"}
        for n in range(20)
    ]
    path = write(tmp_path / "pairs.jsonl", records)
    folder = str(tmp_path / media) if media else ""
    for pair in examples(DataConfig(kind="visionreward", path=path, media=folder)):
        assert isinstance(pair, VideoPair) and pair.preference == {"overall": 0.0}
        assert all(isinstance(side, Path) and side.parent == tmp_path / media for side in (pair.first, pair.second))


@pytest.mark.parametrize("content", [b"{", b'"\xff\xfe"', b""])
def test_a_file_that_is_no_json_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "content.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="content.json: not JSON in UTF-8"):
        read_json(path)
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(path) == [1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "moving_shape"}, "did you mean 'moving_shapes'"),
        ({"kind": "koniq"}, "data.path must be given for koniq"),
        ({"kind": "koniq", "path": "x", "scale": [1.0, 5.0]}, "data.scale is read for video_r1 only"),
        ({"kind": "video_r1", "path": "x", "scale": [1.0]}, "data.scale must be two numbers"),
        ({"kind": "moving_shapes", "dimensions": ["colour"]}, "data.dimensions must be of .* got 'colour'"),
        ({"kind": "moving_shapes", "images": True, "dimensions": ["overall"]}, "images are rated on visual_quality"),
        ({"kind": "moving_shapes", "weight": 0.0}, "data.weight must be > 0, got 0.0"),
        ({"kind": "moving_shapes", "weight": -1.0}, "data.weight must be > 0, got -1.0"),
        ({"kind": "moving_shapes", "num_clips": 1}, "data.num_clips must be 0 or at least 2, got 1"),
        ({"kind": "moving_shapes", "num_clips": -2}, "data.num_clips must be 0 or at least 2, got -2"),
    ],
)
def test_a_wrong_section_is_refused_with_its_setting(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**settings)


def test_settings_at_the_edge_of_their_range_are_taken() -> None:
    for settings in ({"weight": 1e-6}, {"num_clips": 2}, {"images": True, "dimensions": ["visual_quality"]}):
        section = DataConfig(kind="moving_shapes", **settings)  # type: ignore[arg-type]
        assert all(getattr(section, name) == value for name, value in settings.items())
