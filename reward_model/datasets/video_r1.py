"""Files of VQ-Insight's recipe: rows in the form of Video-R1 (ratings, pairs, questions) and VisionReward's pairs.

A row of Video-R1 is a question about an image, a video or two videos, with its answer in <answer> tags. What judges
learn from it depends on `problem_type`: "regression" and "multi-dimension" rows rate a clip, "multiple choice" rows
about two videos compare them, and the rest are questions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reward_model.datasets.base import read_records
from reward_model.datasets.natural import Scale, read_json, to_quality
from reward_model.records import RatedClip, VideoPair, VideoQuestion

DIMENSION_OF = {
    "spatial": "visual_quality",
    "temporal": "motion_quality",
    "consistency": "text_alignment",
    "alignment": "text_alignment",
    "overall": "overall",
}
"""VQ-Insight's keys (LGVQ's dimensions) -> ours. Its other keys (color, noise, artifact, blur) have no counterpart."""

CHOICES = {"a": 1.0, "video a": 1.0, "b": 0.0, "video b": 0.0}
"""Answer about a pair -> P(first is better); the comparator of VQ-Insight has no ties."""

STANDARD_ANSWERS = {"video1": 1.0, "video2": 0.0, "tie": 0.5}
"""VisionReward's answer -> P(first is better)."""


@dataclass(frozen=True)
class VideoR1Rows:
    """What a file in the form of Video-R1 holds, each kind in the file's order."""

    clips: tuple[RatedClip, ...]
    pairs: tuple[VideoPair, ...]
    questions: tuple[VideoQuestion, ...]


def read_video_r1(path: str | Path, *, scale: Scale | None = None, folder: str | Path | None = None) -> VideoR1Rows:
    """Read rows in the form of Video-R1.

    The generation prompt of a rated or compared video has no field of its own in this form, so `prompt` is None; the
    whole question is in `facts["problem"]` of a clip.

    Args:
        path: .json with a list of rows, or .jsonl. Fields: problem_type, problem, solution, path (or image_list with
            one image), or path1 and path2 for a pair; options where there are some. data_type is not read: the file it
            names tells whether it is an image.
        scale: lowest and highest rating, which the file does not say; needed for files with ratings. VQ-Insight's demo
            asks for 0 to 100. Video-R1's own mixed file has "regression" rows that are no ratings.
        folder: where relative paths start; by default the file's folder.

    Returns:
        Rated clips, pairs (`overall` only) and questions.

    Raises:
        ValueError: if a row is not as described; the message names file and row.

    Source: src/r1-v/src/open_r1/{grpo,grpo_md_aigc,grpo_comp_md}.py and trainer/grpo_trainer_{score,comp}.py in
    xuanyuzhang21/VQ-Insight at c37b628, which read these fields (its own rows are not published); the data card of
    Video-R1/Video-R1-data, README.md on the Hugging Face hub, which shows a row.
    """
    folder = Path(path).parent if folder is None else Path(folder)
    clips: list[RatedClip] = []
    pairs: list[VideoPair] = []
    questions: list[VideoQuestion] = []
    for number, row in enumerate(_rows(path), start=1):
        place = f"{path}, row {number}"
        kind, answer = _text(row, "problem_type", place), _answer(row, place)
        if row.get("path1") or row.get("path2") or row.get("data_source") == "video_fusion":
            pairs.append(_pair(row, kind, answer, folder, place))
        elif kind in ("regression", "multi-dimension"):
            clips.append(_clip(row, kind, answer, scale, folder, place))
        else:
            questions.append(_question(row, kind, answer, folder, place))
    return VideoR1Rows(tuple(clips), tuple(pairs), tuple(questions))


def read_visionreward(path: str | Path, *, videos: str | Path | None = None) -> list[VideoPair]:
    """Read VisionReward's pairs of generated videos: 1,795 for regression, 1,000 for test (MonetBench).

    Args:
        path: regression/*.parquet or test/*.parquet of the dataset (needs pyarrow, which the extra "train" brings), or
            the same rows as .csv or .jsonl.
        videos: folder of the videos; by default the file's own.

    Returns:
        One pair a row with `overall`; `source_id` is the prompt, so that no prompt falls on both sides of a split.

    Raises:
        ValueError: if a field is missing or an answer is none of `STANDARD_ANSWERS`.

    Source: README.md of the dataset THUDM/VisionRewardDB-Video on the Hugging Face hub (internal_id, prompt,
    standard_answer, video1_path, video2_path); the answers as compared in eval/get_pairwise_acc.py of
    TIGER-AI-Lab/VideoScore2 at 019eb7f.
    """
    folder = Path(path).parent if videos is None else Path(videos)
    pairs = []
    for number, row in enumerate(
        _parquet_rows(path) if Path(path).suffix == ".parquet" else read_records(path), start=1
    ):
        place = f"{path}, row {number}"
        first, second, prompt, answer = (
            _text(row, name, place) for name in ("video1_path", "video2_path", "prompt", "standard_answer")
        )
        if answer not in STANDARD_ANSWERS:
            raise ValueError(f"{place}: 'standard_answer' must be one of {list(STANDARD_ANSWERS)}, got {answer!r}")
        preference = {"overall": STANDARD_ANSWERS[answer]}
        pairs.append(VideoPair(folder / first, folder / second, prompt, preference, source_id=prompt))
    return pairs


