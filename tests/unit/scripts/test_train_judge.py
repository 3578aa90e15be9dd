"""The program that trains a judge: one sentence and exit 2 for a mistake, dry run, lock, signals, base: toy."""

from __future__ import annotations

import os
import signal

import pytest

from reward_model.files import Lock
from scripts.train_judge import main

RECIPE = """
name: judge
output: {output}
base: toy
trained_on: nothing
num_sanity: 2
stages:
  first:
    data: [{{kind: moving_shapes}}]
    tasks: {{rate: 1.0}}
    role: natural
    fit: {{num_steps: 2, learning_rate: 1.0e-3, batch_size: 2}}
    num_held_out: 4
"""


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe that starts from the embedded judge, and keep the handlers of signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(output=tmp_path / "out"))
    yield str(path)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_embedded_judge_is_a_base_and_a_finished_output_keeps_its_recipe(recipe, tmp_path, capsys):
    assert main([recipe]) == 0
    assert (tmp_path / "out" / "judge" / "judge_config.json").exists()
    told = capsys.readouterr()
    assert "2/2 steps" in told.err and "left" in told.err and "2/2 clips" in told.err
    config = (tmp_path / "out" / "config.yaml").read_text()
    assert main([recipe, "stages.first.fit.learning_rate=0.5"]) == 2
    told = capsys.readouterr()
    assert "stages.first.fit.learning_rate=0.001, the recipe says 0.5" in told.err
    assert told.err.count("\n") == 1 and (tmp_path / "out" / "config.yaml").read_text() == config
    assert main([recipe, "--dry-run"]) == 0
    assert "00-first: sft, natural, finished; data: moving_shapes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stages.first.data=[{kind: manifest, path: nowhere.csv}]"], "nowhere.csv: no such file"),
        (["stages.first.fit.num_steps=0"], "num_steps must be > 0"),
        (["stages.first.fit.batch=1"], "batch"),
        (["base=/nowhere/at/all", "stages.first.data=[{kind: manifest, path: nowhere.csv}]"], "nowhere.csv: no such"),
        (["max_unreadable=2"], "max_unreadable must be in"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_mistake_gives_one_sentence_and_exit_2_and_writes_nothing(recipe, tmp_path, capsys, overrides, said, dry):
    assert main([recipe, *overrides, *dry]) == 2
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing(recipe, tmp_path, capsys):
    assert main([recipe, "--dry-run"]) == 0
    assert "00-first: sft, natural, 2 steps of 2 clips" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_second_training_into_one_output_is_refused(recipe, tmp_path, capsys):
    with Lock(tmp_path / "out", purpose="another training"):
        assert main([recipe]) == 2
    assert f"process {os.getpid()} is writing to it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_at_the_next_step_and_the_same_command_goes_on(recipe, tmp_path, capsys, monkeypatch, number):
    from reward_model.training import stages

    plain = stages.make_examples
    monkeypatch.setattr(stages, "make_examples", lambda *a, **k: (os.kill(os.getpid(), number), plain(*a, **k))[1])
    assert main([recipe]) == 0
    assert "stopped; finished stages are in" in capsys.readouterr().out
    assert not (tmp_path / "out" / "judge").exists()
    monkeypatch.setattr(stages, "make_examples", plain)
    assert main([recipe]) == 0
    assert (tmp_path / "out" / "judge" / "judge_config.json").exists()


def test_the_help_names_options_output_and_resuming(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(word in text for word in ("--dry-run", "overrides", "quarantine.jsonl", "The same command goes on"))
