"""Parsing of reasoned answers: white space is forgiven, everything else is a failure with its reason."""

import pytest

from reward_model.language.parsing import parse_faults, parse_reason
from reward_model.records import ParsedAnswer, ParseFailure


def test_white_space_between_and_inside_the_parts_is_forgiven():
    text = '\n <think> soft edges \n</think>\n\n<answer>\n{ "visual_quality" : 2, "overall": 3.4 }\n</answer> \n'
    answer = parse_reason(text)
    assert isinstance(answer, ParsedAnswer)
    assert answer.quality == {"visual_quality": 0.25, "overall": pytest.approx(0.6)}
    assert answer.reasoning == "soft edges"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('{"overall": 5.1}', "outside"),
        ('{"overall": 0.9}', "outside"),
        ('{"overall": "4"}', "not a number"),
        ('{"overall": true}', "not a number"),
        ('{"overall": null}', "not a number"),
        ('{"overall": NaN}', "NaN is not a score"),
        ('{"overall": 3, "overall": 4}', "twice"),
        ('{"beauty": 3}', "unknown dimension 'beauty'"),
        ("{}", "not a JSON object with scores"),
        ("[3]", "not a JSON object with scores"),
        ("4", "not a JSON object with scores"),
        ('{"overall": 3', "not JSON"),
        ("good", "not JSON"),
    ],
)
def test_what_is_no_score_is_a_failure_with_its_reason(answer, reason):
    text = f"<think>x</think><answer>{answer}</answer>"
    failure = parse_reason(text)
    assert isinstance(failure, ParseFailure)
    assert reason in failure.reason
    assert failure.text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"overall": 3}',
        '<answer>{"overall": 3}</answer>',
        '<think>x</think> so <answer>{"overall": 3}</answer>',
        '<think>x</think><answer>{"overall": 3}</answer> indeed',
        '<think>x</think><answer>{"overall": 3}',
    ],
)
def test_another_form_is_a_failure(text):
    failure = parse_reason(text)
    assert isinstance(failure, ParseFailure)
    assert failure.reason.startswith("not of the form")


def test_a_missing_dimension_is_a_failure_where_it_was_asked_for():
    text = '<think>x</think><answer>{"overall": 3}</answer>'
    assert isinstance(parse_reason(text, ("overall",)), ParsedAnswer)
    failure = parse_reason(text, ("overall", "motion_quality"))
    assert failure == ParseFailure("no score for motion_quality", text)


def test_faults_are_read_by_dimension():
    reasoning = (
        "the video shows a red circle. visual_quality: poor, blur, heavy grain. motion_quality: none. overall: fair."
    )
    assert parse_faults(reasoning) == {"visual_quality": ("blur", "heavy grain"), "motion_quality": (), "overall": ()}
    assert parse_faults("nothing to see") == {}
