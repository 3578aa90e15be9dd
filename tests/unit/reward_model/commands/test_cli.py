"""The command line with a judge passed in: inputs, output lines and exit status."""

import dataclasses
import json
import subprocess
import sys

import pytest

from reward_model import cli
from tests.fake_judge import FakeJudge

KNOWN = {"a.mp4": 0.75, "b.mp4": 0.5, "c.mp4": 0.25}


@pytest.fixture
def call(capsys):
    """Run a command with a fake judge and return exit status, stdout lines, stderr and the judge."""

    def run(*argv, known=KNOWN):
        judge = FakeJudge(known)
        status = cli.main([str(item) for item in argv], judge_factory=lambda args: judge)
        streams = capsys.readouterr()
        return status, streams.out.splitlines(), streams.err, judge

    return run


def test_json_gives_one_object_a_line_and_null_with_its_reason(call):
    status, lines, _, _ = call("score", "a.mp4", "b.mp4", "--json")
    first, second = map(json.loads, lines)
    assert status == 0
    assert first["path"] == "a.mp4"
    assert first["valid"] is True
    assert first["scores"] == {
        "visual_quality": 0.75,
        "motion_quality": 0.75,
        "text_alignment": None,
        "overall": 0.75,
    }
    assert first["reasons"] == {"text_alignment": "no prompt"}
    assert first["overall_from"] == ["visual_quality", "motion_quality"]
    assert first["frames"]["indices"] == [0, 4]
    assert second["scores"]["overall"] == 0.5


def test_an_unreadable_file_is_invalid_and_the_rest_is_still_scored(call):
    status, lines, _, _ = call("score", "a.mp4", "broken.mp4", "b.mp4", "--json", "--batch-size", 2)
    found = [json.loads(line) for line in lines]
    assert status == 1
    assert [item["valid"] for item in found] == [True, False, True]
    assert set(found[1]["scores"].values()) == {None}
    assert set(found[1]["reasons"].values()) == {"damaged: cut"}


def test_a_prompt_reaches_the_judge_and_gives_text_alignment(call):
    status, lines, _, judge = call("score", "a.mp4", "--prompt", "a cat", "--json", "--readout", "reason")
    found = json.loads(lines[0])
    assert status == 0
    assert judge.calls == [(["a.mp4"], ["a cat"], "reason")]
    assert call("score", "a.mp4", "--prompt", "")[3].calls[0][1] == [None]
    assert found["scores"]["text_alignment"] == 0.75
    assert found["text"] == "because"


def test_folders_and_lists_are_spelt_out(call, tmp_path):
    folder = tmp_path / "clips" / "deep"
    folder.mkdir(parents=True)
    for name in ("b.mp4", "a.mp4", "notes.txt"):
        (folder / name).touch()
    listing = tmp_path / "list.csv"
    listing.write_text("path,prompt\nclips/c.mp4,a dog\nclips/a.mp4,\n", encoding="utf-8")
    status, _, _, judge = call("score", tmp_path / "clips", listing, "--prompt", "a cat")
    videos, prompts, _ = judge.calls[0]
    assert status == 0
    expected = [folder / "a.mp4", folder / "b.mp4", tmp_path / "clips" / "c.mp4", tmp_path / "clips" / "a.mp4"]
    assert videos == [str(path) for path in expected]
    assert prompts == ["a cat", "a cat", "a dog", "a cat"]


def test_lists_in_jsonl_are_read_with_their_own_columns(call, tmp_path):
    listing = tmp_path / "list.jsonl"
    records = [{"file": "a.mp4", "text": 'a "red", round ball'}, {"file": "b.mp4", "text": None}, {"file": "c.mp4"}]
    listing.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    columns = ("--path-column", "file", "--prompt-column", "text")
    status, _, _, judge = call("score", listing, *columns)
    assert status == 0
    assert judge.calls[0][0] == [str(tmp_path / name) for name in ("a.mp4", "b.mp4", "c.mp4")]
    assert judge.calls[0][1] == ['a "red", round ball', None, None]


