"""Flow-Factory: minimal base classes and processor of its contract call the embedded judge."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from reward_model.hosts.flow_factory import GroupwiseJudge, PointwiseJudge
from tests.host_clips import FPS, PROMPTS, clips, expected


@dataclass
class RewardArguments:
    """The host's settings: what it does not know goes into `extra_kwargs`."""

    extra_kwargs: dict[str, Any] = field(default_factory=dict)
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32


class BaseRewardModel(ABC):
    required_fields: tuple[str, ...] = ()
    use_tensor_inputs = False

    def __init__(self, config, accelerator):
        self.config, self.accelerator, self.device, self.dtype = config, accelerator, config.device, config.dtype
        self.model = None

    @abstractmethod
    def __call__(self, **fields): ...

    def to(self, device):
        self.model.to(device)
        self.device = device
        return self


class PointwiseRewardModel(BaseRewardModel): ...


class GroupwiseRewardModel(BaseRewardModel): ...


class Pointwise(PointwiseJudge, PointwiseRewardModel): ...


class Groupwise(GroupwiseJudge, GroupwiseRewardModel): ...


def process(kind, samples, **extra):
    """The host's processor: the fields that `__call__` names, tensors where wanted, and `rewards` as a tensor."""
    model = kind(config=RewardArguments(extra), accelerator=None).to("cpu")
    assert isinstance(model, (PointwiseRewardModel, GroupwiseRewardModel)) and model.use_tensor_inputs
    named = [name for name in inspect.signature(model.__call__).parameters if all(name in one for one in samples)]
    output = model(**{name: [one[name] for one in samples] for name in named})
    return torch.as_tensor(output.rewards, dtype=torch.float32), output.extra_info


def samples_of(videos, prompts):
    return [{"prompt": p, "video": v, "unique_id": 0} for v, p in zip(videos, prompts, strict=True)]


def test_flow_factory_scores_point_by_point(judge):
    rewards, parts = process(Pointwise, samples_of(clips(), PROMPTS), judge="toy", fps=FPS, weights={"overall": 3.0})
    assert rewards.tolist() == expected(judge, weights={"overall": 3.0})
    assert len(parts["visual_quality"]) == 3


def test_flow_factory_ranks_a_group_by_the_comparator(judge):
    order = judge.with_role("comparator").rank(clips(), PROMPTS[0], fps=FPS).order
    rewards, info = process(Groupwise, samples_of(clips(), PROMPTS[:1] * 3), judge="toy", fps=FPS)
    assert [rewards[index].item() for index in order] == [1.0, 0.5, 0.0]
    assert [info["place"][index] for index in order] == [0.0, 1.0, 2.0]


def test_flow_factory_hears_of_wrong_settings_and_samples(mute):
    with pytest.raises(ValueError, match=r"missing \['fps'\], unknown \['fsp'\]"):
        process(Pointwise, [], judge="toy", fsp=FPS)
    with pytest.raises(ValueError, match="weights go with the pointwise model"):
        process(Groupwise, [], judge="toy", fps=FPS, weights={"overall": 1.0})
    with pytest.raises(ValueError, match="the samples have no video"):
        process(Pointwise, [{"prompt": "a", "image": clips(1)[0, 0]}], judge="toy", fps=FPS)
    for prompts in (PROMPTS[:1], PROMPTS[:2]):
        with pytest.raises(ValueError, match="two or more videos of one prompt"):
            process(Groupwise, samples_of(clips(len(prompts)), prompts), judge="toy", fps=FPS)
    with pytest.raises(RuntimeError, match="3 of 3 rewards are unavailable"):
        process(Pointwise, samples_of(clips(), PROMPTS), judge=mute, fps=FPS)
    with pytest.raises(RuntimeError, match="does not compare"):
        process(Groupwise, samples_of(clips(), PROMPTS[:1] * 3), judge=mute, fps=FPS)
