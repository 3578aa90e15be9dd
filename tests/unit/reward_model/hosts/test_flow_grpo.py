"""flow_grpo, DiffusionNFT and Flash-GRPO: a minimal `multi_score` calls the embedded judge."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from reward_model.hosts.flow_grpo import reward_factory
from tests.host_clips import FPS, PROMPTS, clips, expected


def multi_score(device, weights, functions):
    """The host's sum of commit 94e23ee: a function that names `device` is a factory that wants one; the results are weighed and added."""
    scorers = {
        name: functions[name](device) if "device" in functions[name].__code__.co_varnames else functions[name]()
        for name in weights
    }

    def total(images, prompts, metadata, ref_images=None, only_strict=True):
        details = {}
        for name in weights:
            details[name], _ = scorers[name](images, prompts, metadata)
        columns = [[weight * value for value in details[name]] for name, weight in weights.items()]
        return {**details, "avg": [sum(terms) for terms in zip(*columns, strict=True)]}, {}

    return total


def test_flow_grpo_adds_up_the_judge_and_others(judge):
    assert "device" in reward_factory("toy", fps=FPS).__code__.co_varnames
    functions = {"judge": reward_factory("toy", fps=FPS), "one": lambda: lambda images, *_: ([1.0] * len(images), {})}
    reward = multi_score(torch.device("cpu"), {"judge": 2.0, "one": 0.5}, functions)
    scores, _ = reward(clips(), tuple(PROMPTS), [{}] * 3, only_strict=False)
    assert scores["judge"] == expected(judge)
    assert scores["avg"] == pytest.approx([2 * value + 0.5 for value in scores["judge"]])


def train_wan(reward_fn, batches):
    """train_wan2_1.py of commit 74db691: eight threads, the results awaited at the end, a tensor for each name, joined."""
    with ThreadPoolExecutor(max_workers=8) as executor:
        waiting = [executor.submit(reward_fn, *batch, only_strict=True) for batch in batches]
        results = [one.result()[0] for one in waiting]
    tensors = [{key: torch.as_tensor(value).float() for key, value in result.items()} for result in results]
    return {key: torch.cat([one[key] for one in tensors]) for key in tensors[0]}


def test_the_wan_trainer_joins_the_rewards_of_its_batches(judge):
    reward_fn = multi_score(torch.device("cpu"), {"judge": 1.0}, {"judge": reward_factory(judge, fps=FPS)})
    batches = [(clips(seed=seed), tuple(PROMPTS), ({}, {}, {})) for seed in range(2)]
    rewards = train_wan(reward_fn, batches)
    assert set(rewards) == {"judge", "avg"} and rewards["avg"].shape == (6,)
    assert rewards["avg"].tolist() == expected(judge, torch.cat([frames for frames, _, _ in batches]), PROMPTS * 2)


def test_flow_grpo_reads_each_dimension_beside_the_weighted_sum(judge):
    weights = {"visual_quality": 0.5, "text_alignment": 0.5}
    reward = reward_factory(judge, fps=FPS, weights=weights)("cpu")
    found, parts = reward(clips(), PROMPTS, {})
    assert found == expected(judge, weights=weights)
    assert set(parts) == {"visual_quality", "motion_quality", "text_alignment", "overall"}


def test_diffusion_nft_may_hand_over_stills(judge):
    stills = clips()[:, 0]
    found, _ = reward_factory(judge, fps=FPS)("cpu")(stills, PROMPTS, {}, True)
    assert found == expected(judge, stills[:, None])


def test_flash_grpo_pairs_frames_with_paths(judge):
    reward = reward_factory(judge, fps=FPS)("cpu")
    assert reward([clips(), ["a.mp4", "b.mp4", "c.mp4"]], PROMPTS, {}, only_strict=True)[0] == expected(judge)
    with pytest.raises(ValueError, match=r"videos must be a tensor .* got \[str, str\]"):
        reward(["a.mp4", "b.mp4"], PROMPTS[:2], {})


def test_eight_threads_of_flow_grpo_get_what_one_gets(judge):
    reward = reward_factory(judge, fps=FPS)("cpu")
    other = judge.with_role("natural")
    alone = [reward(clips(seed=seed), PROMPTS, {})[0] for seed in range(8)]
    assert alone[0] != other(clips(), PROMPTS, fps=FPS).rewards.tolist()
    with ThreadPoolExecutor(8) as threads:
        noise = [threads.submit(other, clips(), PROMPTS, fps=FPS) for _ in range(4)]
        found = [threads.submit(reward, clips(seed=seed), PROMPTS, {}, only_strict=True) for seed in range(8)]
        assert [one.result()[0] for one in found] == alone
        assert all(one.result().rewards.isfinite().all() for one in noise)


def test_flow_grpo_is_stopped_where_a_reward_is_missing(mute):
    with pytest.raises(RuntimeError, match="3 of 3 rewards are unavailable: video 0: only 0.* on the five level words"):
        reward_factory(mute, fps=FPS)("cpu")(clips(), PROMPTS, {})


def test_frames_of_another_range_stop_flow_grpo(judge):
    with pytest.raises(
        RuntimeError, match=r"3 of 3 .* video 0: float frames must lie in \[0, 1\], got \[-1, 1\]; rescale"
    ):
        reward_factory(judge, fps=FPS)("cpu")(clips() * 2 - 1, PROMPTS, {})
