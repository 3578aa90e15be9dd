"""What a run comes to: differences, diversity, and the prompts it is measured on."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from generator_loop.config import PromptConfig
from generator_loop.evaluation import summary
from generator_loop.evaluation import toy_world as world
from generator_loop.evaluation.columns import Evaluation
from generator_loop.records import Draw
from generator_loop.refresh.anchors import Affine
from generator_loop.sampling.prompts import open_prompts
from reward_model import moving_shapes

IDS = (5, 5, 9, 9)


def evaluation(**columns: tuple[float, ...]) -> Evaluation:
    return Evaluation(IDS, {name.replace("__", "/"): column for name, column in columns.items()})


def test_the_first_prompts_of_an_evaluation_keep_their_rows() -> None:
    found = evaluation(oracle__overall=(0.1, 0.2, 0.3, 0.4)).first(1)
    assert found == Evaluation((5, 5), {"oracle/overall": (0.1, 0.2)})


def test_a_missing_score_leaves_the_mean_of_the_others() -> None:
    found = evaluation(initial__reward=(0.2, math.nan, 0.4, math.nan))
    assert found.mean("initial/reward") == pytest.approx(0.3)
    assert summary.valid_fraction(found) == 0.5
    assert math.isnan(found.mean("audit/reward"))


def test_the_difference_is_taken_clip_by_clip_and_bounded_by_prompts() -> None:
    ids = (5,) * 8 + (9,) * 8
    before = Evaluation(ids, {"oracle/overall": (0.1, 0.3) * 4 + (0.5,) * 8, "initial/reward": (0.5,) * 16})
    after = Evaluation(ids, {"oracle/overall": (0.3, 0.5) * 4 + (0.5,) * 8, "initial/reward": (0.6, math.nan) * 8})
    found = summary.difference(before, after, num_resamples=500, seed=0)
    assert found["overall"]["mean"] == pytest.approx(0.1)
    # a resample holds prompt 5 (+0.2) never, once or twice; single clips would give narrower bounds
    assert (found["overall"]["low"], found["overall"]["high"]) == (pytest.approx(0.0), pytest.approx(0.2))
    assert found["reward_initial_judge"]["mean"] == pytest.approx(0.1)
    assert "reward_audit" not in found


def test_without_an_oracle_the_initial_judge_gives_the_dimensions() -> None:
    before, after = evaluation(initial__overall=(0.1,) * 4), evaluation(initial__overall=(0.2,) * 4)
    assert summary.difference(before, after, num_resamples=10, seed=0)["overall"]["mean"] == pytest.approx(0.1)


def test_diversity_is_the_spread_within_a_prompt_relative_to_the_renderers() -> None:
    found = evaluation(open__shade=(0.0, 0.2, 0.5, 0.5), open__place=(1.0, 3.0, math.nan, 2.0))
    # shade: mean of 0.1 and 0; place: 1 for the first prompt, the other has a clip without a shape
    assert summary.diversity(found, found, {"shade": 0.1, "place": 2.0}) == pytest.approx((0.5 + 0.5) / 2)


def test_outside_the_world_diversity_is_relative_to_round_0() -> None:
    first, now = evaluation(latents__spread=(2.0,) * 4), evaluation(latents__spread=(1.0,) * 4)
    assert summary.diversity(now, first, None) == pytest.approx(0.5)


def test_judge_and_oracle_agree_in_rank_or_nothing_is_said() -> None:
    agreeing = evaluation(current__overall=(0.1, 0.2, 0.3, 0.9), oracle__overall=(0.0, 0.1, 0.5, 0.6))
    assert summary.judge_oracle_srcc(agreeing) == pytest.approx(1.0)
    assert math.isnan(summary.judge_oracle_srcc(evaluation(current__overall=(0.1, 0.2, 0.3, 0.9))))


def test_siblings_are_compared_with_their_prompts_clips_alone() -> None:
    # the prompts' means are opposite, so that a correlation over all clips would be below 0
    ids = (5, 5, 5, 9, 9, 9, 7, 7)
    columns = {
        "current/reward": (0.1, 0.2, 0.3, 0.9, 0.8, 0.7, 0.5, 0.6),
        "oracle/overall": (0.7, 0.8, 0.9, 0.2, 0.3, 0.1, 0.1, 0.9),
    }
    # 1 for the first prompt, 1/2 for the second (ranks 3 2 1 against 2 3 1); the third has too few clips
    assert summary.sibling_srcc(Evaluation(ids, columns)) == pytest.approx(0.75)
    missing = columns | {"current/reward": (math.nan, 0.2, 0.3, 0.9, 0.8, 0.7, 0.5, 0.6)}
    assert summary.sibling_srcc(Evaluation(ids, missing)) == pytest.approx(0.5)
    assert math.isnan(summary.sibling_srcc(Evaluation(ids, {"current/reward": columns["current/reward"]})))
    assert math.isnan(summary.sibling_srcc(evaluation(current__reward=(1, 2, 3, 4), oracle__overall=(1, 2, 3, 4))))


def test_judges_are_set_beside_random_scores_on_pairs_of_one_prompt() -> None:
    found = evaluation(
        oracle__overall=(0.1, 0.9, 0.5, 0.52),  # the second prompt's clips are too close to form a pair
        initial__overall=(0.2, 0.3, 0.0, 0.0),
        current__overall=(0.3, 0.2, 0.0, 0.0),
    )
    accuracy = summary.pair_accuracies(found)
    assert accuracy is not None and accuracy["num_pairs"] == 1
    assert (accuracy["initial"], accuracy["current"]) == (1.0, 0.0) and accuracy["random"] in (0.0, 1.0)
    assert "audit" not in accuracy
    assert summary.pair_accuracies(evaluation(initial__overall=(0.1,) * 4)) is None


def test_a_round_states_the_current_reward_on_the_initial_scale() -> None:
    measured = evaluation(initial__reward=(0.5,) * 4, current__reward=(0.8,) * 4)
    record = summary.round_record(
        1,
        measured,
        anchored=Affine(offset=0.1, slope=0.5),
        probes={"kl": 0.25},
        diversity=1.0,
        refresh={"kept": 0.0},
        anchor_accuracy=math.nan,
        seconds=3.0,
    )
    assert record["reward_current_judge"] == pytest.approx(0.5)
    assert record["judge_kept"] is False and record["oracle"] is None and record["anchor_accuracy"] is None


def test_the_worlds_held_out_prompts_are_not_trained_on() -> None:
    train, held_out = open_prompts(PromptConfig(world="moving_shapes"), seed=1)
    assert len(held_out) == 64 and not {p.text for p in train} & {p.text for p in held_out}
    assert len({p.prompt_id for p in (*train, *held_out)}) == len(train) + len(held_out)
    unseen = {moving_shapes.caption(scene) for scene in moving_shapes.split(moving_shapes.CORE)[1]}
    assert {p.text for p in held_out} == unseen


def test_prompts_of_a_file_are_split_by_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"prompt {n}\n" for n in range(10)))
    settings = PromptConfig(path=str(path), num_held_out=4, max_prompts=5)
    (train, held_out), (_, others) = (open_prompts(settings, seed=seed) for seed in (0, 1))
    assert len(train) == 5 and len(held_out) == 4 and not set(train) & set(held_out)
    assert set(held_out) != set(others)
    with pytest.raises(ValueError, match="leaves 0 training prompts"):
        open_prompts(PromptConfig(path=str(path), num_held_out=10), seed=0)


def test_the_renderer_is_as_varied_as_itself() -> None:
    _, held_out = open_prompts(PromptConfig(world="moving_shapes", num_held_out=6), seed=0)
    spread = world.renderer_spread(held_out, Draw(0, 0), num_seeds=4, num_frames=5, size=(32, 32))
    again = world.renderer_spread(held_out, Draw(1, 0), num_seeds=4, num_frames=5, size=(32, 32))
    assert spread.keys() == {"shade", "place", "tint"}
    ratio = sum(again[name] / spread[name] for name in spread) / 3
    assert 0.7 < ratio < 1.4  # two draws of 24 clips


@pytest.mark.parametrize("renderer", [None, {"shade": 0.1}])
def test_the_diversity_of_single_clips_is_not_measured(renderer: dict[str, float] | None) -> None:
    single = Evaluation((5, 9), {"open/shade": (0.1, 0.5), "latents/spread": (0.0, 0.0)})
    assert math.isnan(summary.diversity(single, single, renderer))
