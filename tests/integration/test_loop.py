"""Whole runs on tiny random models: what they write, stopping, killing, resuming, and two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch

from generator_loop import loop
from generator_loop.__main__ import main
from generator_loop.guards import GUARDS
from generator_loop.records import Rollout, Scored
from generator_loop.refresh import PAIR_SOURCES
from generator_loop.refresh.base import Candidate, PairSourceConfig, PairTools, preferred
from generator_loop.run import state
from generator_loop.run.build import read_config
from generator_loop.run.estimate import num_clips
from generator_loop.run.launch import Processes
from generator_loop.run.session import Session
from generator_loop.tracking import checkpoint
from reward_model import read_video
from reward_model.records import VideoPair
from tests.tiny_runs import Recipe, never, opened, scores, tiny_recipe

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


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


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    session = opened(recipe(output))
    state.begin(session)
    assert loop.run(session, never) == output / "summary.json"
    return output


def test_a_run_writes_what_it_promises(finished: Path) -> None:
    found = json.loads((finished / "summary.json").read_text())
    assert [record["round"] for record in found["rounds"]] == [0, 1, 2]
    promised = {"reward_initial_judge", "reward_current_judge", "reward_audit", "oracle", "judge_oracle_srcc", "kl"}
    promised |= {"round", "anchor_accuracy", "judge_kept", "diversity", "seconds"}
    assert promised <= found["rounds"][0].keys()
    assert {"before", "after", "difference", "num_prompts", "seeds", "valid_fraction", "config"} <= found.keys()
    assert found["num_prompts"] == 4 and found["seeds"] == [0, 1] and found["valid_fraction"] == 1
    assert (finished / found["generator_checkpoint"] / "pytorch_lora_weights.safetensors").exists()
    assert not (finished / found["judge_checkpoint"] / "adapters" / "initial").exists()
    assert read_config(finished / "config.yaml", []).run.output == str(finished)


def test_nothing_has_changed_in_round_0_and_something_later(finished: Path) -> None:
    first, *others = json.loads((finished / "summary.json").read_text())["rounds"]
    assert first["kl"] == 0 and first["reward_initial_judge"] == first["reward_current_judge"]
    assert first["judge_kept"] is None
    assert all(record["kl"] > 0 and record["judge_kept"] is not None for record in others)


def test_the_report_holds_its_videos_and_needs_nothing_else(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert page.count("data:video/mp4;base64,") == 4  # two prompts, before and after
    assert "http" not in page and "<script" not in page
    samples = json.loads((finished / "samples" / "round-002" / "samples.json").read_text())
    assert all((finished / "samples" / "round-002" / row["file"]).exists() for row in samples)


def test_a_run_killed_in_the_middle_of_a_round_resumes_to_the_same_scores(
    recipe, finished: Path, tmp_path: Path
) -> None:
    overrides = recipe(tmp_path / "killed")
    child = os.fork()
    if child == 0:
        session = opened(overrides)
        state.begin(session)
        loop.run(session, lambda: session.step == 3 and os.kill(os.getpid(), signal.SIGKILL))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert checkpoint.latest(tmp_path / "killed" / "checkpoints").name == "round-001"
    session = opened(overrides)
    state.restore(session)
    loop.run(session, never)
    assert scores(tmp_path / "killed") == scores(finished)
    logs = [(folder / "metrics.jsonl").read_text().count("\n") for folder in (finished, tmp_path / "killed")]
    assert logs[0] == logs[1]


def test_a_run_told_to_stop_saves_within_the_round_and_resumes_to_the_same_scores(
    recipe, finished: Path, tmp_path: Path
) -> None:
    overrides = recipe(tmp_path / "stopped")
    session = opened(overrides)
    state.begin(session)
    assert loop.run(session, lambda: session.step == 3) is None
    assert checkpoint.latest(tmp_path / "stopped" / "checkpoints").name == "round-001-iteration-0001"
    session = opened(overrides)
    state.restore(session)
    loop.run(session, never)
    assert scores(tmp_path / "stopped") == scores(finished)


def test_a_finished_run_is_sampled_by_prompt_and_noise(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red ball\na blue square\n")
    command = [sys.executable, "scripts/sample.py", str(finished), "--prompts", str(tmp_path / "prompts.txt")]
    for name, options in (("trained", ["--names", "vbench", "--num", "2"]), ("base", ["--base"])):
        done = subprocess.run(
            [*command, "--output", str(tmp_path / name), *options],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "trained").iterdir()}
    assert names == {f"a {thing}-{sample}.mp4" for thing in ("red ball", "blue square") for sample in (0, 1)}
    trained, _ = read_video(tmp_path / "trained" / "a red ball-0.mp4")
    base, _ = read_video(tmp_path / "base" / "00000-0.mp4")
    assert trained.frames.shape == base.frames.shape and not torch.equal(trained.frames, base.frames)


@dataclass(frozen=True, kw_only=True)
class FirstBeatsLastConfig(PairSourceConfig):
    """Config of a plug-in."""

    name: Literal["first_beats_last"] = "first_beats_last"


class FirstBeatsLast:
    """A pair source of a plug-in: a prompt's first new clip beats its last one."""

    config_class = FirstBeatsLastConfig

    def __init__(self, config: FirstBeatsLastConfig) -> None:
        self.asked: list[str] = []

    def pairs(self, candidates: Sequence[Candidate], tools: PairTools) -> list[tuple[int, VideoPair]]:
        self.asked += [one.prompt.text for one in candidates]
        return [
            (one.place, preferred(one.frames[0], one.frames[-1], one.prompt, fps=tools.fps, source="plug-in"))
            for one in candidates
        ]


