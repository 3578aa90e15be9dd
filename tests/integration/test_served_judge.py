"""A loop whose judge answers over HTTP, from this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from generator_loop import loop
from generator_loop.run import state
from generator_loop.run.build import open_session, read_config
from generator_loop.run.launch import Processes
from generator_loop.run.session import Session
from tests.running_server import MeanJudge, running
from tests.tiny_models import RECIPE, save_tiny_wan

CPU = Processes(device=torch.device("cpu"))


def overrides(root: Path, url: str, **changes: object) -> list[str]:
    """Return the settings of a tiny run."""
    served = {"generator.path": save_tiny_wan(root / "wan"), "judge.path": url, "run.output": root / "run"}
    named = {name.replace("__", "."): value for name, value in changes.items()}
    if "objective.name" in named:
        named |= dict.fromkeys(("objective.num_updates", "objective.samples_per_group"))
    settings = {**RECIPE, **served, "refresh.every": 0, "reward.weights": "{overall: 1.0}", **named}
    return [f"{name}={value}" for name, value in settings.items() if value is not None]


def opened(options: list[str]) -> Session:
    session = open_session(read_config(None, options), CPU)
    state.begin(session)
    return session


def test_a_served_judge_rewards_the_clips_that_it_is_sent(tmp_path: Path) -> None:
    judge = MeanJudge()
    (tmp_path / "token").write_text("secret\n")
    with running(judge, token="secret") as url:
        session = opened(overrides(tmp_path, url, judge__token_file=tmp_path / "token"))
        samples = session.sampler.sample(session.sampler.choose_prompts(session.step), session.draw)
        scored = session.scorer.score(samples)
        expected = (samples.frames.clamp(0, 1) * 255).round().flatten(1).mean(1)  # this judge's scores are mean bytes
        torch.testing.assert_close(scored.rewards, expected.cpu(), rtol=0, atol=1e-3)
        assert loop.run(session, lambda: False) is not None
        restored = opened(overrides(tmp_path, url, judge__token_file=tmp_path / "token"))
        state.restore(restored)
    assert restored.progress.rounds == session.progress.rounds
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found["judge_checkpoint"] is None
    assert not list((tmp_path / "run" / "checkpoints").glob("*/judge"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"refresh__every": 1}, "a served judge cannot be refreshed"),
        ({"objective__name": "draft"}, "needs the judge's gradient"),
    ],
)
def test_what_a_served_judge_cannot_do_is_refused_before_the_run(tmp_path: Path, changes, said) -> None:
    with pytest.raises(ValueError, match=said):
        opened(overrides(tmp_path, "http://127.0.0.1:9", **changes))
