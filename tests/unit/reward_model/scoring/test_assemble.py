"""ScoreAssembler and average_orders: values by hand, without a model."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from reward_model.judge.checkpoints.format import JudgeConfig
from reward_model.records import (
    DIMENSIONS,
    LevelReadout,
    ParsedAnswer,
    ParseFailure,
    PreferenceReadout,
)
from reward_model.scoring.assemble import ScoreAssembler, average_orders
from tests.tiny_judge import make_clip

CONFIG = JudgeConfig(
    family="qwen2_5_vl",
    min_pixels=1,
    max_pixels=2,
    position_rule="",
    calibration={"overall": {"mean": 0.25, "std": 0.5}},
)
CPU = torch.device("cpu")


def assembler(*dims: str, num: int = 1, named: tuple[str, ...] = ()) -> ScoreAssembler:
    """Return an assembler of `num` clips on `dims`, all by default."""
    return ScoreAssembler(dims or DIMENSIONS, num, CONFIG, CPU, named=named)


def readout(*quality: float, mass: float = 0.9) -> LevelReadout:
    """Return a readout whose other values are told apart: std is a tenth of the quality, the first level has it all."""
    values = torch.tensor(quality)
    probs = torch.nn.functional.one_hot(torch.zeros(len(quality), dtype=torch.long), 5).float()
    return LevelReadout(values, probs, values / 10, torch.full_like(values, mass))


def test_with_a_prompt_the_judges_own_overall_is_the_reward():
    scores = assembler()
    assert scores.add_clip(0, make_clip(), "a dog") == DIMENSIONS
    scores.add_levels(0, DIMENSIONS, readout(0.1, 0.2, 0.3, 0.4))
    out = scores.output(None, "unit")
    assert_close(out.rewards, torch.tensor([0.4]))
    assert [out.scores[name].item() for name in DIMENSIONS] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [out.std[name].item() for name in DIMENSIONS] == pytest.approx([0.01, 0.02, 0.03, 0.04])
    assert [out.level_mass[name].item() for name in DIMENSIONS] == pytest.approx([0.9] * 4)
    assert out.level_probs["overall"].tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0]]
    assert out.overall_from == [("overall",)] and out.reasons == dict.fromkeys(DIMENSIONS, [""])
    assert out.texts is None and out.frame_plan == [make_clip().plan]


def test_without_a_prompt_overall_is_the_mean_of_the_available_dimensions():
    scores = assembler(num=2)
    asked = ("visual_quality", "motion_quality")
    assert scores.add_clip(1, make_clip(), None) == asked
    assert scores.add_clip(0, make_clip(), "a dog") == DIMENSIONS
    scores.add_levels(1, asked, readout(0.2, 0.8))
    scores.add_levels(0, DIMENSIONS, readout(0.0, 0.0, 0.0, 1.0))
    out = scores.output(None, "unit")
    assert_close(out.rewards, torch.tensor([1.0, 0.5]))
    assert out.overall_from == [("overall",), asked]
    assert out.reasons["text_alignment"] == ["", "no prompt"] and out.valid["overall"].tolist() == [True, True]
    assert math.isnan(out.scores["text_alignment"][1]) and not out.valid["text_alignment"][1]


def test_overall_by_itself_has_no_value_without_a_prompt():
    scores = assembler("overall")
    assert scores.add_clip(0, make_clip(), None) == ()
    out = scores.output(None, "unit")
    assert out.rewards.isnan().all() and not out.valid["overall"].any()
    assert out.reasons == {"overall": ["no prompt"]} and out.overall_from == [()]


@pytest.mark.parametrize("named", [("overall",), ("text_alignment", "overall")])
def test_a_reasoned_overall_is_asked_without_a_prompt_where_nothing_else_stands_for_it(named):
    scores = assembler("overall", named=named)
    assert scores.add_clip(0, make_clip(), None) == ("overall",)
    scores.add_answers(0, ("overall",), ["fine"], [ParsedAnswer({"overall": 0.75}, "")])
    out = scores.output(None, "unit")
    assert out.rewards.tolist() == [0.75] and out.overall_from == [("overall",)] and out.texts == ["fine"]


def test_a_reasoned_overall_is_the_mean_of_the_others_where_these_are_named():
    scores = assembler("visual_quality", "overall", named=("visual_quality", "overall"))
    assert scores.add_clip(0, make_clip(), None) == ("visual_quality",)


def test_an_unreadable_clip_has_its_reason_everywhere():
    scores = assembler(num=2)
    assert scores.add_clip(0, "damaged: cut", None) == ()
    scores.add_clip(1, make_clip(), "a dog")
    scores.add_levels(1, DIMENSIONS, readout(0.1, 0.2, 0.3, 0.4))
    out = scores.output(None, "unit")
    assert out.reasons == dict.fromkeys(DIMENSIONS, ["damaged: cut", ""])
    assert out.frame_plan[0] is None and out.rewards.isnan().tolist() == [True, False]
    assert out.level_probs["overall"].shape == (2, 5) and out.level_probs["overall"][0].isnan().all()


def test_low_mass_on_the_level_words_is_no_score():
    scores = assembler("visual_quality", "motion_quality")
    asked = scores.add_clip(0, make_clip(), None)
    scores.add_levels(0, asked, readout(0.2, 0.8, mass=0.125))
    out = scores.output(None, "unit")
    assert out.reasons["visual_quality"] == ["only 0.12 of the probability is on the five level words"]
    assert out.scores["visual_quality"].isnan().all() and out.rewards.isnan().all()
    assert_close(out.level_mass["visual_quality"], torch.tensor([0.125]))  # the readout itself is still reported


def test_only_valid_dimensions_stand_for_overall():
    scores = assembler("visual_quality", "motion_quality")
    scores.add_clip(0, make_clip(), None)
    scores.add_levels(0, ("visual_quality",), readout(0.2, mass=0.1))
    scores.add_levels(0, ("motion_quality",), readout(0.8))
    out = scores.output(None, "unit")
    assert_close(out.rewards, torch.tensor([0.8]))
    assert out.overall_from == [("motion_quality",)] and "overall" not in out.scores


def test_several_answers_give_mean_spread_and_the_most_typical_text():
    scores = assembler("overall", named=("overall",))
    asked = scores.add_clip(0, make_clip(), "a dog")
    answers = [ParsedAnswer({"overall": q}, "") for q in (0.0, 0.5, 1.0)] + [ParseFailure("no JSON", "?")]
    scores.add_answers(0, asked, ["low", "middle", "high", "?"], answers)
    out = scores.output(None, "unit")
    assert out.rewards.tolist() == [0.5] and out.texts == ["middle"]
    assert out.std["overall"].item() == pytest.approx(math.sqrt(1 / 6))  # of 0, 0.5, 1 about their mean
    assert out.level_probs["overall"].isnan().all() and out.level_mass["overall"].isnan().all()


def test_half_of_the_answers_is_not_enough():
    scores = assembler("overall", named=("overall",))
    asked = scores.add_clip(0, make_clip(), "a dog")
    answers = [ParsedAnswer({"overall": 0.5}, ""), ParseFailure("no JSON", "?")]
    scores.add_answers(0, asked, ["fine", "?"], answers)
    out = scores.output(None, "unit")
    assert out.rewards.isnan().all() and out.reasons["overall"] == ["only 1 of 2 answers can be read: no JSON"]


def test_an_answer_that_leaves_a_dimension_out_is_no_score_of_it():
    scores = assembler("visual_quality", "overall", named=("visual_quality", "overall"))
    asked = scores.add_clip(0, make_clip(), "a dog")
    scores.add_answers(0, asked, ["fine"], [ParsedAnswer({"overall": 0.5}, "")])
    assert scores.output(None, "unit").reasons == {
        "visual_quality": ["the answer names no visual_quality"],
        "overall": [""],
    }


def test_rewards_are_weighted_sums_in_the_chosen_unit():
    scores = assembler()
    scores.add_clip(0, make_clip(), "a dog")
    scores.add_levels(0, DIMENSIONS, readout(0.1, 0.2, 0.3, 0.5))
    assert_close(scores.output({"visual_quality": 2.0, "overall": 1.0}, "unit").rewards, torch.tensor([0.7]))
    assert_close(scores.output(None, "raw").rewards, torch.tensor([3.0]))
    with pytest.raises(ValueError, match="no calibration constants for 'visual_quality'"):
        scores.output(None, "z")


def test_z_scores_use_the_calibration_constants():
    scores = assembler("overall")
    scores.add_clip(0, make_clip(), "a dog")
    scores.add_levels(0, ("overall",), readout(0.5))
    assert_close(scores.output(None, "z").rewards, torch.tensor([0.5]))  # (0.5 - 0.25) / 0.5


def test_gradient_reaches_the_readouts():
    quality = torch.tensor([0.2, 0.6], requires_grad=True)
    scores = assembler("visual_quality", "motion_quality")
    asked = scores.add_clip(0, make_clip(), None)
    scores.add_levels(0, asked, LevelReadout(quality, torch.zeros(2, 5), quality.detach(), torch.ones(2)))
    scores.output(None, "unit").rewards.sum().backward()
    assert_close(quality.grad, torch.tensor([0.5, 0.5]))


def test_output_leaves_the_assembler_as_it_was():
    scores = assembler("overall")
    scores.add_clip(0, make_clip(), None)
    first = scores.output(None, "unit")
    assert scores.reasons == {"overall": [""]} and first.reasons == scores.output(None, "unit").reasons


def test_no_clips_give_empty_scores():
    out = assembler(num=0).output(None, "unit")
    assert out.rewards.shape == (0,) and all(values.shape == (0,) for values in out.scores.values())


def preferences(*rows: tuple[float, float, float, float]) -> PreferenceReadout:
    """Return the readout of pairs given as (first, second, tie, mass)."""
    return PreferenceReadout(*torch.tensor(rows).unbind(dim=1))


def test_two_orders_are_averaged_and_their_winners_compared():
    orders = [
        preferences((0.6, 0.2, 0.2, 1.0), (0.6, 0.3, 0.1, 1.0), (0.9, 0.1, 0.0, 0.25)),
        preferences((0.8, 0.1, 0.1, 1.0), (0.2, 0.7, 0.1, 1.0), (0.9, 0.1, 0.0, 1.0)),
    ]
    found = average_orders(orders, [0, 2, 3], ["", "damaged", "", ""])
    assert_close(found.p_first, torch.tensor([0.7, math.nan, 0.4, math.nan]), equal_nan=True)
    assert_close(found.p_tie, torch.tensor([0.15, math.nan, 0.1, math.nan]), equal_nan=True)
    assert_close(found.margin, torch.tensor([0.55, math.nan, -0.1, math.nan]), equal_nan=True)
    assert found.valid.tolist() == [True, False, True, False]
    assert found.consistent.tolist() == [True, False, False, False]
    assert found.reasons == ["", "damaged", "", "only 0.25 of the probability is on the answer words"]


def test_a_swapped_readout_exchanges_first_and_second():
    swapped = preferences((0.6, 0.3, 0.1, 0.9)).swapped()
    assert [value.item() for value in (swapped.p_first, swapped.p_second, swapped.p_tie, swapped.mass)] == (
        pytest.approx([0.3, 0.6, 0.1, 0.9])
    )


def test_no_readable_pair_gives_no_comparison():
    empty = PreferenceReadout(*(torch.zeros(0) for _ in range(4)))
    found = average_orders([empty, empty], [], ["damaged"])
    assert found.margin.isnan().tolist() == [True] and not found.valid.any() and not found.consistent.any()
