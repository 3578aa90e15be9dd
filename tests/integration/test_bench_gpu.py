"""The GPU benchmark's script by itself: it runs where there is no GPU, at a tiny size, and says so where nothing can be measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run(*arguments):
    """Run the script on one thread and return what it printed."""
    command = [sys.executable, "scripts/bench/gpu.py", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_says_that_there_is_no_gpu():
    assert run() == "no GPU is at hand, so nothing was measured\n"


@pytest.mark.slow
def test_it_measures_both_families_and_both_steps(tmp_path):
    out = tmp_path / "figures.json"
    run("--size", "tiny", "--device", "cpu", "--repeats", "1", "--out", str(out))
    found = json.loads(out.read_text())
    assert found["hardware"] == "CPU"
    assert max(found["difference from the CPU"].values()) == 0
    for family in ("qwen2_5_vl", "qwen3_vl"):
        assert found[f"judge {family}"]["logits: difference from stock over their deviation"] < 1e-4
        assert found[f"judge {family}"]["pixel gradient: share not zero"] > 0.9
    for step in ("Flow-DPO", "DRaFT"):
        assert found[step]["step: largest change of a weight"] > 0