def test_text_output_is_a_tidy_table(call):
    _, lines, _, _ = call("score", "a.mp4", "broken.mp4")
    assert lines == [
        "file         visual   motion     text  overall  remarks",
        "a.mp4         0.750    0.750        -    0.750  "
        "no prompt: overall is the mean of visual_quality and motion_quality",
        "broken.mp4        -        -        -        -  damaged: cut",
    ]


def test_the_toy_judge_warns_once_on_stderr_and_others_do_not(call):
    _, _, warning, _ = call("score", "a.mp4", "b.mp4", "--batch-size", 1)
    assert warning.count("moving shapes") == 1
    assert call("score", "a.mp4", "--judge", "some/judge")[2] == ""


class WarningJudge(FakeJudge):
    """Warns of every second video, and remembers the unit that was asked for."""

    def __call__(self, videos, prompts, *, normalize, **rest):
        self.unit = normalize
        output = super().__call__(videos, prompts, **rest)
        phrases = ("24 judged frames a second (trained with 8)",)
        return dataclasses.replace(output, warnings=[phrases if index % 2 else () for index in range(len(videos))])


def test_warnings_of_the_judge_are_remarks_and_stand_in_json(capsys):
    judge = WarningJudge(KNOWN)
    argv = ["score", "a.mp4", "b.mp4", "--prompt", "x", "--normalize", "raw"]
    assert cli.main(argv, judge_factory=lambda args: judge) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("24 judged frames a second (trained with 8)") for line in lines] == [False, False, True]
    cli.main([*argv, "--json"], judge_factory=lambda args: judge)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [item["warnings"] for item in found] == [[], ["24 judged frames a second (trained with 8)"]]
    assert judge.unit == "raw"
    assert found[0]["judged_by"] == "toy role=generated readout=level scores=raw"


def test_compare_names_the_better_file(call):
    status, lines, _, _ = call("compare", "a.mp4", "c.mp4")
    assert status == 0
    assert lines == ["a.mp4 is better (first 0.750, second 0.250, tie 0.000; both orders agree)"]
    status, lines, _, _ = call("compare", "c.mp4", "a.mp4", "--json")
    found = json.loads(lines[0])
    assert (found["p_first"], found["margin"], found["consistent"]) == (0.25, -0.5, True)


def test_compare_of_a_broken_file_fails(call):
    status, lines, _, _ = call("compare", "a.mp4", "broken.mp4", "--json")
    found = json.loads(lines[0])
    assert status == 1
    assert (found["p_first"], found["valid"], found["reason"]) == (None, False, "damaged: cut")


def test_compare_reads_a_list_of_pairs_in_batches(call, tmp_path):
    listing = tmp_path / "pairs.csv"
    listing.write_text("path_A,path_B,prompt\na.mp4,b.mp4,x\nb.mp4,a.mp4,\nb.mp4,broken.mp4,y\n", encoding="utf-8")
    status, lines, _, _ = call("compare", listing, "--json", "--batch-size", 2, "--prompt", "z")
    found = [json.loads(line) for line in lines]
    assert status == 1
    assert [item["prompt"] for item in found] == ["x", "z", "y"]
    assert [item["p_first"] for item in found] == [0.625, 0.375, None]
    assert found[0]["first"] == str(tmp_path / "a.mp4")
    _, lines, _, _ = call("compare", listing)
    a, b, broken = (tmp_path / name for name in ("a.mp4", "b.mp4", "broken.mp4"))
    assert lines == [
        f"{a}  {b}  {a} is better (first 0.625, second 0.375, tie 0.000; both orders agree)",
        f"{b}  {a}  {a} is better (first 0.375, second 0.625, tie 0.000; both orders agree)",
        f"{b}  {broken}  not compared: damaged: cut",
    ]


