"""The judge's training: soft levels, the optimisation loop, examples behind one prefix, stages that run once."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from reward_model.config import load_config, save_config
from reward_model.datasets.readers import DataConfig
from reward_model.judge.engine.readouts import read_levels
from reward_model.language.parsing import parse_reason
from reward_model.language.requests import level_answer
from reward_model.records import DIMENSIONS, Clip, FramePlan, LevelReadout, RatedClip, Video, VideoPair
from reward_model.training import stages
from reward_model.training.fit import FitConfig, fit, schedule
from reward_model.training.methods.refresh import fidelity_loss, preference_probability, refresh_levels
from reward_model.training.methods.sft import example_loss
from reward_model.training.recipe import LoraConfig, RecipeConfig, ScratchConfig, StageConfig
from reward_model.training.tasks.mixture import open_mixture
from reward_model.training.tasks.supervised import clip_example, neighbours, pair_example, pair_of, soft_level
from tests.tiny_judge import build_judge


def rated(seed=0, quality=0.5, prompt="a red circle"):
    frames = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return RatedClip(
        video=Video(frames=frames, fps=8.0),
        prompt=prompt,
        quality=dict.fromkeys(DIMENSIONS, quality),
        source_id=str(seed),
        facts={"caption": "a red circle", "faults": {"visual_quality": ["blur"], "motion_quality": []}},
    )


def to_clip(video):
    return Clip(video.frames, FramePlan((0, 1, 2, 3), (0.0, 0.125, 0.25, 0.375), ("slow",) * 4, 8.0))


def readout(quality, std):
    return LevelReadout(torch.tensor(quality), torch.zeros(1, 5), torch.tensor(std), torch.ones(1))


def test_soft_level_splits_between_neighbours_so_that_its_mean_is_the_label():
    # 0.6 is 2.4 of 4 steps: 0.6 of level 2, 0.4 of level 3
    torch.testing.assert_close(soft_level(torch.tensor([0.6])), torch.tensor([[0, 0, 0.6, 0.4, 0]]))
    labels = torch.linspace(0, 1, 21)
    spread = soft_level(labels)
    torch.testing.assert_close(spread.sum(-1), torch.ones(21))
    torch.testing.assert_close(spread @ torch.linspace(0, 1, 5), labels)


def test_example_loss_of_a_level_is_the_soft_cross_entropy_at_its_place():
    judge, clip = build_judge(), rated(quality=0.6)
    example = clip_example(clip, to_clip, ["rate"])
    loss, _ = example_loss(judge, [example], {"rate": 1.0})
    logits = judge.next_token_logits([example.request])[0]
    expected = -(logits.log_softmax(-1)[:, list(judge.level_ids)] * soft_level(torch.tensor(0.6))).sum(-1).mean()
    torch.testing.assert_close(loss, expected)


def test_example_loss_of_text_is_the_mean_over_answers_of_their_mean_token_loss():
    judge = build_judge()
    examples = [clip_example(rated(seed), to_clip, ["describe", "reason"]) for seed in (0, 1)]
    loss, metrics = example_loss(judge, examples, {"describe": 1.0, "reason": 0.5})
    means = {"describe": [], "reason": []}
    for example in examples:
        found = judge.log_probs([example.request], [[[answer] for answer in example.answers]]).by_answer()
        for kind, log_probs in zip(example.kinds, found, strict=True):
            means[kind].append(-log_probs.mean())
    expected = {kind: torch.stack(values).mean() for kind, values in means.items()}
    torch.testing.assert_close(loss, expected["describe"] + 0.5 * expected["reason"])
    assert metrics["nll_reason"] == pytest.approx(float(expected["reason"]), rel=1e-4)


def test_all_tasks_of_a_clip_share_one_prefix():
    example = clip_example(rated(), to_clip, ["rate", "describe", "reason"])
    assert len(example.request.branches) == len(example.answers) == len(DIMENSIONS) + 2
    assert example.kinds == ("rate",) * len(DIMENSIONS) + ("describe", "reason")
    level = {name: level_answer(quality).strip() for name, quality in rated().quality.items()}
    assert (
        f"visual_quality: {level['visual_quality']}, blur. motion_quality: {level['motion_quality']}. "
        in example.answers[-1]
    )
    assert f" overall: {level['overall']}.</think>" in example.answers[-1]


def test_matches_are_alignment_questions_under_other_prompts():
    clip = rated()
    clip.facts["matches"] = {"a red circle": 1.0, "a blue circle": 0.3}
    example = clip_example(clip, to_clip, ["rate", "match"])
    assert example.kinds == ("rate",) * len(DIMENSIONS) + ("match",) * 2
    assert example.answers[-2:] == (" excellent", " poor") and example.qualities[-2:] == (1.0, 0.3)
    own = next(b for b in example.request.branches if "Text alignment" in b)
    assert example.request.branches[-2] == own and "a blue circle" in example.request.branches[-1]


def test_a_task_without_its_facts_is_refused():
    bare = RatedClip(video=rated().video, prompt=None, quality={"overall": 0.5}, source_id="x")
    with pytest.raises(ValueError, match="caption"):
        clip_example(bare, to_clip, ["describe"])


@pytest.mark.parametrize(("first", "second", "word"), [(0.9, 0.2, " A"), (0.2, 0.9, " B"), (0.5, 0.52, " neither")])
def test_pairs_are_answered_by_the_better_clip_or_neither(first, second, word):
    example = pair_example(pair_of(rated(0, first), rated(1, second)), to_clip)
    assert example.answers == (word,) * len(DIMENSIONS)


def test_clips_that_share_a_prompt_but_no_dimension_make_no_pair():
    first, second, third = (rated(seed) for seed in range(3))
    first = dataclasses.replace(first, quality={"overall": 0.2})
    second = dataclasses.replace(second, quality={"visual_quality": 0.9})
    assert neighbours([first, second, third]) == [(second, third)]


def test_pairs_are_compared_in_each_dimension_that_both_are_rated_on():
    first, second = rated(0, 0.5), rated(1, 0.5)
    first.quality["visual_quality"], second.quality["motion_quality"] = 0.9, 0.9
    del second.quality["overall"]
    example = pair_example(pair_of(first, second), to_clip)
    assert example.answers == (" A", " B", " neither")
    assert [
        name in branch for name, branch in zip(("visual", "motion", "text"), example.request.branches, strict=True)
    ] == [True] * 3


def test_rate_warms_up_linearly_and_falls_to_a_tenth():
    settings = FitConfig(num_steps=100, learning_rate=1.0, batch_size=1, warmup_steps=10)
    assert schedule(0, settings) == pytest.approx(0.1, rel=1e-3)
    assert schedule(10, settings) == pytest.approx(0.1 + 0.45 * (1 + math.cos(0.1 * math.pi)))
    assert schedule(99, settings) == pytest.approx(0.1, abs=1e-3)


def test_fit_finds_the_minimum_of_a_parabola():
    point = torch.nn.Parameter(torch.tensor([3.0]))
    settings = FitConfig(num_steps=300, learning_rate=0.1, batch_size=1, warmup_steps=0, weight_decay=0.0)
    last = fit([point], lambda step: [(((point - 1) ** 2).sum(), {})], settings)
    assert point.item() == pytest.approx(1.0, abs=1e-2) and last["step"] == 300


def test_fit_minimises_the_sum_of_a_losss_parts():
    point = torch.nn.Parameter(torch.tensor([3.0]))

    def parts(step):
        yield (point**2).sum(), {"part": 1.0}
        yield ((point - 2) ** 2).sum(), {"part": 2.0}

    settings = FitConfig(num_steps=300, learning_rate=0.1, batch_size=1, warmup_steps=0, weight_decay=0.0)
    last = fit([point], parts, settings)
    assert point.item() == pytest.approx(1.0, abs=1e-2) and last["loss"] == pytest.approx(2.0, abs=1e-2)
    assert last["part"] == 2.0


def test_fit_stops_at_a_loss_that_is_not_finite():
    point = torch.nn.Parameter(torch.ones(1))
    settings = FitConfig(num_steps=3, learning_rate=0.1, batch_size=1)
    with pytest.raises(RuntimeError, match="not finite"):
        fit([point], lambda step: [((point * math.inf).sum(), {})], settings)


def test_preference_probability_is_thurstones():
    # difference 0.3, spreads 0.3 and 0.4: 0.3 / 0.5 = 0.6 standard deviations, Phi(0.6) = 0.72575
    p = preference_probability(readout([0.7], [0.3]), readout([0.4], [0.4]))
    torch.testing.assert_close(p, torch.tensor([0.72575]), rtol=0, atol=1e-5)


def test_fidelity_loss_is_zero_at_the_target_and_one_at_its_opposite():
    loss = fidelity_loss(torch.tensor([1.0, 0.0, 0.5]), torch.tensor([1.0, 1.0, 0.5]))
    torch.testing.assert_close(loss, torch.tensor([0.0, 1.0, 0.0]), rtol=0, atol=2e-3)


def test_a_refresh_turns_a_preference_round_and_leaves_the_base_alone():
    judge = build_judge()
    judge.add_role("generated", rank=8, alpha=16)
    good, bad = rated(0, 0.9), rated(1, 0.1)
    base = {name: p.clone() for name, p in judge.named_parameters() if "lora" not in name}
    pair = VideoPair(good.video, bad.video, good.prompt, {"overall": 1.0}, "p")
    settings = {"num_steps": 30, "learning_rate": 1e-2, "batch_size": 4}
    metrics = refresh_levels(judge, role="generated", pairs=[pair], anchors=[good, bad], **settings)
    assert metrics["pair_accuracy"] == 1.0 and metrics["fidelity"] < 0.1
    assert all(torch.equal(base[name], p) for name, p in judge.named_parameters() if name in base)


def test_a_refresh_draws_pairs_by_their_chances():
    judge = build_judge()
    judge.add_role("generated", rank=2, alpha=4)
    good, bad = rated(0, 0.9), rated(1, 0.1)
    drawn = VideoPair(good.video, bad.video, good.prompt, {"overall": 1.0}, "p")
    never = VideoPair(Video(frames=torch.zeros(0, 3, 4, 4), fps=8.0), bad.video, None, {"overall": 1.0}, "q")
    settings = {"num_steps": 4, "learning_rate": 1e-3, "batch_size": 8, "anchors": [good, bad], "role": "generated"}
    refresh_levels(judge, pairs=[never, drawn, never], chances=[0.0, 2.0, 0.0], **settings)
    with pytest.raises(ValueError):
        refresh_levels(judge, pairs=[never, drawn], chances=[2.0, 0.0], **settings)


def test_a_refresh_of_a_widened_role_trains_the_vision_tower_and_the_merger_too():
    judge = build_judge()
    judge.add_role("generated", rank=2, alpha=4)
    judge.widen_role("generated", ["text", "vision", "merger"])
    good, bad = rated(0, 0.9), rated(1, 0.1)
    pair = VideoPair(good.video, bad.video, good.prompt, {"overall": 1.0}, "p")
    before = {name: p.clone() for name, p in judge.named_parameters() if "lora_B" in name}
    settings = {"num_steps": 3, "learning_rate": 1e-2, "batch_size": 4}
    refresh_levels(judge, role="generated", pairs=[pair], anchors=[good, bad], **settings)
    moved = {name for name, p in judge.named_parameters() if name in before and not torch.equal(p, before[name])}
    assert all(any(part in name for name in moved) for part in ("language_model", "visual.blocks", "visual.merger"))


def recipe(output, stages):
    scratch = ScratchConfig(hidden=32, layers=1, patch_size=8)
    return RecipeConfig(
        name="judge",
        output=str(output),
        scratch=scratch,
        stages={one.name: one for one in stages},
        trained_on="noise",
        num_sanity=3,
    )


def stage(name, role=None, tasks=None):
    return StageConfig(
        name=name,
        role=role,
        data=[DataConfig(kind="moving_shapes")],
        tasks=tasks or {"rate": 1.0, "describe": 1.0, "reason": 1.0, "compare": 1.0},
        lora=LoraConfig(rank=4, alpha=8),
        num_held_out=6,
        fit=FitConfig(num_steps=2, learning_rate=1e-3, matrix_learning_rate=1e-2, batch_size=4),
    )


def test_a_recipe_saves_each_stage_once_and_continues_from_the_last(tmp_path, monkeypatch):
    from reward_model.judge.model import VideoJudge

    ran = []
    plain = stages.run_stage
    monkeypatch.setattr(
        stages, "run_stage", lambda judge, stage, **rest: ran.append(stage.name) or plain(judge, stage, **rest)
    )
    plan = [stage("see"), stage("score", role="generated", tasks={"rate": 1.0})]
    stages.run_recipe(recipe(tmp_path, plan), num_stages=1)
    folder = stages.run_recipe(recipe(tmp_path, plan))
    assert ran == ["see", "score"]
    written = (folder / "provenance.json").stat().st_mtime_ns
    stages.run_recipe(recipe(tmp_path, plan))
    assert ran == ["see", "score"]
    assert (folder / "provenance.json").stat().st_mtime_ns == written
    card = (folder / "README.md").read_text()
    assert "| 00-see | base |" in card
    assert "| 01-score | role `generated` |" in card
    assert "### Sanity: damage on purpose" in card
    assert "| freeze | motion_quality | True |" in card
    judge, first = VideoJudge.from_pretrained(folder), VideoJudge.from_pretrained(tmp_path / "stages" / "00-see")
    assert judge.roles == ("generated",) and first.roles == ()
    assert judge.config.lineage == ("see", "score")
    assert set(judge.config.calibration) == set(DIMENSIONS)
    ours = dict(judge.model.named_parameters())
    for name, parameter in first.model.named_parameters():  # the adapter's stage leaves the base as it was
        key = name if name in ours else name.replace("proj.", "proj.base_layer.")
        torch.testing.assert_close(ours[key], parameter, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_judge_that_grows_says_the_same_at_first_and_is_saved_grown(family, tmp_path):
    from reward_model.judge.model import VideoJudge
    from reward_model.training.start import add_layers

    judge = build_judge(family)
    judge.configure(base="base")
    requests = [clip_example(rated(), to_clip, ["describe"]).request]
    before = judge.next_token_logits(requests)[0]
    add_layers(judge, 2)
    torch.testing.assert_close(judge.next_token_logits(requests)[0], before)
    assert judge.generate(requests, max_new_tokens=3) == build_judge(family).generate(requests, max_new_tokens=3)
    torch.nn.init.normal_(judge.model.model.language_model.layers[-1].mlp.down_proj.weight)
    after = judge.next_token_logits(requests)[0]
    assert not torch.equal(after, before)
    judge.save_pretrained(tmp_path)
    found = VideoJudge.from_pretrained(tmp_path).next_token_logits(requests)[0]
    torch.testing.assert_close(found, after)


def test_a_judge_with_roles_does_not_grow():
    from reward_model.training.start import add_layers

    judge = build_judge()
    judge.add_role("generated", rank=4)
    with pytest.raises(ValueError, match="grows before it has roles"):
        add_layers(judge, 1)


def grpo_stage(num_steps=2, **changes):
    from reward_model.rewards import RewardConfig
    from reward_model.training.methods.grpo import AnswerGRPOConfig

    given = {
        "name": "learn",
        "method": "grpo",
        "role": "generated",
        "data": [DataConfig(kind="moving_shapes")],
        "tasks": {"reason": 0.5, "compare": 0.5},
        "lora": LoraConfig(rank=4, alpha=8),
        "num_held_out": 0,
        "grpo": AnswerGRPOConfig(group_size=2, max_answer_tokens=4, perturbation="shuffle", num_perturbed=2),
        "rewards": [
            RewardConfig(kind="reason", name="format"),
            RewardConfig(kind="reason", name="temporal", weight=0.5),
            RewardConfig(kind="compare", name="choice"),
        ],
        "fit": FitConfig(num_steps=num_steps, learning_rate=1e-2, batch_size=4, warmup_steps=0),
    }
    return StageConfig(**{**given, **changes})


def test_a_grpo_stage_trains_its_role_and_leaves_no_reference_behind(tmp_path):
    import json

    from reward_model.judge.model import VideoJudge
    from reward_model.training.stages import run_recipe

    folder = run_recipe(recipe(tmp_path, [stage("score", role="generated", tasks={"rate": 1.0}), grpo_stage()]))
    judge = VideoJudge.from_pretrained(folder)
    assert judge.roles == ("generated",) and judge.config.lineage == ("score", "learn")
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    promised = {"reward", "parse_rate", "flat_groups", "answer_tokens", "kl", "clip_rate", "ratio_error", "entropy"}
    assert promised | {"reward_reason_temporal", "reward_compare_choice"} <= set(row)
    # two tiny steps on one set of answers each: the ratio is that of the policy to itself
    assert row["ratio_error"] < 1e-5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"role": None}, "name its role"),
        ({"tasks": {"reason": 1.0}}, r"asks \['reason'\], but rewards \['compare', 'reason'\]"),
        ({"tasks": {"rate": 1.0}}, "must be of reason, compare"),
        ({"method": "sft"}, "reads neither rewards nor grpo"),
    ],
)
def test_grpo_stages_that_contradict_themselves_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        grpo_stage(**changes)


def test_the_same_seed_trains_the_same_judge(tmp_path):
    from reward_model.judge.model import VideoJudge
    from reward_model.training.stages import run_recipe

    found = [VideoJudge.from_pretrained(run_recipe(recipe(tmp_path / name, [stage("see")]))) for name in "ab"]
    for one, other in zip(*(judge.parameters() for judge in found), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_rendered_training_clips_come_in_pairs_of_one_prompt_and_often_show_something_else():
    from reward_model.datasets.readers import open_source

    clips = open_source(DataConfig(kind="moving_shapes"))(0, 40)
    assert all(a.prompt == b.prompt for a, b in zip(clips[::2], clips[1::2], strict=True))
    assert 8 <= sum(clip.prompt == clip.facts["caption"] for clip in clips) <= 32
    held_out = open_source(DataConfig(kind="moving_shapes"), part="held_out")(0, 40)
    assert not {clip.prompt for clip in clips} & {clip.prompt for clip in held_out}


@pytest.mark.parametrize("name", ["toy_judge", "toy_audit"])
def test_the_embedded_judges_were_made_for_this_world(name):
    import json

    from reward_model.toy_world.moving_shapes import world_hash
    from reward_model.video_reward import TOY_JUDGE

    made = json.loads((TOY_JUDGE.with_name(name) / "provenance.json").read_text())
    assert made["fingerprints"]["world"] == world_hash()


@pytest.mark.parametrize("role", [None, "natural"])
def test_a_recipe_on_a_stock_checkpoint_keeps_what_it_trains(role, tmp_path):
    from reward_model.judge.checkpoints.format import BASE_FOLDER
    from reward_model.judge.model import VideoJudge
    from reward_model.media.frame_sampling import FramePolicy
    from reward_model.training.stages import run_recipe

    stock, base = build_judge(), tmp_path / "stock"
    stock.model.save_pretrained(base)
    stock.tokenizer.save_pretrained(base)
    config = RecipeConfig(
        name="judge",
        base=str(base),
        output=str(tmp_path / "out"),
        stages={"score": stage("score", role=role, tasks={"rate": 1.0})},
        trained_on="noise",
        frame_policy=FramePolicy(mode="uniform", num_frames=4),
        max_pixels=4096,
        max_answer_tokens=99,
    )
    judge = VideoJudge.from_pretrained(run_recipe(config))
    assert judge.config.frame_policy["num_frames"] == 4 and judge.config.trained_on == "noise"
    assert (judge.config.max_pixels, judge.config.max_answer_tokens) == (4096, 99)
    name = "model.language_model.layers.0.mlp.down_proj"
    before, after = stock.model.get_submodule(name).weight, judge.model.get_submodule(name)
    if role is None:
        assert judge.config.base == BASE_FOLDER and not torch.equal(before, after.weight)
    else:
        assert judge.config.base == str(base) and torch.equal(before, after.base_layer.weight)
        assert float(after.lora_B[role].weight.abs().max()) > 0


def test_a_base_does_not_learn_in_half_precision(tmp_path):
    with pytest.raises(ValueError, match="a base learns in float32"):
        RecipeConfig(
            name="judge", base="x", output=str(tmp_path), stages={"a": stage("a")}, trained_on="x", dtype="bfloat16"
        )


@torch.no_grad()
def test_reasoned_answers_can_be_taught_the_judges_own_levels():
    judge, data = build_judge(), [DataConfig(kind="moving_shapes")]
    fit_settings = FitConfig(num_steps=1, learning_rate=1e-3, batch_size=4)
    stage = StageConfig(
        name="s", data=data, tasks={"rate": 1.0, "reason": 1.0}, task_share={"reason": 0.5}, fit=fit_settings
    )
    source = open_mixture(data)
    taught = stages.make_examples(judge, source(0, 4), stage, num=4)
    own = stages.make_examples(judge, source(0, 4), dataclasses.replace(stage, reasoned_scores="own"), num=4)
    assert [example.kinds.count("reason") for example in own] == [1, 1, 0, 0]
    for example, label, clip in zip(own[:2], taught, source(0, 4), strict=False):
        levels = read_levels(judge.next_token_logits([example.request])[0][: len(DIMENSIONS)], judge.level_ids).quality
        said, told = parse_reason(example.answers[-1]), parse_reason(label.answers[-1])
        assert [said.quality[name] for name in DIMENSIONS] == pytest.approx(
            levels.tolist(), abs=0.0126
        )  # one decimal of 1-5
        assert [told.quality[name] for name in DIMENSIONS] == pytest.approx(
            [clip.quality[n] for n in DIMENSIONS], abs=0.0126
        )
        assert example.qualities == label.qualities  # the levels are taught the labels either way


def test_supervised_stages_run_under_their_precision(monkeypatch, tmp_path):
    seen = []
    plain = stages.example_loss

    def look(judge, examples, weights):
        seen.append(torch.is_autocast_enabled("cpu"))
        return plain(judge, examples, weights)

    monkeypatch.setattr(stages, "example_loss", look)
    for precision in ("no", "bf16"):
        settings = FitConfig(num_steps=1, learning_rate=1e-3, batch_size=2, mixed_precision=precision)
        stage = StageConfig(name="s", data=[DataConfig(kind="moving_shapes")], tasks={"rate": 1.0}, fit=settings)
        stages.run_stage(build_judge(), stage, seed=0, log_file=tmp_path / "log.jsonl")
    assert seen == [False, True]


def test_clips_are_rendered_in_full_precision_whatever_the_judge_runs_in():
    source = open_mixture([DataConfig(kind="moving_shapes", clean_share=0.0)])
    expected = source(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        drawn = source(3, 8)
    for one, other in zip(expected, drawn, strict=True):
        assert torch.equal(one.video.frames, other.video.frames)


RECIPE = """
name: judge
output: out
trained_on: nothing
scratch: {hidden: 32, layers: 1}
stages:
  see:
    data: [{kind: moving_shapes}]
    tasks: {rate: 1.0}
    fit: {num_steps: 2, learning_rate: 1.0e-3, batch_size: 2}
  score:
    role: generated
    data: [{kind: moving_shapes}]
    tasks: {rate: 1.0}
    fit: {num_steps: 2, learning_rate: 1.0e-3, batch_size: 2}
