"""A refreshed judge is kept or put back: accuracy before and after, at the limit and on both sides of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from generator_loop.config import RefreshConfig
from generator_loop.records import Scored
from generator_loop.refresh.anchors import Anchors
from generator_loop.refresh.new_beats_old import NewBeatsOld, NewBeatsOldConfig
from generator_loop.refresh.pairs import PairCollector, WeightedPairs
from generator_loop.refresh.refresh import JudgeRefresher, load_adapter_tensors
from reward_model.records import RatedClip, Video, VideoPair
from reward_model.training.methods import refresh as training
from tests.plain_rollouts import PROMPTS, drawn, scored

RIGHT = [0.1, 0.2, 0.8, 0.9]
"""Scores of four anchors of quality 0, 0, 1, 1, which form four pairs: all in order."""
THREE_OF_FOUR = [0.1, 0.85, 0.8, 0.9]
HALF = [0.1, 0.95, 0.8, 0.9]
CLIP = Video(frames=torch.zeros(2, 3, 8, 8), fps=8.0)
PAIR = VideoPair(CLIP, CLIP, "a red ring", {"overall": 1.0}, "pair")


class ScoreTable(torch.nn.Module):
    """A judge whose adapter is its scores of the anchors."""

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(torch.tensor(values))

    def role_parameters(self, role: str | None) -> list[torch.nn.Parameter]:
        """Return the table."""
        assert role == "generated"
        return [self.values]


class TableJudge:
    """A reward over a table of scores."""

    def __init__(self, values: Sequence[float]) -> None:
        self.judge, self.role = ScoreTable(values), "generated"

    def __call__(self, videos: Sequence[Video], prompts: Sequence[str | None]) -> Any:
        """Return the table's scores."""
        assert len(videos) == len(prompts) == len(self.judge.values)
        return SimpleNamespace(scores={"overall": self.judge.values.detach().clone()})


def collector() -> PairCollector:
    """Return a collector of VQ-Insight's pairs."""
    return PairCollector(PROMPTS, {"new_beats_old": (NewBeatsOld(NewBeatsOldConfig()), 1.0)})


def only(*pairs: VideoPair) -> WeightedPairs:
    """Return pairs of equal chances."""
    return WeightedPairs(pairs, (0.5,) * len(pairs), {"pairs_new_beats_old": float(len(pairs))})


def refresher(start: Sequence[float], **settings: float) -> JudgeRefresher:
    """Return a refresher whose judge scores the held-out anchors as `start` says."""
    clips = tuple(RatedClip(CLIP, None, {"overall": quality}, str(n)) for n, quality in enumerate((0.0, 0.0, 1.0, 1.0)))
    return JudgeRefresher(
        TableJudge(start),  # type: ignore[arg-type]
        initial=TableJudge(RIGHT),  # type: ignore[arg-type]
        collector=collector(),
        anchors=Anchors(train=clips[:2], held_out=clips),
        weights={"overall": 1.0},
        config=RefreshConfig(**settings),  # type: ignore[arg-type]
    )


@pytest.fixture
def train_to(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[float]], dict[str, Any]]:
    """Return a function that says how the next training ends; the dictionary is filled with what it was given."""

    def prepare(end: Sequence[float]) -> dict[str, Any]:
        given: dict[str, Any] = {}

        def refresh_levels(judge: ScoreTable, **settings: Any) -> dict[str, float]:
            given.update(settings)
            judge.requires_grad_(True)
            with torch.no_grad():
                judge.values.copy_(torch.tensor(end))
            return {"step": 1.0, "seconds": 2.0, "fidelity": 0.25}

        monkeypatch.setattr(training, "refresh_levels", refresh_levels)
        return given

    return prepare


@pytest.mark.parametrize(
    ("end", "accuracy", "max_loss", "kept"),
    [
        (HALF, 0.5, 0.25, False),
        (HALF, 0.5, 0.49, False),
        (HALF, 0.5, 0.5, True),
        (THREE_OF_FOUR, 0.75, 0.25, True),
        (THREE_OF_FOUR, 0.75, 0.24, False),
        (THREE_OF_FOUR, 0.75, 0.0, False),
        ([0.3, 0.4, 0.6, 0.7], 1.0, 0.0, True),
    ],
)
def test_a_refresh_is_kept_where_accuracy_falls_by_no_more_than_the_config_allows(
    train_to: Callable[[Sequence[float]], dict[str, Any]],
    end: Sequence[float],
    accuracy: float,
    max_loss: float,
    kept: bool,
) -> None:
    train_to(end)
    one = refresher(RIGHT, max_accuracy_loss=max_loss)
    metrics = one.refresh(only(PAIR), seed=5)
    assert one.judge.judge.values.tolist() == pytest.approx(list(end) if kept else RIGHT)  # type: ignore[attr-defined]
    assert metrics == {
        "judge_fidelity": 0.25,
        "pairs_new_beats_old": 1.0,
        "num_pairs": 1.0,
        "accuracy_before": 1.0,
        "accuracy_after": accuracy,
        "kept": float(kept),
    }
    assert one.num_kept == int(kept)


