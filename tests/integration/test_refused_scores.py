"""Runs in which many samples have no score, from the command line to its last word."""

import json
import math
import signal

import pytest
import torch

from generator_loop.__main__ import main
from tests.tiny_runs import tiny_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return tiny_recipe(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def spotty(frames, prompts, *, fps):
    """Leave out two of three samples of a group."""
    return torch.tensor([0.5 if place % 3 == 0 else math.nan for place in range(len(frames))])


def patchy(frames, prompts, *, fps):
    """Leave out one of three samples of a group."""
    return torch.tensor([math.nan if place % 3 == 0 else 0.1 * place for place in range(len(frames))])


def run(recipe, output, term, **changes):
    file = output.parent / "empty.yaml"
    file.write_text("{}\n")
    named = f"reward.terms.mine.callable=tests.integration.test_refused_scores:{term}"
    overrides = recipe(output, loop__num_rounds=1, loop__num_iterations=1, refresh__every=0, **changes)
    return main([str(file), *overrides, named])


def test_a_run_with_more_than_half_of_its_samples_unscored_ends_with_one_sentence(recipe, tmp_path, capsys):
    assert run(recipe, tmp_path / "run", "spotty") == 1
    last = [line for line in capsys.readouterr().err.splitlines() if line.startswith("joint_train.py")][-1]
    assert last.startswith(
        "joint_train.py: 67% of the samples have no score, more than reward.max_invalid_fraction=0.5"
    )
    assert "mine" in last and "most frequent reason" in last
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not (tmp_path / ".run.lock").exists()


def test_a_run_with_fewer_goes_on_and_says_so(recipe, tmp_path):
    assert run(recipe, tmp_path / "run", "patchy") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert any("of the samples have no score" in alarm for alarm in summary["alarms"])


def test_the_share_is_the_recipes(recipe, tmp_path, capsys):
    assert run(recipe, tmp_path / "run", "patchy", reward__max_invalid_fraction=0.2) == 1
    assert "33% of the samples have no score" in capsys.readouterr().err
