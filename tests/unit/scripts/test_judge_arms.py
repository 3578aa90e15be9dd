"""The experiment of scripts/experiments/run_judge_arms.py: what each arm changes, and how runs are compared."""

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest
import yaml


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


@pytest.mark.parametrize("recipe", ["toy_vq_insight", "toy_vqathinker"])
def test_the_page_is_that_of_its_json(arms, recipe):
    docs = arms.ROOT / "docs"
    page = (docs / f"{recipe}.md").read_text(encoding="utf-8")
    import judge_page

    assert page == judge_page.page_of(recipe, json.loads((docs / f"{recipe}.json").read_text(encoding="utf-8")))


def test_pages_are_written_from_json_alone(arms, tmp_path):
    for recipe in arms.WHOLE:
        (tmp_path / f"{recipe}.json").write_bytes((arms.ROOT / "docs" / f"{recipe}.json").read_bytes())
    assert arms.main(["--from-json", "--docs", str(tmp_path), "--runs", str(tmp_path / "none")]) == 0
    for recipe in arms.WHOLE:
        assert (tmp_path / f"{recipe}.md").read_bytes() == (arms.ROOT / "docs" / f"{recipe}.md").read_bytes()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("recipe", ["toy_vq_insight", "toy_vqathinker"])
def test_every_start_of_the_history_is_told(arms, recipe):
    import judge_starts

    told = json.loads((arms.ROOT / "docs" / f"{recipe}.json").read_text(encoding="utf-8"))["starts"]
    commits = [figures["commit"] for start in told for figures in start["figures"]]
    if any(subprocess.run(["git", "cat-file", "-e", one], cwd=arms.ROOT, check=False).returncode for one in commits):
        pytest.skip("needs the repository's history")
    assert judge_starts.starts_of(recipe) == told
    today = judge_starts.start_in(yaml.safe_load((arms.ROOT / "configs" / "judge" / f"{recipe}.yaml").read_text()))
    assert today == {key: told[-1][key] for key in today}


def test_starts_before_the_present_one_keep_their_figures(arms):
    told = json.loads((arms.ROOT / "docs" / "toy_vq_insight.json").read_text(encoding="utf-8"))["starts"]
    ranks = [start["figures"][-1]["measures"]["generated/scores"] for start in told]
    assert [(round(one["start"], 3), round(one["after"], 3)) for one in ranks] == [
        (0.835, 0.840), (0.740, 0.750), (0.364, 0.343), (0.454, 0.450), (0.536, 0.539), (0.283, 0.395)
    ]  # fmt: skip
    page = (arms.ROOT / "docs" / "toy_vq_insight.md").read_text(encoding="utf-8")
    assert "1 other, measured on the same 1000 clips, had shown no gain in ranks (0.536 to 0.539)" in page
    assert "| generated | 0.871 |" in page and "| answers that could be read | all | all | all | not kept |" in page


def entry(by_seed, low, high, whole=None):
    own = {"first": 0.5, "last": 0.6, "difference": 0.1, "low": low, "high": high, "by_seed": by_seed}
    return {"arm": "vq_insight", "role": "generated", "part": "scores", "seeds": 3, "start": own, "whole": whole}


def test_a_difference_is_shown_only_over_seeds_after_the_correction_and_by_prompt(arms):
    import judge_page

    steady, loose = [0.100, 0.101, 0.102], [0.05, 0.10, 0.15]
    one = entry(steady, 0.05, 0.15)
    corrected = judge_page.corrected_p_values([one])
    plain = judge_page.metrics.t_interval(steady).p_value
    assert list(corrected.values()) == pytest.approx([plain])
    assert judge_page.verdict(one["start"], plain) == "better"
    assert judge_page.verdict(one["start"], 0.06) == "not shown"
    assert judge_page.verdict(entry(steady, -0.01, 0.2)["start"], plain) == "not shown"
    assert judge_page.verdict(entry(loose, -0.3, -0.1)["start"], 0.01) == "worse"
    twice = judge_page.corrected_p_values([one, entry(loose, 0.01, 0.2) | {"arm": "absolute"}])
    assert twice["vq_insight", "generated", "scores", "start"] == pytest.approx(2 * plain)


def test_runs_of_two_sides_differ_by_seed(arms):
    def answers(*right):
        return {"prompts": ["a", "b"], "right": [bool(one) for one in right]}

    whole, arm = [answers(1, 1), answers(0, 0)], [answers(1, 0), answers(0, 1)]
    assert arms.compare(whole, arm, "right", ())["by_seed"] == pytest.approx([-1 / 2, 1 / 2])


def test_parse_rates_of_later_runs_are_kept(arms):
    start = {"generated": {"parse_rate_scores": 0.6, "parse_rate_unseen": 0.5}, "comparator": {"right": []}}
    ended = [{"generated": {"parse_rate_scores": rate, "parse_rate_unseen": 1.0}} for rate in (0.9, 0.7)]
    assert arms.parse_rates(start, ended) == {
        "generated/scores": {"start": 0.6, "after": pytest.approx(0.8)},
        "generated/unseen": {"start": 0.5, "after": 1.0},
    }