class SecondIteration:
    """A guard of a plug-in that objects to the second iteration."""

    def measure(self, samples: Rollout, scored: Scored) -> Mapping[str, float]:
        return {"num_clips": float(len(samples.frames))}

    def check(self, now: Mapping[str, float], first: Mapping[str, float]) -> str:
        return f"{now['num_clips']:.0f} clips again" if now is not first and first != now else ""


def test_a_pair_source_and_a_guard_are_one_entry_each(recipe, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(PAIR_SOURCES, "first_beats_last", FirstBeatsLast)
    monkeypatch.setitem(GUARDS, "second", SecondIteration())
    overrides = recipe(tmp_path / "run", refresh__sources="{first_beats_last: {weight: 2}}", loop__num_rounds=1)
    session = opened(overrides)
    state.begin(session)
    assert loop.run(session, lambda: session.step == 1) is None
    resumed = opened(overrides)
    state.restore(resumed)
    loop.run(resumed, never)
    assert len(resumed.refresher.collector._sources["first_beats_last"][0].asked) == 2  # refresh.num_prompts
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found["rounds"][-1]["judge_kept"] is not None
    assert "iteration 2: 6 clips again" in found["alarms"]
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["num_clips"] for line in logged if line["kind"] == "iteration"] == [6.0, 6.0]
    (refreshed,) = [line for line in logged if line["kind"] == "refresh"]
    assert refreshed["pairs_first_beats_last"] == refreshed["num_pairs"] == 2.0


