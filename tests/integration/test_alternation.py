"""The alternation on tiny models: an iteration samples from the newest policy, and a round's end moves the reference."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from generator_loop import loop
from generator_loop.adapters.base import OLD, POLICY, REFERENCE
from generator_loop.records import Rollout
from generator_loop.run import state
from generator_loop.run.build import read_config
from generator_loop.run.launch import Stopped
from generator_loop.run.session import Session
from generator_loop.sampling.sampler import Sampler
from tests.tiny_models import save_tiny_judge
from tests.tiny_runs import Recipe, never, opened, tiny_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Return a function that gives the overrides of a tiny run."""
    return tiny_recipe(tmp_path_factory.mktemp("models"))


def weights(session: Session, name: str) -> torch.Tensor:
    """Return a copy of the named weights, end to end."""
    return torch.cat([value.flatten() for value in session.generator.weights(name).values()])


def begun(options: list[str]) -> Session:
    """Return a new run whose weights are far enough from the base for clips to differ."""
    session = opened(options)
    state.begin(session)
    return session


def go_on() -> None:
    """Never stop."""


def test_each_iteration_samples_from_the_policy_that_the_last_one_trained(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[torch.Tensor] = []
    plain = Sampler.sample

    def sample(self: Sampler, *args: Any, **settings: Any) -> Rollout:
        with self.generator.use(settings.get("policy", OLD)):
            used.append(torch.cat([p.detach().flatten() for p in self.generator.trainable_parameters().values()]))
        return plain(self, *args, **settings)

    monkeypatch.setattr(Sampler, "sample", sample)
    session = begun(recipe(tmp_path / "run", update__learning_rate=0.01))
    newest = [weights(session, POLICY)]
    for _ in range(3):
        loop.iterate(session)
        session.progress.iteration += 1
        newest.append(weights(session, POLICY))
    assert len(used) == 3
    for sampled, policy in zip(used, newest, strict=False):
        assert torch.equal(sampled, policy)
    assert all(float((a - b).abs().max()) > 1e-3 for a, b in zip(newest, newest[1:], strict=False))


def test_the_clips_of_an_iteration_are_those_of_the_newest_policy_and_not_of_the_base(
    recipe: Recipe, tmp_path: Path
) -> None:
    session = begun(recipe(tmp_path / "run", update__learning_rate=0.05))
    loop.iterate(session)
    session.progress.iteration += 1
    prompts = session.sampler.choose_prompts(session.step)
    drawn = session.sampler.sample(prompts, session.draw).latents
    assert torch.equal(drawn, session.sampler.sample(prompts, session.draw, policy=POLICY).latents)
    assert not torch.allclose(drawn, session.sampler.sample(prompts, session.draw, policy=REFERENCE).latents)


@pytest.mark.parametrize("resets", [True, False])
def test_a_rounds_end_moves_the_reference_to_the_policy_only_where_the_config_says_so(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resets: bool
) -> None:
    monkeypatch.setattr(loop, "evaluate", lambda *_args, **_settings: None)
    session = begun(recipe(tmp_path / "run", loop__reset_reference=resets, refresh__every=0))
    first = weights(session, REFERENCE)
    for _ in range(2):
        loop.iterate(session)
        session.progress.iteration += 1
    assert torch.equal(weights(session, REFERENCE), first)  # within a round it stays
    assert not torch.equal(weights(session, POLICY), first)
    loop.end_round(session, go_on)
    assert (session.progress.round, session.progress.iteration, session.step) == (1, 0, 2)
    assert torch.equal(weights(session, REFERENCE), weights(session, POLICY) if resets else first)


def test_a_round_stopped_in_its_evaluation_leaves_reference_judge_and_counters(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = begun(recipe(tmp_path / "run", loop__reset_reference=True))
    first = weights(session, REFERENCE)
    for _ in range(2):
        loop.iterate(session)
        session.progress.iteration += 1
    assert session.refresher is not None
    before = session.refresher.state()

    def stopped(*_args: object, **_settings: object) -> None:
        raise Stopped

    monkeypatch.setattr(loop, "evaluate", stopped)
    with pytest.raises(Stopped):
        loop.end_round(session, go_on)
    assert (session.progress.round, session.progress.iteration) == (0, 2)
    after = session.refresher.state()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(weights(session, REFERENCE), first)


def test_a_run_whose_judge_gets_worse_goes_on_with_the_judge_it_had(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reward_model.training.methods import refresh as training

    def spoil(judge: Any, *, role: str, **_settings: object) -> dict[str, float]:
        with torch.no_grad():
            for parameter in judge.role_parameters(role):
                parameter.zero_()
        return {"fidelity": 0.0}

    monkeypatch.setattr(training, "refresh_levels", spoil)
    session = begun(recipe(tmp_path / "run", loop__num_rounds=1))
    assert session.refresher is not None
    accuracies = iter([0.75, 0.5])
    (trainee,) = session.refresher._trainees
    readout = dataclasses.replace(trainee.readout, accuracy=lambda _judge, _clips: next(accuracies))
    session.refresher._trainees = [dataclasses.replace(trainee, readout=readout)]
    before = {name: value for name, value in session.refresher.state().items() if name.startswith("judge.")}
    loop.run(session, never)
    after = session.refresher.state()
    assert before and all(torch.equal(value, after[name]) for name, value in before.items())
    (record,) = json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"][1:]
    assert record["judge_kept"] is False or record["judge_kept"] == 0
    assert record["reward_initial_judge"] == record["reward_current_judge"]


def test_per_reward_advantages_weigh_each_part_by_its_own_spread(recipe: Recipe, tmp_path: Path) -> None:
    session = begun(recipe(tmp_path / "run", update__advantages="per_reward"))
    samples = session.sampler.sample(session.sampler.choose_prompts(0), session.draw)
    scored = session.scorer.score(samples)
    plain = loop.compare_siblings(session, scored).values
    stretched = dataclasses.replace(
        scored, rewards=-scored.rewards, scores={name: 10 * value for name, value in scored.scores.items()}
    )
    torch.testing.assert_close(loop.compare_siblings(session, stretched).values, plain, atol=1e-3, rtol=0)


def test_a_checkpoint_is_written_at_each_rounds_end_and_nowhere_else(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[int, int]] = []
    monkeypatch.setattr(loop, "evaluate", lambda *_args, **_settings: None)
    monkeypatch.setattr(
        loop, "save", lambda session: saved.append((session.progress.round, session.progress.iteration))
    )
    monkeypatch.setattr(loop, "measure_result", lambda *_: None)
    monkeypatch.setattr(loop, "finish", lambda _session: tmp_path)
    assert loop.run(begun(recipe(tmp_path / "run", refresh__every=0)), never) == tmp_path
    assert saved == [(1, 0), (2, 0)]


def test_new_adapter_weights_of_a_judge_are_the_same_on_every_process(recipe: Recipe, tmp_path: Path) -> None:
    settings = {"judge__path": save_tiny_judge(tmp_path / "stock", roles=()), "judge__audit_path": "null"}

    def adapters(**changes: Any) -> list[torch.Tensor]:
        torch.rand(int(torch.randint(1, 9, ())))  # processes need not have drawn as many numbers before
        session = begun(recipe(tmp_path / "run", refresh__targets="[text,vision]", **settings, **changes))
        assert session.refresher is not None
        return [value for name, value in session.refresher.state().items() if name.startswith("judge.")]

    first, second, other = adapters(), adapters(), adapters(run__seed=4)
    assert len(first) > 0 and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


STAGE_3: dict[str, object] = {
    "reward__columns": "{natural: {name: specialist, role: natural, weight: 1}, wins: {name: comparator}}",
    "objective__name": "dpo",
    "objective__pair_by": "[wins,reward]",
    "objective__num_pairs": 1,
    "objective__min_gap": 0.0,
    "objective__num_updates": 2,
    "refresh__readouts": "[comparator_grpo]",
    "refresh__rank_by": "wins",
    "refresh__num_steps": 1,
    "loop__reset_reference": True,
}


def stage_3(recipe: Recipe, folder: Path, **changes: object) -> list[str]:
    """Return the overrides of a tiny run of VQ-Insight's stage 3."""
    judge = save_tiny_judge(folder / "judge", roles=("generated", "natural", "comparator"))
    options = recipe(folder / "run", judge__path=judge, judge__audit_path="null", **{**STAGE_3, **changes})
    return [item for item in options if "samples_per_group" not in item]


def test_stage_3_judges_by_three_roles_learns_from_both_sets_of_pairs_and_trains_the_comparator_alone(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from generator_loop.objectives.diffusion_dpo import DiffusionDPO

    seen: list[int] = []
    plain = DiffusionDPO.loss
    monkeypatch.setattr(
        DiffusionDPO, "loss", lambda self, batch, who: (seen.append(len(batch)), plain(self, batch, who))[1]
    )
    session = begun(stage_3(recipe, tmp_path))
    assert session.refresher is not None
    judge = session.refresher.judge.judge
    before = {role: [p.clone() for p in judge.role_parameters(role)] for role in judge.roles}
    rejected: list[list[float]] = []
    observe = session.refresher.collector.observe

    def noted(samples: Rollout, scored: Any, tools: Any) -> None:
        assert {"wins", "natural", "overall"} <= scored.scores.keys()
        torch.testing.assert_close(scored.rewards, scored.scores["overall"] + scored.scores["natural"])
        rejected.append([int(group.argmin()) for group in scored.scores["wins"].view(-1, samples.group_size)])
        observe(samples, scored, tools)

    monkeypatch.setattr(session.refresher.collector, "observe", noted)
    loop.run(session, never)
    assert seen and max(seen) > 2  # two prompts, and up to two pairs of each
    changed = {role for role in judge.roles if not all(map(torch.equal, before[role], judge.role_parameters(role)))}
    assert changed == {"comparator"}
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    refreshed = [line for line in logged if line["kind"] == "refresh"]
    assert len(refreshed) == 2 and all(0 <= line["comparator_accuracy_before"] <= 1 for line in refreshed)
    assert all("score_wins" in line and "score_natural" in line for line in logged if line["kind"] == "iteration")


def test_a_resumed_stage_3_ends_as_the_whole_one(recipe: Recipe, tmp_path: Path) -> None:
    whole = begun(stage_3(recipe, tmp_path / "a"))
    loop.run(whole, never)
    options = stage_3(recipe, tmp_path / "b")
    session = begun(options)
    assert loop.run(session, lambda: session.step == 3) is None
    resumed = opened(options)
    state.restore(resumed)
    loop.run(resumed, never)
    assert whole.refresher is not None and resumed.refresher is not None
    one, other = whole.refresher.state(), resumed.refresher.state()
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    assert torch.equal(weights(whole, POLICY), weights(resumed, POLICY))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective__pair_by": "[wins,rewards]"}, "'rewards' in objective.pair_by or refresh.rank_by is no score"),
        (
            {"refresh__rank_by": "motion_quality"},
            "'motion_quality' in objective.pair_by or refresh.rank_by is no score",
        ),
        ({"refresh__readouts": "[comparator]"}, "refresh.readouts holds 'comparator'; did you mean 'comparator_"),
        ({"refresh__readouts": "[levels,levels]"}, "refresh.readouts must name readouts, each once"),
        ({"refresh__readouts": "[comparator_sft,comparator_grpo]"}, "train the same comparison; name one of them"),
        (
            {"reward__columns": "{overall: {name: comparator}, wins: {name: comparator}}"},
            "reward.columns.overall has the name of",
        ),
        ({"judge__path": "http://localhost:1", "refresh__every": 0}, "not of a served judge"),
    ],
)
def test_settings_of_stage_3_that_do_not_fit_are_refused(
    recipe: Recipe, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_config(
            None,
            [*stage_3(recipe, tmp_path), *(f"{name.replace('__', '.')}={value}" for name, value in changes.items())],
        )
