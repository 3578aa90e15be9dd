"""GRPO of a tiny judge: answers are sampled, compared and learned from behind one encoding of each prompt."""

from __future__ import annotations

import dataclasses
import multiprocessing
import socket

import pytest
import torch
from torch.testing import assert_close

from reward_model.media.motion_encoders import MotionConfig, build_encoder
from reward_model.media.perturbations import PERTURBATIONS, draw_order, reorder, spread_order
from reward_model.media.video_io import read_video, write_video
from reward_model.records import DIMENSIONS, Answer, Label, RatedClip, RewardValues, Video
from reward_model.training.fit import FitConfig, fit
from reward_model.training.methods import grpo
from reward_model.training.methods.grpo import (
    AnswerGroups,
    AnswerGRPOConfig,
    GRPOSteps,
    LabelledAnswers,
    answer_advantages,
    grpo_micro_batches,
    reward_answers,
    sample_answers,
)
from reward_model.training.methods.policy_loss import policy_loss
from reward_model.training.tasks.mixture import clip_planner
from reward_model.training.tasks.rollout_prompts import build_prompt, perturbed, plan_prompts
from reward_model.training.tasks.supervised import pair_of
from tests.tiny_judge import build_judge, forced_log_probs, make_clip

SETTINGS = AnswerGRPOConfig(group_size=3, max_answer_tokens=6, kl_coef=0.04, questions_per_part=2)


def rated(seed, prompt="a red circle", quality=0.5):
    clip = make_clip(seed=seed)
    video = Video(frames=clip.frames, fps=8.0, source=f"clip {seed}")
    return RatedClip(video, prompt, dict.fromkeys(DIMENSIONS, quality), f"clip {seed}")


def to_clip(video):
    seed = int(video.source.split()[1])
    return dataclasses.replace(make_clip(seed=seed), frames=video.frames)


def length_reward(answers, labels, groups, *, perturbed=None):
    values = torch.tensor([float(sum(map(ord, answer.text)) % 7) for answer in answers])
    return RewardValues(values, {"length": values})


REWARDS = {"reason": length_reward, "compare": length_reward}


@pytest.fixture
def judge():
    return build_policy()


def build_policy():
    """Return a judge with the role "policy" and a copy of it, "start"."""
    judge = build_judge()
    judge.add_role("policy", rank=4, alpha=8)
    generator = torch.Generator().manual_seed(5)
    for parameter in judge._roles.parameters("policy"):
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    judge.add_role("start", copy_from="policy")
    return judge


def prompts_of(num=4):
    clips = [rated(seed) for seed in range(num)]
    planned = plan_prompts(clips, {"reason": 0.5, "compare": 0.5})
    return [build_prompt(kind, chosen, to_clip, group=group) for group, (kind, chosen) in enumerate(planned)]


def answers_of(judge, prompts, num_samples=3):
    with judge.use_role("policy"):
        return sample_answers(judge, prompts, SETTINGS, num_samples=num_samples, seed=1)


def test_questions_are_planned_by_shares_and_compare_clips_of_one_prompt():
    clips = [rated(0), rated(1), rated(2, prompt="other"), rated(3, prompt="other")]
    planned = plan_prompts(clips, {"reason": 0.75, "compare": 0.5})
    assert [kind for kind, _ in planned] == ["reason"] * 3 + ["compare"] * 2
    assert [pair.source_id for kind, pair in planned if kind == "compare"] == ["clip 0|clip 1", "clip 2|clip 3"]


def test_only_pairs_labelled_overall_are_asked_about():
    first, second = (dataclasses.replace(rated(seed), quality={"motion_quality": 0.1 + 0.5 * seed}) for seed in (0, 1))
    assert plan_prompts([first, second], {"compare": 0.5}) == []
    with pytest.raises(ValueError, match="not labelled overall, only motion_quality"):
        build_prompt("compare", pair_of(first, second), to_clip, group=0)


def test_labels_stand_on_the_scale_of_the_answers():
    prompt = build_prompt("reason", rated(0, quality=0.75), to_clip, group=0)
    assert prompt.label.scores == dict.fromkeys(DIMENSIONS, 4.0)
    pair = build_prompt("compare", pair_of(rated(0, quality=0.2), rated(1, quality=0.9)), to_clip, group=1)
    assert pair.label.choice == "B"


