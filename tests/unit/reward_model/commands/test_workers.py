"""Several scoring processes: answers in order, and what happens when one of them dies."""

import argparse
import json
import re
import sys

import pytest

from reward_model.commands import workers
from reward_model.commands.inputs import Item
from reward_model.commands.progress import ProgressLine, duration
from reward_model.commands.results import Reading

WORKER = """
import json, os, signal, sys, time
name = sys.argv[1]
for line in sys.stdin:
    items = json.loads(line)["items"]
    paths = [path for path, _ in items]
    if "poison.mp4" in paths or (name == "weak" and "heavy.mp4" in paths):
        os.kill(os.getpid(), signal.SIGKILL)
    if "quit.mp4" in paths:
        sys.exit(3)
    if "refused.mp4" in paths:
        print(json.dumps({"error": "no such judge"}), flush=True)
        continue
    if name == "slow":
        time.sleep(0.3)
    print(json.dumps({"results": [{"path": path, "prompt": prompt, "by": name} for path, prompt in items]}), flush=True)
"""


def scatter(names, paths):
    """Return the answers for one item a batch, by workers of these names, and what was reported."""
    events = []
    commands = [[sys.executable, "-c", WORKER, name] for name in names]
    batches = [[Item(path, "p")] for path in paths]
    return list(workers.scatter(commands, batches, report=events.append)), events


def test_answers_come_in_the_order_of_the_batches_whoever_is_first():
    answers, events = scatter(["slow", "quick"], ["a.mp4", "b.mp4", "c.mp4", "d.mp4"])
    assert [[item["path"] for item in answer] for answer in answers] == [["a.mp4"], ["b.mp4"], ["c.mp4"], ["d.mp4"]]
    assert [answer[0]["by"] for answer in answers] == ["slow", "quick", "quick", "quick"]
    assert events == []


def test_the_batch_of_a_killed_process_goes_to_another_and_is_reported():
    answers, events = scatter(["weak", "quick"], ["heavy.mp4", "b.mp4", "c.mp4"])
    assert [(answer[0]["path"], answer[0]["by"]) for answer in answers] == [
        ("heavy.mp4", "quick"),
        ("b.mp4", "quick"),
        ("c.mp4", "quick"),
    ]
    assert events == ["process 1 was killed by SIGKILL at heavy.mp4; its items go to another process"]


def test_a_batch_that_two_processes_died_of_is_given_up_and_the_rest_is_scored():
    answers, events = scatter(["one", "two", "three"], ["poison.mp4", "b.mp4", "c.mp4"])
    assert re.fullmatch(
        r"2 processes died while scoring this batch; the last one, process \d was killed by SIGKILL", answers[0]
    )
    assert [answer[0]["path"] for answer in answers[1:]] == ["b.mp4", "c.mp4"]
    assert [event.rpartition("; ")[2] for event in events] == ["its items go to another process", "given up"]


def test_without_any_process_left_the_run_ends():
    with pytest.raises(workers.WorkersGoneError, match="no process is left"):
        scatter(["one"], ["quit.mp4", "b.mp4"])


def test_an_exit_is_reported_with_its_status():
    events = []
    commands = [[sys.executable, "-c", WORKER, "one"]]
    with pytest.raises(workers.WorkersGoneError):
        list(workers.scatter(commands, [[Item("quit.mp4", None), Item("b.mp4", None)]], report=events.append))
    assert events == [
        "process 1 ended with status 3 at quit.mp4 and the 1 items after it; its items go to another process"
    ]


def test_what_a_process_refuses_is_the_users_to_mend():
    with pytest.raises(ValueError, match="no such judge"):
        scatter(["one", "two"], ["refused.mp4", "b.mp4"])


def test_devices_are_dealt_out_in_turn():
    args = argparse.Namespace(judge="toy", role="generated", threads=1, allow_damaged=False, device="cuda:0,cuda:1")
    found = [json.loads(command[-1]) for command in workers.commands(args, Reading(samples=2), num=3)]
    assert [settings["device"] for settings in found] == ["cuda:0", "cuda:1", "cuda:0"]
    assert found[0]["reading"] == {"readout": "level", "samples": 2, "normalize": "unit"}
    args.device = None
    assert [json.loads(c[-1])["device"] for c in workers.commands(args, Reading(), num=2)] == [None, None]


class Terminal:
    """Remembers what is written, as a terminal or as a file."""

    def __init__(self, *, tty):
        self.text, self.tty = "", tty

    def isatty(self):
        return self.tty

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_progress_tells_rate_and_remaining_time():
    clock = iter([0.0, 2.0, 8.0])
    stream = Terminal(tty=True)
    progress = ProgressLine(stream=stream, clock=lambda: next(clock))
    progress(10, 40)  # 10 in 2 s: 30 more take 6 s
    progress(40, 40)
    assert (
        stream.text == "\r\x1b[K10/40 clips, 5.00 per second, 6 s left\r\x1b[K40/40 clips, 5.00 per second, 0 s left\n"
    )


def test_progress_in_a_file_is_a_line_now_and_then():
    clock = iter([0.0, 1.0, 6.0, 7.0, 8.0])
    stream = Terminal(tty=False)
    progress = ProgressLine(stream=stream, unit="pairs", clock=lambda: next(clock))
    for done in (1, 3, 4, 8):
        progress(done, 8)
    assert stream.text == "3/8 pairs, 0.50 per second, 10 s left\n8/8 pairs, 1.00 per second, 0 s left\n"


def test_durations_read_well():
    assert [duration(s) for s in (0.4, 59, 65, 3600, 7625)] == ["0 s", "59 s", "1 min 05 s", "1 h 00 min", "2 h 07 min"]
