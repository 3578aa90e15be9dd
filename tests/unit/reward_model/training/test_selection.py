"""The best weights of a stage by held-out correlation, and stopping early."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from reward_model.training.fit import FitConfig, fit
from reward_model.training.selection import BestWeights, held_out_score

ROOT = Path(__file__).parents[4]
RECIPE = """
name: judge
output: {output}
trained_on: nothing
scratch: {{family: qwen2_5_vl, hidden: 32, layers: 1}}
stages:
  first:
    data: [{{kind: moving_shapes}}]
    tasks: {{rate: 1.0}}
    fit: {{num_steps: 2, learning_rate: 1.0e-3, batch_size: 2}}
    num_held_out: 8
  second:
    data: [{{kind: moving_shapes}}]
    tasks: {{rate: 1.0}}
    role: natural
    fit: {{num_steps: 110, learning_rate: 1.0e-3, batch_size: 2}}
    num_held_out: 8
    measure_every: 40
"""


def test_the_score_is_the_mean_of_correlations_and_accuracy():
    table = {"srcc_overall": 0.5, "reason_srcc_overall": 0.7, "compare_accuracy": 0.9, "parse_rate": 0.1, "loss": 3.0}
    assert held_out_score(table) == pytest.approx(0.7)
    assert held_out_score({"parse_rate": 1.0}) == -math.inf


def test_a_correlation_that_is_not_defined_counts_as_the_worst():
    # -1 and 0.5 for the first table: a base that cannot be read yet is worse than any later one that can
    assert held_out_score({"reason_srcc_overall": math.nan, "srcc_overall": 0.5}) == pytest.approx(-0.25)
    assert held_out_score({"compare_accuracy": math.nan}) == 0
    best, last, _, _ = walk([math.nan, math.nan, 0.1, 0.05], every=3, patience=0, num_steps=9)
    assert (best.step, best.score) == (6, 0.1)


def walk(scores, *, every, patience, num_steps=100):
    """Train a number upwards, one a step, and measure by a list of scores."""
    weight = nn.Parameter(torch.zeros(1))
    given = iter(scores)
    best = BestWeights([weight], lambda: {"srcc_overall": next(given)}, every=every, patience=patience)
    settings = FitConfig(num_steps=num_steps, learning_rate=1.0, batch_size=1, warmup_steps=0, weight_decay=0.0)
    last = fit([weight], lambda step: [(-weight.sum(), {})], settings, after_step=best.after_step, log_every=1000)
    trained = float(weight.detach())
    best.restore()
    return best, last, trained, float(weight.detach())


def test_the_best_weights_come_back_and_the_stage_ends_when_they_stay_behind():
    best, last, trained, kept = walk([0.1, 0.5, 0.4, 0.3, 0.9], every=3, patience=2)
    assert (best.step, best.score) == (3, 0.5)
    assert last["step"] == 9
    assert 0 < kept < trained


def test_without_patience_all_steps_run():
    best, last, _, _ = walk([0.1, 0.5, 0.4, 0.6], every=3, patience=0, num_steps=9)
    assert (best.step, last["step"]) == (9, 9)


def test_a_stage_that_only_harms_changes_nothing():
    best, _, trained, kept = walk([0.5, 0.4, 0.5], every=2, patience=0, num_steps=4)
    assert best.step == 0 and kept == 0 and trained > 0


def test_the_last_weights_stay_where_nothing_could_be_measured():
    weight = nn.Parameter(torch.zeros(1))
    best = BestWeights([weight], lambda: {"parse_rate": 0.0}, every=1)
    weight.data.fill_(3.0)
    best.after_step(1)
    best.restore()
    assert float(weight) == 3.0
    with pytest.raises(ValueError, match="every must be >= 1"):
        BestWeights([], lambda: {"srcc_overall": 1.0}, every=0)


def start(recipe):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "scripts/train_judge.py", str(recipe)], cwd=ROOT, env=environment)


def outcome(folder):
    """Return the metrics of both stages without their durations, and the log without its."""
    tables = [json.loads(path.read_text())["metrics"] for path in sorted(folder.glob("stages/*/done.json"))]
    log = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in (*tables, *log)]


@pytest.mark.slow
def test_a_recipe_killed_within_a_stage_ends_as_if_it_had_not_been(tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / f"{name}.yaml").write_text(RECIPE.format(output=tmp_path / name))
    assert start(tmp_path / "whole.yaml").wait(timeout=300) == 0
    process, log = start(tmp_path / "killed.yaml"), tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (log.exists() and '"second"' in log.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = tmp_path / "killed" / "stages" / "00-first" / "done.json"
    written = first.stat().st_mtime_ns
    assert not (tmp_path / "killed" / "stages" / "01-second").exists()
    assert start(tmp_path / "killed.yaml").wait(timeout=300) == 0
    assert first.stat().st_mtime_ns == written
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
