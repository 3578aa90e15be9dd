"""Readers of VQ-Insight's files: records in the form of Video-R1 (ratings, pairs, questions) and VisionReward's pairs.

A record of Video-R1 is a question about an image, a video or two videos, with its answer in <answer> tags. Its
`problem_type` decides what a judge learns from it: "regression" and "multi-dimension" records rate a clip, "multiple
choice" records about two videos compare them, and the rest are questions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reward_model.datasets.base import Fault, read_each, read_numbered_records
from reward_model.datasets.natural import Scale, read_json, to_quality
from reward_model.records import Annotation, RatedClip, VideoPair, VideoQuestion

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
class VideoR1Annotations:
    """Content of a file in the form of Video-R1, each kind in the file's order."""

    clips: tuple[RatedClip, ...]
    pairs: tuple[VideoPair, ...]
    questions: tuple[VideoQuestion, ...]


def read_video_r1(
    path: str | Path,
    *,
    scale: Scale | None = None,
    folder: str | Path | None = None,
    faults: list[Fault] | None = None,
) -> VideoR1Annotations:
    """Read records in the form of Video-R1.

    The generation prompt of a rated video has no field of its own in this form: it stands in `problem`, alone or within the
    question (see `generation_prompt`), without which a rating of text alignment is refused. `prompt` of a pair is None. The
    whole question is in `facts["problem"]` of a clip.

    Args:
        path: .json with a list of records, or .jsonl. Fields: problem_type, problem, solution, path (or image_list with
            one image), or path1 and path2 for a pair; options where there are some. data_type is not read: the file it
            names tells whether it is an image.
        scale: lowest and highest rating, which the file does not say; needed for files with ratings. VQ-Insight's demo
            asks for 0 to 100. Video-R1's own mixed file has "regression" records that are no ratings.
        folder: where relative paths start; by default the file's folder.
        faults: as in `base.read_manifest`.

    Returns:
        Rated clips, pairs (`overall` only) and questions.

    Raises:
        ValueError: A record is not as described; the message names file and record.

    Source: src/r1-v/src/open_r1/{grpo,grpo_md_aigc,grpo_comp_md}.py and trainer/grpo_trainer_{score,comp}.py in
    xuanyuzhang21/VQ-Insight at c37b628, which read these fields (its own records are not published); the data card of
    Video-R1/Video-R1-data, README.md on the Hugging Face hub, which shows a record.
    """
    folder = Path(path).parent if folder is None else Path(folder)

    def read(record: Mapping[str, object], place: str) -> Annotation:
        """Return the clip, the pair or the question of one record."""
        kind, answer = _text(record, "problem_type", place), _answer(record, place)
        if record.get("path1") or record.get("path2") or record.get("data_source") == "video_fusion":
            return _pair(record, kind, answer, folder, place)
        if kind in ("regression", "multi-dimension"):
            return _clip(record, kind, answer, scale, folder, place)
        return _question(record, kind, answer, folder, place)

    examples = read_each(path, _records(path, faults), read, faults, unit=_unit(path))
    return VideoR1Annotations(
        tuple(one for one in examples if isinstance(one, RatedClip)),
        tuple(one for one in examples if isinstance(one, VideoPair)),
        tuple(one for one in examples if isinstance(one, VideoQuestion)),
    )


def read_visionreward(
    path: str | Path, *, videos: str | Path | None = None, faults: list[Fault] | None = None
) -> list[VideoPair]:
    """Read VisionReward's pairs of generated videos: 1,795 for regression, 1,000 for test (MonetBench).

    Args:
        path: regression/*.parquet or test/*.parquet of the dataset (needs pyarrow, which the extra "train" brings), or
            the same records as .csv or .jsonl.
        videos: folder of the videos; by default the file's own.
        faults: as in `base.read_manifest`.

    Returns:
        One pair per record with `overall`; `source_id` is the prompt: no prompt falls on both sides of a split.

    Raises:
        ValueError: A field is missing, or an answer is none of `STANDARD_ANSWERS`.

    Source: README.md of the dataset THUDM/VisionRewardDB-Video on the Hugging Face hub (internal_id, prompt,
    standard_answer, video1_path, video2_path); the answers as compared in eval/get_pairwise_acc.py of
    TIGER-AI-Lab/VideoScore2 at 019eb7f.
    """
    folder = Path(path).parent if videos is None else Path(videos)

    def read(record: Mapping[str, object], place: str) -> VideoPair:
        """Return the pair of one record."""
        first, second, prompt, answer = (
            _text(record, name, place) for name in ("video1_path", "video2_path", "prompt", "standard_answer")
        )
        if answer not in STANDARD_ANSWERS:
            raise ValueError(f"{place}: 'standard_answer' must be one of {list(STANDARD_ANSWERS)}, got {answer!r}")
        preference = {"overall": STANDARD_ANSWERS[answer]}
        return VideoPair(folder / first, folder / second, prompt, preference, source_id=prompt, place=place)

    if Path(path).suffix == ".parquet":
        return read_each(path, [*enumerate(_parquet_records(path), start=1)], read, faults, unit="record")
    return read_each(path, read_numbered_records(path, faults=faults), read, faults)


def _unit(path: str | Path) -> str:
    return "record" if Path(path).suffix == ".json" else "line"


def _records(path: str | Path, faults: list[Fault] | None) -> Sequence[tuple[int, Mapping[str, object]]]:
    if Path(path).suffix != ".json":
        return read_numbered_records(path, faults=faults)
    records = read_json(path)
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{path}: expected a list of objects")
    return [*enumerate(records, start=1)]