def _rows(path: str | Path) -> Sequence[Mapping[str, object]]:
    if Path(path).suffix != ".json":
        return read_records(path)
    rows = read_json(path)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected a list of objects")
    return rows


def _parquet_rows(path: str | Path) -> Sequence[Mapping[str, object]]:
    from pyarrow import parquet  # type: ignore[import-untyped]

    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    return parquet.read_table(path).to_pylist()


def _text(row: Mapping[str, object], name: str, place: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}: {name!r} must be text, got {value!r}")
    return value.strip()


def _answer(row: Mapping[str, object], place: str) -> str:
    solution = _text(row, "solution", place)
    match = re.search(r"<answer>\s*(.+?)\s*</answer>", solution, re.DOTALL)
    if not match:
        raise ValueError(f"{place}: 'solution' must hold <answer>...</answer>, got {solution!r}")
    return match[1]


def _media(row: Mapping[str, object], place: str) -> str:
    """Return the path of a row about one image or video."""
    images = row.get("image_list")
    if row.get("path") or not images:
        return _text(row, "path", place)
    if not isinstance(images, list) or len(images) != 1 or not isinstance(images[0], str):
        raise ValueError(f"{place}: 'image_list' must hold one image, got {images!r}")
    return images[0]


def _clip(
    row: Mapping[str, object], kind: str, answer: str, scale: Scale | None, folder: Path, place: str
) -> RatedClip:
    if scale is None:
        raise ValueError(f"{place}: a rating needs its scale; give scale=(low, high)")
    scores = {"overall": answer} if kind == "regression" else _scores(answer, place)
    quality = {DIMENSION_OF[key]: to_quality(v, scale, place) for key, v in scores.items() if key in DIMENSION_OF}
    others = {key: value for key, value in scores.items() if key not in DIMENSION_OF}
    if not quality:
        raise ValueError(f"{place}: no score of {list(DIMENSION_OF)} in {answer!r}")
    media = _media(row, place)
    facts = {"problem": _text(row, "problem", place)} | ({"scores": others} if others else {})
    return RatedClip(folder / media, None, quality, source_id=media, facts=facts)


def _scores(answer: str, place: str) -> dict[str, object]:
    """Return scores by key, with or without the braces, in any order."""
    try:
        scores = json.loads(answer if answer.startswith("{") else f"{{{answer}}}")
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: scores must be JSON, got {answer!r}") from error
    if not isinstance(scores, dict):
        raise ValueError(f"{place}: scores must be named, got {answer!r}")
    return scores


def _pair(row: Mapping[str, object], kind: str, answer: str, folder: Path, place: str) -> VideoPair:
    if kind != "multiple choice" or answer.lower() not in CHOICES:
        raise ValueError(f"{place}: a pair needs a 'multiple choice' between A and B, got {kind!r} with {answer!r}")
    for option in _options(row, place):
        letter = re.match(r"\s*\(?([AB])[.:)]", option)
        named = re.findall(r"\b[Vv]ideo ([AB])\b", option)
        if letter and any(name != letter[1] for name in named):
            raise ValueError(f"{place}: option {option!r} names another video than its letter; reorder it first")
    first, second = (_text(row, name, place) for name in ("path1", "path2"))
    preference = {"overall": CHOICES[answer.lower()]}
    return VideoPair(folder / first, folder / second, None, preference, source_id=f"{first}|{second}")


def _question(row: Mapping[str, object], kind: str, answer: str, folder: Path, place: str) -> VideoQuestion:
    media = _media(row, place)
    question = _text(row, "problem", place)
    return VideoQuestion(folder / media, question, _options(row, place), answer, kind, source_id=media)


def _options(row: Mapping[str, object], place: str) -> tuple[str, ...]:
    options = row.get("options") or []
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise ValueError(f"{place}: 'options' must be a list of texts, got {options!r}")
    return tuple(options)
