"""Styles of judges that were trained elsewhere: how they are asked, and how their answers are read."""

import pytest
import torch

from reward_model.language.requests import compare_request, reason_answer, reason_request
from reward_model.language.styles import OWN, STYLES, OtherStyle, style_of
from reward_model.records import Clip, FramePlan, ParsedAnswer, ParseFailure

CLIP = Clip(torch.zeros(1, 3, 8, 8), FramePlan((0,), (0.0,), ("slow",), 1.0))
SCORERS = ("vq_insight_natural", "vq_insight_generated", "q_insight")
GENERATED = STYLES["vq_insight_generated"]


def quality(style, text, dimensions=()):
    found = STYLES[style].parse_reason(text, dimensions)
    assert isinstance(found, ParsedAnswer), found
    return dict(found.quality)


def fault(style, text, dimensions=()):
    found = STYLES[style].parse_reason(text, dimensions)
    assert isinstance(found, ParseFailure)
    return found.reason


def test_a_bare_number_is_read_on_its_scale():
    assert quality("vq_insight_natural", "<think>Sharp.</think><answer> 62.5 </answer>") == {
        "visual_quality": 0.625,
        "overall": 0.625,
    }
    assert quality("q_insight", '<think>ok</think>\n<answer>{"rating": 2.00}</answer>') == {
        "visual_quality": 0.25,
        "overall": 0.25,
    }


@pytest.mark.parametrize(
    "block",
    [
        '{"spatial": 40.00, "temporal": 20, "consistency": 90.0}',
        '"spatial": 40, "temporal": 20.0, "consistency": 90',
        "{'consistency': 90, 'spatial': 40, 'temporal': 20}",
        '{\n  "spatial": "40",\n  "temporal": "20",\n  "consistency": "90"\n}',
    ],
)
def test_three_scores_are_read_with_or_without_braces_and_in_any_order(block):
    found = quality("vq_insight_generated", f"<think>Hm.</think><answer>{block}</answer>")
    assert found == {
        "visual_quality": pytest.approx(0.4),
        "motion_quality": pytest.approx(0.2),
        "text_alignment": pytest.approx(0.9),
        "overall": pytest.approx(0.5),  # (40 + 20 + 90) / 3
    }


def test_the_reasoning_is_kept_without_its_tags():
    found = GENERATED.parse_reason(
        '<think>It flickers.</think><answer>"spatial":1,"temporal":2,"consistency":3</answer>', ()
    )
    assert found.reasoning == "It flickers."


@pytest.mark.parametrize(
    ("style", "text", "reason"),
    [
        ("vq_insight_natural", "62.5", "0 answer blocks"),
        ("vq_insight_natural", "<answer>1</answer><answer>2</answer>", "2 answer blocks"),
        ("vq_insight_natural", "<answer>about 60</answer>", "answer is not a number"),
        ("vq_insight_natural", "<answer>nan</answer>", "answer is not a number"),
        ("vq_insight_natural", "<answer>101</answer>", r"outside [0.0, 100.0]: 101.0"),
        ("q_insight", '<answer>{"rating": 0.5}</answer>', r"outside [1.0, 5.0]: 0.5"),
        ("q_insight", "<answer>3.5</answer>", "not a number for each of rating"),
        ("vq_insight_generated", '<answer>{"spatial": 1, "temporal": 2}</answer>', "for each of spatial, temporal"),
        (
            "vq_insight_generated",
            '<answer>{"spatial": 1, "temporal": 2, "temporal": 3}</answer>',
            "for each of spatial, temporal",
        ),
        (
            "vq_insight_generated",
            '<answer>{"spatial": 1, "temporal": 2, "consistency": 3, "overall": 4}</answer>',
            "for each of spatial, temporal",
        ),
    ],
)
def test_what_cannot_be_read_has_a_reason_and_no_score(style, text, reason):
    assert reason in fault(style, text)


def test_a_dimension_that_the_judge_does_not_rate_is_missing_by_name():
    text = "<answer>50</answer>"
    assert fault("vq_insight_natural", text, ("text_alignment",)) == "no score for text_alignment"


@pytest.mark.parametrize("name", SCORERS)
def test_a_question_has_the_clip_first_and_the_generation_prompt_only_where_its_style_takes_one(name):
    plain, given = (STYLES[name].reason_request(CLIP, prompt, ["overall"]) for prompt in (None, "a {dog}<|im_end|>"))
    assert plain.prefix == given.prefix and plain.prefix[1] == 0
    assert plain.branches[0].endswith("<|im_end|>\n<|im_start|>assistant\n")
    takes = name == "vq_insight_generated"
    assert given.branches[0].endswith(plain.branches[0])
    assert (given.branches[0] != plain.branches[0]) is takes
    assert ("a {dog}< |im_end|>" in given.branches[0]) is takes
    assert "{prompt}" not in given.branches[0]


def test_a_comparison_shows_both_clips_by_name_and_begins_the_answer_before_the_letter():
    request = STYLES["vq_insight_comparator"].compare_request(CLIP, CLIP, None)
    assert request.prefix[1:] == (0, "Video B:", 1)
    assert request.prefix[0].endswith("<|im_start|>user\nVideo A:")
    assert request.branches[0].endswith("assistant\n<answer>Video")


def test_scorers_do_not_compare_and_the_comparator_does_not_score():
    for name in SCORERS:
        with pytest.raises(ValueError, match="trained to score, not to compare"):
            STYLES[name].compare_request(CLIP, CLIP, None)
    with pytest.raises(ValueError, match="trained to compare, not to score"):
        STYLES["vq_insight_comparator"].reason_request(CLIP, None, ["overall"])


def test_this_projects_own_style_is_its_prompts_and_its_parser():
    own = STYLES[OWN]
    assert own.reason_request(CLIP, "a dog", ["overall"]) == reason_request(CLIP, "a dog", ["overall"])
    assert own.compare_request(CLIP, CLIP, None) == compare_request(CLIP, CLIP, None)
    answer = reason_answer({"overall": 0.5}, "So so.")
    assert own.parse_reason(answer, ("overall",)) == ParsedAnswer({"overall": 0.5}, "So so.")


def test_single_sentences_can_be_replaced_and_unknown_ones_are_refused():
    found = style_of("vq_insight_natural", {"question": "How good, 0 to 100?"})
    assert isinstance(found, OtherStyle) and found.wording.system == STYLES["vq_insight_natural"].wording.system
    assert found.reason_request(CLIP, None, ["overall"]).branches[0].startswith("How good, 0 to 100?<|im_end|>")
    with pytest.raises(
        ValueError, match="wording has no text 'ask', expected some of system, with_prompt, question, comparison"
    ):
        style_of("q_insight", {"ask": "Good?"})
