"""SIGTERM: what was accepted is answered, nothing new is let in, and the process ends with status 0."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from tests.running_server import ask, frames_of

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import argparse, sys
from reward_model.serving.server import main as server
from reward_model.serving.server import judge as server_judge
from tests.running_server import MeanJudge

server_judge.JudgeService = lambda reward, config: MeanJudge(seconds=0.5)
parser = argparse.ArgumentParser()
server.add_arguments(parser)
args = parser.parse_args(["--port", "0"])
sys.exit(server.run(argparse.Namespace(**vars(args), batch_size=1, json=True), lambda args: None))
"""


@pytest.fixture
def process():
    """A server of a slow judge in a process of its own, and its address."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as started:
        yield started, json.loads(started.stdout.readline())["url"]
        started.kill()


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def refuses(url):
    try:
        ask(url, "/health")
    except OSError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_flight_are_answered_and_new_ones_refused(process, number):
    started, url = process
    with ThreadPoolExecutor(4) as pool:
        values = [0.25, 0.5, 0.75, 1.0]
        answers = [pool.submit(ask, url, "/score", {"videos": [frames_of(value)]}) for value in values]
        wait_for(lambda: "video_judge_open_requests 5" in ask(url, "/metrics")[1])
        started.send_signal(number)
        wait_for(lambda: refuses(url))
        assert not all(answer.done() for answer in answers)
        found = [answer.result() for answer in answers]
    assert [status for status, _, _ in found] == [200] * 4
    assert [body["results"][0]["reward"] for _, body, _ in found] == values
    assert started.wait(timeout=20) == 0


def test_an_idle_server_ends_at_once(process):
    started, url = process
    assert ask(url, "/health")[0] == 200
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=20) == 0
