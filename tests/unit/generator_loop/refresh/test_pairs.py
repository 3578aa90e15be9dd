"""The pairs of a refresh: the round's losers, the newest clips, the shares of the sources, memory, state and processes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from generator_loop.records import Draw, Prompt, Rollout, Scored
from generator_loop.refresh.base import Candidate, PairSourceConfig, PairTools, preferred
from generator_loop.refresh.new_beats_old import NewBeatsOld, NewBeatsOldConfig
from generator_loop.refresh.pairs import PairCollector, rejected_of
from reward_model.records import VideoPair
from tests.plain_rollouts import PROMPTS, drawn, scored

FIRST, SECOND = PROMPTS


def decode(latents: Tensor) -> Tensor:
    """Return frames [N, 3, 3, 4, 4] as bright as the latents."""
    return latents.expand(-1, 3, 3, 4, 4)


def newest(prompts: Sequence[Prompt]) -> tuple[Rollout, Scored]:
    """Return clips of brightness .5, .9 for each prompt, scored alike."""
    assert list(prompts) == list(PROMPTS)
    return drawn([0.5, 0.9, 0.5, 0.9]), scored([0.5, 0.9, 0.5, 0.9])


def tools(
    sample: Callable[[Sequence[Prompt]], tuple[Rollout, Scored]] = newest,
    *,
    gather: Callable[[list[Any]], list[Any]] = lambda items: items,
    num_prompts: int = 8,
    **changes: Any,
) -> PairTools:
    """Return the tools of one process."""
    plain = PairTools(
        sample=sample,
        decode=decode,
        encode=lambda frames: frames[:, :1, :1, :1, :1],
        scores=lambda candidates: {"current": torch.stack([one.rewards for one in candidates])},
        gather=gather,
        draw=Draw(seed=0, step=1),
        rank=0,
        num_ranks=1,
        num_prompts=num_prompts,
        fps=8.0,
        size=(3, 4, 4),
    )
    return dataclasses.replace(plain, **changes)


class Counted:
    """A source that gives each prompt several pairs, numbered by their brightness."""

    config_class = PairSourceConfig

    def __init__(self, values: Sequence[float]) -> None:
        self.values = list(values)

    def pairs(self, candidates: Sequence[Candidate], tools: PairTools) -> list[tuple[int, VideoPair]]:
        """Return one pair per value for the first prompt."""
        dark = torch.zeros(3, 3, 4, 4)
        return [
            (place, preferred(torch.full_like(dark, value), dark, FIRST, fps=8.0, source="counted"))
            for place, value in enumerate(self.values)
        ]


def collector(**sources: tuple[Any, float]) -> PairCollector:
    """Return a collector of VQ-Insight's pairs unless others are given."""
    return PairCollector(PROMPTS, sources or {"new_beats_old": (NewBeatsOld(NewBeatsOldConfig()), 1.0)})


def observed(one: PairCollector) -> PairCollector:
    """Return the collector after an iteration whose losers are .2 and .4 bright."""
    one.observe(drawn([0.1, 0.2, 0.3, 0.4]), scored([0.2, 0.1, 0.4, 0.3]), tools())
    return one


def brightness(pairs: Sequence[VideoPair]) -> list[float]:
    """Return the mean of both clips of each pair."""
    return [float(video.frames.mean()) for pair in pairs for video in (pair.first, pair.second)]  # type: ignore[union-attr]