"""


def load_recipe(folder, *overrides, text=RECIPE):
    path = folder / "recipe.yaml"
    path.write_text(text)
    return load_config(RecipeConfig, path, overrides)


def test_one_stages_settings_are_overridden_by_its_name(tmp_path):
    config = load_recipe(tmp_path, "stages.see.fit.num_steps=3", "stages.score.tasks.reason=0.5")
    assert {name: (one.name, one.fit.num_steps) for name, one in config.stages.items()} == {
        "see": ("see", 3),
        "score": ("score", 2),
    }
    assert config.stages["score"].tasks == {"rate": 1.0, "reason": 0.5}


def test_a_saved_recipe_loads_to_an_equal_one(tmp_path):
    config = load_recipe(tmp_path)
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(RecipeConfig, tmp_path / "saved.yaml") == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.0.fit.num_steps=3"], r"stages\.0"),
        (["stages[0].fit.num_steps=3"], r"stages\.0"),
        (["stages.see.fit.num_steps=-3"], r"stages\.see\.fit\.num_steps must be > 0, got -3"),
        (["stages.see.tasks.rat=1"], r"stages\.see\.tasks must be of rate, .*, got 'rat'"),
        (["stages.see.data=[{kind: manifest}]"], r"stages\.see\.data\[0\]\.path must be given"),
        (["stages.see.lora.rank=0"], r"stages\.see\.lora\.rank and lora\.alpha must be >= 1"),
        (["stages.see.name=look"], r"stages\.see\.name is 'look'; leave it out"),
    ],
)
def test_a_refused_override_of_a_recipe_is_named_by_its_full_key(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=rf"recipe\.yaml: {message}"):
        load_recipe(tmp_path, *overrides)


def test_a_recipe_with_a_list_of_stages_is_told_how_to_write_them_now(tmp_path):
    listed = RECIPE.replace("  see:\n", "  - name: see\n").replace("  score:\n", "  - name: score\n")
    with pytest.raises(ValueError, match="stages must be a mapping, got a list; .* 'see:' in place of '- name: see'"):
        load_recipe(tmp_path, text=listed)


def test_a_stage_whose_replacement_was_killed_is_found_again_and_not_trained_anew(tmp_path, monkeypatch):
    plan = [stage("see", tasks={"rate": 1.0})]
    stages.run_recipe(recipe(tmp_path, plan))
    place = tmp_path / "stages" / "00-see"
    place.rename(place.with_name(".replaced-00-see"))
    monkeypatch.setattr(stages, "run_stage", lambda *_, **__: pytest.fail("the stage was trained again"))
    stages.run_recipe(recipe(tmp_path, plan))
    assert (place / "done.json").exists()
