"""Candidates and judgements on disk: a killed iteration samples and judges nothing twice, and ends as a whole run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from generator_loop import loop
from generator_loop.adapters.base import OLD, POLICY
from generator_loop.records import Scored
from generator_loop.run import rounds, state
from generator_loop.run.session import Session
from generator_loop.sampling import sampler as sampler_module
from tests.tiny_runs import Recipe, never, opened, scores, tiny_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Return a function that gives the overrides of a tiny run."""
    return tiny_recipe(tmp_path_factory.mktemp("models"))


def begun(options: list[str]) -> Session:
    """Return a new run."""
    session = opened(options)
    state.begin(session)
    return session


def files(session: Session, kind: str = "") -> list[str]:
    """Return the names of what is kept."""
    root = session.output / "rounds"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.safetensors") if kind in path.name)


class Killed(Exception):
    """Stands for a kill: nothing is saved."""


class Counts:
    """Counts what is sampled and judged."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, session: Session) -> None:
        self.sampled = self.judged = 0
        rollout, score = sampler_module.rollout, session.scorer.score

        def counted_rollout(*given: Any, **how: Any) -> Any:
            self.sampled += 1
            return rollout(*given, **how)

        def counted_score(samples: Any, **how: Any) -> Any:
            self.judged += 1
            return score(samples, **how)

        monkeypatch.setattr(sampler_module, "rollout", counted_rollout)
        session.scorer = dataclasses.replace(session.scorer)
        object.__setattr__(session.scorer, "score", counted_score)


@pytest.mark.parametrize("killed_in", ["learn", "score"])
def test_a_killed_iteration_goes_on_with_the_candidates_and_judgements_that_it_wrote(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    options = recipe(tmp_path / "run", run__keep_rounds="all", refresh__every=0)
    whole = begun(recipe(tmp_path / "whole", refresh__every=0))
    loop.run(whole, never)
    session = begun(options)
    loop.evaluate(session, refreshed=None, check=lambda: None)
    state.save(session)
    with monkeypatch.context() as patch:

        def kill(*_given: Any, **_how: Any) -> Any:
            raise Killed

        if killed_in == "learn":
            patch.setattr(session.learner, "learn", kill)
        else:
            session.scorer = dataclasses.replace(session.scorer, judge=kill)
        with pytest.raises(Killed):
            loop.iterate(session)
    assert len(files(session, "candidates")) == 1 and len(files(session, "judgements")) == int(killed_in == "learn")
    resumed = opened(options)
    state.restore(resumed)
    with monkeypatch.context() as patch:
        counts = Counts(patch, resumed)
        loop.iterate(resumed)
        assert (counts.sampled, counts.judged) == (0, int(killed_in == "score"))
    resumed = opened(options)
    state.restore(resumed)
    loop.run(resumed, never)
    assert scores(tmp_path / "run") == scores(tmp_path / "whole")
    assert all(torch.equal(whole.generator.weights(POLICY)[n], v) for n, v in resumed.generator.weights(POLICY).items())


def test_known_candidates_and_judgements_are_the_same_to_the_bit(recipe: Recipe, tmp_path: Path) -> None:
    session = begun(recipe(tmp_path / "run", run__keep_rounds="all"))
    new = rounds.sampled(session)
    judged = rounds.scored(session, new)
    again = rounds.sampled(session)
    assert again.prompts == new.prompts and again.group_size == new.group_size
    for name in ("noise", "latents", "frames"):
        assert torch.equal(getattr(again, name), getattr(new, name))
    assert all(torch.equal(value, again.cond.tensors[name]) for name, value in new.cond.tensors.items())
    known = rounds.scored(session, again)
    assert torch.equal(known.rewards, judged.rewards) and torch.equal(known.valid, judged.valid)
    assert known.scores.keys() == judged.scores.keys() and tuple(known.reasons) == tuple(judged.reasons)
    assert all(torch.equal(value, known.scores[name]) for name, value in judged.scores.items())
    assert len(files(session)) == 2


def change_old(session: Session) -> None:
    """Move the sampling policy."""
    session.generator.set_weights(OLD, {name: value + 0.01 for name, value in session.generator.weights(OLD).items()})


def change_judge(session: Session) -> None:
    """Move the judge."""
    assert session.refresher is not None
    with torch.no_grad():
        session.refresher.judge.judge.role_parameters("generated")[0].add_(0.1)


def change_iteration(session: Session) -> None:
    """Go on to the next iteration."""
    session.progress.iteration += 1


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (change_old, {"candidates", "judgements"}),
        (change_judge, {"judgements"}),
        (change_iteration, {"candidates", "judgements"}),
    ],
)
def test_what_depends_on_something_else_is_made_anew(
    recipe: Recipe, tmp_path: Path, change: Any, kinds: set[str]
) -> None:
    session = begun(recipe(tmp_path / "run", run__keep_rounds="all"))
    rounds.scored(session, rounds.sampled(session))
    before = set(files(session))
    change(session)
    rounds.scored(session, rounds.sampled(session))
    new = set(files(session)) - before
    assert {kind for kind in ("candidates", "judgements") if any(kind in name for name in new)} == kinds


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_made_anew(recipe: Recipe, tmp_path: Path, damage: str) -> None:
    session = begun(recipe(tmp_path / "run", run__keep_rounds="all"))
    first = rounds.sampled(session)
    (path,) = (session.output / "rounds").rglob("*candidates*")
    whole = path.read_bytes()
    path.write_bytes(
        {"cut": whole[:-9], "flipped": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], "empty": b""}[damage]
    )
    assert torch.equal(rounds.sampled(session).latents, first.latents)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left")])
def test_a_full_disk_costs_what_would_have_been_kept_alone(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    session = begun(recipe(tmp_path / "run", run__keep_rounds="all"))

    def full(path: Path, write: Any) -> Path:
        raise error

    monkeypatch.setattr(rounds, "write_beside", full)
    assert bool(rounds.scored(session, rounds.sampled(session)).valid.all()) and files(session) == []
    assert caplog.text.count("is not kept: it cannot be written") == 2


def test_rewards_that_lack_a_failed_term_are_asked_for_again(recipe: Recipe, tmp_path: Path) -> None:
    session = begun(recipe(tmp_path / "run", run__keep_rounds="all"))
    samples = rounds.sampled(session)
    plain = session.scorer.score(samples)
    answers = [dataclasses.replace(plain, left_out={"term": "it failed"}), plain]
    session.scorer = dataclasses.replace(session.scorer)
    object.__setattr__(session.scorer, "score", lambda _samples: answers.pop(0))
    got: list[Scored] = [rounds.scored(session, samples) for _ in range(3)]
    assert [bool(one.left_out) for one in got] == [True, False, False] and answers == []


@pytest.mark.parametrize(("keep", "left"), [("all", ["round-000", "round-001"]), ("last", []), ("none", [])])
def test_finished_rounds_are_kept_as_the_config_says(
    recipe: Recipe, tmp_path: Path, keep: str, left: list[str]
) -> None:
    session = begun(recipe(tmp_path / "run", run__keep_rounds=keep, loop__num_iterations=1))
    loop.run(session, never)
    assert sorted({name.split("/")[0] for name in files(session)}) == left


def test_an_objective_that_learns_from_the_samplers_steps_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    options = [item for item in recipe(tmp_path / "run", run__keep_rounds="last") if not item.startswith("objective.")]
    for name in ("flow_grpo", "draft"):
        with pytest.raises(ValueError, match=f"objective.name={name} learns from steps of the sampler"):
            opened([*options, f"objective.name={name}"])
