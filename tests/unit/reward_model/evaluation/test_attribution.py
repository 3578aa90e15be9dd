"""Named faults against known ones."""

import math
from types import SimpleNamespace

import pytest
import torch

from reward_model.evaluation import tables
from reward_model.evaluation.attribution import evaluate_attributions, label_f1
from reward_model.records import RatedClip, Video


def answer(visual, motion):
    clauses = f"a ball. visual_quality: poor, {visual}. motion_quality: {motion}."
    return f'<think>{clauses}</think><answer>{{"overall":3.0}}</answer>'


def clip(number, visual, motion):
    faults = {"visual_quality": visual, "motion_quality": motion}
    return RatedClip(Video(torch.zeros(2, 3, 8, 8), 8.0), "a ball", {}, str(number), {"faults": faults})


class Speaker:
    """Gives prepared answers in order."""

    def __init__(self, texts):
        self.texts = list(texts)

    def __call__(self, videos, prompts, *, readout):
        given, self.texts = self.texts[: len(videos)], self.texts[len(videos) :]
        return SimpleNamespace(texts=given)


def test_f1_by_hand():
    # named 3, known 4, right 2: precision 2/3, recall 1/2, F1 = 2 * 2 / 7
    found = label_f1([{"blur", "grain"}, {"warp"}, set()], [{"blur"}, {"warp", "freeze"}, {"darken"}])
    assert found == pytest.approx((2 / 3, 1 / 2, 4 / 7))


def test_where_nothing_is_named_or_known_the_figure_is_undefined():
    precision, recall, f1 = label_f1([set()], [{"blur"}])
    assert math.isnan(precision) and (recall, f1) == (0.0, 0.0)
    assert all(math.isnan(value) for value in label_f1([set()], [set()]))


def test_a_table_by_dimension_with_the_answers_that_could_be_read():
    clips = [clip(0, ["blur"], []), clip(1, ["grain"], ["jitter"]), clip(2, [], []), clip(3, ["warp"], [])]
    texts = [answer("blur", "none"), answer("blur", "jitter"), answer("none", "none"), "?"]
    table = evaluate_attributions(Speaker(texts), clips, batch_size=3)
    visual, motion = table.rows
    assert (visual.dimension, visual.num_clips, visual.coverage) == ("visual_quality", 4, 0.75)
    assert (visual.precision, visual.recall, visual.f1) == pytest.approx((1 / 2, 1 / 3, 2 / 5))
    assert (motion.precision, motion.recall, motion.f1) == (1.0, 1.0, 1.0)
    assert motion.random_f1 < 1
    assert "random f1" in tables.format_table(table) and tables.to_json(table)["rows"][1]["f1"] == 1.0


def test_clips_without_known_faults_are_refused():
    bare = RatedClip(Video(torch.zeros(2, 3, 8, 8), 8.0), None, {}, "x")
    with pytest.raises(ValueError, match="clip x lacks facts"):
        evaluate_attributions(Speaker(["?"]), [bare])
    with pytest.raises(ValueError, match="no clips"):
        evaluate_attributions(Speaker([]), [])
