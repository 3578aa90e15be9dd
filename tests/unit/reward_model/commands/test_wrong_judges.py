"""Judges that are not there, and file names made to forge a table: one sentence each, at once."""

import time

import pytest

from reward_model.cli import main
from reward_model.commands.inputs import Item
from reward_model.commands.results import table_line, unscored
from reward_model.terminal import visible


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ("toyy", "judge 'toyy' is neither a folder nor a hub id such as owner/name; did you mean 'toy'?"),
        ("/nope", "judge '/nope' is neither a folder nor a hub id such as owner/name"),
        ("./nope", "judge './nope' is neither a folder nor a hub id"),
        ("a b/c", "judge 'a b/c' is neither a folder nor a hub id"),
        ("judg", "did you mean 'judge'?"),
        ("judge/judge_config.json", "is a file; name the folder that holds judge_config.json"),
        ("judge", "tokenizer.json is missing"),
    ],
)
def test_a_judge_that_is_not_there_is_refused_at_once(judge, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge").mkdir()
    if judge == "judge/judge_config.json":
        (tmp_path / judge).write_text("{}")
    (tmp_path / "clip.mp4").write_bytes(b"")
    monkeypatch.setattr("reward_model.weights.hub_is_away", lambda: pytest.fail("the hub was asked"))
    monkeypatch.setattr("reward_model.judge.checkpoints.location.hub_is_away", lambda: pytest.fail("the hub was asked"))
    start = time.monotonic()
    assert main(["score", "clip.mp4", "--judge", judge]) == 2
    assert time.monotonic() - start < 10
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and captured.err.strip().count("\n") == 0


def test_a_hub_that_is_away_is_asked_once_and_the_refusal_says_so(tmp_path, monkeypatch, capsys):
    (tmp_path / "clip.mp4").write_bytes(b"")
    asked = []
    monkeypatch.setattr("reward_model.judge.checkpoints.location.hub_is_away", lambda: asked.append(1) or True)
    assert main(["score", str(tmp_path / "clip.mp4"), "--judge", "nobody/no-such-judge"]) == 2
    captured = capsys.readouterr()
    assert asked == [1] and "nobody/no-such-judge is no folder, and is unavailable from the hub" in captured.err
    assert "the hub cannot be reached, and no copy is kept here" in captured.err


HOSTILE = "a\x1b[2Jb\nc\rd\u202ee\u2028f\x9b1m\udc80.mp4"
SHOWN = r"a\x1b[2Jb\nc\rd\u202ee\u2028f\x9b1m\udc80.mp4"


def test_control_characters_of_a_file_name_are_shown_and_not_obeyed():
    assert visible(HOSTILE) == SHOWN
    assert visible("Stra\u00dfe \u6f22\u5b57 a-b.mp4") == "Stra\u00dfe \u6f22\u5b57 a-b.mp4"
    line = table_line(unscored(Item(HOSTILE, None), f"{HOSTILE} is damaged", "toy"), width=60)
    assert line.count(SHOWN) == 2 and line.isprintable()


@pytest.mark.parametrize("command", ["score", "rank", "compare", "explain"])
def test_no_command_prints_a_control_character_of_a_file_name(command, tmp_path, capsys):
    file = tmp_path / "a\x1b[2Jb\nc.mp4"
    file.write_bytes(b"none")
    names = [str(file)] * (1 if command in ("score", "explain") else 2)
    assert main([command, *names, "--prompt", "a dog"]) in (1, 2)
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert r"a\x1b[2Jb\nc.mp4" in shown or command in ("compare", "explain")
    assert "\x1b" not in shown and "b\nc" not in shown
