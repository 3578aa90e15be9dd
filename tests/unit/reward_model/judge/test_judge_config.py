"""The saved settings of a judge: what a folder may hold is loaded as it stands, and what it leaves out has known values."""

import json

import pytest

from reward_model.judge.checkpoints.format import JudgeConfig
from reward_model.media.frame_sampling import FramePolicy, plan_frames
from reward_model.records import DIMENSIONS
from tests.tiny_judge import build_judge


@pytest.fixture
def load(tmp_path):
    """Return a function that loads the settings of a tiny judge with other values, None for one that is left out."""
    build_judge().config.save(tmp_path)
    file = tmp_path / "judge_config.json"
    values = json.loads(file.read_text())

    def change(**changes):
        changed = {**values, **changes}
        file.write_text(json.dumps({name: value for name, value in changed.items() if value is not None}))
        return JudgeConfig.load(tmp_path)

    return change


@pytest.mark.parametrize("std", [1e-6, 0.3, 1.0, 4.0])
def test_a_scale_may_have_any_deviation_above_zero(load, std):
    scale = {"overall": {"mean": 0.5, "std": std}}
    assert load(calibration=scale).calibration == scale


@pytest.mark.parametrize("std", [0.0, -0.3, float("nan"), float("inf")])
def test_a_scale_without_a_deviation_above_zero_is_refused(load, std):
    with pytest.raises(ValueError, match="calibration holds a mean and a std > 0 of a dimension, got 'overall'"):
        load(calibration={"overall": {"mean": 0.5, "std": std}})


@pytest.mark.parametrize("sets", [[DIMENSIONS], [DIMENSIONS[::-1]], [DIMENSIONS[:1]], [DIMENSIONS[:2], DIMENSIONS]])
def test_a_role_may_reason_about_all_dimensions_or_some(load, sets):
    assert load(reasoned={"natural": sets}).taught("natural") == sets


@pytest.mark.parametrize(
    "sets", [[], [[]], [["sharpness"]], [[*DIMENSIONS, "sharpness"]], [["overall"], ["sharpness"]]]
)
def test_a_role_cannot_reason_about_nothing_or_an_unknown_dimension(load, sets):
    with pytest.raises(ValueError, match="reasoned holds sets of .* got 'natural'"):
        load(reasoned={"natural": sets})


def test_a_folder_that_names_no_frames_is_shown_two_a_second_and_sixteen_at_most(load):
    policy = FramePolicy.from_dict(load(frame_policy=None).frame_policy)
    short, long = plan_frames(96, 24.0, policy), plan_frames(24 * 60, 24.0, policy)
    assert len(short.indices) == 8 and len(long.indices) == 16
    assert (long.indices[0], long.indices[-1]) == (0, 24 * 60 - 1)
