"""Mechanisms of the papers' recipes against values worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import pytest
import torch
from torch.testing import assert_close

from reward_model.datasets.readers import DataConfig, open_source
from reward_model.datasets.sources import is_held_out
from reward_model.language.styles import STYLES
from reward_model.media.frame_sampling import FramePolicy, plan_frames
from reward_model.media.intake import plan_clip
from reward_model.media.motion_encoders import MotionConfig, build_encoder
from reward_model.media.perturbations import MEAN_GREY, PERTURBATIONS, draw_order
from reward_model.media.slowfast import pathways
from reward_model.records import Answer, Label, RatedClip, RewardValues, Video, VideoPair, VideoQuestion
from reward_model.rewards import Perturbed, RankingReward, RewardConfig, build_rewards, temporal_consistency
from reward_model.scoring.compare import compare_clips
from reward_model.training.fit import FitConfig, buckets_of, fit, resolve_steps, schedule
from reward_model.training.methods.grpo import AnswerGRPOConfig, disturbed_prompts, sample_answers
from reward_model.training.methods.policy_loss import policy_loss
from reward_model.training.methods.weight_copy import WeightCopy
from reward_model.training.recipe import RecipeConfig, StageConfig
from reward_model.training.stages import METHODS
from reward_model.training.start import shown_for_training
from reward_model.training.tasks import rollout_prompts
from reward_model.training.tasks.rollout_prompts import build_prompt
from tests.tiny_judge import build_judge, make_clip


def said(*scores, num_tokens=10):
    return [Answer("", num_tokens, scores={"overall": str(score)}) for score in scores]


def mos(*values):
    return [Label(scores={"overall": value}) for value in values]


def clip_of(video):
    return make_clip(num_frames=len(video.frames), seed=int(video.source))


def rated(seed, num_frames=8):
    frames = make_clip(num_frames=num_frames, seed=seed).frames
    return RatedClip(Video(frames=frames, fps=8.0, source=str(seed)), "a dog", {"overall": 0.5}, str(seed))


def test_without_a_clip_range_the_ratio_is_the_policys_to_itself():
    log_probs = torch.tensor([-1.0, -2.0], requires_grad=True)
    wild = torch.tensor([-9.0, 3.0])  # the sampling policy is not read
    settings = {"kl_coef": 0.0, "num_answers": 2}
    loss, metrics = policy_loss(
        log_probs, wild, None, torch.tensor([0.5, -1.0]), torch.tensor([0, 1]), clip_range=None, **settings
    )
    loss.backward()
    assert float(loss) == pytest.approx(0.25)  # -(0.5 - 1.0) / 2
    assert_close(log_probs.grad, torch.tensor([-0.25, 0.5]))
    assert metrics["clip_rate"] == 0.0 and metrics["ratio_error"] == pytest.approx(math.exp(8) - 1, rel=1e-5)


def test_the_penalty_of_a_wild_token_is_bounded_and_has_no_gradient():
    log_probs, reference = torch.tensor([-1.0, -30.0], requires_grad=True), torch.tensor([-2.0, -1.0])
    settings = {"clip_range": None, "kl_coef": 1.0, "num_answers": 2, "kl_log_ratio_limit": 10.0}
    loss, metrics = policy_loss(
        log_probs, log_probs.detach(), reference, torch.zeros(2), torch.tensor([0, 1]), **settings
    )
    loss.backward()
    first, second = math.exp(-1) + 1 - 1, math.exp(10) - 10 - 1
    assert metrics["kl"] == pytest.approx((first + second) / 2)
    assert_close(log_probs.grad, torch.tensor([(1 - math.exp(-1)) / 2, 0.0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_range": None, "num_updates": 2}, "num_updates at 1"),
        ({"clip_range": None, "clip_range_high": 0.3}, "leave clip_range_high out"),
        ({"clip_range": -1.0}, "clip_range must be > 0"),
        ({"kl_log_ratio_limit": 0.0}, "kl_log_ratio_limit must be > 0"),
        ({"perturbation": "shuffel"}, "perturbation must be one of"),
    ],
)
def test_settings_of_the_loss_that_contradict_themselves_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AnswerGRPOConfig(**settings)


def test_a_copy_of_weights_stands_in_for_them_also_under_autocast():
    layer = torch.nn.Linear(4, 4)
    x, copy = torch.rand(2, 4), WeightCopy(list(layer.parameters()))
    start = layer(x).detach()
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert not layer(x).any()  # its cast is kept by autocast
        with copy.in_use():
            assert_close(layer(x).float(), start, atol=1e-2, rtol=1e-2)  # bfloat16
        assert not layer(x).any()
    assert not layer.weight.any() and layer.weight.requires_grad


def whole_stage(**changes):
    return StageConfig(
        name="natural",
        method="grpo",
        style="vqathinker",
        data=[DataConfig(kind="moving_shapes", num_clips=4, dimensions=["overall"])],
        tasks={"reason": 1.0},
        rewards=[RewardConfig(kind="reason", name="format")],
        grpo=AnswerGRPOConfig(group_size=4, max_answer_tokens=5, kl_coef=1.0, **changes),
        fit=FitConfig(num_steps=2, learning_rate=1e-3, batch_size=2, warmup_steps=0),
    )


def test_grpo_of_all_weights_moves_every_part_and_is_held_by_a_frozen_copy(monkeypatch):
    from reward_model.training import stages

    def by_text(answers, labels, groups, *, perturbed=None):
        return RewardValues(torch.tensor([float(sum(map(ord, answer.text)) % 7) for answer in answers]), {})

    monkeypatch.setattr(stages, "build_rewards", lambda terms: {"reason": by_text})
    judge, stage = build_judge(), whole_stage(clip_range=None)
    judge.configure(prompt_style=stage.style)
    before = {name: value.detach().clone() for name, value in judge.named_parameters()}
    penalties = []
    with METHODS["grpo"](judge, stage, 0, stages.refuse_faults) as loss, judge.use_role(None):
        fit(judge.train_only(None), loss, stage.fit, log=lambda entry: penalties.append(entry["kl"]), log_every=1)
    # one process is its own reference before its first step, and no longer after it
    assert penalties[0] == pytest.approx(0, abs=1e-6) and penalties[1] > 1e-5
    still = [name for name, value in judge.named_parameters() if torch.equal(value, before[name])]
    assert still == [] and judge.roles == ()


def test_a_base_stage_begins_from_the_stage_it_names_and_unknown_ones_are_refused():
    from reward_model.training.stages import _begin

    def recipe(**starts):
        stages = {name: whole_stage() for name in ("one", "two", "three")}
        return RecipeConfig(
            name="judge",
            output="x",
            base="toy",
            trained_on="nothing",
            stages={n: dataclasses.replace(stage, name="", start=starts.get(n)) for n, stage in stages.items()},
        )

    config = recipe(two="one", three="one")
    done = ["folder of one", "folder of two"]
    assert _begin(config.stages["three"], done, config) == "folder of one"
    assert _begin(recipe().stages["three"], done, recipe()) == "folder of two"
    with pytest.raises(ValueError, match=r"stages\.two\.start must be an earlier stage, got 'three'"):
        recipe(two="three")


def test_a_judge_with_roles_keeps_its_style():
    stages = {"one": whole_stage(), "two": dataclasses.replace(whole_stage(), style="own", role="two")}
    stages = {name: dataclasses.replace(stage, name="") for name, stage in stages.items()}
    with pytest.raises(ValueError, match="one style in all its roles, got own, vqathinker"):
        RecipeConfig(name="judge", output="x", base="toy", trained_on="nothing", stages=stages)
    with pytest.raises(ValueError, match="did you mean 'vqathinker'"):
        dataclasses.replace(whole_stage(), style="vqthinker")


def test_training_shows_other_frames_and_sizes_than_use():
    judge = build_judge()
    judge.configure(frame_policy={"mode": "centres", "num_frames": 12}, min_pixels=4096, max_pixels=4096)
    stage = whole_stage()
    stage = dataclasses.replace(
        stage, train_frames=FramePolicy(mode="centres", num_frames=6), train_min_pixels=1024, train_max_pixels=1024
    )
    clip = make_clip(height=64, width=64)
    with shown_for_training(judge, stage):
        assert judge.config.frame_policy["num_frames"] == 6 and judge.family.size(clip.plan, 64, 64) == (32, 32)
    assert judge.config.frame_policy["num_frames"] == 12 and judge.family.size(clip.plan, 32, 32) == (64, 64)


@pytest.mark.parametrize(
    ("num", "wanted", "expected"),
    [(60, 6, (5, 15, 25, 35, 45, 55)), (12, 6, (1, 3, 5, 7, 9, 11)), (4, 6, (0, 1, 2, 3)), (7, 2, (1, 5))],
)
def test_centres_are_the_middles_of_equal_stretches(num, wanted, expected):
    assert plan_frames(num, 30.0, FramePolicy(mode="centres", num_frames=wanted)).indices == expected


@pytest.mark.parametrize(
    ("num", "fps", "expected"), [(16, 16.0, 4), (49, 8.0, 12), (81, 16.0, 10), (240, 30.0, 16), (3, 8.0, 2)]
)
def test_two_frames_a_second_are_4_to_16_and_even(num, fps, expected):
    policy = FramePolicy(mode="fps", fps=2.0, min_frames=4, max_frames=16, multiple_of=2)
    assert len(plan_frames(num, fps, policy).indices) == expected


def test_one_motion_token_sees_the_planned_frames_alone():
    encoder = build_encoder(MotionConfig(tokens="one_of_planned"))
    frames = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    policy = FramePolicy(mode="centres", num_frames=6)
    clip = plan_clip(Video(frames=frames, fps=8.0, source="x"), policy, motion=encoder)
    assert clip.motion.shape == (1, encoder.feature_size)
    others = frames.clone()
    unseen = [index for index in range(40) if index not in clip.plan.indices]
    others[unseen] = 0.0
    again = plan_clip(Video(frames=others, fps=8.0, source="x"), policy, motion=encoder)
    assert torch.equal(clip.motion, again.motion)
    dense = build_encoder(MotionConfig())
    assert plan_clip(Video(frames=frames, fps=8.0, source="x"), policy, motion=dense).motion.shape[0] == 5


@pytest.mark.parametrize(("num", "slow"), [(6, 2), (12, 3), (32, 8), (1, 1)])
def test_the_slow_pathway_sees_as_many_of_few_frames_as_the_released_code(num, slow):
    few, every = pathways(torch.zeros(num, 3, 4, 4))
    assert few.shape[2] == slow and every.shape[2] == num


def test_any_draws_all_six_disturbances_alike():
    generator = torch.Generator().manual_seed(0)
    drawn = Counter()
    for _ in range(600):
        order = draw_order(8, "any", generator)
        drawn[("blank" if -1 in order else "mirror" if order[0] == 7 and order[7] == 0 else "other")] += 1
    assert 60 < drawn["blank"] < 140 and drawn["mirror"] > 60 and len(PERTURBATIONS) == 6
    with pytest.raises(ValueError, match="any"):
        draw_order(8, "all", generator)


def disturbed(**changes):
    settings = AnswerGRPOConfig(perturbation="any", num_perturbed=5, **changes)
    prompts = [build_prompt("reason", rated(seed), clip_of, group=seed) for seed in range(2)]
    return disturbed_prompts(prompts, settings, seed=3)


def test_each_extra_answer_has_a_disturbance_of_its_own_where_asked():
    each = disturbed(perturb_each="rollout")
    assert [prompt.group for prompt in each] == [0] * 5 + [1] * 5
    assert [prompt.name for prompt in each] == ["0", "0.1", "0.2", "0.3", "0.4", "1", "1.1", "1.2", "1.3", "1.4"]
    clips = {prompt.request.clips[0].frames.numpy().tobytes() for prompt in each}
    assert len(clips) > 6
    together = disturbed()
    assert [prompt.group for prompt in together] == [0, 1]
    assert torch.equal(together[0].request.clips[0].frames, each[0].request.clips[0].frames)


def test_answers_about_disturbances_of_one_prompt_are_sampled_apart_and_belong_to_it():
    judge, settings = build_judge(), AnswerGRPOConfig(max_answer_tokens=6)
    prompt = build_prompt("reason", rated(0), clip_of, group=4)
    groups = sample_answers(judge, [prompt, dataclasses.replace(prompt, draw=1)], settings, num_samples=1, seed=0)
    assert groups.labelled.groups == (4, 4)
    assert groups.completions[0][0].tokens != groups.completions[1][0].tokens


def test_lost_frames_have_the_chosen_colour():
    settings = AnswerGRPOConfig(perturbation="blank", num_perturbed=1, blank_colour="grey")
    prompt = build_prompt("reason", rated(0), clip_of, group=0)
    frames = disturbed_prompts([prompt], settings, seed=0)[0].request.clips[0].frames
    grey = (frames == torch.tensor(MEAN_GREY)[None, :, None, None]).flatten(1).all(dim=1)
    assert grey.any() and not (frames == 0).flatten(1).all(dim=1).any()


def test_ranking_meets_only_the_clips_of_its_block():
    scores = [3.0, 3.2, 2.0, 2.2, 5.0, 4.8, 1.0, 1.4]
    labels, groups = mos(4, 4, 2, 2, 3, 3, 1, 1), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    values = RankingReward(variant="released", groups_together=2)(said(*scores), labels, groups).values
    alone = RankingReward(variant="released")
    for block in (slice(0, 4), slice(4, 8)):
        assert_close(values[block], alone(said(*scores[block]), labels[block], groups[block]).values)
    # the first answer against group 1: mean 2.1, variances 0.02 each
    p = 0.5 * (1 + math.erf((3.0 - 2.1) / math.sqrt(0.04 + 1e-6) / math.sqrt(2)))
    assert float(values[0]) == pytest.approx(math.sqrt(p + 1e-6) + math.sqrt(1e-6), abs=1e-6)
    assert not torch.allclose(values, alone(said(*scores), labels, groups).values)


def test_ids_of_blocks_follow_the_order_of_the_groups_not_their_numbers():
    scores, labels = said(3.0, 2.0, 5.0, 1.0), mos(4, 2, 3, 1)
    reward = RankingReward(groups_together=2)
    near = reward(scores, labels, torch.tensor([0, 1, 2, 3])).values
    far = reward(scores, labels, torch.tensor([5, 17, 40, 91])).values
    assert_close(near, far)
    odd = reward(scores[:3], labels[:3], torch.tensor([0, 1, 2]))
    assert odd.breakdown["unpaired"].tolist() == [0, 0, 1] and odd.values[2] == 0


def test_the_gate_of_the_code_opens_by_the_means_of_a_block():
    def accuracy(answers, labels, groups, *, perturbed=None):
        return RewardValues(torch.tensor([float(answer.scores["overall"]) for answer in answers]), {})

    groups, labels = torch.tensor([3, 8, 21, 30]), mos(1, 1, 1, 1)
    true = said(0.9, 0.6, 0.9, 0.6)
    others = Perturbed(said(0.95, 0.3, 1.0, 0.7), labels, groups)
    # the first two groups: .75 against .625, the others: .75 against .85; all four together: .75 against .7375
    settings = {"variant": "november_2025", "threshold": 0.7, "bonus": 0.3}
    blocks = temporal_consistency(accuracy, groups_together=2, **settings)(true, labels, groups, perturbed=others)
    assert_close(blocks.values, torch.tensor([0.3, 0.0, 0.0, 0.0]))
    whole = temporal_consistency(accuracy, **settings)(true, labels, groups, perturbed=others)
    assert_close(whole.values, torch.tensor([0.3, 0.0, 0.3, 0.0]))
    with pytest.raises(ValueError, match="groups_together must be 0 or at least 2"):
        temporal_consistency(accuracy, groups_together=1)


def test_a_reward_may_measure_answers_by_another_reward_with_settings():
    released = {"name": "bell", "settings": {"sigma": 0.5, "variant": "released"}}
    term = RewardConfig(
        kind="reason",
        name="temporal_bell",
        settings={"variant": "november_2025", "threshold": 0.79, "accuracy": released},
    )
    reward, groups = build_rewards([term])["reason"], torch.tensor([0, 0])
    others = Perturbed(said("1.00"), mos(3.5), torch.tensor([0]))
    # 3.50 has one decimal once its zero is stripped: 0.8; 3.51 has two
    paid = reward(said("3.50", "3.51"), mos(3.5, 3.5), groups, perturbed=others).values
    assert_close(paid, torch.tensor([0.3, 0.3]))
    term.settings["threshold"] = 0.9
    assert build_rewards([term])["reason"](said("3.50", "3.51"), mos(3.5, 3.5), groups, perturbed=others).values[
        0
    ] == pytest.approx(0)
    for accuracy in ({"settings": {}}, "bell", {"name": "bell", "setting": {}}):
        with pytest.raises(ValueError, match="accuracy of 'temporal_bell' must hold a name and settings"):
            RewardConfig(kind="reason", name="temporal_bell", settings={"accuracy": accuracy})
    with pytest.raises(ValueError, match="name must be one of"):
        RewardConfig(kind="reason", name="temporal_bell", settings={"accuracy": {"name": "bel"}})


def test_scores_from_0_to_100_stand_on_1_to_5_exactly():
    style = STYLES["vq_insight_generated"]
    text = '<think>so</think><answer>{"consistency": 100, "spatial": 73.25, "temporal": 0.5}</answer>'
    answer = style.read_scores(text, 9, ("visual_quality", "motion_quality", "text_alignment"))
    assert {name: float(score) for name, score in answer.scores.items() if name != "overall"} == {
        "visual_quality": 3.93,
        "motion_quality": 1.02,
        "text_alignment": 5.0,
    }
    assert style.read_scores("<answer>{}</answer>", 3, ("visual_quality",)).fault
    natural = STYLES["vq_insight_natural"].read_scores("<answer>50</answer>", 3, ("overall",))
    assert float(natural.scores["overall"]) == 3.0


def test_decimals_of_a_score_from_1_to_5_stay_as_they_were_written():
    answer = STYLES["vqathinker"].read_scores("<think>so</think><answer>3.50</answer>", 9, ("overall",))
    assert STYLES["vqathinker"].read_scores("<answer>4</answer>", 9, ("overall",)).scores == {"overall": "4"}
    assert answer.scores == {"overall": "3.50"} and "two decimals" in STYLES["vqathinker"].wording.question
    for text in ("<answer>5.01</answer>", "3.50", "<answer>good</answer>", "<answer>3</answer><answer>4</answer>"):
        wrong = STYLES["vqathinker"].read_scores(text, 9, ("overall",))
        assert wrong.fault and not wrong.scores


COMPARATOR = STYLES["vq_insight_reasoned_comparator"]


@pytest.mark.parametrize(
    ("block", "choice"),
    [("A", "A"), (" Video B ", "B"), ("video a.", "A"), ("b", "B"), ("C", ""), ("neither", ""), ("A B", ""), ("", "")],
)
def test_the_comparator_reads_either_letter_or_name(block, choice):
    answer = COMPARATOR.read_choice(f"<think>so</think><answer>{block}</answer>", 9, COMPARATOR.preferences)
    assert answer.choice == choice and bool(answer.fault) == (not choice)


def test_two_options_have_no_tie_and_reason_before_they_choose():
    videos = [rated(seed).video for seed in (0, 1)]
    pair = VideoPair(*videos, "a dog", {"overall": 0.0}, "p")
    prompt = build_prompt("compare", pair, clip_of, group=0, style=COMPARATOR)
    assert prompt.label.choice == "B" and prompt.choices == ("A", "B") and not prompt.one_token
    assert prompt.request.branches[0].endswith("<|im_start|>assistant\n") and "<think>" in prompt.request.prefix[0]
    assert "not finished" in prompt.read("<think>so", num_tokens=768, ended=False).fault
    with pytest.raises(ValueError, match="a tie, which is none of the answers A, B; set ties: false"):
        build_prompt("compare", VideoPair(*videos, "a dog", {"overall": 0.5}, "p"), clip_of, group=0, style=COMPARATOR)


def test_yes_no_questions_are_asked_in_the_style_and_must_be_answered_in_the_block():
    asked = VideoQuestion(rated(0).video, "Is the dog natural?", (), "no", "multiple choice", "q")
    prompt = build_prompt("ask", asked, clip_of, group=0, style=COMPARATOR)
    assert "Is the dog natural? Answer with one of: yes, no." in prompt.request.branches[0]
    assert prompt.read("<think>so</think><answer>No.</answer>", num_tokens=9, ended=True).choice == "no"
    assert prompt.read("no", num_tokens=1, ended=True).fault
    assert build_prompt("ask", asked, clip_of, group=0).read("no", num_tokens=1, ended=True).choice == "no"


def test_a_comparator_that_reasons_is_used_as_it_was_trained(monkeypatch):
    judge = build_judge()
    judge.configure(prompt_style="vq_insight_reasoned_comparator")
    texts = iter(["<think>so</think><answer>A</answer>", "<answer>Video A</answer>", "hm", "<answer>B</answer>"])
    monkeypatch.setattr(judge, "generate", lambda requests, **_: [[[next(texts)]] for _ in requests])
    left, right = [make_clip(seed=0), make_clip(seed=2)], [make_clip(seed=1), make_clip(seed=3)]
    outcome = compare_clips(judge, None, left, right, [None, None], swap=False, batch_size=1)
    assert outcome.p_first.tolist() == [1.0, 1.0] and outcome.valid.tolist() == [True, True]
    outcome = compare_clips(judge, None, left, right, [None, None], swap=False, batch_size=1)
    assert outcome.valid.tolist() == [False, True] and outcome.p_first[1] == 0.0 and outcome.reasons[0]
    assert outcome.p_first[0].isnan()


def test_the_rate_falls_to_nothing_along_a_cosine_or_a_line():
    base = {"num_steps": 4, "learning_rate": 1.0, "batch_size": 1, "warmup_steps": 0, "final_rate": 0.0}
    cosine = [schedule(step, FitConfig(**base)) for step in range(5)]
    assert cosine == pytest.approx([1, 0.5 * (1 + math.sqrt(0.5)), 0.5, 0.5 * (1 - math.sqrt(0.5)), 0])
    line = [schedule(step, FitConfig(**base, decay="linear")) for step in range(5)]
    assert line == pytest.approx([1, 0.75, 0.5, 0.25, 0])


def test_the_moments_decay_as_asked(monkeypatch):
    seen = {}
    plain = torch.optim.AdamW

    def note(groups, **settings):
        seen.update(settings)
        return plain(groups, **settings)

    monkeypatch.setattr(torch.optim, "AdamW", note)
    weight = torch.nn.Parameter(torch.ones(1))
    settings = FitConfig(num_steps=1, learning_rate=1.0, batch_size=1, betas=[0.9, 0.999])
    fit([weight], lambda step: [((weight**2).sum(), {})], settings)
    assert seen["betas"] == (0.9, 0.999)
    for betas in ([0.9], [0.9, 1.0], [-0.1, 0.9]):
        with pytest.raises(ValueError, match="betas"):
            FitConfig(num_steps=1, learning_rate=1.0, batch_size=1, betas=betas)


def test_gradients_are_averaged_in_buckets_that_keep_the_order_and_leave_nothing_out():
    weights = [torch.nn.Parameter(torch.zeros(size)) for size in (3, 4, 9, 1, 2)]
    sizes = [[one.numel() for one in bucket] for bucket in buckets_of(weights, 7)]
    assert sizes == [[3, 4], [9], [1, 2]]


def test_epochs_become_steps():
    settings = FitConfig(num_epochs=3, learning_rate=1.0, batch_size=8)
    assert resolve_steps(settings, 7058).num_steps == 2647  # 21174 / 8, rounded up
    with pytest.raises(ValueError, match="needs listed examples"):
        resolve_steps(settings, 0)
    for wrong in ({}, {"num_steps": 1, "num_epochs": 1}):
        with pytest.raises(ValueError, match="exactly one of num_steps and num_epochs"):
            FitConfig(learning_rate=1.0, batch_size=8, **wrong)


def test_ties_and_the_held_out_tenth_can_be_left_out_and_kept(tmp_path):
    lines = ["path_A,path_B,prompt,Overall", *(f"{n}.mp4,b.mp4,p,{('A', 'same')[n % 2]}" for n in range(60))]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    settings = {"kind": "pairs", "path": str(tmp_path / "pairs.csv")}
    held = [is_held_out(f"{n}.mp4|b.mp4") for n in range(60)]
    assert 0 < sum(held) < 30
    assert len(open_source(DataConfig(**settings)).examples) == 60 - sum(held)
    assert len(open_source(DataConfig(**settings, hold_out=False)).examples) == 60
    assert open_source(DataConfig(**settings, hold_out=False), part="held_out").examples == ()
    kept = open_source(DataConfig(**settings, hold_out=False, ties=False)).examples
    assert len(kept) == 30 and {pair.preference["overall"] for pair in kept} == {1.0}
    with pytest.raises(ValueError, match="ties is read for"):
        DataConfig(kind="lsvq", path="x", ties=False)


def test_a_disturbed_clip_gives_one_motion_token_of_its_planned_frames():
    encoder = build_encoder(MotionConfig(tokens="one_of_planned"))
    video = rated(0, num_frames=16).video
    policy = FramePolicy(mode="centres", num_frames=6)

    def to_clip(one):
        return plan_clip(one, policy, motion=encoder)

    prompt = build_prompt("reason", RatedClip(video, None, {"overall": 0.5}, "v"), to_clip, group=0)
    other = rollout_prompts.perturbed(prompt, "shuffle", torch.Generator().manual_seed(0), motion=encoder)
    clip = other.request.clips[0]
    assert_close(clip.motion, encoder.encode(clip.frames, clip.plan.fps))
    assert not torch.equal(clip.motion, prompt.request.clips[0].motion)
