"""Prompts: read from a user's file, and drawn for each round."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from generator_loop.config import PromptConfig
from generator_loop.records import Draw, Prompt
from reward_model import moving_shapes


def read_prompts(path: str | Path, *, column: str = "") -> tuple[Prompt, ...]:
    """Read prompts from a file; the prompt's id is its place in the file.

    Args:
        path: `.csv` with a header, `.jsonl` of objects, or `.txt` with one prompt a line (blank lines are skipped).
        column: column of a csv or key of a jsonl; unused for txt. Empty means `prompt`.

    Returns:
        At least one prompt.

    Raises:
        ValueError: if the file is missing or of another kind, lacks the column, or holds an empty prompt.
    """
    path = Path(path)
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".txt": _txt_rows}
    if path.suffix.lower() not in readers:
        raise ValueError(f"prompts.path must end in {', '.join(readers)}, got {path}")
    if not path.is_file():
        raise ValueError(f"prompts.path {path} does not exist or is no file")
    prompts: list[Prompt] = []
    for where, text in readers[path.suffix.lower()](path, column or "prompt"):
        if not text.strip():
            raise ValueError(f"{path}, {where}: the prompt is empty; remove the row or choose another prompts.column")
        prompts.append(Prompt(prompt_id=len(prompts), text=text.strip()))
    if not prompts:
        raise ValueError(f"{path} holds no prompts")
    return tuple(prompts)


def _csv_rows(path: Path, column: str) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if column not in (rows.fieldnames or ()):
            raise ValueError(f"{path} has no column {column!r}; set prompts.column to one of {rows.fieldnames}")
        for row in rows:
            yield f"line {rows.line_num}", row[column] or ""


def _jsonl_rows(path: Path, column: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            raise ValueError(f"{path}, line {number}: expected an object with text under {column!r}, got {line[:80]}")
        yield f"line {number}", row[column]


def _txt_rows(path: Path, _column: str) -> Iterator[tuple[str, str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return ((f"line {number}", line) for number, line in enumerate(lines, start=1) if line.strip())


def draw_prompts(
    prompts: Sequence[Prompt], *, num_prompts: int, seed: int, round_index: int, rank: int = 0, num_ranks: int = 1
) -> tuple[Prompt, ...]:
    """Draw one round's prompts, each at most once; the ranks' shares are disjoint.

    Every pass over the file is a fresh shuffle cut into rounds, so that the whole state is the round's number. What a
    pass has left over, being less than a round, waits for another pass.

    Args:
        prompts: all training prompts.
        num_prompts: prompts of the round over all ranks.
        seed: seed of the run.
        round_index: round number from 0.
        rank: this process.
        num_ranks: number of processes; must divide `num_prompts`.

    Returns:
        This rank's num_prompts / num_ranks prompts; the union over ranks does not depend on `num_ranks`.

    Raises:
        ValueError: if a round cannot be filled or split.
    """
    if not 0 < num_prompts <= len(prompts):
        raise ValueError(f"prompts per round must be in 1..{len(prompts)}, the number of prompts, got {num_prompts}")
    if num_prompts % num_ranks:
        raise ValueError(f"prompts per round ({num_prompts}) must be a multiple of the number of processes {num_ranks}")
    rounds_per_pass = len(prompts) // num_prompts
    number, part = divmod(round_index, rounds_per_pass)
    shuffle = Draw(seed, number).fork("prompts").generator(0, 0)
    order = torch.randperm(len(prompts), generator=shuffle)[part * num_prompts :][:num_prompts]
    return tuple(prompts[index] for index in order[rank::num_ranks].tolist())


def open_prompts(settings: PromptConfig, *, seed: int) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Return training and held-out prompts, which share none.

    Args:
        settings: the world, or the user's file.
        seed: chooses the held-out prompts of a file, and the order of both.

    Returns:
        Training prompts and held-out prompts.

    Raises:
        ValueError: the source holds too few prompts.
    """
    if settings.world is None:
        pool = read_prompts(Path(settings.path or ""), column=settings.column)
        shuffled = [pool[index] for index in _order(len(pool), seed)]
        held_out, train = shuffled[: settings.num_held_out], shuffled[settings.num_held_out :]
    else:
        known, unseen = (
            moving_shapes.finetuning_scenes(moving_shapes.CORE),
            moving_shapes.split(moving_shapes.CORE)[1],
        )
        train = [Prompt(place, moving_shapes.caption(scene)) for place, scene in enumerate(known)]
        others = [Prompt(len(known) + place, moving_shapes.caption(scene)) for place, scene in enumerate(unseen)]
        held_out = [others[index] for index in _order(len(others), seed)][: settings.num_held_out]
    if len(held_out) < settings.num_held_out or not train:
        raise ValueError(
            f"prompts.num_held_out={settings.num_held_out} leaves {len(train)} training prompts; lower it or add prompts"
        )
    return tuple(train[: settings.max_prompts]), tuple(held_out)


def _order(num: int, seed: int) -> list[int]:
    return torch.randperm(num, generator=torch.Generator().manual_seed(seed)).tolist()
