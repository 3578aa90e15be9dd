"""`video-judge score`: scores of files, folders and lists as a table, JSON lines or a resumable file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

from reward_model.commands import workers
from reward_model.commands.inputs import Item, list_items
from reward_model.commands.judge_options import JudgeFactory, open_judge, positive, warn_of_toy
from reward_model.commands.progress import progress_bar
from reward_model.commands.result_file import ResultFile
from reward_model.commands.results import (
    Reading,
    Result,
    json_line,
    judged_by,
    score_items,
    table_head,
    table_line,
    unscored,
)
from reward_model.terminal import visible

DESCRIPTION = """Score videos. Inputs are video files, folders (searched recursively), and CSV or JSONL lists with the columns path and
prompt; paths of a list are relative to its folder."""

EXAMPLES = """examples:
  video-judge score clip.mp4 --prompt "a large red circle moving left slowly over a plain floor"
  video-judge score clips/ more/*.mp4 --json            one JSON object per line; a missing score is null
  video-judge score list.csv --output scores.jsonl      path and prompt from a list
  video-judge score clips/ --output scores.csv --resume continue after a kill; a record cut short is redone
  video-judge score clips/ --output scores.csv --jobs 4 four processes, each with its own judge
  video-judge score clips/ --jobs 2 --device cuda:0,cuda:1
  video-judge score clip.mp4 --prompt "a red circle moving left" --readout reason --samples 8
  video-judge score clip.mp4 --normalize z              standardised by constants, see video-judge calibrate

std is the standard deviation of the judge's distribution over ratings, in units of quality (0 to 1) with any
--normalize. Remarks and warnings list properties of a clip outside the judge's training range: frame rate, number of frames, frame
size. --resume recognises an item by its path and prompt; an item that failed before is not retried (delete its line to
retry it). The exit status is 1 if an item has no score."""


class Sink(Protocol):
    """Destination of results; `missing` holds the places of the items that are not written yet."""

    missing: Sequence[int]
    num_failed: int

    def write(self, results: Sequence[Result]) -> None:
        """Write results, in the order of the items."""

    def close(self) -> None:
        """End the writing."""


class Printed:
    """Prints results as JSON lines, or as a table whose paths take `width` characters."""

    def __init__(self, num_items: int, *, as_json: bool, width: int) -> None:
        self.missing: Sequence[int] = range(num_items)
        self.num_failed = 0
        self.as_json, self.width = as_json, width
        self.headless = not as_json

    def write(self, results: Sequence[Result]) -> None:
        """Print results."""
        if self.headless:
            print(table_head(self.width))
            self.headless = False
        for result in results:
            self.num_failed += not result["valid"]
            print(json_line(result) if self.as_json else table_line(result, self.width), flush=True)

    def close(self) -> None:
        """Do nothing: nobody else prints here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("inputs", nargs="+", help="video files, folders of them, or CSV or JSONL lists")
    parser.add_argument("--prompt", help="generation prompt of videos without one in a list")
    parser.add_argument("--path-column", help="column of a list that holds the videos (default: path, video or path_A)")
    parser.add_argument(
        "--prompt-column", default="prompt", help="column of a list that holds the prompts (default: prompt)"
    )
    parser.add_argument(
        "--readout", choices=("level", "reason"), default="level", help="one forward pass, or a reasoned answer"
    )
    parser.add_argument("--samples", type=positive, default=1, help="reasoned answers to average (default: 1, greedy)")
    parser.add_argument(
        "--normalize",
        choices=("unit", "raw", "z"),
        default="unit",
        help="unit of the scores: 0 to 1, 1 to 5, or standard deviations by the judge's constants (default: unit)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write a .csv or .jsonl file instead of printing")
    parser.add_argument("--resume", action="store_true", help="continue an existing --output")
    parser.add_argument("--jobs", type=positive, default=1, help="processes, each with its own judge (default: 1)")
    parser.add_argument("--progress", action="store_true", help="show progress even if stderr is not a terminal")


def run(args: argparse.Namespace, judge_factory: JudgeFactory) -> int:
    """Score all items and write results in their order."""
    if args.resume and args.output is None:
        raise ValueError("--resume continues a file; name it with --output")
    if args.jobs == 1 and args.device and "," in args.device:
        raise ValueError(f"--device {args.device} names several devices; use --jobs to give each a process")
    items = list_items(args.inputs, prompt=args.prompt, path_column=args.path_column, prompt_column=args.prompt_column)
    args.role = args.role or "generated"
    with closing(_open_sink(args, items)) as sink:
        return _score(args, judge_factory, items, sink)


def _score(args: argparse.Namespace, judge_factory: JudgeFactory, items: Sequence[Item], sink: Sink) -> int:
    missing = set(sink.missing)
    # Batches are cut from the whole list, so that an item keeps its neighbours, and its last digits, on a resume.
    cut = (range(start, min(start + args.batch_size, len(items))) for start in range(0, len(items), args.batch_size))
    places = [batch for batch in cut if missing.intersection(batch)]
    batches = [[items[place] for place in batch] for batch in places]
    progress, done = progress_bar(args.progress, beside_output=args.output is None), 0
    try:
        for batch, results in zip(places, _answers(args, judge_factory, batches), strict=True):
            new = [result for place, result in zip(batch, results, strict=True) if place in missing]
            sink.write(new)
            done += len(new)
            if progress:
                progress(done, len(missing))
    except workers.WorkersGoneError as error:
        print(f"video-judge score: {visible(str(error))}; {len(missing) - done} items were not scored", file=sys.stderr)
        return 1
    if args.output:
        _tell(args, sink, num_items=len(items), num_new=done)
    return int(sink.num_failed > 0)


def _reading(args: argparse.Namespace) -> Reading:
    return Reading(args.readout, args.samples, args.normalize)


def _open_sink(args: argparse.Namespace, items: Sequence[Item]) -> Sink:
    if args.output:
        return ResultFile(args.output, items, maker=judged_by(args, _reading(args)), resume=args.resume)
    return Printed(len(items), as_json=args.json, width=max(len(visible(item.path)) for item in items))


def _answers(
    args: argparse.Namespace, judge_factory: JudgeFactory, batches: Sequence[Sequence[Item]]
) -> Iterator[list[Result]]:
    """Yield the results of each batch in turn, from this process or from several."""
    if not batches:
        return
    reading = _reading(args)
    maker = judged_by(args, reading)
    if args.jobs == 1:
        judge = open_judge(args, judge_factory)
        for batch in batches:
            yield score_items(judge, batch, reading, maker)
        return
    warn_of_toy(args)
    commands = workers.commands(args, reading, num=min(args.jobs, len(batches)))
    for batch, answer in zip(batches, workers.scatter(commands, batches, report=_report), strict=True):
        yield [unscored(item, answer, maker) for item in batch] if isinstance(answer, str) else answer


def _report(event: str) -> None:
    print(f"video-judge score: {visible(str(event))}", file=sys.stderr)


def _tell(args: argparse.Namespace, sink: Sink, *, num_items: int, num_new: int) -> None:
    """Print the number of items in the output file."""
    if args.json:
        counts = {"items": num_items, "new": num_new, "failed": sink.num_failed}
        print(json_line({"output": str(args.output), **counts}))
    else:
        print(
            f"{visible(str(args.output))}: {num_items} items, {num_new} of them new, {sink.num_failed} without a score"
        )
