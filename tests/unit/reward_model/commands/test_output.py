"""Files of scores: what is written, and that a killed run goes on to the same file."""

import csv
import json
import signal
import subprocess
import sys
import time

import pytest

from reward_model import cli
from reward_model.commands.inputs import list_items
from reward_model.commands.result_file import ResultFile
from tests.fake_judge import FakeJudge

PROMPTS = ["a cat, sitting", 'the "big" one', "zwei\nZeilen", "\u96e8 \u2028 \U0001f600", "carriage\rreturn", ""]
NAMES = ["a.mp4", "b.mp4", "broken.mp4", 'comma, quote".mp4', "a.mp4", "d.mp4"]
KNOWN = {"a.mp4": 0.1 + 0.2, "b.mp4": 1e-7, 'comma, quote".mp4': 1.0, "d.mp4": 0.5}


@pytest.fixture
def listing(tmp_path):
    """A list of six videos, two of them equal in path but not in prompt, one of them unreadable."""
    path = tmp_path / "list.jsonl"
    records = [{"path": name, "prompt": prompt} for name, prompt in zip(NAMES, PROMPTS, strict=True)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def score(*argv, judge=None, size=2):
    judge = judge or FakeJudge(KNOWN)
    argv = ["score", *map(str, argv), "--batch-size", str(size)]
    return cli.main(argv, judge_factory=lambda args: judge), judge


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_jsonl_holds_what_would_be_printed(listing, tmp_path, capsys):
    status, _ = score(listing, "--json")
    printed = capsys.readouterr().out
    assert (status, score(listing, "--output", tmp_path / "out.jsonl")[0]) == (1, 1)
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == printed
    assert capsys.readouterr().out == f"{tmp_path / 'out.jsonl'}: 6 items, 6 of them new, 1 without a score\n"


def test_csv_gives_back_every_character_and_every_digit(listing, tmp_path):
    score(listing, "--output", tmp_path / "deep" / "out.csv")
    records = read_csv(tmp_path / "deep" / "out.csv")
    assert [record["path"] for record in records] == [str(tmp_path / name) for name in NAMES]
    assert [record["prompt"] for record in records] == PROMPTS
    assert [record["valid"] for record in records] == ["true", "true", "false", "true", "true", "true"]
    assert [record["visual_quality"] for record in records][2] == ""
    single = [0.30000001192092896, 1.0000000116860974e-07]  # the judge's numbers are float32
    assert [float(record["visual_quality"]) for record in records[:2]] == single
    assert (records[5]["text_alignment"], records[5]["reasons"]) == ("", "text_alignment: no prompt")
    assert (records[0]["frames"], records[5]["overall_from"]) == ("0 4", "visual_quality+motion_quality")
    assert records[0]["judged_by"] == "toy role=generated readout=level scores=unit"


def test_summary_of_a_file_is_one_json_object(listing, tmp_path, capsys):
    score(listing, "--output", tmp_path / "out.csv", "--json")
    expected = {"output": str(tmp_path / "out.csv"), "items": 6, "new": 6, "failed": 1}
    assert json.loads(capsys.readouterr().out) == expected


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_file_cut_anywhere_goes_on_to_the_same_file(listing, tmp_path, suffix):
    whole, cut, lines = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}", tmp_path / "lines.jsonl"
    score(listing, "--output", whole)
    score(listing, "--output", lines)
    results = [json.loads(line) for line in lines.read_text().splitlines()]
    items, expected = list_items([str(listing)]), whole.read_bytes()
    ends = [place for place, byte in enumerate(expected) if byte == ord("\n")]
    near = {end + step for end in ends for step in (-1, 0, 1, 2)}
    for size in sorted({*range(0, len(expected), 7), *near} & set(range(len(expected)))):
        cut.write_bytes(expected[:size])
        file = ResultFile(cut, items, maker=results[0]["judged_by"], resume=True)
        file.write([results[place] for place in file.missing])
        file.close()
        assert (file.num_failed, cut.read_bytes()) == (1, expected), size