@pytest.mark.parametrize(
    ("before", "after", "limit"), [(9, 8, 0.1), (8, 7, 0.1), (4, 3, 0.1), (9, 6, 0.3), (8, 5, 0.3)]
)
@pytest.mark.parametrize("kept", [True, False])
def test_a_fall_by_exactly_the_limit_is_kept_whatever_its_binary_digits(
    train_to: Callable[[Sequence[float]], dict[str, Any]], before: int, after: int, limit: float, kept: bool
) -> None:
    """Of ten pairs; in floating point .8 - .1 is more than .7."""
    max_loss = limit if kept else limit - 1e-7
    start, end = ([0.0] + [1.0] * right + [-1.0] * (10 - right) for right in (before, after))
    train_to(end)
    one = refresher(start, max_accuracy_loss=max_loss)
    clips = tuple(RatedClip(CLIP, None, {"overall": float(n > 0)}, str(n)) for n in range(11))
    one._anchors = Anchors(train=clips[:2], held_out=clips)
    assert one.refresh(only(PAIR), seed=5)["kept"] == float(kept)


def test_a_better_judge_is_kept_and_the_next_refresh_is_held_against_it(
    train_to: Callable[[Sequence[float]], dict[str, Any]],
) -> None:
    one = refresher(HALF, max_accuracy_loss=0.1)
    train_to(RIGHT)
    assert one.refresh(only(PAIR), seed=1)["accuracy_before"] == 0.5 and one.num_kept == 1
    train_to(HALF)
    assert one.refresh(only(PAIR), seed=2)["kept"] == 0.0 and one.num_kept == 1
    train_to(RIGHT)
    assert one.refresh(only(PAIR), seed=3)["kept"] == 1.0 and one.num_kept == 2
    assert one.scale() == (one.scale()[0], 1.0)


def test_the_training_gets_the_settings_the_seed_and_the_train_anchors(
    train_to: Callable[[Sequence[float]], dict[str, Any]],
) -> None:
    given = train_to(RIGHT)
    one = refresher(RIGHT, num_steps=7, learning_rate=3e-3, batch_size=6)

    def check() -> None:
        raise AssertionError

    one.refresh(only(PAIR, PAIR), seed=11, check=check)
    assert given == {
        "role": "generated",
        "pairs": (PAIR, PAIR),
        "chances": (0.5, 0.5),
        "anchors": one._anchors.train,
        "num_steps": 7,
        "learning_rate": 3e-3,
        "batch_size": 6,
        "seed": 11,
        "after_step": check,
    }
    assert not any(parameter.requires_grad for parameter in one.judge.judge.parameters())


def test_without_pairs_nothing_is_trained(train_to: Callable[[Sequence[float]], dict[str, Any]]) -> None:
    given = train_to(HALF)
    one = refresher(RIGHT)
    assert one.refresh(only(), seed=1) == {"pairs_new_beats_old": 0.0, "num_pairs": 0.0, "kept": 0.0}
    assert given == {} and one.num_kept == 0


def test_a_judge_is_frozen_again_where_its_training_stops_early(monkeypatch: pytest.MonkeyPatch) -> None:
    def refresh_levels(judge: ScoreTable, **_settings: Any) -> dict[str, float]:
        judge.requires_grad_(True)
        raise InterruptedError

    monkeypatch.setattr(training, "refresh_levels", refresh_levels)
    one = refresher(RIGHT)
    with pytest.raises(InterruptedError):
        one.refresh(only(PAIR), seed=1)
    assert not one.judge.judge.values.requires_grad and one.num_kept == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(("every", "due"), [(1, [1, 2, 3, 4]), (2, [2, 4]), (3, [3])])
def test_a_refresh_is_due_after_every_so_many_rounds(every: int, due: list[int]) -> None:
    assert [number for number in range(1, 5) if refresher(RIGHT, every=every).is_due(number)] == due


def test_the_state_restores_weights_pairs_and_the_count(
    train_to: Callable[[Sequence[float]], dict[str, Any]],
) -> None:
    train_to(THREE_OF_FOUR)
    one, other = refresher(RIGHT, max_accuracy_loss=0.5), refresher(RIGHT)
    one.refresh(only(PAIR), seed=1)
    one.collector.load_state({"rejected.000000.7": torch.ones(1), "rejected.000001.3": torch.zeros(1)})
    other.load_state(one.state())
    assert one.state().keys() == {"judge.levels.0000", "pairs.rejected.000000.7", "pairs.rejected.000001.3", "num_kept"}
    assert all(torch.equal(value, other.state()[name]) for name, value in one.state().items())
    assert other.num_kept == 1
    saved = one.state()["judge.levels.0000"]
    one.judge.judge.values.data.zero_()  # type: ignore[attr-defined]
    assert saved.tolist() == pytest.approx(THREE_OF_FOUR)  # a copy


