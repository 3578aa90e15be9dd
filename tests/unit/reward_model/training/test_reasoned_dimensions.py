"""What a role reasons about: noted in training, saved, and asked for when the judge is used."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from reward_model.datasets.readers import DataConfig
from reward_model.judge.checkpoints.format import JudgeConfig
from reward_model.records import DIMENSIONS
from reward_model.rewards import RewardConfig
from reward_model.training import stages
from reward_model.training.fit import FitConfig
from reward_model.training.methods.grpo import AnswerGRPOConfig
from reward_model.training.recipe import StageConfig
from reward_model.training.tasks.mixture import open_mixture
from reward_model.video_reward import VideoJudgeReward
from tests.tiny_judge import build_judge

CLIP = torch.rand(1, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PROMPT = "a red circle moving left"


def rating(monkeypatch, reasoned, text):
    """A reward whose natural role reasons about some dimensions, always saying `text`; and the questions it is asked."""
    judge, asked = build_judge(), []
    judge.add_role("natural", rank=2, alpha=2)
    judge.configure(reasoned=reasoned)
    monkeypatch.setattr(judge, "generate", lambda requests, **rest: asked.extend(requests) or [[[text]]])
    return VideoJudgeReward(judge, role="natural"), asked


def test_a_scorer_of_natural_videos_is_asked_for_what_it_was_taught_and_rates_overall_without_a_prompt(monkeypatch):
    text = '<think>so</think><answer>{"overall":3}</answer>'
    natural, asked = rating(monkeypatch, {"natural": [("overall",)]}, text)
    out = natural(CLIP, fps=8.0, readout="reason")
    assert out.rewards.tolist() == [0.5] and out.overall_from == [("overall",)]
    assert set(out.scores) == {"overall"} and out.valid["overall"].tolist() == [True]
    assert "in <answer>: overall." in asked[0].branches[0] and "Visual" not in asked[0].branches[0]
    assert natural.explain(CLIP[0], fps=8.0).quality["overall"] == 0.5 and asked[1].branches == asked[0].branches
    with pytest.raises(ValueError, match="this judge's reasoned answers rate overall, not visual_quality"):
        natural(CLIP, fps=8.0, readout="reason", dimensions=["visual_quality"])
    assert set(natural(CLIP, PROMPT, fps=8.0).scores) == set(DIMENSIONS)


def test_a_role_of_its_own_dimensions_has_their_mean_and_a_bare_role_those_of_the_base(monkeypatch):
    text = '<think>so</think><answer>{"visual_quality":2,"motion_quality":4}</answer>'
    taught = ("visual_quality", "motion_quality")
    for reasoned in ({"natural": [taught]}, {"": [taught]}, {"natural": [taught], "": [("overall",)]}):
        found, asked = rating(monkeypatch, reasoned, text)
        out = found(CLIP, PROMPT, fps=8.0, readout="reason")
        assert out.rewards.tolist() == [0.5] and out.overall_from == [taught]
        assert "in <answer>: visual_quality, motion_quality." in asked[0].branches[0]


def test_a_question_names_the_smallest_set_that_holds_what_is_wanted():
    config = build_judge().config
    assert config.reasons_about(None, ["overall"]) == config.reasons_about("natural") == DIMENSIONS
    config = dataclasses.replace(config, reasoned={"": [("overall",), DIMENSIONS[:3]], "natural": [("overall",)]})
    assert config.reasons_about(None) == config.reasons_about(None, ["motion_quality"]) == DIMENSIONS[:3]
    assert config.reasons_about(None, ["overall"]) == config.reasons_about("natural") == ("overall",)
    assert config.reasons_about("comparator") == DIMENSIONS[:3]
    assert dataclasses.replace(config, reasoned={"": [DIMENSIONS, ("overall",)]}).reasons_about(None, ["overall"]) == (
        "overall",
    )
    with pytest.raises(
        ValueError, match="rate overall or visual_quality, motion_quality, text_alignment, not overall, m"
    ):
        config.reasons_about(None, ["overall", "motion_quality"])


def test_what_is_reasoned_about_is_saved_and_a_malformed_list_refused(tmp_path):
    judge = build_judge()
    judge.configure(reasoned={"": [DIMENSIONS], "natural": [("overall",), DIMENSIONS[:2]]})
    judge.config.save(tmp_path)
    assert JudgeConfig.load(tmp_path) == judge.config
    file = tmp_path / "judge_config.json"
    for wrong in ({"natural": []}, {"natural": [[]]}, {"natural": [["sharpness"]]}):
        file.write_text(json.dumps({**dataclasses.asdict(judge.config), "reasoned": wrong}))
        with pytest.raises(ValueError, match="reasoned holds sets of .* got 'natural'"):
            JudgeConfig.load(tmp_path)


def test_training_notes_what_each_role_reasons_about():
    judge, fit = build_judge(), FitConfig(num_steps=1, learning_rate=1e-3, batch_size=2)
    judge.configure(frame_policy={"mode": "all", "max_frames": 9})
    for role, images in ((None, False), ("warm_up", True)):
        data = [DataConfig(kind="moving_shapes", images=images)]
        for task in ("rate", "reason"):
            stage = StageConfig(name="one", data=data, tasks={task: 1.0}, fit=fit, role=role)
            stages.make_examples(judge, open_mixture(data)(0, 2), stage, num=2)
            assert ((role or "") in judge.config.reasoned) == (task == "reason")
    assert judge.config.reasoned == {"": [DIMENSIONS], "warm_up": [("visual_quality",)]}


def test_a_grpo_stage_notes_what_its_role_reasons_about(tmp_path):
    judge = build_judge()
    judge.configure(frame_policy={"mode": "all", "max_frames": 9})
    stage = StageConfig(
        name="one",
        method="grpo",
        role="natural",
        data=[DataConfig(kind="moving_shapes", dimensions=["overall"])],
        tasks={"reason": 1.0},
        rewards=[RewardConfig(kind="reason", name="format")],
        grpo=AnswerGRPOConfig(group_size=2, max_answer_tokens=2),
        fit=FitConfig(num_steps=1, learning_rate=1e-3, batch_size=2),
        num_held_out=0,
    )
    stages.run_stage(judge, stage, seed=0, log_file=tmp_path / "metrics.jsonl")
    assert judge.config.reasoned == {"natural": [("overall",)]}


def test_a_role_that_is_taken_away_leaves_nothing_behind():
    judge = build_judge()
    judge.add_role("natural", rank=2, alpha=2)
    judge.configure(reasoned={"": [DIMENSIONS], "natural": [("overall",)]})
    judge.remove_role("natural")
    assert judge.config.reasoned == {"": [DIMENSIONS]}
