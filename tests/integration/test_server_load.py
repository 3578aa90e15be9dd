"""Many clients at once: no error, no lost or swapped answer. scripts/bench/server.py does the same for longer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

ROOT = Path(__file__).resolve().parents[2]


def test_clients_at_one_time_get_their_own_answers():
    command = [sys.executable, "scripts/bench/server.py", "--seconds", "3", "--clients", "16", "--max-growth-mb", "96"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert (record["clients"], record["errors"], record["wrong_answers"]) == (16, 0, 0)
    assert record["answers"] >= 16
    assert record["clips_a_batch"] > 1