def _parquet_records(path: str | Path) -> Sequence[Mapping[str, object]]:
    from pyarrow import parquet  # type: ignore[import-untyped]

    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    return parquet.read_table(path).to_pylist()


def _text(record: Mapping[str, object], name: str, place: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}: {name!r} must be text, got {value!r}")
    return value.strip()


def _answer(record: Mapping[str, object], place: str) -> str:
    solution = _text(record, "solution", place)
    match = re.search(r"<answer>\s*(.+?)\s*</answer>", solution, re.DOTALL)
    if not match:
        raise ValueError(f"{place}: 'solution' must hold <answer>...</answer>, got {solution!r}")
    return match[1]


def _media(record: Mapping[str, object], place: str) -> str:
    """Return the path in a record about one image or video."""
    images = record.get("image_list")
    if record.get("path") or not images:
        return _text(record, "path", place)
    if not isinstance(images, list) or len(images) != 1 or not isinstance(images[0], str):
        raise ValueError(f"{place}: 'image_list' must hold one image, got {images!r}")
    return images[0]


def _clip(
    record: Mapping[str, object], kind: str, answer: str, scale: Scale | None, folder: Path, place: str
) -> RatedClip:
    if scale is None:
        raise ValueError(f"{place}: a rating needs its scale; give scale=(low, high)")
    scores = {"overall": answer} if kind == "regression" else _scores(answer, place)
    quality = {DIMENSION_OF[key]: to_quality(v, scale, place) for key, v in scores.items() if key in DIMENSION_OF}
    others = {key: value for key, value in scores.items() if key not in DIMENSION_OF}
    if not quality:
        raise ValueError(f"{place}: no score of {list(DIMENSION_OF)} in {answer!r}")
    media = _media(record, place)
    problem = _text(record, "problem", place)
    prompt = generation_prompt(problem) if kind == "multi-dimension" else None
    if prompt is None and "text_alignment" in quality:
        raise ValueError(f"{place}: 'problem' names no generation prompt, which text alignment needs, got {problem!r}")
    facts = {"problem": problem} | ({"scores": others} if others else {})
    return RatedClip(folder / media, prompt, quality, source_id=media, facts=facts, place=place)


def generation_prompt(problem: str) -> str | None:
    """Return the generation prompt in the question of a rated video.

    Args:
        problem: the question: the prompt alone, or an instruction that quotes it behind the word prompt, caption or
            description, in quotation marks or up to the line's end or the next instruction.

    Returns:
        The prompt; None where the text is an instruction without one.
    """
    for pattern in _PROMPT_PATTERNS:
        if match := pattern.search(problem):
            return _INSTRUCTION_BEHIND.split(match["text"], maxsplit=1)[0].strip()
    return None if _INSTRUCTION.search(problem) else problem.strip()


_NAMED = r"\b(?:prompts?|captions?|description)\b"
_PROMPT_PATTERNS = (
    re.compile(_NAMED + r'[^"\u201c\u201d\n]{0,60}?["\u201c](?P<text>[^"\u201c\u201d]+)["\u201d]', re.IGNORECASE),
    re.compile(_NAMED + r"[^'\n]{0,30}?[\s:]'(?P<text>.+?)'(?![a-z])", re.IGNORECASE),
    re.compile(_NAMED + r"(?: is| was)?\s*[:=]\s*(?P<text>[^\n]+)", re.IGNORECASE),
)
_INSTRUCTION_BEHIND = re.compile(
    r"(?<=[.!?])\s+(?=(?:please|rate|evaluate|assess|score|give|provide|judge|output|your|you)\b)", re.IGNORECASE
)
_INSTRUCTION = re.compile(
    r"<answer>|\b(?:please|you are|rat(?:e|ing)|evaluate|assess|scores?|quality)\b", re.IGNORECASE
)


def _scores(answer: str, place: str) -> dict[str, object]:
    """Return scores by key, with or without the braces, in any order."""
    try:
        scores = json.loads(answer if answer.startswith("{") else f"{{{answer}}}")
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: scores must be JSON, got {answer!r}") from error
    if not isinstance(scores, dict):
        raise ValueError(f"{place}: scores must be named, got {answer!r}")
    return scores


def _pair(record: Mapping[str, object], kind: str, answer: str, folder: Path, place: str) -> VideoPair:
    if kind != "multiple choice" or answer.lower() not in CHOICES:
        raise ValueError(f"{place}: a pair needs a 'multiple choice' between A and B, got {kind!r} with {answer!r}")
    for option in _options(record, place):
        letter = re.match(r"\s*\(?([AB])[.:)]", option)
        named = re.findall(r"\b[Vv]ideo ([AB])\b", option)
        if letter and any(name != letter[1] for name in named):
            raise ValueError(f"{place}: option {option!r} names another video than its letter; reorder it first")
    first, second = (_text(record, name, place) for name in ("path1", "path2"))
    preference = {"overall": CHOICES[answer.lower()]}
    return VideoPair(folder / first, folder / second, None, preference, source_id=f"{first}|{second}", place=place)


def _question(record: Mapping[str, object], kind: str, answer: str, folder: Path, place: str) -> VideoQuestion:
    media = _media(record, place)
    question = _text(record, "problem", place)
    return VideoQuestion(folder / media, question, _options(record, place), answer, kind, source_id=media, place=place)


def _options(record: Mapping[str, object], place: str) -> tuple[str, ...]:
    options = record.get("options") or []
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise ValueError(f"{place}: 'options' must be a list of texts, got {options!r}")
    return tuple(options)
