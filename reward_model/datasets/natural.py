"""Readers of rated natural images and videos as published: KonIQ-10k, LSVQ, and VQAThinker's training and test files.

All ratings are mean opinions of a whole picture or clip, so they become `overall`, mapped linearly from the file's own
scale to quality in [0, 1]. Other files are read by `base.read_manifest` with a column map. Splits that the authors made
are kept in `facts["split"]`; `source_id` is the file's own name of the picture or clip.

An image is a video of one frame: readers return its path, and `read_video(path)` without a frame policy opens it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from reward_model.datasets.base import Fault, read_each, read_manifest, read_numbered_records, read_records
from reward_model.records import RatedClip

KONIQ_SCALE = (1.0, 100.0)
"""Opinions 1 to 5 stretched to 1 to 100 before the mean; the means in the file run from 3.9 to 88.4."""

LSVQ_SCALE = (0.0, 100.0)
"""The means in the files run from 2.4 to 91.4."""

VQATHINKER_SCALE = (1.0, 5.0)
"""As the question in its training records states."""

Scale = tuple[float, float]
Record = Mapping[str, object]


def read_koniq(
    path: str | Path,
    *,
    images: str | Path | None = None,
    split: str | None = None,
    faults: list[Fault] | None = None,
) -> list[RatedClip]:
    """Read KonIQ-10k: 10,073 images with mean opinions.

    Two public files hold means on the scale 1 to 100: the authors' list of sets in "MOS", with a column "set", and the
    database's own koniq10k_scores_and_distributions.csv in "MOS_zscore" (its "MOS" is on the scale 1 to 5 and is not
    read).

    Args:
        path: either file.
        images: folder of the images; by default the file's own. The database's folder is called 1024x768.
        split: "training", "validation" or "test" of the list of sets (7,058, 1,000 and 2,015 images); None takes all.
        faults: as in `base.read_manifest`.

    Returns:
        One clip of one frame per record, `overall` mapped from `KONIQ_SCALE`.

    Raises:
        ValueError: The file is neither, has no sets where a split is asked for, or a record is malformed.

    Source: metadata/koniq10k_distributions_sets.csv in subpic/koniq at 1c27157 (image_name, c1 to c5, c_total, MOS, SD,
    set); for the other file's image_name, MOS_zscore and folder: folders.py in SSL92/hyperIQA at 3c4fe13 and
    json/KonIQ.json in baidut/PatchVQ at 8062f90.
    """
    columns = set(read_records(path)[0])
    score = "MOS_zscore" if "MOS_zscore" in columns else "MOS"
    if score == "MOS" and "set" not in columns:
        raise ValueError(f"{path}: expected a column 'MOS_zscore', or 'MOS' and 'set'; it has {sorted(columns)}")
    return _read(path, "image_name", score, KONIQ_SCALE, folder=images, split=split, split_of=_koniq_set, faults=faults)


def read_lsvq(
    path: str | Path,
    *,
    videos: str | Path | None = None,
    split: str | None = None,
    faults: list[Fault] | None = None,
) -> list[RatedClip]:
    """Read LSVQ: labels_train_test.csv or labels_test_1080p.csv (3,573 videos).

    Args:
        path: one of the files, or a copy of it with fewer columns or lines.
        videos: folder of the videos; by default the file's own. Names such as yfcc-batch1/722 are paths below it
            without ".mp4".
        split: "train" or "test" by the column "is_test"; None takes all.
        faults: as in `base.read_manifest`.

    Returns:
        One clip per record, `overall` mapped from `LSVQ_SCALE`.

    Raises:
        ValueError: The file has other columns, no "is_test" where a split is asked for, or a record is malformed.

    Source: README.md and json/LSVQ.json in baidut/PatchVQ at 8062f90 (name, mos, is_test); records of
    data/LSVQ_whole_test.csv in sunwei925/SimpleVQA at 757de37 (is_test as True and False) and of
    data/labels_test_1080p.csv in GZHU-DVL/AttackVQA at d5b6a8f.
    """
    return _read(
        path, "name", "mos", LSVQ_SCALE, folder=videos, suffix=".mp4", split=split, split_of=_lsvq_set, faults=faults
    )


def read_vqathinker(
    path: str | Path, *, videos: str | Path | None = None, faults: list[Fault] | None = None
) -> list[RatedClip]:
    """Read VQAThinker's training records: a video, a question and its mean opinion as the answer.

    Args:
        path: .jsonl with the fields id, dataset_name, image (a path, or a list of one) and conversations (question,
            answer), such as LSVQ_labels_train.jsonl.
        videos: folder of the videos; by default the file's own.
        faults: as in `base.read_manifest`.

    Returns:
        One clip per record, `overall` mapped from `VQATHINKER_SCALE`; `facts` names the dataset.

    Raises:
        ValueError: A record has other fields, several videos, or an answer that is no number on the scale.

    Source: README.md (example records) and train/src/open-r1-multimodal/src/open_r1/grpo_jsonl.py in clh124/VQAThinker at
    ee47a40.
    """
    folder = Path(path).parent if videos is None else Path(videos)

    def read(record: Record, place: str) -> RatedClip:
        """Return the clip of one line."""
        image, turns = record.get("image"), record.get("conversations")
        names = image if isinstance(image, list) else [image]
        if len(names) != 1 or not isinstance(names[0], str) or not names[0]:
            raise ValueError(f"{place}: 'image' must be one path, got {image!r}")
        if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(turn, dict) for turn in turns):
            raise ValueError(f"{place}: 'conversations' must be a question and an answer, got {turns!r}")
        answer = re.sub(r"</?answer>", "", str(turns[1].get("value", "")))
        quality = {"overall": to_quality(answer, VQATHINKER_SCALE, place)}
        facts = {"dataset": record["dataset_name"]} if "dataset_name" in record else {}
        return RatedClip(folder / names[0], None, quality, names[0], facts, place=place)

    return read_each(path, read_numbered_records(path, faults=faults), read, faults)


def read_vqathinker_test(path: str | Path, *, scale: Scale, videos: str | Path | None = None) -> list[RatedClip]:
    """Read one of VQAThinker's ten test sets.

    Several records of the HFR, Waterloo and CGVDS sets show one source, whose name only the set's authors' rules tell; do
    not split these sets.

    Args:
        path: .json with {"annotations": [{"image_id", "ann_type": "score", "score"}]}.
        scale: lowest and highest rating of the set, which the file does not say. Its ratings run over 1.7 to 6.1
            (CGVDS), 1.2 to 4.7 (YouTube-UGC), 24 to 93 (KoNViD-1k, stretched by 20) and within 0 to 100 in the rest.
        videos: folder of the videos; by default the file's own.

    Returns:
        One clip per record, `overall` mapped from `scale`.

    Raises:
        ValueError: The file or a record is not as described, or a rating is outside the scale.

    Source: test/json_files/*.json in clh124/VQAThinker at ee47a40, all ten.
    """
    folder = Path(path).parent if videos is None else Path(videos)
    content = read_json(path)
    records = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(records, list) or not records:
        raise ValueError(f"{path}: expected an object with a list 'annotations'")
    clips = []
    for number, record in enumerate(records, start=1):
        place = f"{path}, annotation {number}"
        name = record.get("image_id") if isinstance(record, dict) else None
        if not isinstance(name, str) or not name or record.get("ann_type") != "score":
            raise ValueError(f"{place}: expected 'image_id' and 'ann_type': 'score', got {record!r}")
        clips.append(RatedClip(folder / name, None, {"overall": to_quality(record.get("score"), scale, place)}, name))
    return clips


def read_json(path: str | Path) -> object:
    """Read a whole JSON file.

    Args:
        path: the file; UTF-8.

    Returns:
        Its content.

    Raises:
        ValueError: There is no such file, or it is malformed.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ValueError(f"{path}: not JSON in UTF-8 ({error})") from error


def to_quality(rating: object, scale: Scale, place: str) -> float:
    """Return a rating as quality in [0, 1].

    Args:
        rating: a number, or its text.
        scale: lowest and highest rating.
        place: file and record, for the message.

    Returns:
        0 for the lowest, 1 for the highest rating.

    Raises:
        ValueError: It is no number or outside the scale.
    """
    low, high = scale
    if not low < high:
        raise ValueError(f"scale must be two numbers (low, high) with low < high, got {scale!r}")
    try:
        value = float(str(rating))
    except ValueError as error:
        raise ValueError(f"{place}: a rating must be a number, got {rating!r}") from error
    if not low <= value <= high:
        raise ValueError(f"{place}: {value:g} is outside the scale [{low:g}, {high:g}]")
    return (value - low) / (high - low)


def _read(
    path: str | Path,
    name: str,
    score: str,
    scale: Scale,
    *,
    folder: str | Path | None,
    split: str | None,
    split_of: Callable[[Record], str | None],
    suffix: str = "",
    faults: list[Fault] | None = None,
) -> list[RatedClip]:
    """Read a CSV file by two of its columns; keep the records of a split and put names into a folder."""
    columns = {"video": name, "source_id": name, "overall": f"{score}[{scale[0]:g},{scale[1]:g}]"}
    lines = {f"{path}, line {line}": record for line, record in read_numbered_records(path)}
    clips = []
    for clip in read_manifest(path, columns=columns, faults=faults):
        own = split_of(lines[clip.place])
        if split is None or own == split:
            video = (Path(path).parent if folder is None else Path(folder)) / f"{clip.source_id}{suffix}"
            clips.append(replace(clip, video=video, facts={} if own is None else {"split": own}))
    if not clips:
        raise ValueError(f"{path}: no record of split {split!r}; is it a file without splits?")
    return clips


def _koniq_set(record: Record) -> str | None:
    return str(record["set"]) if "set" in record else None


def _lsvq_set(record: Record) -> str | None:
    if "is_test" not in record:
        return None
    value = str(record["is_test"])
    if value not in ("True", "False"):
        raise ValueError(f"LSVQ: 'is_test' must be True or False, got {value!r}")
    return "test" if value == "True" else "train"
