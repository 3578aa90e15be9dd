"""Whole runs that train every weight of a tiny generator: resume to the bit, the card's own lines, and the dry run's memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from generator_loop import loop
from generator_loop.__main__ import main
from generator_loop.adapters.base import OLD, POLICY, REFERENCE
from generator_loop.run import state
from generator_loop.run.launch import Processes
from generator_loop.run.session import Session
from generator_loop.tracking import checkpoint
from tests.integration.test_loop import one_iteration
from tests.tiny_runs import Recipe, never, opened, scores, tiny_recipe

pytestmark = pytest.mark.slow

FULL = dict(generator__train="full", update__learning_rate=1e-3, update__old_decay=0.5, loop__reset_reference="true")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread here: a forked child waits for ever for threads that its parent has started."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Return a function that gives the overrides of a tiny run."""
    return tiny_recipe(tmp_path_factory.mktemp("models"))


def ended(session: Session) -> dict[str, torch.Tensor]:
    """Return all that training has changed, by name."""
    named = {
        f"{name}.{key}": value
        for name in (POLICY, OLD, REFERENCE)
        for key, value in session.generator.weights(name).items()
    }
    return {**named, **session.learner.updater.state()}


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """Return the folder of an uninterrupted run and its end."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    session = opened(recipe(output, **FULL))
    state.begin(session)
    loop.run(session, never)
    return output, ended(session)


def test_a_stopped_run_resumes_to_the_bit(
    recipe: Recipe, finished: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    overrides = recipe(tmp_path / "stopped", **FULL)
    session = opened(overrides)
    state.begin(session)
    assert loop.run(session, lambda: session.step == 3) is None
    resumed = opened(overrides)
    state.restore(resumed)
    loop.run(resumed, never)
    whole, expected = finished
    found = ended(resumed)
    assert found.keys() == expected.keys() and any(key.endswith("exp_avg") for key in found)
    assert all(torch.equal(value, found[key]) for key, value in expected.items())
    assert scores(tmp_path / "stopped") == scores(whole)
    assert any(
        not torch.equal(found[f"{POLICY}.{key}"], found[f"{OLD}.{key}"]) for key in session.generator.weights(OLD)
    )


def test_copies_in_the_computers_memory_change_no_number(
    recipe: Recipe, finished: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    session = opened(recipe(tmp_path / "apart", **FULL, generator__copies="cpu"))
    state.begin(session)
    loop.run(session, never)
    assert all(torch.equal(value, ended(session)[key]) for key, value in finished[1].items())


def test_the_cards_own_lines_load_what_was_trained(
    finished: tuple[Path, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, expected = finished
    summary = json.loads((output / "summary.json").read_text())
    folder = output / summary["generator_checkpoint"]
    card = (folder / "README.md").read_text()
    assert "LoRA" not in card and "lora" not in card and "all weights of the transformer" in card
    lines = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(folder)  # the card's lines are for its own folder
    names: dict[str, object] = {}
    exec(lines.replace("path/to/this/folder", str(folder)), names)
    pipeline: object = names["pipe"]
    loaded = pipeline.transformer.state_dict()  # type: ignore[attr-defined]
    assert type(pipeline).__name__ == "WanPipeline"
    assert all(torch.equal(loaded[key], expected[f"{POLICY}.{key}"]) for key in loaded)


def test_a_dry_run_counts_all_that_is_kept_of_trained_weights(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.yaml").write_text("{}\n")
    output = tmp_path / "dry"
    overrides = recipe(output, **FULL, generator__copies="cpu")
    assert main([str(tmp_path / "empty.yaml"), *overrides, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    num = sum(parameter.numel() for parameter in opened(overrides).generator.pipeline.transformer.parameters())
    assert f"{num:,} parameters, generator.train=full" in printed and num > 10_000
    assert "old and reference 0.00 (these in the computer's memory)" in printed
    assert not output.exists()


def test_half_precision_ends_with_one_line_and_status_2(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.yaml").write_text("{}\n")
    assert main([str(tmp_path / "empty.yaml"), *recipe(tmp_path / "x", **FULL, generator__dtype="float16")]) == 2
    message = capsys.readouterr().err
    assert "generator.train=full cannot compute in generator.dtype=float16" in message and "Traceback" not in message


def test_two_processes_step_like_one(recipe: Recipe, tmp_path: Path) -> None:
    alone = opened(recipe(tmp_path / "one", **FULL))
    started = {name: tensor.clone() for name, tensor in alone.generator.weights(POLICY).items()}
    whole = one_iteration(alone)
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=rank, world_size=2
            )
            session = opened(recipe(tmp_path / "two", **FULL), Processes(torch.device("cpu"), rank=rank, count=2))
            checkpoint.write_tensors(tmp_path / f"{rank}.safetensors", one_iteration(session))
            os._exit(0)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    whole.pop("prompts")
    generator = alone.generator
    given = generator.init_latents([torch.Generator().manual_seed(0)]), torch.tensor([0.5])
    cond = generator.encode_prompts(["a red ring moves left"])

    def velocity(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        generator.set_weights(POLICY, weights)
        with torch.no_grad():
            return generator.predict(*given, cond)

    first, expected = velocity(started), velocity(whole)
    assert float((expected - first).abs().max()) > 1e-3
    for rank in range(2):
        found = checkpoint.read_tensors(tmp_path / f"{rank}.safetensors")
        found.pop("prompts")
        # weights themselves may differ by AdamW's step, which is the sign of a gradient even where that is rounding alone
        torch.testing.assert_close(velocity(found), expected, atol=1e-4, rtol=0)
