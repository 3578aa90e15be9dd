"""Runs that are stopped, killed, damaged or left without their judge, and what becomes of them."""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from generator_loop import loop
from generator_loop.__main__ import main
from generator_loop.adapters.base import POLICY, REFERENCE
from generator_loop.rewards.scorer import RemoteJudge
from generator_loop.run import state
from generator_loop.run.launch import CheckpointClock, StopRequest, claim_output
from generator_loop.tracking import checkpoint
from tests.tiny_runs import Recipe, never, opened, scores, tiny_recipe

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return tiny_recipe(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    session = opened(recipe(output))
    state.begin(session)
    loop.run(session, never)
    return output


class Nth:
    """Asks a run to stop at the n-th question."""

    def __init__(self, number: int) -> None:
        self.number, self.asked = number, 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked == self.number


def questions(recipe: Recipe, output: Path) -> int:
    """Return how often an uninterrupted run asks whether to stop."""
    stop, session = Nth(0), opened(recipe(output))
    state.begin(session)
    loop.run(session, stop)
    return stop.asked


def test_a_run_stopped_at_any_question_resumes_to_the_same_scores_and_log(
    recipe: Recipe, finished: Path, tmp_path: Path
) -> None:
    """Questions come after iterations, between the clips of evaluations and the steps of refreshes."""
    num_questions = questions(recipe, tmp_path / "counted")
    assert num_questions == 4 + 2 * 2 + 3  # iterations, steps of refreshes, batches of evaluations
    lines = (finished / "metrics.jsonl").read_text().splitlines()
    for number in {1, num_questions // 3, num_questions // 2, num_questions - 1, num_questions}:
        output = tmp_path / str(number)
        session = opened(recipe(output))
        state.begin(session)
        assert loop.run(session, Nth(number)) is None
        resumed = opened(recipe(output))
        state.restore(resumed)
        loop.run(resumed, never)
        assert scores(output) == scores(finished)
        written = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        assert [(line["kind"], line["step"]) for line in written] == [
            (line["kind"], line["step"]) for line in map(json.loads, lines)
        ]


def test_a_refresh_that_is_stopped_leaves_the_judge_and_its_pairs_as_they_were(recipe: Recipe, tmp_path: Path) -> None:
    session = opened(recipe(tmp_path / "run"))
    state.begin(session)
    refresher = session.refresher
    assert refresher is not None
    steps, states = itertools.count(), list[Mapping[str, torch.Tensor]]()

    def stop() -> bool:
        if session.progress.iteration == 0 and session.progress.round == 1:
            return next(steps) == 1  # after the first step of the first refresh
        states.append(refresher.state())
        return False

    assert loop.run(session, stop) is None
    assert session.progress.round == 0 and session.progress.iteration == 2
    after = refresher.state()
    assert after.keys() == states[-1].keys() and any(name.startswith("pairs.") for name in after)
    assert all(torch.equal(after[name], states[-1][name]) for name in after)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_a_resumed_run_ends_with_the_same_scores(
    recipe: Recipe, finished: Path, tmp_path: Path, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.yaml").write_text("{}\n")
    child = os.fork()
    if child == 0:
        os._exit(main([str(tmp_path / "empty.yaml"), *recipe(tmp_path / "run")]))
    log = tmp_path / "run" / "metrics.jsonl"
    for _ in range(2400):
        if log.exists() and '"iteration"' in log.read_text():
            break
        time.sleep(0.05)
    os.kill(child, number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert "stopped and saved; continue with" in capfd.readouterr().out
    # the settings need not be typed again
    assert main([str(tmp_path / "empty.yaml"), f"resume={tmp_path / 'run'}"]) == 0
    assert scores(tmp_path / "run") == scores(finished)


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    stop = StopRequest(max_hours=None)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop() and stop.is_signalled
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    finally:
        stop.close()


def test_checkpoints_within_a_round_come_by_the_clock(recipe: Recipe, tmp_path: Path) -> None:
    session = opened(recipe(tmp_path / "run", run__checkpoint_minutes=1e-9, loop__num_rounds=1))
    state.begin(session)
    names = []
    save, loop.save = loop.save, lambda one: names.append(state.save(one).name)
    try:
        loop.run(session, never)
    finally:
        loop.save = save
    assert names == ["round-000-iteration-0001", "round-000-iteration-0002", "round-001"]
    assert not CheckpointClock(None).is_due() and not CheckpointClock(60).is_due()


@pytest.mark.parametrize(
    "file", ["optimizer.safetensors", "policy.safetensors", "refresher.safetensors", "progress.json"]
)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    recipe: Recipe, finished: Path, tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "run"
    session = opened(recipe(output))
    state.begin(session)
    assert loop.run(session, lambda: session.step == 3) is None
    damaged = output / "checkpoints" / "round-001-iteration-0001" / "state" / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    resumed = opened(recipe(output))
    with caplog.at_level(logging.WARNING):
        state.restore(resumed)
    assert f"round-001-iteration-0001 is passed over: state/{file} has changed since it was written" in caplog.text
    assert (resumed.progress.round, resumed.progress.iteration) == (1, 0)
    loop.run(resumed, never)
    assert scores(output) == scores(finished)


def test_without_an_intact_checkpoint_the_refusal_says_why(recipe: Recipe, tmp_path: Path) -> None:
    session = opened(recipe(tmp_path / "run"))
    with pytest.raises(ValueError, match="no finished checkpoint is there; start the run without resume="):
        state.restore(session)
    checkpoint.save(tmp_path / "run" / "checkpoints", "round-001", lambda folder: (folder / "x").touch(), keep=1)
    (tmp_path / "run" / "checkpoints" / "round-001" / "x").unlink()
    with pytest.raises(ValueError, match="checkpoint round-001 is passed over: x is missing"):
        state.restore(session)


def test_resuming_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.yaml").write_text("{}\n")
    assert main([str(tmp_path / "empty.yaml"), f"resume={tmp_path / 'nothing'}"]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_fewer_rounds_than_were_done_are_refused(recipe: Recipe, finished: Path) -> None:
    with pytest.raises(ValueError, match="loop.num_rounds=1, but .* holds 2 finished rounds"):
        state.restore(opened(recipe(finished, loop__num_rounds=1)))


def test_two_runs_never_share_a_folder(recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = "import sys; from reward_model.files import Lock; lock = Lock(sys.argv[1], purpose='x'); print(flush=True); input()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        name, lock = claim_output(str(output), is_main=True, resume=False)
        assert name == f"{output}-2" and lock is not None
        lock.release()
        output.mkdir()
        (output / "config.yaml").write_text("\n".join(item.replace("=", ": ", 1) for item in ["x=1"]))
        with pytest.raises(ValueError, match=f"this run cannot write to .*run: process {other.pid} is writing to it"):
            claim_output(str(output), is_main=True, resume=True)
        other.communicate(b"\n")


class Term:
    """A reward of the user's own that misbehaves."""

    def __init__(self, behave: Callable[[int], object]) -> None:
        self.behave, self.calls = behave, 0

    def __call__(self, frames: torch.Tensor, prompts: list[str], *, fps: float) -> object:
        self.calls += 1
        return self.behave(self.calls)


def raise_always(_call: int) -> object:
    raise KeyError("no such model")


def raise_once(call: int) -> object:
    if call == 1:
        raise ConnectionError("try again")
    return torch.ones(6)


TERMS = {
    "none": (lambda _call: None, True),
    "always": (raise_always, True),
    "shape": (lambda _call: torch.ones(5), True),
    "once": (raise_once, False),
}


@pytest.mark.parametrize("name", TERMS)
def test_a_failing_reward_term_names_itself_and_does_not_end_the_run(recipe: Recipe, tmp_path: Path, name: str) -> None:
    behave, fails = TERMS[name]
    session = opened(recipe(tmp_path / "run", refresh__every=0, loop__num_rounds=1, evaluation__num_seeds=1))
    session.scorer.terms["mine"] = (Term(behave), 1.0)
    state.begin(session)
    assert loop.run(session, never) is not None
    alarms = json.loads((tmp_path / "run" / "summary.json").read_text())["alarms"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    iterations = [line for line in lines if line["kind"] == "iteration"]
    left_out = [alarm for alarm in alarms if "reward term 'mine' is left out" in alarm]
    assert len(left_out) == (2 if fails else 0)
    assert [line["left_out_mine"] for line in iterations] == [float(fails)] * 2
    for line in iterations:
        assert line["valid_fraction"] == 1
        expected = line["score_overall"] + (0 if fails else 1)
        assert line["reward"] == pytest.approx(expected, abs=1e-5)


def test_a_run_waits_for_a_judge_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[object] = [ConnectionError("refused"), RuntimeError("the server failed"), "scores"]

    def score(*_args: object, **_kwargs: object) -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    pauses: list[int] = []
    judge = RemoteJudge("http://127.0.0.1:9", token=None, pause=0.0, before_pause=lambda: pauses.append(1))
    monkeypatch.setattr(judge._client, "score", score)
    assert judge(torch.zeros(1, 2, 3, 4, 4), ["a"], fps=8.0) == "scores"
    assert len(pauses) == 2 and caplog.text.count("the run waits for it") == 2


def test_the_reference_moves_with_every_round_whether_the_judge_is_refreshed_or_not(
    recipe: Recipe, tmp_path: Path
) -> None:
    for every in (0, 2):
        output = tmp_path / str(every)
        session = opened(recipe(output, refresh__every=every, loop__reset_reference=True, loop__num_rounds=1))
        state.begin(session)
        loop.run(session, never)
        policy, reference = session.generator.weights(POLICY), session.generator.weights(REFERENCE)
        assert all(torch.equal(policy[name], reference[name]) for name in policy)


def test_every_refresh_draws_other_anchors(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = opened(recipe(tmp_path / "run"))
    state.begin(session)
    assert session.refresher is not None
    seeds: list[int] = []
    refresh = session.refresher.refresh

    def noted(pairs, *, seed, check):
        seeds.append(seed)
        return refresh(pairs, seed=seed, check=check)

    monkeypatch.setattr(session.refresher, "refresh", noted)
    loop.run(session, never)
    assert len(set(seeds)) == 2


def test_a_full_disk_ends_the_run_with_one_sentence_and_the_run_resumes(
    recipe: Recipe, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.yaml").write_text("{}\n")
    fsync, calls = os.fsync, itertools.count()

    def full(handle: int) -> None:
        if next(calls) >= 40:
            raise OSError(28, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main([str(tmp_path / "empty.yaml"), *recipe(tmp_path / "run")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    has_checkpoint = checkpoint.latest(tmp_path / "run" / "checkpoints") is not None
    if has_checkpoint:
        assert main([str(tmp_path / "empty.yaml"), f"resume={tmp_path / 'run'}"]) == 0
        assert scores(tmp_path / "run") == scores(finished)
