"""Quarantine of labelled data that cannot be used: read before training, named with file and line, left out, and counted."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from reward_model.datasets.base import Fault, split_place
from reward_model.files import write_text
from reward_model.records import Annotation, Clip, FramePlan, RatedClip, Video, VideoPair
from reward_model.training.fit import rank_and_world
from reward_model.training.tasks.supervised import ToClip

log = logging.getLogger(__name__)

FILE = "quarantine.jsonl"
NUM_READERS = 4
"""Files that are read at a time."""

STAND_IN = Clip(torch.zeros(1, 3, 32, 32), FramePlan((0,), (0.0,), ("slow",), 1.0))
"""Clip in whose name a label is tried."""

Try = Callable[[Annotation, ToClip], object]
"""Builds what training makes of an example; raises ValueError where it cannot."""


class Quarantine:
    """Finds the examples that cannot be used; every medium is read once in a run, however many stages show it."""

    def __init__(
        self,
        output: Path,
        *,
        max_unreadable: float,
        show: Callable[[], Callable[[int, int], None]] | None = None,
        go_on: bool = False,
    ) -> None:
        """Begin a list, or go on with the one of the stages that are finished.

        Args:
            output: folder that receives `quarantine.jsonl`.
            max_unreadable: share of a file's examples above which it is refused.
            show: returns the callback that is told of the media that have been read, and their number.
            go_on: keep the list that stands in the folder.
        """
        self._path, self._max, self._show = output / FILE, max_unreadable, show
        self._alone = False
        self._reasons: dict[Path, str] = {}
        self._faults: dict[tuple[str, int, str], Fault] = {}
        if go_on and self._path.exists():
            for line in self._path.read_text().splitlines():
                fault = Fault(**json.loads(line))
                self._faults[fault.manifest, fault.line, fault.file] = fault
        elif rank_and_world()[0] == 0:
            self._path.unlink(missing_ok=True)

    def leave_the_others(self) -> None:
        """From now on this process reads all media, and no other waits for it."""
        self._alone = True

    def keep(
        self, name: str, examples: Sequence[Annotation], faults: Sequence[Fault], *, plan: ToClip, attempt: Try
    ) -> list[Annotation]:
        """Return the examples that can be used, and list the others.

        Args:
            name: of the annotation file.
            examples: that were read from it.
            faults: lines of it that could not be read.
            plan: reads a medium as the judge sees it, and raises where it cannot.
            attempt: builds what training makes of an example.

        Returns:
            The examples, in order.

        Raises:
            ValueError: More than the allowed share cannot be used.
        """
        self._read({file for one in examples for file in media_of(one) if file not in self._reasons}, plan)
        bad, good = list(faults), []
        for one in examples:
            if fault := self._fault(name, one, attempt):
                bad.append(fault)
            else:
                good.append(one)
        if bad:
            self._list(name, bad, len(examples) + len(faults))
        return good

    def _fault(self, name: str, example: Annotation, attempt: Try) -> Fault | None:
        """Return why an example cannot be used, None where it can."""
        manifest, line = split_place(example.place or name)
        for file in media_of(example):
            if self._reasons[file]:
                return Fault(manifest, line, self._reasons[file], str(file))
        try:
            if isinstance(example, RatedClip) and not example.quality:
                raise ValueError("no rating")
            attempt(example, lambda video: STAND_IN)
        except ValueError as error:
            return Fault(manifest, line, str(error), ", ".join(map(str, media_of(example))) or example.source_id)
        return None

    def _read(self, files: set[Path], plan: ToClip) -> None:
        """Read media, a share in each process."""
        rank, world = (0, 1) if self._alone else rank_and_world()
        ordered = sorted(files)
        mine, reasons = ordered[rank::world], {}
        told = self._show() if self._show is not None and mine else None
        with ThreadPoolExecutor(NUM_READERS) as pool:
            for file, reason in zip(mine, pool.map(lambda one: _reason(one, plan), mine), strict=True):
                reasons[file] = reason
                if told is not None:
                    told(len(reasons), len(mine))
        for share in [reasons] if self._alone else _gather(reasons):
            self._reasons |= share

    def _list(self, name: str, bad: Sequence[Fault], total: int) -> None:
        """Write the list, warn, and refuse too many."""
        new = [fault for fault in bad if (fault.manifest, fault.line, fault.file) not in self._faults]
        self._faults |= {(fault.manifest, fault.line, fault.file): fault for fault in bad}
        lines = [
            json.dumps({"file": f.file, "manifest": f.manifest, "line": f.line, "reason": f.reason}) + "\n"
            for f in self._faults.values()
        ]
        if rank_and_world()[0] == 0:
            write_text(self._path, "".join(lines))
        said = f"{name}: {len(bad)} of {total} examples cannot be used, all listed in {self._path}"
        if len(bad) > self._max * total:
            first = f"{bad[0].manifest}, line {bad[0].line}: {bad[0].file}: {bad[0].reason}"
            raise ValueError(f"{said}; max_unreadable={self._max:g} allows {self._max:.0%}; the first is {first}")
        if new:
            log.warning("%s", said)
        for fault in new:
            log.warning("left out: %s, line %d: %s: %s", fault.manifest, fault.line, fault.file, fault.reason)


def media_of(example: Annotation) -> tuple[Path, ...]:
    """Return the files that an example shows; videos in memory are none."""
    videos: tuple[Video | Path, ...] = (
        (example.first, example.second) if isinstance(example, VideoPair) else (example.video,)
    )
    return tuple(video for video in videos if isinstance(video, Path))


def _reason(file: Path, plan: ToClip) -> str:
    """Return why a medium cannot be used, nothing where it can."""
    try:
        plan(file)
    except (ValueError, OSError) as error:
        return str(error) or type(error).__name__
    return ""


def _gather(own: Mapping[Path, str]) -> list[Mapping[Path, str]]:
    world = rank_and_world()[1]
    if world == 1:
        return [own]
    shares: list[Mapping[Path, str]] = [own] * world
    torch.distributed.all_gather_object(shares, own)
    return shares
