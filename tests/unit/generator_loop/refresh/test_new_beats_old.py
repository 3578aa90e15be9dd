"""The pair source of VQ-Insight: the newest best clip beats the first worst one of the same prompt."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from generator_loop.records import Prompt, Rollout, Scored
from generator_loop.refresh.base import PairTools
from generator_loop.refresh.new_beats_old import NewBeatsOld, chosen_of, rejected_of
from tests.plain_rollouts import PROMPTS, drawn, scored

FIRST, SECOND = PROMPTS


def decode(latents: Tensor) -> Tensor:
    """Return frames [N, 3, 3, 4, 4] as bright as the latents."""
    return latents.expand(-1, 3, 3, 4, 4)


def tools(
    sample: Callable[[Sequence[Prompt]], tuple[Rollout, Scored]],
    *,
    gather: Callable[[list[Any]], list[Any]] = lambda items: items,
    num_prompts: int = 8,
) -> PairTools:
    """Return the tools of one process."""
    return PairTools(sample=sample, decode=decode, gather=gather, rank=0, num_ranks=1, num_prompts=num_prompts, fps=8.0)


def newest(prompts: Sequence[Prompt]) -> tuple[Rollout, Scored]:
    """Return clips of brightness .5, .9 for each prompt, scored alike."""
    assert list(prompts) == list(PROMPTS)
    return drawn([0.5, 0.9, 0.5, 0.9]), scored([0.5, 0.9, 0.5, 0.9])


def test_the_rejected_clip_is_the_worst_that_has_a_score_and_the_chosen_one_the_best() -> None:
    samples, values = drawn([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), scored([0.5, math.nan, 0.9, math.nan, math.nan, math.nan])
    ((rejected_id, latents),) = rejected_of(samples, values)
    ((chosen_id, frames),) = chosen_of(samples, values)
    assert rejected_id == chosen_id == FIRST.prompt_id
    assert float(latents) == torch.tensor(0.1) and float(frames.mean()) == torch.tensor(0.3)


def test_the_newest_best_clip_beats_the_first_rejected_clip_of_its_prompt() -> None:
    source = NewBeatsOld(PROMPTS)
    source.observe(drawn([0.1, 0.2, 0.3, 0.4]), scored([0.2, 0.1, 0.4, 0.3]), tools(newest))
    source.observe(drawn([0.0, 0.0, 0.0, 0.0]), scored([-1.0, -1.0, -1.0, -1.0]), tools(newest))  # comes too late
    first, second = source.pairs(tools(newest))
    assert [pair.prompt for pair in (first, second)] == [FIRST.text, SECOND.text]
    assert first.preference == {"overall": 1.0} and first.first.fps == 8.0
    brightness = [float(video.frames.mean()) for pair in (first, second) for video in (pair.first, pair.second)]
    torch.testing.assert_close(brightness, [0.9, 0.2, 0.9, 0.4])


def test_every_refresh_starts_anew() -> None:
    source = NewBeatsOld(PROMPTS)
    source.observe(drawn([0.1, 0.2, 0.3, 0.4]), scored([0.2, 0.1, 0.4, 0.3]), tools(newest))
    assert len(source.pairs(tools(newest))) == 2
    assert source.pairs(tools(newest)) == [] and source.state() == {}


def test_no_more_prompts_are_paired_than_the_config_allows() -> None:
    source = NewBeatsOld(PROMPTS)
    source.observe(drawn([0.1, 0.2, 0.3, 0.4]), scored([0.2, 0.1, 0.4, 0.3]), tools(newest))

    def of_the_first(prompts: Sequence[Prompt]) -> tuple[Rollout, Scored]:
        assert list(prompts) == [FIRST]
        whole = drawn([0.5, 0.9, 0.5, 0.9])
        return Rollout((FIRST,), 2, whole.noise[:2], whole.latents[:2], whole.cond, whole.frames[:2]), scored(
            [0.5, 0.9]
        )

    (pair,) = source.pairs(tools(of_the_first, num_prompts=1))
    assert pair.prompt == FIRST.text


def test_processes_sample_disjoint_prompts_and_get_the_same_pairs() -> None:
    source = NewBeatsOld(PROMPTS)
    source.observe(drawn([0.1, 0.2, 0.3, 0.4]), scored([0.2, 0.1, 0.4, 0.3]), tools(newest))
    asked: list[Prompt] = []

    def of_the_second(prompts: Sequence[Prompt]) -> tuple[Rollout, Scored]:
        asked.extend(prompts)
        whole = drawn([0.5, 0.9, 0.5, 0.9])
        return Rollout((SECOND,), 2, whole.noise[2:], whole.latents[2:], whole.cond, whole.frames[2:]), scored(
            [0.5, 0.9]
        )

    other = (FIRST.prompt_id, torch.full((3, 3, 4, 4), 0.7))
    second = PairTools(
        sample=of_the_second,
        decode=decode,
        gather=lambda items: [other, *items],
        rank=1,
        num_ranks=2,
        num_prompts=8,
        fps=8.0,
    )
    pairs = source.pairs(second)
    assert asked == [SECOND] and [pair.prompt for pair in pairs] == [FIRST.text, SECOND.text]


def test_a_restored_source_gives_the_same_pairs_in_the_same_order() -> None:
    one, other = NewBeatsOld(PROMPTS), NewBeatsOld(PROMPTS)
    one.observe(drawn([0.1, 0.2, 0.3, 0.4]), scored([0.2, 0.1, 0.4, 0.3]), tools(newest))
    other.load_state(dict(reversed(one.state().items())))
    first, second = one.pairs(tools(newest)), other.pairs(tools(newest))
    assert [pair.prompt for pair in first] == [pair.prompt for pair in second]
    assert all(torch.equal(a.second.frames, b.second.frames) for a, b in zip(first, second, strict=True))


def test_an_infinite_reward_is_neither_best_nor_worst() -> None:
    samples, values = drawn([0.1, 0.2, 0.3, 0.4]), scored([math.inf, 0.5, 0.2, -math.inf])
    values = dataclasses.replace(values, valid=torch.ones(4, dtype=torch.bool))
    rejected, chosen = rejected_of(samples, values), chosen_of(samples, values)
    assert [float(latents) for _, latents in rejected] == pytest.approx([0.2, 0.3])
    assert [float(frames.mean()) for _, frames in chosen] == pytest.approx([0.2, 0.3])