def test_answers_are_read_by_the_kind_of_their_question():
    reason = build_prompt("reason", rated(0), to_clip, group=0)
    pair = build_prompt("compare", pair_of(rated(0), rated(1)), to_clip, group=1)
    scores = ",".join(f'"{name}":3.50' for name in DIMENSIONS)
    answer = reason.read(f"<think>so</think>\n<answer>{{{scores}}}</answer>", num_tokens=9, ended=True)
    assert answer.scores == dict.fromkeys(DIMENSIONS, "3.50") and not answer.fault
    assert (
        "no score for overall"
        in reason.read(
            '<think>so</think><answer>{"visual_quality":3.5,"motion_quality":1,"text_alignment":2}</answer>',
            num_tokens=9,
            ended=True,
        ).fault
    )
    assert pair.read(" B", num_tokens=2, ended=True).choice == "B"
    assert pair.read("<think>B is sharper</think><answer>B</answer>", num_tokens=2, ended=True).choice == "B"
    assert "not finished after 7" in reason.read("<think>so", num_tokens=7, ended=False).fault


def test_before_the_first_update_ratios_are_one_and_the_penalty_is_zero(judge):
    groups = answers_of(judge, prompts_of())
    advantages = answer_advantages(groups, REWARDS, SETTINGS)
    assert advantages.advantages.abs().max() > 0
    *_, (_, metrics) = grpo_micro_batches(
        judge, groups, advantages, SETTINGS, role="policy", reference=lambda: judge.use_role("start")
    )
    assert metrics["ratio_error"] < 1e-5 and metrics["kl"] == 0 and metrics["entropy"] > 0


@pytest.mark.parametrize("cut", [{"top_k": 5}, {"top_p": 0.3}, {"top_p": 0.5, "top_k": 9}])
def test_answers_drawn_from_the_likeliest_tokens_have_ratio_one_and_the_cut_probabilities(judge, cut):
    settings = dataclasses.replace(SETTINGS, **cut)
    prompts = prompts_of()
    with judge.use_role("policy"):
        groups = sample_answers(judge, prompts, settings, num_samples=3, seed=1)
    advantages = answer_advantages(groups, REWARDS, settings)
    *_, (_, metrics) = grpo_micro_batches(
        judge, groups, advantages, settings, role="policy", reference=lambda: judge.use_role("start")
    )
    assert metrics["ratio_error"] < 1e-5 and metrics["kl"] == 0
    for prompt, completions in zip(prompts, groups.completions, strict=True):
        for one in completions:
            with judge.use_role("policy"):
                logits = judge.next_token_logits([prompt.request])[0][0].detach()
            every = logits.index_fill(0, torch.tensor(judge.suppressed_ids), -torch.inf).softmax(-1)
            ordered, order = every.sort(descending=True)
            ordered = ordered[: cut.get("top_k", len(ordered))]
            reached, num = 0.0, 0
            while reached < cut.get("top_p", 2.0) * float(ordered.sum()) and num < len(ordered):
                reached, num = reached + float(ordered[num]), num + 1
            assert sorted(order[:num].tolist()) == one.allowed[0].tolist() and one.tokens[0] in one.allowed[0]
            assert len(one.allowed) == len(one.tokens)
            assert_close(one.log_probs[0], (every[one.tokens[0]] / reached).log(), atol=1e-4, rtol=0)


def test_the_gradient_equals_that_of_one_whole_forward_per_answer(judge):
    groups = answers_of(judge, prompts_of())
    advantages = answer_advantages(groups, REWARDS, SETTINGS)
    for parameter in judge._roles.parameters("policy"):  # away from the reference, so that the penalty counts
        parameter.data.mul_(1.05)
    policy = judge.train_only("policy")
    micro_batches = grpo_micro_batches(
        judge, groups, advantages, SETTINGS, role="policy", reference=lambda: judge.use_role("start")
    )
    mine = torch.autograd.grad(sum(loss for loss, _ in micro_batches), policy)

    def forced(role):
        with judge.use_role(role):
            return [
                forced_log_probs(
                    judge, prompt.request, prompt.request.branches[0], completion.tokens, judge.suppressed_ids
                )
                for prompt, group in zip(groups.prompts, groups.completions, strict=True)
                for completion in group
            ]

    now, before = forced("policy"), forced("start")
    owner = torch.cat([torch.full((len(values),), i) for i, values in enumerate(now)])
    old = torch.cat([completion.log_probs for group in groups.completions for completion in group])
    loss, _ = policy_loss(
        torch.cat(now),
        old,
        torch.cat(before).detach(),
        advantages.advantages,
        owner,
        clip_range=SETTINGS.clip_range,
        kl_coef=SETTINGS.kl_coef,
        num_answers=len(now),
    )
    theirs = torch.autograd.grad(loss, policy)
    for a, b in zip(mine, theirs, strict=True):
        assert (a - b).norm() <= 1e-5 * max(float(b.norm()), 1e-3)