def test_the_rejected_clip_is_the_worst_that_has_a_score() -> None:
    samples, values = drawn([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), scored([0.5, math.nan, 0.9, math.nan, math.nan, math.nan])
    ((prompt_id, latents),) = rejected_of(samples, values)
    assert prompt_id == FIRST.prompt_id and float(latents) == torch.tensor(0.1)


def test_an_infinite_reward_rejects_no_clip() -> None:
    values = dataclasses.replace(scored([math.inf, 0.5, 0.2, -math.inf]), valid=torch.ones(4, dtype=torch.bool))
    assert [float(latents) for _, latents in rejected_of(drawn([0.1, 0.2, 0.3, 0.4]), values)] == pytest.approx(
        [0.2, 0.3]
    )


def test_the_newest_best_clip_beats_the_first_rejected_clip_of_its_prompt() -> None:
    one = observed(collector())
    one.observe(drawn([0.0, 0.0, 0.0, 0.0]), scored([-1.0, -1.0, -1.0, -1.0]), tools())  # comes too late
    first, second = one.collect(tools()).pairs
    assert [pair.prompt for pair in (first, second)] == [FIRST.text, SECOND.text]
    assert first.preference == {"overall": 1.0} and first.first.fps == 8.0  # type: ignore[union-attr]
    assert brightness([first, second]) == pytest.approx([0.9, 0.2, 0.9, 0.4])


def test_best_and_worst_are_those_of_the_score_that_ranks() -> None:
    def by_wins(rewards: Sequence[float], wins: Sequence[float]) -> Scored:
        return dataclasses.replace(scored(rewards), scores={"wins": torch.tensor(wins)})

    def newest_by_wins(prompts: Sequence[Prompt]) -> tuple[Rollout, Scored]:
        return drawn([0.5, 0.9, 0.5, 0.9]), by_wins([0.5, 0.9, 0.5, 0.9], [1.0, 0.0, 0.2, 0.7])

    one = PairCollector(PROMPTS, {"new_beats_old": (NewBeatsOld(NewBeatsOldConfig()), 1.0)}, rank_by="wins")
    one.observe(drawn([0.1, 0.2, 0.3, 0.4]), by_wins([0.2, 0.1, 0.4, 0.3], [0.0, 0.5, 0.1, 0.5]), tools())
    assert brightness(one.collect(tools(newest_by_wins)).pairs) == pytest.approx([0.5, 0.1, 0.9, 0.3])


def test_a_prompt_without_scores_on_one_side_has_no_pair() -> None:
    def half_scored(prompts: Sequence[Prompt]) -> tuple[Rollout, Scored]:
        return drawn([0.5, 0.9, 0.5, 0.9]), scored([math.nan, math.nan, 0.9, math.nan])

    (pair,) = observed(collector()).collect(tools(half_scored)).pairs
    assert pair.prompt == SECOND.text and brightness([pair]) == pytest.approx([0.5, 0.4])


def test_every_refresh_starts_anew() -> None:
    one = observed(collector())
    assert len(one.collect(tools()).pairs) == 2
    assert one.collect(tools()).pairs == () and one.state() == {}


def test_no_more_prompts_are_paired_than_the_config_allows() -> None:
    def of_the_first(prompts: Sequence[Prompt]) -> tuple[Rollout, Scored]:
        assert list(prompts) == [FIRST]
        whole = drawn([0.5, 0.9, 0.5, 0.9])
        return Rollout((FIRST,), 2, whole.noise[:2], whole.latents[:2], whole.cond, whole.frames[:2]), scored(
            [0.5, 0.9]
        )

    (pair,) = observed(collector()).collect(tools(of_the_first, num_prompts=1)).pairs
    assert pair.prompt == FIRST.text


def test_processes_sample_disjoint_prompts_and_get_the_same_pairs_in_the_prompts_order() -> None:
    asked: list[Prompt] = []

    def of_one(prompts: Sequence[Prompt]) -> tuple[Rollout, Scored]:
        asked.extend(prompts)
        (place,) = (PROMPTS.index(prompt) for prompt in prompts)
        part, whole = slice(2 * place, 2 * place + 2), drawn([0.5, 0.9, 0.6, 0.8])
        return Rollout(tuple(prompts), 2, whole.noise[part], whole.latents[part], whole.cond, whole.frames[part]), (
            scored([0.5, 0.9])
        )

    shares: list[list[Any]] = []
    for rank in (0, 1):  # each process's own share
        observed(collector()).collect(
            tools(of_one, gather=lambda items: shares.append(items) or items, rank=rank, num_ranks=2)
        )
    assert asked == [FIRST, SECOND]
    joined = [item for share in reversed(shares) for item in share]  # in another order than the prompts'
    pairs = observed(collector()).collect(tools(of_one, gather=lambda items: joined, rank=0, num_ranks=2)).pairs
    assert [pair.prompt for pair in pairs] == [FIRST.text, SECOND.text]
    assert brightness(pairs) == pytest.approx([0.9, 0.2, 0.8, 0.4])


def test_each_source_has_the_share_of_its_weight_whatever_its_number_of_pairs() -> None:
    one = collector(few=(Counted([0.1]), 3.0), many=(Counted([0.2, 0.3, 0.4, 0.5]), 1.0), none=(Counted([]), 9.0))
    collected = one.collect(tools())
    assert brightness(collected.pairs)[::2] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert collected.chances == (3.0, 0.25, 0.25, 0.25, 0.25)
    assert collected.metrics == {"pairs_few": 1.0, "pairs_many": 4.0, "pairs_none": 0.0}


def test_the_newest_pairs_of_each_source_are_drawn_again_after_a_restart_as_well() -> None:
    source, other = Counted([51 / 255, 102 / 255, 153 / 255]), Counted([204 / 255])
    one = PairCollector(PROMPTS, {"a": (source, 1.0), "b": (other, 2.0)}, num_remembered=2)
    assert len(one.collect(tools()).pairs) == 4
    source.values, other.values = [0.0], []
    restored = PairCollector(PROMPTS, {"a": (source, 1.0), "b": (other, 2.0)}, num_remembered=2)
    restored.load_state(one.state())
    for same in (one, restored):
        collected = same.collect(tools())
        assert brightness(collected.pairs)[::2] == pytest.approx([102 / 255, 153 / 255, 0.0, 204 / 255])
        assert collected.chances == pytest.approx([1 / 3, 1 / 3, 1 / 3, 2.0])
        assert collected.metrics == {"pairs_a": 1.0, "pairs_b": 0.0}
        remembered = collected.pairs[0]
        assert (remembered.prompt, remembered.preference, remembered.first.fps) == (FIRST.text, {"overall": 1.0}, 8.0)  # type: ignore[union-attr]
    assert brightness(one.collect(tools()).pairs)[:4:2] == pytest.approx([153 / 255, 0.0])


def test_nothing_is_remembered_unless_the_config_says_so() -> None:
    one = collector(a=(Counted([0.2, 0.4]), 1.0))
    one.collect(tools())
    assert one.state() == {} and len(one.collect(tools()).pairs) == 2


def test_the_oracle_says_which_share_of_the_labels_is_right() -> None:
    one = collector(a=(Counted([0.2, 0.4]), 1.0), b=(Counted([]), 1.0))
    # the clip that is .4 bright beats black for this oracle, the one that is .2 bright loses
    metrics = one.collect(tools(oracle=lambda frames, prompt: abs(float(frames.mean()) - 0.15))).metrics
    assert metrics == {"pairs_a": 2.0, "confirmed_a": 0.5, "pairs_b": 0.0}


def test_a_restored_collector_gives_the_same_pairs_in_the_same_order() -> None:
    one, other = observed(collector()), collector()
    other.load_state(dict(reversed(one.state().items())))
    first, second = one.collect(tools()).pairs, other.collect(tools()).pairs
    assert [pair.prompt for pair in first] == [pair.prompt for pair in second] == [FIRST.text, SECOND.text]
    assert brightness(first) == brightness(second)


def test_the_name_of_a_source_may_hold_dots() -> None:
    def named() -> PairCollector:
        return PairCollector(PROMPTS, {"raters.of.may": (Counted([0.2, 0.4]), 1.0)}, num_remembered=9)

    one, other = named(), named()
    one.collect(tools())
    other.load_state(one.state())
    assert brightness(other.collect(tools()).pairs) == brightness(one.collect(tools()).pairs)


def test_the_oracle_of_a_world_is_not_asked_about_captions_of_other_clips() -> None:
    class Captioned(Counted):
        def pairs(self, candidates: Sequence[Candidate], tools: PairTools) -> list[tuple[int, VideoPair]]:
            """Return pairs of which the second has another caption."""
            plain = super().pairs(candidates, tools)
            return [
                (place, dataclasses.replace(pair, prompt=pair.prompt if place == 0 else "x")) for place, pair in plain
            ]

    def oracle(frames: Tensor, prompt: str) -> float:
        assert prompt == FIRST.text
        return float(frames.mean())

    assert collector(a=(Captioned([0.2, 0.4]), 1.0)).collect(tools(oracle=oracle)).metrics["confirmed_a"] == 1.0
    assert "confirmed_a" not in collector(a=(Captioned([]), 1.0)).collect(tools(oracle=oracle)).metrics