def test_weights_of_another_adapter_are_refused() -> None:
    one = refresher(RIGHT)
    for tensors in ({"0000": torch.zeros(3)}, {}, {"0000": torch.zeros(4), "0001": torch.zeros(4)}):
        with pytest.raises(ValueError, match="does not fit role 'generated'"):
            load_adapter_tensors(one.judge, tensors)


def test_the_scale_maps_to_the_initial_judges_rewards() -> None:
    affine, accuracy = refresher([score / 2 for score in RIGHT]).scale()
    assert accuracy == 1.0
    assert [affine(score / 2) for score in RIGHT] == pytest.approx(RIGHT)


def test_the_first_rejected_clip_stays_whatever_comes_later() -> None:
    """Later losers, worse or better, in one iteration or many, never take the place of a prompt's first one."""

    class NoTools:
        gather = staticmethod(lambda items: items)

    def observe(source: PairCollector, brightness: list[float], values: Scored) -> list[float]:
        source.observe(drawn(brightness), values, NoTools())  # type: ignore[arg-type]
        return [float(latents) for latents in source.state().values()]

    source = collector()
    nothing = float("nan")
    assert observe(source, [0.1, 0.2, 0.3, 0.4], scored([nothing, nothing, 0.4, 0.3])) == pytest.approx([0.4])
    assert observe(source, [0.5, 0.6, 0.7, 0.8], scored([0.1, 0.9, 0.0, 0.0])) == pytest.approx([0.4, 0.5])
    for rewards in ([-9.0, -9.0, -9.0, -9.0], [0.9, 0.8, 0.7, 0.6]):
        assert observe(source, [0.0, 0.9, 0.0, 0.9], scored(rewards)) == pytest.approx([0.4, 0.5])


def test_ties_choose_the_first_clip_and_a_group_without_scores_none() -> None:
    from generator_loop.refresh.base import Candidate
    from generator_loop.refresh.pairs import rejected_of

    samples = drawn([0.1, 0.2, 0.3, 0.4])
    tied = scored([0.5, 0.5, float("nan"), float("nan")])
    ((prompt_id, latents),) = rejected_of(samples, tied)
    assert prompt_id == PROMPTS[0].prompt_id and float(latents) == pytest.approx(0.1)
    first, second = (
        Candidate(0, PROMPTS[0], samples.frames[place : place + 2], tied.rewards[place : place + 2]) for place in (0, 2)
    )
    assert float(first.best.mean()) == pytest.approx(0.1) and second.best is None  # type: ignore[union-attr]


def test_pairs_whose_videos_are_gone_leave_the_judge_as_it_was(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_left(judge: ScoreTable, **settings: Any) -> dict[str, float]:
        with torch.no_grad():
            judge.values.zero_()
        raise training.NoReadablePairError("no pair has videos that can be read")

    monkeypatch.setattr(training, "refresh_levels", none_left)
    judge = refresher(RIGHT)
    metrics = judge.refresh(only(PAIR), seed=0)
    assert metrics["kept"] == 0 and judge.num_kept == 0 and "the judge is not refreshed: no pair has" in caplog.text
    assert judge.judge.judge.values.tolist() == pytest.approx(RIGHT)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("readout", "qualities", "message"),
    [
        ("levels", (0.5, 0.52), "no two clips whose quality differs by 0.1"),
        ("comparator_sft", (0.5, 0.5), "the held-out anchors hold no two neighbours of one prompt"),
        ("comparator_grpo", (0.5,), "the held-out anchors hold no two neighbours of one prompt"),
    ],
)
def test_anchors_that_make_no_pair_for_a_readout_are_refused_at_the_start(
    readout: str, qualities: tuple[float, ...], message: str
) -> None:
    good = tuple(RatedClip(CLIP, "x", {"overall": quality}, str(quality)) for quality in (0.0, 1.0))
    poor = tuple(RatedClip(CLIP, "x", {"overall": quality}, str(n)) for n, quality in enumerate(qualities))
    with pytest.raises(ValueError, match=message):
        JudgeRefresher(
            TableJudge(RIGHT),  # type: ignore[arg-type]
            initial=TableJudge(RIGHT),  # type: ignore[arg-type]
            collector=collector(),
            anchors=Anchors(train=good, held_out=poor),
            weights={"overall": 1.0},
            config=RefreshConfig(readouts=[readout]),
        )
