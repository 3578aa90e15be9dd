"""A judge trained by two processes under torchrun: stopped through the launcher or one process, and gone on with."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reward_model.files import Lock

ROOT = Path(__file__).resolve().parents[2]
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
    fit: {{num_steps: {steps}, learning_rate: 1.0e-3, batch_size: 2}}
    num_held_out: 4
"""

pytestmark = pytest.mark.slow


def launched(folder, *, steps):
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(output=folder / "out", steps=steps))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*launcher, "scripts/train_judge.py", str(recipe)],
        stdout=(folder / "out.txt").open("w"),
        stderr=(folder / "err.txt").open("w"),
        cwd=ROOT,
        env=environment,
    )


def children(process):
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def wait_for_steps(folder):
    end = time.monotonic() + 240
    while "/100000 steps" not in (folder / "err.txt").read_text():
        assert time.monotonic() < end, (folder / "err.txt").read_text()
        time.sleep(0.2)
    time.sleep(1)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are read from /proc")
@pytest.mark.parametrize("who", ["launcher", "second"])
def test_sigterm_stops_both_and_the_same_command_goes_on(tmp_path, who):
    training = launched(tmp_path, steps=100_000)
    wait_for_steps(tmp_path)
    workers = children(training.pid)
    assert len(workers) == 2
    os.kill(training.pid if who == "launcher" else workers[1], signal.SIGTERM)
    status = training.wait(timeout=120)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert (tmp_path / "out.txt").read_text().count("stopped; finished stages are in") == 1
    assert status == 0 or who == "launcher"  # torchrun's own status after a signal is not 0
    assert not (tmp_path / ".out.lock").exists() and not list((tmp_path / "out").glob("stages/*"))
    finished = launched(tmp_path, steps=2)
    assert finished.wait(timeout=300) == 0, (tmp_path / "err.txt").read_text()
    assert (tmp_path / "out" / "judge" / "judge_config.json").exists()


def test_an_output_that_another_training_writes_to_is_refused_by_both_in_one_sentence(tmp_path):
    with Lock(tmp_path / "out", purpose="another training"):
        assert launched(tmp_path, steps=2).wait(timeout=240) != 0
    said = (tmp_path / "err.txt").read_text()
    assert said.count(f"process {os.getpid()} is writing to it") == 1
    assert not (tmp_path / "out").exists()