def test_an_unknown_pair_source_is_refused_with_the_nearest_name(recipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refresh.sources.a.name is 'new_beats_odl'; did you mean 'new_beats_old'"):
        read_config(None, recipe(tmp_path, refresh__sources="{a: {name: new_beats_odl}}"))
    with pytest.raises(
        ValueError, match="refresh.sources.new_beats_odl.name is missing; .* the key refresh.sources.new_beats_old"
    ):
        read_config(None, recipe(tmp_path, refresh__sources="{new_beats_odl: {}}"))
    with pytest.raises(ValueError, match=r"refresh\.sources\.new_beats_old\.weight must be > 0"):
        read_config(None, recipe(tmp_path, refresh__sources="{new_beats_old: {weight: 0}}"))


@pytest.mark.parametrize("source", ["simulated_rater", "real_beats_generated"])
def test_a_source_that_needs_a_world_is_refused_without_one(recipe, tmp_path: Path, source: str) -> None:
    (tmp_path / "prompts.txt").write_text("a dog\n")
    changes = {"prompts__world": "null", "prompts__path": tmp_path / "prompts.txt", "refresh__anchors__path": "a.csv"}
    given = f"refresh.sources={{{source}: {{}}}}"
    with pytest.raises(ValueError, match=f"refresh.sources.{source} needs a world"):
        read_config(None, [*recipe(tmp_path, **changes), given])
    assert read_config(None, [*recipe(tmp_path, **changes), given, "refresh.every=0"]).refresh.every == 0


def test_resuming_with_other_settings_is_refused(recipe, finished: Path) -> None:
    for change in ({"update__learning_rate": 0.5}, {"run__seed": 99}):
        with pytest.raises(ValueError, match="differ from it: " + next(iter(change)).split("__")[0]):
            state.restore(opened(recipe(finished, **change)))


@pytest.mark.parametrize("objective", ["dpo", "draft", "refl"])
def test_the_other_objectives_run_through_the_same_loop(recipe, tmp_path: Path, objective: str) -> None:
    overrides = recipe(tmp_path / objective, objective__name=objective, loop__num_rounds=1, refresh__every=0)
    kept = [item for item in overrides if "samples_per_group" not in item and "num_updates" not in item]
    kept += ["objective.min_gap=0"] if objective == "dpo" else []
    session = opened(kept)
    state.begin(session)
    loop.run(session, never)
    last = scores(tmp_path / objective)["rounds"][-1]
    assert last["kl"] > 0 and last["judge_kept"] is None and last["anchor_accuracy"] is None


def test_a_pessimistic_reward_asks_several_judges(recipe, tmp_path: Path) -> None:
    options = recipe(tmp_path / "run", reward__pessimism=0.5, loop__num_rounds=1)
    other = next(option.partition("=")[2] for option in options if option.startswith("judge.audit_path"))
    session = opened([*options, f"judge.ensemble=[{other}]"])
    state.begin(session)
    samples = session.sampler.sample(session.sampler.choose_prompts(session.step), session.draw)
    scored = session.scorer.score(samples)
    assert scored.disagreement is not None and bool((scored.disagreement > 0).all())
    frames = samples.frames.detach().requires_grad_(True)
    texts = [prompt for prompt in samples.prompts for _ in range(samples.group_size)]
    rewards = session.scorer.differentiable(frames, texts)
    torch.testing.assert_close(rewards.detach().cpu(), scored.rewards, atol=1e-5, rtol=0)
    rewards.sum().backward()
    assert float(frames.grad.abs().sum()) > 0
    assert not any(p.grad is not None for one in session.scorer.others for p in one.judge.parameters())


def test_prompts_of_ones_own_have_no_oracle_and_rewards_of_ones_own_count(recipe, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("id,text\n" + "".join(f"{n},a cat number {n} at sea\n" for n in range(8)))
    overrides = recipe(
        tmp_path / "own",
        prompts__path=prompts,
        prompts__column="text",
        refresh__every=0,
        loop__num_rounds=1,
        loop__num_iterations=1,
        reward__terms="{dark: {callable: 'tests.integration.test_loop:darkness', weight: 0.5}}",
    )
    session = opened([item for item in overrides if not item.startswith("prompts.world")])
    state.begin(session)
    loop.run(session, never)
    record = scores(tmp_path / "own")["rounds"][-1]
    assert record["oracle"] is None and record["judge_oracle_srcc"] is None and record["flow_loss"] is None
    assert record["diversity"] is not None
    row = json.loads((tmp_path / "own" / "metrics.jsonl").read_text().splitlines()[1])
    assert row["reward"] == pytest.approx(row["score_overall"] + 0.5 * row["score_dark"], abs=1e-6)


def darkness(frames: torch.Tensor, prompts: list[str], *, fps: float) -> torch.Tensor:
    return 1 - frames.mean(dim=(1, 2, 3, 4))


def test_two_processes_hold_disjoint_prompts_and_step_like_one(recipe, tmp_path: Path) -> None:
    alone = opened(recipe(tmp_path / "one"))
    started = {name: tensor.clone() for name, tensor in alone.generator.weights("policy").items()}
    whole = one_iteration(alone)
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=rank, world_size=2
            )
            session = opened(recipe(tmp_path / "two"), Processes(torch.device("cpu"), rank=rank, count=2))
            found = one_iteration(session)
            checkpoint.write_tensors(tmp_path / f"{rank}.safetensors", found)
            os._exit(0)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    shares = [checkpoint.read_tensors(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    prompts = [set(found.pop("prompts").tolist()) for found in shares]
    assert not prompts[0] & prompts[1] and prompts[0] | prompts[1] == set(whole.pop("prompts").tolist())
    for found in shares:
        torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)
    assert max(float((whole[name] - started[name]).abs().max()) for name in started) > 1e-4


def one_iteration(session: Session) -> dict[str, torch.Tensor]:
    """Take one iteration and return the policy and the prompts of this process."""
    prompts = session.sampler.choose_prompts(session.step)
    samples = session.sampler.sample(prompts, session.draw)
    scored = session.scorer.score(samples)
    session.learner.learn(samples, scored, loop.compare_siblings(session, scored), session.draw)
    ids = torch.tensor([prompt.prompt_id for prompt in prompts])
    return {**{name: tensor.clone() for name, tensor in session.generator.weights("policy").items()}, "prompts": ids}


def test_the_estimate_counts_the_clips_that_a_run_draws(recipe, finished: Path, tmp_path: Path) -> None:
    session = opened(recipe(tmp_path / "estimated"))
    # two rounds of 2 iterations of 2 x 3; two refreshes of 2 x 3; 4, 2 and 4 prompts x 2 seeds, by three judges
    assert num_clips(session) == {"sampled": 24 + 12 + 20, "judged": 24 + 12 + 3 * 20, "trained": 24}


def test_a_dry_run_prints_hours_and_writes_nothing(recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.yaml").write_text("{}\n")
    output = tmp_path / "dry"
    assert main([str(tmp_path / "empty.yaml"), *recipe(output), "--dry-run"]) == 0
    assert "hours on 1 process" in capsys.readouterr().out
    assert not output.exists()


def test_a_wrong_setting_ends_with_one_line_and_status_2(recipe, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty.yaml").write_text("{}\n")
    assert main([str(tmp_path / "empty.yaml"), *recipe(tmp_path / "x"), "loop.num_ronds=1"]) == 2
    assert "loop.num_ronds" in capsys.readouterr().err
