"""Reward terms and judges that fail: how often they are asked, what is logged of them, and what their sum becomes."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from generator_loop.records import Draw
from generator_loop.rewards import scorer as module
from generator_loop.rewards.advantages import group_advantages, part_advantages
from generator_loop.rewards.scorer import RemoteJudge, Scorer, transformed, weighted
from tests.plain_rollouts import drawn, scored

NAN = float("nan")


class ConstantJudge:
    """Scores every clip alike and remembers whether gradients were on."""

    def __init__(self, rewards: Sequence[float], reasons: Sequence[str] = ()) -> None:
        self.rewards, self.reasons, self.asked = torch.tensor(rewards), reasons, list[dict[str, Any]]()

    def __call__(self, videos: Tensor, prompts: Sequence[str], **how: Any) -> Any:
        """Return the scores."""
        self.asked.append({**how, "prompts": list(prompts), "grad": torch.is_grad_enabled()})
        reasons = list(self.reasons) or [""] * len(self.rewards)
        return SimpleNamespace(rewards=self.rewards, scores={"overall": self.rewards}, reasons={"overall": reasons})


def scorer(judge: ConstantJudge, **settings: Any) -> Scorer:
    """Return a scorer of clips at 8 Hz."""
    return Scorer(**{"judge": judge, "weights": {"overall": 1.0}, "terms": {}, "fps": 8.0, "batch_size": 3, **settings})


class Failing:
    """A reward term that fails a given number of times."""

    def __init__(self, num_failures: int) -> None:
        self.num_failures, self.num_calls = num_failures, 0

    def __call__(self, frames: Tensor, prompts: Sequence[str], *, fps: float) -> Tensor:
        """Return 1 for each clip, or raise."""
        self.num_calls += 1
        if self.num_calls <= self.num_failures:
            raise OSError("busy")
        return torch.ones(len(frames))


@pytest.mark.parametrize(("num_failures", "num_calls", "is_left_out"), [(0, 1, False), (1, 2, False), (2, 2, True)])
def test_a_term_is_asked_twice_at_most(num_failures: int, num_calls: int, is_left_out: bool) -> None:
    term = Failing(num_failures)
    values = scorer(ConstantJudge([0.0, 0.5]), terms={"plain": (term, 2.0)}).score(drawn([0.0, 1.0]))
    assert term.num_calls == num_calls
    assert values.rewards.tolist() == ([0.0, 0.5] if is_left_out else [2.0, 2.5])
    expected = "reward term 'plain' is left out: it raised OSError: busy"
    assert values.left_out == ({"plain": expected} if is_left_out else {})


def test_clips_are_scored_without_gradient_and_in_batches_of_the_config() -> None:
    judge = ConstantJudge([0.0, 0.5, 0.5, 0.5])
    scorer(judge).score(drawn([0.1, 0.2, 0.3, 0.4]))
    (asked,) = judge.asked
    assert asked == {
        "fps": 8.0,
        "weights": {"overall": 1.0},
        "batch_size": 3,
        "prompts": ["a red ring", "a red ring", "a blue cross", "a blue cross"],
        "grad": False,
    }


def test_the_first_reason_of_any_judge_is_that_of_the_clip() -> None:
    first = ConstantJudge([0.5, NAN, 0.5, NAN], ["", "too narrow", "", "one"])
    other = ConstantJudge([0.5, 0.5, NAN, NAN], ["", "", "one frame", "two"])
    values = scorer(first, others=[other]).score(drawn([0.1, 0.2, 0.3, 0.4]))
    assert values.reasons == ("", "too narrow", "one frame", "one")
    assert values.valid.tolist() == [True, False, False, False]


def test_the_parts_of_a_reward_are_those_with_a_weight() -> None:
    terms = {"plain": (Failing(0), 0.25), "logged": (Failing(0), 0.0)}
    one = scorer(ConstantJudge([0.0]), weights={"overall": 0.5, "motion_quality": 0.0}, terms=terms)
    assert one.parts == {"overall": 0.5, "plain": 0.25}


def test_a_weighted_sum_needs_no_dimension_of_weight_0() -> None:
    scores = {"overall": torch.tensor([1.0, 2.0]), "motion_quality": torch.tensor([10.0, 20.0])}
    assert weighted(scores, {"overall": 0.5, "motion_quality": 2.0, "none": 0.0}).tolist() == [20.5, 41.0]


def test_a_shuffled_clip_without_a_score_takes_its_mark_along() -> None:
    values = [NAN, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    moved = set()
    for step in range(8):
        shuffled = transformed(scored(values), drawn([0.0] * 8), "shuffle", draw=Draw(0, step))
        assert torch.equal(shuffled.valid, shuffled.rewards.isfinite())
        moved.add(int((~shuffled.valid).nonzero()[0, 0]))
    assert len(moved) > 1 and moved <= {0, 1, 2, 3}


def test_a_judge_that_is_gone_is_asked_again_after_each_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    answers = iter([OSError("gone"), RuntimeError("busy"), "scores"])

    class Client:
        def __init__(self, url: str, *, token: str | None) -> None:
            events.append((url, token))

        def score(self, shown: Tensor, prompts: Sequence[str], **how: Any) -> Any:
            """Return the next answer, or raise it."""
            events.append((shown.flatten().tolist(), list(prompts), how["batch_size"], how["differentiable"]))
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

    monkeypatch.setattr(module, "VideoJudgeClient", Client)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: events.append(seconds))
    judge = RemoteJudge("http://judge", token="word", pause=7.0, before_pause=lambda: events.append("before"))
    frames = torch.tensor([-1.0, 0.25, 0.5, 2.0]).view(1, 1, 1, 2, 2)
    assert judge(frames, ["a dog"], fps=8.0) == "scores"
    asked = ([0, 64, 128, 255], ["a dog"], 16, False)
    assert events == [("http://judge", "word"), asked, "before", 7.0, asked, "before", 7.0, asked]


def test_a_run_told_to_stop_does_not_wait_for_its_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    class SilentClient:
        def __init__(self, *_: object, **__: object) -> None: ...

        def score(self, *_: object, **__: object) -> None:
            """Never answer."""
            raise OSError("gone")

    def stop() -> None:
        raise InterruptedError

    monkeypatch.setattr(module, "VideoJudgeClient", SilentClient)
    with pytest.raises(InterruptedError):
        RemoteJudge("http://judge", token=None, pause=1e6, before_pause=stop)(torch.zeros(1, 1, 3, 2, 2), [""], fps=8.0)


@pytest.mark.parametrize("std", ["global", "group"])
def test_a_missing_reward_takes_no_part_in_mean_deviation_or_spread(std: str) -> None:
    rewards = torch.tensor([1.0, 3.0, NAN, 5.0, 5.0, NAN, NAN, NAN, 2.0])
    values = group_advantages(rewards, group_size=3, std=std)  # type: ignore[arg-type]
    # centred: -1, 1; 0, 0; 0: the squares sum to 2 over five usable samples, or over two of the first group
    unit = (5 / 2) ** 0.5 if std == "global" else 1.0
    torch.testing.assert_close(values.values, torch.tensor([-unit, unit, 0, 0, 0, 0, 0, 0, 0]))
    assert (values.num_invalid, values.num_flat_groups, values.num_groups) == (4, 2, 3)


def test_one_part_of_another_weight_is_normalised_to_the_same_advantages() -> None:
    rewards = torch.tensor([0.0, 1.0, 2.0, 5.0])
    plain = part_advantages([(1.0, rewards)], group_size=2)
    assert torch.equal(plain.values, group_advantages(rewards, group_size=2).values)
    torch.testing.assert_close(part_advantages([(3.0, rewards)], group_size=2).values, plain.values)
    torch.testing.assert_close(part_advantages([(-1.0, rewards)], group_size=2).values, -plain.values)


@pytest.mark.parametrize("std", ["global", "group"])
def test_a_group_without_any_reward_has_advantages_of_zero(std: str) -> None:
    values = group_advantages(torch.tensor([NAN, NAN, 1.0, 3.0]), group_size=2, std=std)  # type: ignore[arg-type]
    torch.testing.assert_close(values.values, torch.tensor([0.0, 0.0, -1.0, 1.0]))
    assert values.num_flat_groups == 1 and values.usable.tolist() == [False, False, True, True]
    nothing = group_advantages(torch.full((4,), NAN), group_size=2, std=std)  # type: ignore[arg-type]
    assert nothing.values.tolist() == [0.0] * 4 and nothing.num_flat_groups == 2
