"""Statistics of samples, and the guards that read them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import pytest

from generator_loop.guards import GUARDS
from generator_loop.guards.base import Watch
from generator_loop.guards.monitors import refuse_invalid, statistics
from generator_loop.records import Rollout, Scored
from tests.plain_rollouts import drawn, scored

FIRST = {"motion": 1.0, "edges": 1.0, "saturation": 1.0, "group_spread": 1.0, "reward": 0.2}


class Darkness:
    """Objects to dark clips, by a statistic of its own."""

    def measure(self, samples: Rollout, scored: Scored) -> Mapping[str, float]:
        return {"darkness": 1 - float(samples.frames.mean())}

    def check(self, now: Mapping[str, float], first: Mapping[str, float]) -> str:
        return "too dark" if now["darkness"] > 0.7 else ""


def test_a_guard_objects_outside_its_limits_only() -> None:
    watch = Watch(GUARDS)
    assert watch.check(FIRST) == () and watch.first == FIRST
    assert watch.check({**FIRST, "motion": 0.41, "saturation": 1.99}) == ()
    assert watch.check({**FIRST, "motion": 0.39}) == ("motion is 0.39, 0.39 of its first value: look at the samples",)
    assert len(watch.check({**FIRST, "edges": 3.1, "group_spread": 2.6})) == 2
    assert watch.first == FIRST


def test_a_statistic_that_is_not_finite_is_an_alarm_unless_it_was_so_from_the_first() -> None:
    watch = Watch(GUARDS)
    watch.check({**FIRST, "edges": math.nan})
    assert "edges" not in watch.first
    assert watch.check({**FIRST, "edges": math.nan}) == ()
    assert len(watch.check({**FIRST, "motion": math.nan})) == 1


def test_a_further_guard_measures_and_objects() -> None:
    watch = Watch({**GUARDS, "darkness": Darkness()})
    numbers = watch.measure(drawn([0.25, 0.25]), scored([0.0, 0.0]))
    assert numbers == {"darkness": 0.75}
    assert watch.check({**FIRST, **numbers}) == ("too dark",)


def test_a_still_clip_has_no_motion_and_equal_latents_no_spread() -> None:
    numbers = statistics(drawn([0.5, 0.5, 0.25, 0.25]), scored([1.0, 1.0, math.nan, 0.0]))
    assert numbers["motion"] == 0 and numbers["group_spread"] == 0
    assert numbers["valid_fraction"] == 0.75 and numbers["reward"] == pytest.approx(2 / 3)


def test_spreads_are_deviations_within_groups() -> None:
    # latents 0, 1 and 2, 2: deviations 1/2 and 0; rewards 1, 3 and 5, 5: deviations 1 and 0
    numbers = statistics(drawn([0.0, 1.0, 2.0, 2.0]), scored([1.0, 3.0, 5.0, 5.0]))
    assert numbers["group_spread"] == 0.25 and numbers["reward_group_std"] == 0.5


def test_too_many_missing_scores_stop_the_run() -> None:
    refuse_invalid(scored([math.nan, 1.0]), max_fraction=0.5)
    with pytest.raises(RuntimeError, match="50% of the samples have no score"):
        refuse_invalid(scored([math.nan, 1.0]), max_fraction=0.4)


def test_many_missing_scores_are_an_alarm_with_the_commonest_reason() -> None:
    watch, samples = Watch(GUARDS), drawn([0.1, 0.2, 0.3, 0.4])
    values = dataclasses.replace(scored([0.5, math.nan, math.nan, 0.2]), reasons=("", "no prompt", "no prompt", ""))
    watch.measure(samples, values)
    (alarm,) = watch.check({**FIRST, "valid_fraction": 0.5})
    assert alarm.startswith("50% of the samples have no score") and "no prompt (2 samples)" in alarm
    assert watch.check({**FIRST, "valid_fraction": 0.95}) == ()
