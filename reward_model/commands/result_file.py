"""A file of scores that survives a kill: whole records are appended, and resuming drops a record cut short."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from reward_model.commands.inputs import Item
from reward_model.commands.results import CSV_COLUMNS, Result, csv_line, csv_record, json_line
from reward_model.files import Lock

ENCODING = {"encoding": "utf-8", "errors": "surrogateescape"}
"""File names may hold bytes that are not UTF-8; these are written and read back unchanged."""

HEAD = csv_record(CSV_COLUMNS) + "\n"


class ResultFile:
    """Scores of a list of items in a CSV or JSONL file, in the order of the list.

    Attributes:
        missing: places in the list of the items that are not in the file yet.
        num_failed: number of items of the list that are in the file and not valid.
    """

    def __init__(self, path: Path, items: Sequence[Item], *, maker: str, resume: bool) -> None:
        """Open a new file, or one to resume.

        Args:
            path: file that ends in .csv or .jsonl; missing folders are made.
            items: items that will be written.
            maker: the `judged_by` line; a file with another one is not resumed.
            resume: continue an existing file.

        Raises:
            ValueError: another suffix; a file that another run writes to; an existing file without `resume`; or a file
                that was not written by this command with this judge.
        """
        if path.suffix not in (".csv", ".jsonl"):
            raise ValueError(f"--output must end in .csv or .jsonl, got {path}")
        self.path, self._csv = path, path.suffix == ".csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        # links to one file have one lock
        self._lock = Lock(path.resolve(), purpose="this run")
        try:
            self._open(items, maker, resume=resume)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let other runs write to the file."""
        self._lock.release()

    def _open(self, items: Sequence[Item], maker: str, *, resume: bool) -> None:
        path = self.path
        if path.exists() and path.stat().st_size and not resume:
            raise ValueError(f"{path} exists already; add --resume to continue it, or name another --output")
        written = path.read_bytes() if path.exists() else b""
        whole = written[: _whole_records(written, is_csv=self._csv)]
        known = self._read(whole, written[len(whole) :], maker)
        with path.open("ab") as file:
            file.truncate(len(whole))
        present = Counter(key for key, _ in known)
        self.missing: Sequence[int] = [place for place, item in enumerate(items) if not _take(present, _key(item))]
        asked = Counter(map(_key, items))
        self.num_failed = sum(not valid for key, valid in known if asked[key])
        self._head = HEAD if self._csv and not whole else ""

    def write(self, results: Sequence[Result]) -> None:
        """Append results in one write."""
        line = csv_line if self._csv else json_line
        self.num_failed += sum(not result["valid"] for result in results)
        text = self._head + "".join(line(result) + "\n" for result in results)
        self._head = ""
        with self.path.open("ab") as file:
            file.write(text.encode(**ENCODING))

    def _read(self, whole: bytes, cut: bytes, maker: str) -> list[tuple[tuple[str, str], bool]]:
        """Return ((path, prompt), valid) of each record."""
        text, wrong = whole.decode(**ENCODING), f"{self.path} was not written by `video-judge score`"
        begins = (b"" if whole else HEAD.encode()) if self._csv else b'{"path": '
        if not (cut.startswith(begins) or begins.startswith(cut)):
            raise ValueError(f"{wrong}: its last line is {cut[:60]!r}")
        if self._csv:
            head, *records = list(csv.reader(io.StringIO(text, newline=""))) or [list(CSV_COLUMNS)]
            if head != list(CSV_COLUMNS) or any(len(record) != len(head) for record in records):
                raise ValueError(f"{wrong}: its columns are {head}")
            results: list[Result] = [dict(zip(head, record, strict=True)) for record in records]
        else:
            results = _objects(text, wrong)
        if others := {result["judged_by"] for result in results} - {maker}:
            raise ValueError(
                f"{self.path} holds scores of {sorted(others)[0]!r}, not of {maker!r}; name another --output"
            )
        return [((one["path"], one["prompt"] or ""), one["valid"] in (True, "true")) for one in results]


def _objects(text: str, wrong: str) -> list[Result]:
    results = []
    for line in text.split("\n")[:-1]:
        try:
            result = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{wrong}: {error}") from error
        if not isinstance(result, dict) or not {"path", "prompt", "valid", "judged_by"} <= set(result):
            raise ValueError(f"{wrong}: one of its lines is {line[:60]!r}")
        results.append(result)
    return results


def _whole_records(written: bytes, *, is_csv: bool) -> int:
    """Return the number of bytes in whole records; in CSV a line end within quotes does not end one."""
    if not is_csv:
        return written.rfind(b"\n") + 1
    end = place = quotes = 0
    for line in written.splitlines(keepends=True):
        place, quotes = place + len(line), quotes + line.count(b'"')
        if line.endswith(b"\n") and quotes % 2 == 0:
            end = place
    return end


def _key(item: Item) -> tuple[str, str]:
    return item.path, item.prompt or ""


def _take(present: Counter[tuple[str, str]], key: tuple[str, str]) -> bool:
    """Remove one record of that key, and return whether there was one; equal items need a record each."""
    present[key] -= 1
    return present[key] >= 0
