"""Guards that act in whole tiny runs: returning to the last good round, stopping, refreshing out of turn, penalties that adapt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from generator_loop import loop
from generator_loop.adapters.base import POLICY
from generator_loop.run import state
from generator_loop.run.build import read_config
from generator_loop.run.session import Session
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


def weights(session: Session) -> torch.Tensor:
    """Return a copy of the policy, end to end."""
    return torch.cat([value.flatten() for value in session.generator.weights(POLICY).values()])


def audited(monkeypatch: pytest.MonkeyPatch, values: list[float], seen: list[torch.Tensor]) -> None:
    """Let rounds report these audit rewards, and note the policy that each one measured."""
    plain = loop.round_record

    def record(*given: Any, **how: Any) -> dict[str, Any]:
        return plain(*given, **how) | {"reward_audit": values.pop(0)}

    measure = loop.measure_held_out

    def noted(session: Session, *rest: Any) -> Any:
        seen.append(weights(session))
        return measure(session, *rest)

    monkeypatch.setattr(loop, "round_record", record)
    monkeypatch.setattr(loop, "measure_held_out", noted)


GUARDED = {"guards__max_audit_drop": 0.1, "refresh__every": 0, "loop__num_iterations": 1}


def summary(folder: Path) -> dict[str, Any]:
    """Return a run's summary."""
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return content