def test_compare_reads_pairs_by_their_own_columns(call, tmp_path):
    listing = tmp_path / "pairs.jsonl"
    listing.write_text('{"winner": "a.mp4", "loser": "c.mp4", "prompt": "x"}\n', encoding="utf-8")
    status, lines, _, _ = call("compare", listing, "--columns", "first=winner", "second=loser", "--json")
    assert (status, json.loads(lines[0])["p_first"]) == (0, 0.75)


def test_rank_prints_the_best_first_and_names_what_it_leaves_out(call):
    status, lines, _, _ = call("rank", "c.mp4", "broken.mp4", "a.mp4", "b.mp4")
    assert status == 1
    assert lines == ["   1  a.mp4", "   2  b.mp4", "   3  c.mp4", "   -  broken.mp4: damaged: cut"]
    status, lines, _, _ = call("rank", "c.mp4", "a.mp4", "--prompt", "x", "--json")
    found = json.loads(lines[0])
    assert (status, found["order"], found["reasons"], found["prompt"]) == (0, ["a.mp4", "c.mp4"], {}, "x")


def test_rank_by_a_judge_that_does_not_compare_fails(call, capsys):
    class Mute(FakeJudge):
        def rank(self, group, prompt=None, *, batch_size=16):
            raise RuntimeError("the judge does not compare: only 0.01 of the probability is on the answer words")

    assert cli.main(["rank", "a.mp4", "b.mp4"], judge_factory=lambda args: Mute(KNOWN)) == 1
    assert "does not compare" in capsys.readouterr().err


def test_explain_prints_text_levels_faults_and_the_frame_that_matters(call):
    status, lines, _, _ = call("explain", "a.mp4")
    assert status == 0
    assert lines[0] == "<think>It flickers.</think>"
    assert lines[-1] == "motion_quality: poor; reasoned score 0.250; faults: flicker; frame 2 of 2 matters most"


def test_explain_of_a_broken_file_fails(call):
    status, lines, _, _ = call("explain", "broken.mp4", "--json")
    assert status == 1
    assert json.loads(lines[0])["reason"] == "damaged: cut"