def test_micro_batches_of_any_size_give_the_same_loss(judge):
    groups = answers_of(judge, prompts_of())
    advantages = answer_advantages(groups, REWARDS, SETTINGS)
    losses = []
    for size in (1, 2, 100):
        settings = dataclasses.replace(SETTINGS, questions_per_part=size)
        micro_batches = list(
            grpo_micro_batches(
                judge, groups, advantages, settings, role="policy", reference=lambda: judge.use_role("start")
            )
        )
        losses.append(sum(loss for loss, _ in micro_batches))
        assert len(micro_batches) == -(-len(groups.prompts) // size)
    assert_close(losses[0], losses[1])
    assert_close(losses[0], losses[2])


def test_an_update_raises_the_probability_of_better_answers(judge):
    prompts = prompts_of()
    groups = answers_of(judge, prompts)
    advantages = answer_advantages(groups, REWARDS, SETTINGS)
    settings = dataclasses.replace(SETTINGS, kl_coef=0.0)
    policy = judge.train_only("policy")

    def gain():
        *_, (loss, _) = grpo_micro_batches(
            judge,
            groups,
            advantages,
            dataclasses.replace(settings, questions_per_part=99),
            role="policy",
            reference=lambda: judge.use_role("start"),
        )
        return loss

    before = gain()
    gradients = torch.autograd.grad(before, policy)
    with torch.no_grad():
        for parameter, gradient in zip(policy, gradients, strict=True):
            parameter -= 1e-4 * gradient
    assert gain() < before


def test_answers_are_sampled_anew_every_num_updates_steps(judge, monkeypatch):
    sampled = []
    original = grpo.sample_answers
    monkeypatch.setattr(
        grpo, "sample_answers", lambda *args, **kwargs: sampled.append(kwargs["seed"]) or original(*args, **kwargs)
    )
    settings = dataclasses.replace(SETTINGS, num_updates=2)
    steps = GRPOSteps(judge, REWARDS, settings, role="policy", reference=lambda: judge.use_role("start"))
    for step in range(4):
        list(steps.micro_batches(prompts_of(2), step, seed=100))
    assert sampled == [100, 102]


def test_disturbed_clips_are_answered_for_rewards_that_compare_with_them(judge):
    seen = {}

    def watching(answers, labels, groups, *, perturbed=None):
        seen["groups"], seen["answers"] = perturbed.groups.tolist(), len(answers)
        return length_reward(answers, labels, groups)

    settings = dataclasses.replace(SETTINGS, perturbation="shuffle", num_perturbed=2)
    steps = GRPOSteps(
        judge,
        {"reason": watching, "compare": length_reward},
        settings,
        role="policy",
        reference=lambda: judge.use_role("start"),
    )
    list(steps.micro_batches(prompts_of(), 0, seed=0))
    assert seen == {"groups": [0, 0, 1, 1], "answers": 6}


def test_a_kind_without_reward_is_refused():
    prompt = build_prompt("compare", pair_of(rated(0), rated(1)), to_clip, group=0)
    labelled = LabelledAnswers(("compare",), (prompt.label,), (0,), (prompt.read(" A", num_tokens=1, ended=True),))
    with pytest.raises(ValueError, match="'compare' are asked, but only reason have rewards"):
        reward_answers({"reason": length_reward}, labelled, None)


def advantages_apart(*answers):
    label = Label(scores={"overall": 3.0})
    labelled = LabelledAnswers(("reason",) * len(answers), (label,) * len(answers), (0,) * len(answers), answers)
    rewards = {
        "reason": lambda answers, *_, perturbed: RewardValues(torch.tensor([float(a.text) for a in answers]), {})
    }
    return answer_advantages(
        AnswerGroups((), (), labelled), rewards, dataclasses.replace(SETTINGS, exclude_unparsed=True)
    )


def test_rewards_are_compared_among_readable_answers_and_readability_apart_where_that_is_asked_for():
    read, unread = (Answer("1", num_tokens=1), Answer("3", num_tokens=1)), Answer("100", num_tokens=1, fault="none")
    advantages = advantages_apart(*read, unread)
    # mean 2 and deviation sqrt(2) of the two that can be read: -+0.7071; readable 1, 1, 0 less 2/3
    assert_close(advantages.advantages, torch.tensor([-0.7071 + 1 / 3, 0.7071 + 1 / 3, -2 / 3]), atol=1e-3, rtol=0)
    assert advantages.num_answers == 3 and advantages.metrics["parse_rate"] == pytest.approx(2 / 3)


def test_a_group_without_a_readable_answer_teaches_nothing():
    unread = [Answer(text, num_tokens=1, fault="none") for text in ("1", "3")]
    assert advantages_apart(*unread).advantages.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "said"), [({"group_size": 1}, "group_size must be >= 2"), ({"temperature": 0.0}, "temperature")]
)
def test_settings_out_of_range_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        AnswerGRPOConfig(**changes)