def test_a_run_returns_to_its_last_good_round_and_goes_on_from_there(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    audited(monkeypatch, [0.5, 0.6, 0.3, 0.6], seen)
    session = begun(recipe(tmp_path / "run", loop__num_rounds=3, **GUARDED))
    moments: list[dict[str, torch.Tensor]] = []
    learn = session.learner.learn

    def noted(*given: Any) -> dict[str, float]:
        seen_before.append(weights(session))
        moments.append(session.learner.updater.state())
        return learn(*given)

    seen_before: list[torch.Tensor] = []
    monkeypatch.setattr(session.learner, "learn", noted)
    loop.run(session, never)
    assert torch.equal(seen_before[2], seen[1]) and not torch.equal(
        seen[2], seen[1]
    )  # round 3 begins where round 1 ended
    assert all(torch.equal(value, moments[2][name]) for name, value in moments[1].items())
    found = summary(tmp_path / "run")
    assert [record["is_good"] for record in found["rounds"]] == [True, True, False, True]
    assert found["ended"] is None and "returns to its last good round" in found["alarms"][0]


def test_a_run_that_falls_too_often_ends_with_its_last_good_round(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    audited(monkeypatch, [0.5, 0.6, 0.3, 0.2, 0.6], seen)
    session = begun(recipe(tmp_path / "run", loop__num_rounds=9, guards__max_returns=1, **GUARDED))
    loop.run(session, never)
    found = summary(tmp_path / "run")
    assert [record["is_good"] for record in found["rounds"]] == [True, True, False, False, True]
    assert found["ended"].startswith("reward_audit fell from 0.6 to 0.2") and found["num_prompts"] == 4
    assert torch.equal(weights(session), seen[1]) and torch.equal(seen[-1], seen[1])
    written = opened(recipe(tmp_path / "run", loop__num_rounds=9, guards__max_returns=1, **GUARDED))
    state.restore(written)
    assert torch.equal(weights(written), seen[1])
    assert loop.run(written, never) == tmp_path / "run" / "summary.json"  # it stays ended


def test_a_last_round_that_falls_is_not_the_result(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    audited(monkeypatch, [0.5, 0.6, 0.1, 0.6], seen)
    session = begun(recipe(tmp_path / "run", loop__num_rounds=2, **GUARDED))
    loop.run(session, never)
    found = summary(tmp_path / "run")
    assert [(record["round"], record["is_good"]) for record in found["rounds"]] == [
        (0, True),
        (1, True),
        (2, False),
        (2, True),
    ]
    assert torch.equal(weights(session), seen[1]) and session.progress.after is not None and len(seen) == 4


def test_a_resumed_run_returns_to_the_round_that_was_good_before_the_kill(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    audited(monkeypatch, [0.5, 0.6, 0.3, 0.6], seen)
    options = recipe(tmp_path / "run", loop__num_rounds=3, run__keep_checkpoints=1, **GUARDED)
    session = begun(options)
    assert loop.run(session, lambda: session.progress.round == 1 and session.progress.iteration == 1) is None
    resumed = opened(options)
    state.restore(resumed)
    loop.run(resumed, never)
    assert [record["is_good"] for record in summary(tmp_path / "run")["rounds"]] == [True, True, False, True]


@pytest.mark.parametrize("stopped_at", [1, 2, 3, 4])
def test_a_run_stopped_while_it_measures_the_round_that_it_returned_to_ends_as_a_whole_one(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int
) -> None:
    changes = {"guards__max_anchor_drop": 1.0, "refresh__every": 1, "loop__num_iterations": 1, "loop__num_rounds": 2}
    record = loop.round_record
    falling = {"reward_audit": 0.5}

    def fallen(number: int, *given: Any, **how: Any) -> dict[str, Any]:
        """Return a record whose audit is lower where the policy is that of round 2."""
        return record(number, *given, **how) | {"reward_audit": 0.5 - 0.4 * float(falling["is_moved"]())}

    ends = []
    for name, stops in (("whole", False), ("run", True)):
        options = recipe(tmp_path / name, guards__max_audit_drop=0.1, **changes)
        session = begun(options)
        good: list[torch.Tensor] = []
        falling["is_moved"] = lambda: len(good) == 2 and not torch.equal(weights(current[0]), good[1])  # type: ignore[assignment]  # noqa: B023
        keep = loop.save_good

        def kept(session: Session) -> None:
            good.append(weights(session))  # noqa: B023
            keep(session)  # noqa: B023

        with monkeypatch.context() as patch:
            patch.setattr(loop, "round_record", fallen)
            patch.setattr(loop, "save_good", kept)
            current = [session]
            asked = [0]

            def stop() -> bool:
                """Stop at one question of the last evaluations."""
                asked[0] += is_late()  # noqa: B023
                return stops and asked[0] == stopped_at  # noqa: B023

            def is_late() -> bool:
                return len(good) == 2 and current[0].progress.round == 2  # noqa: B023

            outcome = loop.run(session, stop)
            if stops:
                assert outcome is None
                current[0] = resumed = opened(options)
                state.restore(resumed)
                loop.run(resumed, never)
            ends.append(weights(current[0]))
            assert torch.equal(ends[-1], good[1])
    assert scores(tmp_path / "run") == scores(tmp_path / "whole")


def test_a_run_may_end_at_the_round_that_it_has_reached(recipe: Recipe, tmp_path: Path) -> None:
    session = begun(recipe(tmp_path / "run", refresh__every=0, loop__num_rounds=2))
    assert loop.run(session, lambda: session.progress.round == 1 and session.progress.iteration == 1) is None
    shorter = opened(recipe(tmp_path / "run", refresh__every=0, loop__num_rounds=1))
    shorter.progress = session.progress
    shorter.progress.iteration = 0
    assert loop.run(shorter, never) is not None and summary(tmp_path / "run")["num_prompts"] == 4


def test_a_measure_beyond_its_limit_refreshes_the_judge_out_of_turn(recipe: Recipe, tmp_path: Path) -> None:
    options = recipe(tmp_path / "run", refresh__every=0, refresh__triggers="{anchor_accuracy: 1.1}", loop__num_rounds=1)
    session = begun(options)
    loop.run(session, never)
    found = summary(tmp_path / "run")
    assert found["rounds"][1]["judge_kept"] is not None and found["rounds"][0]["judge_kept"] is None
    assert any("anchor_accuracy" in sentence and "the judge is refreshed" in sentence for sentence in found["alarms"])
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["kind"] == "refresh" for line in logged) == 1
    quiet = begun(
        recipe(tmp_path / "quiet", refresh__every=0, refresh__triggers="{anchor_accuracy: 0.0}", loop__num_rounds=1)
    )
    loop.run(quiet, never)
    assert summary(tmp_path / "quiet")["rounds"][1]["judge_kept"] is None


def test_regularisers_are_in_every_step_and_survive_a_restart(recipe: Recipe, tmp_path: Path) -> None:
    guarded = {"guards__data_weight": 0.5, "guards__kl_target": 1e-9, "refresh__every": 0}
    whole = begun(recipe(tmp_path / "whole", **guarded))
    loop.run(whole, never)
    session = begun(recipe(tmp_path / "run", **guarded))
    assert loop.run(session, lambda: session.step == 3) is None
    resumed = opened(recipe(tmp_path / "run", **guarded))
    state.restore(resumed)
    assert (
        resumed.learner.regularisers["kl"].state()
        == session.learner.regularisers["kl"].state()
        != {"coefficient": 1e-2}
    )
    loop.run(resumed, never)
    assert torch.equal(weights(whole), weights(resumed))
    logged = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    iterations = [line for line in logged if line["kind"] == "iteration"]
    assert len(iterations) == 4 and all(line["update_data_loss"] > 0 for line in iterations)
    plain = begun(recipe(tmp_path / "plain", refresh__every=0))
    loop.run(plain, never)
    assert not torch.equal(weights(plain), weights(whole))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guards__kl_fraction": 0.5, "guards__kl_target": 0.1}, "guards.kl_fraction < 1 needs"),
        ({"judge__audit_path": "null", "guards__max_audit_drop": 0.1}, "guards.max_audit_drop needs judge.audit_path"),
        ({"refresh__every": 0, "guards__max_anchor_drop": 0.1}, "guards.max_anchor_drop needs the anchors"),
        (
            {"judge__audit_path": "null", "refresh__triggers": "{audit_gap: 0.1}"},
            "refresh.triggers.audit_gap needs judge.audit_path",
        ),
        ({"refresh__triggers": "{audit: 0.1}"}, "refresh.triggers.audit is no measure"),
        ({"judge__ensemble": "[toy]"}, "judge.ensemble serves reward.pessimism or guards.kl_fraction"),
        ({"reward__pessimism": 1.0}, "reward.pessimism > 0 needs other judges"),
    ],
)
def test_guards_that_lack_what_they_read_are_refused(
    recipe: Recipe, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_config(None, recipe(tmp_path, **changes))
