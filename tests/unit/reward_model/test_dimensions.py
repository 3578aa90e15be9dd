"""The table of dimensions: the four that judges were trained with, and one more that is added to it alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from reward_model import dimensions
from reward_model.dimensions import Dimension, dimension_of, in_order, video_align_names
from reward_model.language.parsing import parse_faults
from reward_model.language.requests import compare_request, reason_answer, reason_request, score_request
from reward_model.records import DIMENSIONS
from reward_model.scoring.json_records import output_records, unscored_record
from reward_model.video_reward import VideoJudgeReward
from tests.tiny_judge import build_judge, make_clip

ADDED = "physical_plausibility"
KNOWN = ("visual_quality", ADDED, "overall")


@pytest.fixture(params=["unused", "required"])
def added(request, monkeypatch):
    """Add a dimension to the table, which does or does not need a prompt."""
    entry = Dimension(
        name=ADDED,
        question="Physical plausibility?",
        rubric="Physical plausibility: things move as they do in the world.",
        prompt=request.param,
        short="physics",
    )
    monkeypatch.setitem(dimensions.BY_NAME, ADDED, entry)
    return entry


@pytest.fixture
def reward(added):
    """A judge of the added dimension with nearly all probability on its level words."""
    judge = build_judge()
    judge.configure(dimensions=KNOWN)
    plain = judge.next_token_logits
    lift = torch.zeros(judge.model.lm_head.weight.shape[0])
    lift[list(judge.level_ids)] = 50.0
    judge.next_token_logits = lambda requests, **options: [x + lift for x in plain(requests, **options)]
    return VideoJudgeReward(judge.requires_grad_(False))


def videos(num=2):
    return torch.rand(num, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_table_holds_the_four_dimensions_in_their_order():
    assert tuple(dimensions.BY_NAME) == DIMENSIONS == ("visual_quality", "motion_quality", "text_alignment", "overall")
    assert all(name == entry.name for name, entry in dimensions.BY_NAME.items())
    assert in_order(["overall", "visual_quality", "sharpness"]) == ("visual_quality", "overall")
    assert video_align_names() == {"VQ": "visual_quality", "MQ": "motion_quality", "TA": "text_alignment"}
    with pytest.raises(ValueError, match="unknown dimension 'sharpness', expected one of visual_quality, "):
        dimension_of("sharpness")


def test_an_added_dimension_leaves_the_prompts_of_the_others_as_they_were(monkeypatch):
    clip = make_clip()

    def asked():
        return [
            score_request(clip, "a dog", DIMENSIONS),
            reason_request(clip, "a dog", DIMENSIONS),
            *(compare_request(clip, clip, "a dog", name) for name in DIMENSIONS),
        ]

    before = asked()
    entry = dataclasses.replace(dimension_of("visual_quality"), name=ADDED, in_prefix=False)
    monkeypatch.setitem(dimensions.BY_NAME, ADDED, entry)
    assert asked() == before
    assert score_request(clip, None, (ADDED,)).prefix == before[0].prefix


def test_an_added_dimension_is_asked_after_its_own_rubric(added):
    clip = make_clip()
    question = f"{added.rubric} {added.question}"
    (branch,) = score_request(clip, "a dog", (ADDED,)).branches
    shown = "Prompt: a dog\n" if added.prompt == "required" else ""
    assert branch == f"{shown}{question}<|im_end|>\n<|im_start|>assistant\nRating:"
    assert f"{question}\n" in reason_request(clip, "a dog", (ADDED,)).branches[0]
    compared = compare_request(clip, clip, "a dog", ADDED)
    assert compared.prefix[-1].endswith(f"{question}\n")
    assert compared.branches[0].startswith("Better physical plausibility, A, B or neither?")


def test_an_added_dimension_is_scored_and_written_with_a_prompt(added, reward):
    out = reward(videos(), "a red circle", fps=8.0)
    assert set(out.scores) == set(KNOWN) and all(out.valid[name].all() for name in KNOWN)
    assert out.overall_from == [("overall",)] * 2
    (first, _) = output_records(out, ["a red circle"] * 2)
    assert first["valid"] and 0 <= first["scores"][ADDED] <= 1
    assert ADDED in unscored_record("damaged", None)["scores"]


def test_an_added_dimension_behaves_as_its_entry_says_without_a_prompt(added, reward):
    out = reward(videos(), None, fps=8.0)
    if added.prompt == "required":
        assert out.reasons[ADDED] == ["no prompt"] * 2 and out.scores[ADDED].isnan().all()
        assert out.overall_from == [("visual_quality",)] * 2
        assert_close(out.rewards, out.scores["visual_quality"])
    else:
        assert out.valid[ADDED].all() and out.overall_from == [("visual_quality", ADDED)] * 2
        assert_close(out.rewards, (out.scores["visual_quality"] + out.scores[ADDED]) / 2)


def test_overall_without_a_prompt_is_reasoned_about_only_where_no_added_dimension_stands_for_it(added, reward):
    reward.judge.configure(reasoned={"": [(ADDED, "overall")]})
    text = reason_answer({ADDED: 0.25, "overall": 1.0}, f"{ADDED}: poor, floating.")
    reward.judge.generate = lambda requests, **options: [[[text]] for _ in requests]
    out = reward(videos(1), None, fps=8.0, readout="reason")
    if added.prompt == "required":
        assert out.rewards.tolist() == [1.0] and out.overall_from == [("overall",)]
    else:
        assert out.rewards.tolist() == [0.25] and out.overall_from == [(ADDED,)]


@pytest.mark.parametrize("prompt", [None, "a red circle"])
def test_an_added_dimension_is_explained(added, reward, prompt):
    text = reason_answer({ADDED: 0.25, "overall": 1.0}, f"{ADDED}: poor, floating.")
    reward.judge.generate = lambda requests, **options: [[[text]] for _ in requests]
    explanation = reward.explain(videos(1)[0], prompt, fps=8.0)
    available = prompt is not None or added.prompt == "unused"
    assert (ADDED in explanation.levels) == (ADDED in explanation.saliency) == available
    assert explanation.quality[ADDED] == 0.25 and explanation.labels[ADDED] == ("floating",)


def test_an_added_dimension_is_read_and_refused_by_name(added):
    assert parse_faults(f"{ADDED}: poor, floating.") == {ADDED: ("floating",)}
    assert reason_answer({"overall": 0.5, ADDED: 0.5}, "x").endswith(
        f'<answer>{{"overall":3.0,"{ADDED}":3.0}}</answer><|im_end|>'
    )
    if added.prompt == "required":
        with pytest.raises(ValueError, match=f"{ADDED} needs a prompt, got None"):
            score_request(make_clip(), None, (ADDED,))


def test_a_judge_answers_only_the_dimensions_of_its_own_configuration(added):
    judge = VideoJudgeReward(build_judge().requires_grad_(False))
    with pytest.raises(ValueError, match=f"unknown dimension '{ADDED}'; this judge has visual_quality"):
        judge(videos(1), "a dog", fps=8.0, dimensions=[ADDED])
    assert set(judge(videos(1), "a dog", fps=8.0).scores) == set(DIMENSIONS)
