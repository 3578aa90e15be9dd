"""Whole runs on several processes, whose models are whole or spread: the same losses as on one, and one loads the result."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from generator_loop import loop
from generator_loop.adapters.base import POLICY
from generator_loop.processes import LOCKSTEP
from generator_loop.run import state
from generator_loop.run.launch import Processes
from generator_loop.run.session import Session
from generator_loop.run.sharding import Layout
from generator_loop.tracking import checkpoint
from reward_model import VideoJudgeReward
from tests.forked import run_forked
from tests.tiny_runs import Recipe, never, opened, tiny_recipe

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SETTINGS = {
    "loop__num_rounds": 1,
    "sampling__num_prompts": 4,
    "refresh__num_prompts": 3,
    "prompts__num_held_out": 3,
    "evaluation__num_round_prompts": 3,
    "update__micro_batch_size": 3,
}
"""Prompts that do not divide evenly over two or four processes, but for those that are trained on."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread here: a forked child waits for ever for threads that its parent has started."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return tiny_recipe(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def alone(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run on one process."""
    output = tmp_path_factory.mktemp("runs") / "alone"
    session = opened(recipe(output, **SETTINGS))
    state.begin(session)
    loop.run(session, never)
    return output


def logged(output: Path) -> list[dict[str, float | None]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("kind", "seconds")} for line in lines]


def check_same_losses(output: Path, alone: Path) -> None:
    for found, expected in zip(logged(output), logged(alone), strict=True):
        assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)


def run_on(overrides: list[str], folder: Path, *, num: int, layout: Layout, stop_at: int | None = None) -> None:
    def work(rank: int) -> None:
        session = opened(overrides, Processes(CPU, rank=rank, count=num, layout=layout))
        assert LOCKSTEP.is_needed == layout.is_sharded
        state.begin(session)
        loop.run(session, never if stop_at is None else lambda: session.step == stop_at)

    folder.mkdir(exist_ok=True)
    assert run_forked(work, folder, num_processes=num) == [0] * num


def test_four_processes_with_whole_models_have_the_losses_of_one(recipe: Recipe, alone: Path, tmp_path: Path) -> None:
    output = tmp_path / "four"
    run_on(recipe(output, **SETTINGS), tmp_path / "group", num=4, layout=Layout())
    check_same_losses(output, alone)


def test_two_processes_share_generator_and_judges_and_one_goes_on_from_their_checkpoint(
    recipe: Recipe, alone: Path, tmp_path: Path
) -> None:
    output = tmp_path / "two"
    run_on(
        recipe(output, judge__shard=True, **SETTINGS),
        tmp_path / "group",
        num=2,
        layout=Layout(kind="fsdp2"),
        stop_at=1,
    )
    folder = checkpoint.latest(output / "checkpoints")
    assert folder is not None and folder.name == "round-000-iteration-0001"
    assert isinstance(VideoJudgeReward.from_pretrained(folder / "judge", role="generated"), VideoJudgeReward)
    session = opened(recipe(output, **SETTINGS))  # with whole judges, which alone one process can have
    state.restore(session)
    loop.run(session, never)
    check_same_losses(output, alone)


def test_a_gradient_through_a_shared_judge_and_generator_is_that_of_whole_ones(recipe: Recipe, tmp_path: Path) -> None:
    """DRaFT runs backwards through the judge, whose towers are spread as well."""
    settings = {"objective__name": "draft", "refresh__every": 0, "judge__shard": True}
    overrides = [
        item for item in recipe(tmp_path / "run", **settings) if not item.startswith(("objective.num", "objective.sam"))
    ]
    (tmp_path / "run").mkdir()
    alone = opened([*overrides, "judge.shard=false"])
    expected = trained(alone)

    def work(rank: int) -> None:
        session = opened(overrides, Processes(CPU, rank=rank, count=2, layout=Layout(kind="fsdp2")))
        checkpoint.write_tensors(tmp_path / f"{rank}.safetensors", trained(session))

    assert run_forked(work, tmp_path, num_processes=2) == [0, 0]
    started = alone.generator.weights("reference")
    assert max(float((expected[name] - started[name]).abs().max()) for name in started) > 1e-4
    for rank in range(2):
        found = checkpoint.read_tensors(tmp_path / f"{rank}.safetensors")
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def trained(session: Session) -> dict[str, torch.Tensor]:
    """Take one iteration and return the policy."""
    loop.iterate(session)
    return {name: tensor.clone() for name, tensor in session.generator.weights(POLICY).items()}


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_two_processes_by_zero_go_on_from_the_checkpoint_of_one(recipe: Recipe, alone: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    overrides = recipe(output, **SETTINGS)
    session = opened(overrides)
    state.begin(session)
    assert loop.run(session, lambda: session.step == 1) is None

    def work(rank: int) -> None:
        linear = torch.nn.functional.linear
        resumed = opened(overrides, Processes(CPU, rank=rank, count=2, layout=Layout(kind="zero3")))
        assert (
            torch.nn.functional.linear is linear
        )  # DeepSpeed's own rounds 16-bit gradients differently, in all models
        state.restore(resumed)
        loop.run(resumed, never)

    assert run_forked(work, tmp_path, num_processes=2) == [0, 0]
    check_same_losses(output, alone)


LAUNCHES = {"fsdp2": None, "zero2": "deepspeed", "zero3": "deepspeed"}
"""Configuration of accelerate -> the package that it needs."""


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_run_launched_by_accelerate_has_the_losses_of_one_process(
    recipe: Recipe, alone: Path, tmp_path: Path, name: str
) -> None:
    needed = LAUNCHES[name]
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    (tmp_path / "empty.yaml").write_text("{}\n")
    output = tmp_path / name
    options = ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
    launched = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"configs/accelerate/{name}.yaml"]
    done = subprocess.run(
        [*launched, *options, "joint_train.py", str(tmp_path / "empty.yaml"), *recipe(output, **SETTINGS)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    check_same_losses(output, alone)
