"""miles_diffusion: hand-written doubles of its reward dispatch, rollout and advantages meet a local and a served judge."""

from __future__ import annotations

import asyncio
import math
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest
import torch

pytest.importorskip("fastapi")

from reward_model.hosts import miles_diffusion
from reward_model.hosts.miles_diffusion import batched_reward
from reward_model.serving.server.config import ServerConfig
from reward_model.serving.server.judge import JudgeService
from tests.host_clips import FPS, PROMPTS, clips, expected
from tests.host_recipes import recipes
from tests.running_server import running

MODULE, OPTIONS = recipes(miles_diffusion)


@dataclass
class Sample:
    """The host's sample, as far as rewards concern it."""

    prompt: str
    generated_output: torch.Tensor | None
    reward: float | dict | None = None

    def get_reward_value(self, args):
        if isinstance(self.reward, dict):
            if not args.reward_key:
                raise ValueError("sample.reward is a dict but no reward_key configured")
            return float(self.reward[args.reward_key])
        if self.reward is None:
            raise ValueError("sample.reward is None")
        return float(self.reward)


def load_function(path):
    module, _, name = path.rpartition(".")
    return getattr(__import__(module), name)


async def generate_and_rm_microgroup(args, microgroup):
    rewards = await load_function(args.custom_rm_path)(args, microgroup)
    for sample, reward in zip(microgroup, rewards, strict=True):
        sample.reward = reward
    return microgroup


def rollout(args, samples, size=2):
    """The host's rollout: microgroups at a time, their tasks joined, then rewards against their group's mean."""

    async def all_groups():
        parts = [samples[start : start + size] for start in range(0, len(samples), size)]
        tasks = [asyncio.create_task(generate_and_rm_microgroup(args, part)) for part in parts]
        return [sample for part in await asyncio.gather(*tasks) for sample in part]

    raw = [sample.get_reward_value(args) for sample in asyncio.run(all_groups())]
    flat = torch.tensor(raw).view(1, -1)
    return raw, ((flat - flat.mean(-1, keepdim=True)) / (flat.std(-1, keepdim=True) + 1e-4)).flatten()


def namespace(reward_key=None):
    words = OPTIONS.split()
    options = dict(zip(words[::2], words[1::2], strict=True))
    return SimpleNamespace(custom_rm_path=options["--custom-rm-path"], reward_key=reward_key or options["--reward-key"])


def samples(bad=None, layout="BCTHW"):
    videos = clips()
    if bad is not None:
        videos[bad, 1, 0, 3, 3] = math.nan
    order = {"BCTHW": (0, 2, 1, 3, 4), "BTCHW": (0, 1, 2, 3, 4), "BTHWC": (0, 1, 3, 4, 2)}[layout]
    return [Sample(prompt, video) for prompt, video in zip(PROMPTS, videos.permute(order), strict=True)]


@pytest.fixture
def my_rewards(monkeypatch):
    """A user's module, filled by the tests."""
    module = ModuleType("my_rewards")
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    return module


def test_the_recipe_rewards_a_rollout_by_a_served_judge(judge, my_rewards):
    config = ServerConfig()
    with running(JudgeService(judge, config), config) as url:
        exec(MODULE.replace("http://127.0.0.1:8000", url).replace("fps=16", f"fps={FPS}"), vars(my_rewards))
        raw, advantages = rollout(namespace(), samples())
        assert raw == expected(judge) and advantages.isfinite().all()
        with pytest.raises(RuntimeError, match="1 of 2 rewards are unavailable: video 1: .*not finite"):
            rollout(namespace(), samples(bad=1))


@pytest.mark.parametrize("layout", ["BCTHW", "BTCHW", "BTHWC"])
def test_outputs_of_each_plain_layout_are_scored(judge, my_rewards, layout):
    my_rewards.video_judge = batched_reward(judge, fps=FPS)
    group = samples(layout=layout)
    assert rollout(namespace(), group)[0] == expected(judge)
    assert set(group[0].reward) == {"reward", "overall", "visual_quality", "motion_quality", "text_alignment"}
    group = [Sample(one.prompt, one.generated_output.unsqueeze(0)) for one in samples(layout=layout)]
    assert rollout(namespace(), group)[0] == expected(judge)


def test_a_rollout_trains_on_a_dimension_or_on_the_reward_alone(judge, my_rewards):
    my_rewards.video_judge = batched_reward("toy", fps=FPS)
    args = namespace("motion_quality")
    assert rollout(args, samples())[0] == expected(judge, weights={"motion_quality": 1.0})
    args.reward_key = None
    group = samples()
    assert rollout(args, group)[0] == expected(judge) and isinstance(group[0].reward, float)
    with pytest.raises(ValueError, match="--reward-key must be one of reward, .*, got 'weighted'"):
        rollout(namespace("weighted"), samples())


@pytest.mark.parametrize("bad", [0, 2])
def test_one_bad_clip_ends_the_rollout_with_its_reason(judge, my_rewards, bad):
    my_rewards.video_judge = batched_reward(judge, fps=FPS)
    group = samples(bad)
    with pytest.raises(RuntimeError, match=f"1 of 3 rewards are unavailable: video {bad}: .*not finite"):
        rollout(namespace(), group, size=3)
    assert all(sample.reward is None for sample in group)


def test_stills_are_clips_of_one_frame_and_unclear_layouts_are_refused(judge):
    reward, args = batched_reward(judge, fps=FPS), SimpleNamespace(reward_key=None)
    still = Sample(PROMPTS[0], clips()[0, 0])
    turned = Sample(PROMPTS[0], clips()[0, 0].permute(1, 2, 0))
    for one in (still, turned):
        assert asyncio.run(reward(args, [one])) == expected(judge, clips()[:1, :1], PROMPTS[:1])
    assert asyncio.run(reward(args, [])) == []
    for output, said in (
        (torch.rand(3, 3, 32, 32), r"\[3, 3, 32, 32\] could be C T H W or T C H W"),
        (torch.rand(5, 4, 32, 32), "has no axis of 3 channels"),
        (torch.rand(2, 5, 3, 32, 32), "has no axis of 3 channels"),
        (None, "sample 1 has no generated_output"),
    ):
        with pytest.raises(ValueError, match=said):
            asyncio.run(reward(args, [still, Sample("a", output)]))
