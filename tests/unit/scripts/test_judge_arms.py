"""The experiment of scripts/experiments/run_judge_arms.py: what each arm changes, and how runs are compared."""

import dataclasses
import json
from pathlib import Path

import pytest


@pytest.fixture
def arms(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[3] / "scripts" / "experiments"))
    import run_judge_arms

    monkeypatch.setattr(run_judge_arms, "NUM_CLIPS", 2)
    return run_judge_arms


def learned(arms, arm):
    """Return role -> (rewards, disturbance) of the arm's stages of GRPO."""
    _, *stages = arms.recipe_of(arm, 0, Path("unused")).stages.values()
    return {stage.role: ([term.name for term in stage.rewards], stage.grpo.perturbation) for stage in stages}


def test_an_arm_changes_one_factor(arms):
    whole = learned(arms, "vq_insight")
    assert whole["generated"] == (["absolute", "format", "temporal"], "shuffle")
    assert learned(arms, "no_temporal")["generated"] == (["absolute", "format"], None)
    assert learned(arms, "temporal_released")["generated"] == whole["generated"]
    assert list(learned(arms, "no_warm_up")) == ["generated"]
    assert learned(arms, "vqathinker") == {"natural": (["bell", "ranking", "format", "temporal_ranking"], "shuffle")}
    assert learned(arms, "absolute")["natural"][0][0] == "absolute"
    assert learned(arms, "threshold")["natural"][0][0] == "threshold"
    assert learned(arms, "no_ranking")["natural"] == (["bell", "format", "temporal_ranking"], "shuffle")
    assert learned(arms, "no_consistency")["natural"] == (["bell", "ranking", "format"], None)


def test_another_variant_keeps_the_other_settings_and_cold_adapters_start_at_the_base(arms):
    settings = {
        arm: next(s for s in arms.recipe_of(arm, 0, Path("unused")).stages.values() if s.role == "generated")
        for arm in ("vq_insight", "temporal_released", "no_warm_up")
    }
    assert settings["vq_insight"].rewards[-1].settings == {"variant": "corrected", "alpha": 0.1}
    assert settings["temporal_released"].rewards[-1].settings == {"variant": "released", "alpha": 0.1}
    assert [one.start for one in settings.values()] == ["warm_up", "warm_up", None]


def test_a_run_goes_on_from_the_stages_that_another_finished_with_the_same_settings(arms, tmp_path):
    def finish(folder, config):
        for number, stage in enumerate(config.stages.values()):
            place = folder / "stages" / f"{number:02d}-{stage.name}"
            place.mkdir(parents=True)
            (place / "done.json").write_text(json.dumps({"stage": dataclasses.asdict(stage)}))

    def taken(name, config):
        arms.take_stages(config, tmp_path / "finished", tmp_path / name)
        return sorted(place.name for place in tmp_path.glob(f"{name}/stages/*"))

    whole = arms.recipe_of("vq_insight", 0, tmp_path)
    finish(tmp_path / "finished", whole)
    assert taken("whole", whole) == ["00-start", "01-warm_up", "02-generated", "03-comparator"]
    assert taken("no_temporal", arms.recipe_of("no_temporal", 0, tmp_path)) == ["00-start", "01-warm_up"]
    assert taken("vqathinker", arms.recipe_of("vqathinker", 0, tmp_path)) == []  # its start sees more answers
    warm_up = dataclasses.replace(whole.stages["warm_up"], num_held_out=8)
    longer = dataclasses.replace(whole, stages=whole.stages | {"warm_up": warm_up})
    assert taken("longer", longer) == ["00-start"]  # what follows another warm-up is not the same stage


def test_runs_are_compared_by_prompt_and_by_seed(arms):
    def answers(*right):
        return {"prompts": ["a", "a", "b"], "right": [bool(one) for one in right]}

    start, better, same = answers(1, 0, 0), answers(1, 1, 0), answers(1, 0, 0)
    found = arms.compare([start], [better, same], "right", ())
    assert (found["first"], found["last"]) == pytest.approx((1 / 3, 1 / 2))
    assert found["difference"] == pytest.approx(1 / 6) and found["by_seed"] == pytest.approx([1 / 3, 0])
    # prompts a, a and both runs the better one: half of the rows gain; b, b or both runs the same: none does
    assert (found["low"], found["high"]) == pytest.approx((0, 1 / 2))
    whole = arms.compare([better, same], [better, same], "right", ())
    assert whole["difference"] == whole["low"] == whole["high"] == 0  # runs of one seed stay together
