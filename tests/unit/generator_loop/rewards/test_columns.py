"""Further columns of a reward: wins among siblings by a comparator, and a specialist's own dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from generator_loop.rewards import COLUMNS, column_configs
from generator_loop.rewards.comparator import Comparator, ComparatorConfig, Margins, knockout, round_robin
from generator_loop.rewards.specialist import Specialist, SpecialistConfig
from tests.plain_rollouts import PROMPTS, drawn

NAN = float("nan")


def by_quality(values: Sequence[float], asked: list[tuple[int, int]] | None = None) -> Margins:
    """Return a judge that always sees the truth, and notes what it was asked."""

    def margins(pairs: Sequence[tuple[int, int]]) -> list[float]:
        if asked is not None:
            asked.extend(pairs)
        return [values[a] - values[b] for a, b in pairs]

    return margins


def test_every_column_is_registered_under_the_name_of_its_config() -> None:
    for name, config in column_configs().items():
        assert config(role="x").name == name and COLUMNS[name].config_class is config


def test_a_round_robin_counts_wins_and_asks_every_pair_once() -> None:
    asked: list[tuple[int, int]] = []
    standing = round_robin(4, by_quality([0.2, 0.9, 0.4, 0.0], asked))
    assert sorted(asked) == list(itertools.combinations(range(4), 2))
    assert [round(float(value) * 3) for value in standing] == [1, 3, 2, 0]


def test_wins_go_before_margins_and_margins_part_clips_of_equal_wins() -> None:
    # 0 beats 1 by little, 1 beats 2 by much, 2 beats 0 by little: one win each, and means of 0, .45 and -.45
    table = {(0, 1): 0.1, (1, 2): 1.0, (0, 2): -0.1}
    standing = round_robin(3, lambda pairs: [table[pair] for pair in pairs])
    assert standing.tolist() == pytest.approx([0.5, 0.5 + 0.45 / 10, 0.5 - 0.45 / 10])
    # three narrow wins beat two wins and a near tie with the largest margins there are
    table = {(0, 1): 0.01, (0, 2): 0.01, (0, 3): 0.01, (1, 2): 1.0, (1, 3): 1.0, (2, 3): 0.0}
    standing = round_robin(4, lambda pairs: [table[pair] for pair in pairs])
    assert int(standing.argmax()) == 0 and standing[2] == standing[3]


def test_a_tie_is_worth_half_a_win() -> None:
    assert round_robin(2, lambda pairs: [0.0]).tolist() == [0.5, 0.5]


def test_a_clip_without_an_answer_has_no_standing_and_costs_the_others_nothing() -> None:
    def margins(pairs: Sequence[tuple[int, int]]) -> list[float]:
        return [NAN if 1 in pair else float(pair[1] - pair[0]) / 9 for pair in pairs]

    standing = round_robin(3, margins)
    assert bool(standing[1].isnan()) and standing[0] > 1 > standing[2] + 1


@pytest.mark.parametrize("num", range(2, 12))
def test_a_knockout_finds_the_best_and_the_worst_with_few_questions(num: int) -> None:
    for seed in range(20):
        order = torch.randperm(num, generator=torch.Generator().manual_seed(seed)).tolist()
        asked: list[tuple[int, int]] = []
        standing = knockout(num, by_quality([value / num for value in order], asked))
        assert int(standing.argmax()) == order.index(num - 1) and int(standing.argmin()) == order.index(0)
        assert standing.max() == 1 and standing.min() == 0 and bool(standing.isfinite().all())
        assert len(asked) <= 1.5 * num and all(a != b for a, b in asked)


def test_a_knockout_leaves_out_clips_without_an_answer() -> None:
    standing = knockout(4, lambda pairs: [NAN if 3 in pair else 1.0 for pair in pairs])
    assert standing.isnan().tolist() == [False, False, True, True] and standing[0] == 1 and standing[1] == 0


def test_a_clip_that_beat_another_does_not_play_for_the_worst() -> None:
    # 6 has no first opponent, beats 4, and loses the final to 0
    asked: list[tuple[int, int]] = []
    standing = knockout(7, by_quality([0.9, 0.1, 0.5, 0.2, 0.4, 0.3, 0.8], asked))
    assert standing[0] == 1 and standing[1] == 0 and standing[6] == 0.875 and (4, 6) in asked


def test_a_later_pair_without_an_answer_leaves_both_clips_out() -> None:
    def margins(pairs: Sequence[tuple[int, int]]) -> list[float]:
        return [NAN if pair == (0, 2) else 1.0 for pair in pairs]

    standing = knockout(4, margins)
    assert standing.isnan().tolist() == [True, False, True, False] and standing[3] == 0


class PairJudge:
    """A judge that prefers the brighter clip and knows its roles."""

    def __init__(self, role: str | None = None) -> None:
        self.role, self.calls = role, []  # type: ignore[var-annotated]

    def with_role(self, role: str) -> PairJudge:
        """Return the view of a role."""
        if role == "none":
            raise ValueError("unknown role 'none'")
        return PairJudge(role)

    def compare(self, a: Tensor, b: Tensor, prompts: Sequence[str], **how: Any) -> Any:
        """Return margins of brightness; clips that are black cannot be compared."""
        self.calls.append((list(prompts), how))
        first, second = (clips.flatten(1).mean(1) for clips in (a, b))
        return SimpleNamespace(margin=first - second, valid=(first > 0) & (second > 0))

    def __call__(self, videos: Tensor, prompts: Sequence[str], **how: Any) -> Any:
        """Return the brightness as reward."""
        self.calls.append((list(prompts), how))
        return SimpleNamespace(rewards=videos.flatten(1).mean(1))


def test_the_comparator_compares_within_prompts_alone() -> None:
    judge = PairJudge()
    column = Comparator(ComparatorConfig(both_orders=False), judge, fps=8.0, batch_size=5)  # type: ignore[arg-type]
    values = column.values(drawn([0.1, 0.3, 0.2, 0.9, 0.0, 0.5]))
    assert values[:3].argsort().tolist() == [0, 2, 1]
    assert values[3:].isnan().tolist() == [False, True, False] and values[3] > values[5]
    view: Any = column._judge
    assert view.role == "comparator"
    assert view.calls == [([prompt.text] * 3, {"swap": False, "fps": 8.0, "batch_size": 5}) for prompt in PROMPTS]


def test_a_specialist_asks_its_role_for_its_dimensions() -> None:
    config = SpecialistConfig(role="natural", dimensions={"visual_quality": 2.0})
    column = Specialist(config, PairJudge(), fps=8.0, batch_size=5)  # type: ignore[arg-type]
    assert column.values(drawn([0.1, 0.3, 0.2, 0.9])).tolist() == pytest.approx([0.1, 0.3, 0.2, 0.9])
    view: Any = column._judge
    assert view.role == "natural"
    texts = [prompt.text for prompt in PROMPTS for _ in range(2)]
    assert view.calls == [(texts, {"fps": 8.0, "weights": {"visual_quality": 2.0}, "batch_size": 5})]
    with pytest.raises(ValueError, match="dimensions.sharpness is no dimension"):
        SpecialistConfig(role="natural", dimensions={"sharpness": 1.0})


@pytest.mark.parametrize("column", [Comparator, Specialist])
def test_an_unknown_role_is_refused_at_the_start(column: type) -> None:
    with pytest.raises(ValueError, match="unknown role 'none'"):
        column(column.config_class(role="none"), PairJudge(), fps=8.0, batch_size=1)  # type: ignore[attr-defined]