def test_eval_reads_a_manifest(call, tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("file,prompt,mos\na.mp4,x,5\nb.mp4,x,3\nc.mp4,y,1\n", encoding="utf-8")
    columns = ("--columns", "video=file", "prompt=prompt", "overall=mos[1,5]")
    status, lines, _, _ = call("eval", "--manifest", path, *columns, "--json")
    (record,) = json.loads(lines[0])["rows"]
    assert status == 0
    assert (record["dimension"], record["num_clips"], record["coverage"]) == ("overall", 3, 1.0)
    assert record["srcc"] == pytest.approx(1.0)
    assert (record["num_pairs"], record["pair_accuracy"]) == (1, 1.0)


def test_eval_reads_pairs_by_comparison_and_by_score(call, tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("path_A,path_B,prompt,VQ,Overall\na.mp4,b.mp4,x,A,A\nb.mp4,a.mp4,x,A,B\n", encoding="utf-8")
    status, lines, _, _ = call("eval", "--pairs", path, "--readout", "compare", "--json")
    records = {record["dimension"]: record for record in json.loads(lines[0])["rows"]}
    assert status == 0
    assert set(records) == {"overall"}
    assert records["overall"]["accuracy"] == 1.0
    _, lines, _, _ = call("eval", "--pairs", path, "--json")
    records = {record["dimension"]: record for record in json.loads(lines[0])["rows"]}
    assert (records["visual_quality"]["accuracy"], records["overall"]["accuracy"]) == (0.5, 1.0)


def test_eval_with_an_unreadable_clip_tells_its_coverage_and_fails(call, tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("video,overall\na.mp4,1\nb.mp4,0.5\nbroken.mp4,0\nc.mp4,0.1\n", encoding="utf-8")
    status, lines, _, _ = call("eval", "--manifest", path, "--json")
    assert status == 1
    assert json.loads(lines[0])["rows"][0]["coverage"] == 0.75


def test_eval_on_the_world_rates_against_the_oracle(call):
    status, lines, _, judge = call("eval", "--world", "moving_shapes", "--num", 6)
    assert status == 0
    assert lines[0].startswith("dimension")
    assert [line.split()[0] for line in lines[1:]] == [
        "visual_quality",
        "motion_quality",
        "text_alignment",
        "overall",
    ]
    assert sum(len(videos) for videos, _, _ in judge.calls) == 6


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("score", "EMPTY"), "no video files in this folder"),
        (("score", "none.csv"), "no such file"),
        (("eval", "--manifest", "none.csv"), "no such file"),
        (("eval", "--pairs", "none.csv", "--columns", "VQ"), "OURS=THEIRS"),
        (("eval", "--world", "moving_shapes", "--columns", "a=b"), "a world has no columns"),
        (("score", "a.mp4", "--resume"), "name it with --output"),
        (("score", "a.mp4", "--output", "scores.txt"), "must end in .csv or .jsonl"),
        (("score", "a.mp4", "--device", "cuda:0,cuda:1"), "use --jobs"),
        (("compare", "a.mp4"), "two videos, or one CSV or JSONL list of pairs; got 1"),
        (("compare", "a.mp4", "b.mp4", "--columns", "first=a"), "two videos have no columns"),
        (("calibrate", "moving_shapes", "--columns", "a=b", "--dry-run"), "moving_shapes has no columns"),
        (("calibrate", "none.csv", "--dry-run"), "no such file"),
        (("calibrate", "moving_shapes"), "--output FOLDER, or only print the tables with --dry-run"),
        (("sanity", "EMPTY"), "no video files in this folder"),
    ],
)
def test_user_errors_end_with_a_line_and_status_2(call, tmp_path, argv, message):
    status, lines, error, _ = call(*(tmp_path if item == "EMPTY" else item for item in argv))
    assert (status, lines) == (2, [])
    assert message in error
    assert "Traceback" not in error


WRONG = [(), ("judge",), ("rank",), ("score",), ("score", "a.mp4", "--threads", "0"), ("eval",), ("calibrate",)]
WRONG += [("calibrate", "x.csv", "--dry-run", "--output", "y"), ("explain", "a.mp4", "--batch-size", "2")]


@pytest.mark.parametrize("argv", WRONG)
def test_wrong_usage_ends_with_status_2(call, argv):
    with pytest.raises(SystemExit) as stopped:
        call(*argv)
    assert stopped.value.code == 2


@pytest.mark.parametrize(("command", "role"), [("score", "generated"), ("compare", "comparator")])
def test_the_role_fits_the_command(command, role):
    seen = []

    def factory(args):
        seen.append(args.role)
        return FakeJudge(KNOWN)

    cli.main([command, "a.mp4", "b.mp4"], judge_factory=factory)
    cli.main([command, "a.mp4", "b.mp4", "--role", "natural"], judge_factory=factory)
    assert seen == [role, "natural"]


def test_an_interrupt_ends_with_a_line(capsys):
    def factory(args):
        raise KeyboardInterrupt

    assert cli.main(["score", "a.mp4"], judge_factory=factory) == 130
    assert capsys.readouterr().err.endswith("video-judge score: interrupted\n")


def test_help_of_every_command_imports_nothing_heavy():
    code = (
        "import sys; from reward_model import cli\n"
        "for argv in ([], *([name] for name in cli.COMMANDS)):\n"
        "    try: cli.main([*argv, '--help'])\n"
        "    except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'numpy', 'transformers', 'av', 'peft', 'fastapi', 'uvicorn'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("examples:") >= len(cli.COMMANDS)  # serve has options alone
    assert "video-judge calibrate moving_shapes --dry-run" in done.stdout