def spread_reward(answers, labels, groups, *, perturbed=None):
    """Depend on the answers of every process, so that a share of them earns something else."""
    values = length_reward(answers, labels, groups).values
    return RewardValues(values * values.std(), {"spread": values})


def train_share(rank, world):
    """Train two steps on one process's share of six prompts; return the policy's weights and the last metrics."""
    judge = build_policy()
    settings = dataclasses.replace(SETTINGS, normalize_std=False, questions_per_part=3)
    rewards = {"reason": spread_reward, "compare": spread_reward}
    steps = GRPOSteps(judge, rewards, settings, role="policy", reference=lambda: judge.use_role("start"))
    policy = judge.train_only("policy")

    def loss(step):
        return steps.micro_batches(prompts_of(6)[rank::world], step, seed=7)

    fitted = FitConfig(num_steps=2, learning_rate=3e-3, batch_size=6, warmup_steps=0)
    with judge.use_role("policy"):
        last = fit(policy, loss, fitted, log_every=2)
    numbers = {name: last[name] for name in ("reward", "parse_rate", "grad_norm", "answer_tokens")}
    return torch.cat([parameter.detach().flatten() for parameter in policy]), numbers


def worker(rank, port, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save(train_share(rank, 2), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_like_one_with_the_same_questions(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(["reward_model.training.methods.grpo"])
    torch.multiprocessing.start_processes(worker, args=(port, str(tmp_path)), nprocs=2, start_method="forkserver")
    weights, metrics = train_share(0, 1)
    (first, first_metrics), (second, _) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first, second)
    assert_close(first, weights, atol=1e-5, rtol=0)
    assert first_metrics == pytest.approx(metrics, rel=1e-4)
    start = torch.cat([parameter.detach().flatten() for parameter in build_policy()._roles.parameters("policy")])
    assert (weights - start).abs().max() > 1e-3


def test_a_comparison_is_one_token_that_needs_no_end():
    judge = build_policy()
    prompt = build_prompt("compare", pair_of(rated(0), rated(1)), to_clip, group=0)
    groups = answers_of(judge, [prompt, *prompts_of(2)[:1]])
    assert [len(completion.tokens) for completion in groups.completions[0]] == [1, 1, 1]
    assert max(len(completion.tokens) for completion in groups.completions[1]) > 1
    assert prompt.read(" A", num_tokens=1, ended=False).choice == "A"
    assert prompt.read(" red", num_tokens=1, ended=False).fault


@pytest.mark.parametrize("kept", ["memory", "file"])
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_disturbed_clip_of_a_motion_judge_has_features_of_the_disturbed_order_in_the_same_slots(tmp_path, name, kept):
    judge, settings = build_judge(), MotionConfig(segment_seconds=0.5, cache=str(tmp_path / "features"))
    encoder = build_encoder(settings)
    judge.add_motion({**dataclasses.asdict(settings), "feature_size": encoder.feature_size})
    judge.configure(frame_policy={"mode": "uniform", "num_frames": 6})
    video = Video(torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0)), 8.0)
    if kept == "file":
        write_video(tmp_path / "clip.mp4", video.frames, 8.0)
    source = video if kept == "memory" else tmp_path / "clip.mp4"
    planner = clip_planner(judge)
    prompt = build_prompt("reason", RatedClip(source, "a dog", {"overall": 0.5}, "clip"), planner, group=0)
    num_cached = len(list((tmp_path / "features").iterdir()))
    other = perturbed(prompt, name, torch.Generator().manual_seed(3), motion=encoder)
    (before,), (after,) = prompt.request.clips, other.request.clips
    # 20 frames at 8 Hz are 2.5 s: five tokens before and after
    assert before.motion.shape == after.motion.shape == (5, encoder.feature_size)
    assert not torch.equal(before.motion, after.motion)
    packed = [judge._pack([one.request], None).sequences.tokens for one in (prompt, other)]
    assert torch.equal(*packed)  # the text alone tells nothing
    order = spread_order(draw_order(6, name, torch.Generator().manual_seed(3)), before.plan.indices, 20)
    dense = video if kept == "memory" else read_video(source)[0]
    expected = encoder.encoder.encode(reorder(dense.frames, order), 8.0)
    assert_close(after.motion, expected, atol=1e-6, rtol=0)
    assert len(list((tmp_path / "features").iterdir())) == num_cached
    with pytest.raises(ValueError, match="need the judge's motion encoder"):
        perturbed(prompt, name, torch.Generator())