def test_a_batch_that_lacks_one_item_is_scored_with_its_neighbours(listing, tmp_path):
    out = tmp_path / "out.jsonl"
    score(listing, "--output", out)
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:3]))
    _, judge = score(listing, "--output", out, "--resume")
    # items 2 and 3 make the second batch: the third item is there, the fourth is not
    assert [len(videos) for videos, _, _ in judge.calls] == [2, 2]
    assert judge.calls[0][1] == PROMPTS[2:4]
    assert out.read_bytes() == b"".join(lines)


def test_a_finished_file_is_left_alone_and_keeps_its_exit_status(listing, tmp_path):
    score(listing, "--output", tmp_path / "out.csv")
    before = (tmp_path / "out.csv").read_bytes()
    status, judge = score(listing, "--output", tmp_path / "out.csv", "--resume")
    assert (status, judge.calls, (tmp_path / "out.csv").read_bytes()) == (1, [], before)


def test_equal_items_each_have_their_line(tmp_path):
    out = tmp_path / "out.jsonl"
    score("a.mp4", "a.mp4", "--output", out)
    assert len(out.read_text().splitlines()) == 2
    _, judge = score("a.mp4", "a.mp4", "a.mp4", "b.mp4", "--output", out, "--resume", size=1)
    assert [videos for videos, _, _ in judge.calls] == [["a.mp4"], ["b.mp4"]]
    assert len(out.read_text().splitlines()) == 4


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("notes", ["my notes", "path,my notes", "my,notes\n1,2\n3", '{"my": "notes"}\n', "[1, 2]\n{"])
def test_a_file_of_others_is_not_touched(tmp_path, capsys, notes, suffix):
    out = tmp_path / f"out{suffix}"
    out.write_text(notes, encoding="utf-8")
    assert score("a.mp4", "--output", out)[0] == 2
    assert "add --resume" in capsys.readouterr().err
    assert score("a.mp4", "--output", out, "--resume")[0] == 2
    assert "was not written by" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == notes


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_scores_of_two_readings_are_not_mixed(tmp_path, suffix, capsys):
    out = tmp_path / f"out{suffix}"
    score("a.mp4", "--output", out)
    before = out.read_bytes()
    assert score("a.mp4", "b.mp4", "--output", out, "--resume", "--normalize", "raw")[0] == 2
    assert "scores=unit" in capsys.readouterr().err
    assert out.read_bytes() == before


SLOW = """
import sys, time
from reward_model import cli
from reward_model.commands.inputs import list_items
from reward_model.commands.result_file import ResultFile
from tests.fake_judge import FakeJudge

class SlowFakeJudge(FakeJudge):
    def __call__(self, videos, prompts, **rest):
        time.sleep(0.1)
        return super().__call__(videos, prompts, **rest)

names = {f"{i}.mp4": i / 40 for i in range(39)}
sys.exit(cli.main(sys.argv[1:], judge_factory=lambda args: SlowFakeJudge(names)))
"""


def test_a_killed_run_resumes_to_the_file_of_an_uninterrupted_one(tmp_path):
    names, out = [f"{i}.mp4" for i in range(40)], tmp_path / "out.csv"
    argv = ["score", *names, "--prompt", "a, b", "--output", str(out), "--batch-size", "2"]
    process = subprocess.Popen([sys.executable, "-c", SLOW, *argv])
    while not (out.exists() and out.read_bytes().count(b"\n") > 5):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    cut = out.read_bytes()
    known = {name: i / 40 for i, name in enumerate(names[:-1])}  # the last one is unreadable
    assert 5 < cut.count(b"\n") < 41
    argv = ["score", *names, "--prompt", "a, b", "--batch-size", "2", "--output"]
    assert cli.main([*argv, str(out), "--resume"], judge_factory=lambda args: FakeJudge(known)) == 1
    assert cli.main([*argv, str(tmp_path / "once.csv")], judge_factory=lambda args: FakeJudge(known)) == 1
    assert out.read_bytes() == (tmp_path / "once.csv").read_bytes()
    assert out.read_bytes().startswith(cut)
