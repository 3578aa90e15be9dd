"""Words of released judges: read from the authors' code without running it, asked in their layout, and named by results."""

from __future__ import annotations

import json

import pytest
import torch

from reward_model.evaluation.card import CardFacts, model_card
from reward_model.judge.checkpoints.authors import _READERS, authors_settings
from reward_model.judge.checkpoints.released import PARAPHRASE, RELEASED
from reward_model.judge.model import VideoJudge
from reward_model.scoring.json_records import explanation_record, output_records
from reward_model.video_reward import VideoJudgeReward
from tests.tiny_judge import build_judge, make_clip

pytestmark = pytest.mark.filterwarnings("ignore:.*never on level words")

SCORE = """
import os
import torch_that_nobody_has

raise SystemExit("this file was executed")

def main():
    VIDEO_CONFIG = {
        "natural": {"subfolder": "n", "prompt": ("Natural? " "Give a number.")},
        "aigc": {"subfolder": "g", "prompt": 'Made? Give "spatial".'},
    }
    cfg = VIDEO_CONFIG[kind]
    SYSTEM_PROMPT = ("First think. " "Then answer.")
"""
COMPARE = """
SYSTEM_PROMPT = "Only answer."
QUESTION_TEMPLATE = "{Question}\\nOne letter."
PROBLEM = "A or B?"
question = QUESTION_TEMPLATE.format(Question=PROBLEM)
"""
PICTURE = 'SYSTEM_PROMPT = "Think."\nSCORE_QUESTION_PROMPT = "How good?"\n'
FILES = dict(zip(_READERS, (SCORE, SCORE, COMPARE, PICTURE), strict=True))


@pytest.fixture
def copy_of(tmp_path):
    """Return a function that writes an authors' repository with a judge's demo."""

    def write(name, text=None):
        """Write the demo of a judge and return the folder."""
        file = tmp_path / "theirs" / _READERS[name][0]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(FILES[name] if text is None else text)
        return tmp_path / "theirs"

    return write


def released(tmp_path, name):
    """Write a tiny random checkpoint as a released one and load it."""
    judge = build_judge()
    judge.model.save_pretrained(tmp_path / name)
    judge.tokenizer.save_pretrained(tmp_path / name)
    reward = VideoJudgeReward.from_pretrained(tmp_path, subfolder=name, device="cpu")
    reward.judge.configure(
        min_pixels=1024, max_pixels=1024, frame_policy={"mode": "all", "max_frames": 4}, max_answer_tokens=3
    )
    return reward


def test_every_released_judge_has_a_reader_of_its_authors_words():
    assert set(_READERS) == set(RELEASED)


@pytest.mark.parametrize(
    ("name", "turns"),
    [
        ("vqinsight-naturalvideo", ("First think. Then answer.", "", "Natural? Give a number.")),
        ("vqinsight-aigcvideo", ("First think. Then answer.", "", 'Made? Give "spatial".')),
        ("score_degradation", ("Think.", "How good?", "")),
    ],
)
def test_scorers_are_asked_in_the_authors_layout_without_the_generation_prompt(tmp_path, copy_of, name, turns):
    reward, clip = released(tmp_path, name), make_clip()
    reward.judge.configure(**authors_settings(name, copy_of(name)))
    system, before, after = turns
    request = reward.judge.style.reason_request(clip, "a red ball", ["overall"])
    assert request.prefix == (f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{before}", 0)
    assert request.branches == (f"{after}<|im_end|>\n<|im_start|>assistant\n",)
    reward.save_pretrained(tmp_path / "saved")
    again = VideoJudge.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.style == reward.judge.style and again.config == reward.judge.config


def test_the_comparator_writes_its_whole_answer_a_letter_or_a_name(tmp_path, copy_of):
    reward = released(tmp_path, "vqinsight-comp")
    reward.judge.configure(**authors_settings("vqinsight-comp", copy_of("vqinsight-comp")))
    request = reward.judge.style.compare_request(make_clip(), make_clip(seed=1), "a red ball")
    assert request.branches == ("A or B?\nOne letter.<|im_end|>\n<|im_start|>assistant\n",)
    assert request.prefix[1:] == (0, "Video B:", 1) and request.prefix[0].endswith("<|im_start|>user\nVideo A:")
    answers = iter(["<answer>A</answer>", "<answer>Video B</answer>", "neither", "<answer>A</answer>"])
    reward.judge.generate = lambda requests, **_: [[[next(answers)]] for _ in requests]
    clips = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = reward.compare(clips, clips.flip(1), fps=8.0)  # both pairs in one order, then both in the other
    assert found.valid.tolist() == [False, True] and found.p_first[1] == 0.0
    assert "on the answer words" in found.reasons[0] and bool(found.consistent[1])


@pytest.mark.parametrize("given", [False, True])
def test_scores_explanations_and_the_card_say_in_whose_words_a_released_judge_was_asked(tmp_path, copy_of, given):
    name = "vqinsight-naturalvideo"
    reward, source = released(tmp_path, name), PARAPHRASE
    if given:
        reward.judge.configure(**authors_settings(name, copy_of(name)))
        source = "the authors' words and layout (demo/demo_vqinsight_score.py of their code)"
    frames = torch.rand(1, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    out = reward(frames, fps=8.0, readout="reason")
    assert f"asked in {source}" in out.warnings[0]
    assert f"asked in {source}" in output_records(out, [None])[0]["warnings"]
    explained = reward.explain(frames[0], fps=8.0)
    assert explained.words == explanation_record(explained, None)["words"] == source
    card = model_card(reward.judge.config, (), CardFacts(name="x"))
    assert f"Its reasoned questions are asked in {source}." in card.splitlines()
    assert not any("asked in" in text for text in reward(frames, fps=8.0).warnings[0])  # level words are this project's


def test_the_paraphrase_is_named_when_the_judge_is_loaded(tmp_path):
    judge = build_judge()
    judge.model.save_pretrained(tmp_path / "score_degradation")
    judge.tokenizer.save_pretrained(tmp_path / "score_degradation")
    with pytest.warns(UserWarning, match=r"asked in this project's paraphrase .* \(see judge.checkpoints.authors\)"):
        VideoJudge.from_pretrained(tmp_path / "score_degradation", device="cpu")


def test_what_is_no_copy_of_the_authors_code_is_refused(tmp_path, copy_of):
    with pytest.raises(ValueError, match="words are known of vqinsight-naturalvideo, .*, not of 'other'"):
        authors_settings("other", tmp_path)
    with pytest.raises(ValueError, match="demo_vqinsight_score.py is missing: .* is no copy of the repository"):
        authors_settings("vqinsight-naturalvideo", tmp_path)
    folder = copy_of("vqinsight-naturalvideo", "SYSTEM_PROMPT = input()\nVIDEO_CONFIG = {}\n")
    with pytest.raises(ValueError, match="does not state 'SYSTEM_PROMPT' as plain text"):
        authors_settings("vqinsight-naturalvideo", folder)
    folder = copy_of("score_degradation", "SYSTEM_PROMPT = (")
    with pytest.raises(ValueError, match="demo_score.py is no Python file"):
        authors_settings("score_degradation", folder)
    assert json.dumps(authors_settings("vqinsight-comp", copy_of("vqinsight-comp")))  # plain values only
