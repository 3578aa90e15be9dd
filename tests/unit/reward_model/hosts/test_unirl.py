"""UniRL: hand-written doubles of its requests, reward service, workers and scorer registry meet the embedded judge."""

from __future__ import annotations

import importlib
import math
import sys
from abc import ABC, abstractmethod
from ast import literal_eval
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import pytest
import torch
import yaml

from reward_model.hosts import unirl
from reward_model.hosts.core import load_judge
from reward_model.hosts.unirl import JudgeBackend, JudgeScorer
from reward_model.media.video_io import encode_video, write_video
from tests.host_clips import FPS, PROMPTS, clips, expected
from tests.host_recipes import recipes

BACKEND_RECIPE, SCORER_MODULE, REGISTRY_ENTRY, SERVICE_CONFIG = recipes(unirl)
OTHER_PROMPTS = ["a blue ring moving up", "a green star moving left", "a red square moving down"]


@dataclass
class Texts:
    texts: list[str]

    def __len__(self):
        return len(self.texts)


@dataclass
class Videos:
    """The host's batch of videos: frames [T, C, H, W] of all samples one after the other, and where each begins."""

    frames: torch.Tensor
    cuts: list[int]

    def to_list(self):
        return [self.frames[start:end] for start, end in zip(self.cuts, self.cuts[1:], strict=False)]

    def __len__(self):
        return len(self.cuts) - 1


def packed(videos):
    cuts = [0]
    for video in videos:
        cuts.append(cuts[-1] + len(video))
    return Videos(torch.cat(list(videos)), cuts)


class GeneratedVideos:
    """Reading of the generated videos, the same in all versions of the host's request."""

    @property
    def videos(self):
        value = self.generated.get("video")
        return None if value is None else [frames.permute(1, 0, 2, 3).contiguous() for frames in value.to_list()]


@dataclass
class RequestOf1a7b501(GeneratedVideos):
    """The host's request with one prompt per sample, read from the input primitives."""

    primitives: dict[str, Any] = field(default_factory=dict)
    generated: dict[str, Any] = field(default_factory=dict)
    metadata: list[Any] | None = None

    @property
    def prompts(self):
        value = self.primitives.get("text")
        return [] if value is None else list(value.texts)


@dataclass
class RequestOf104aad6(GeneratedVideos):
    """The host's newest request: it has no `prompts`."""

    generated: dict[str, Any] = field(default_factory=dict)
    conditioning: dict[str, Any] = field(default_factory=dict)
    original_prompt: Texts | None = None
    generation_prompt: Texts | None = None
    metadata: list[Any] | None = None

    def __post_init__(self):
        sizes = {
            len(value) for value in (*self.generated.values(), self.original_prompt, self.generation_prompt) if value
        }
        assert len(sizes) <= 1 and "text" not in self.conditioning


def older(videos, prompts=PROMPTS):
    return RequestOf1a7b501({"text": Texts(prompts)}, {"video": packed(videos)})


def newest(videos, prompts=PROMPTS):
    return RequestOf104aad6({"video": packed(videos)}, {}, Texts(OTHER_PROMPTS[: len(videos)]), Texts(prompts))


class RewardBackend(ABC):
    """The host's base class of commit 104aad6."""

    input_kind = "image"

    def __init__(self, model_name="", batch_size=8, timeout=60.0, prompt_source="generation", **kwargs):
        self.model_name, self.batch_size, self.timeout, self.prompt_source = (
            model_name,
            batch_size,
            timeout,
            prompt_source,
        )

    def get_model_name(self):
        return self.model_name

    @property
    def preferred_input_kind(self):
        return str(self.input_kind)

    @abstractmethod
    def compute_rewards(self, request): ...

    @abstractmethod
    def is_available(self): ...

    def offload(self):
        return None

    def onload(self):
        return None

    def dispose(self):
        return None


class Backend(JudgeBackend, RewardBackend):
    """A backend of the user's own module, with the host's base class."""


@runtime_checkable
class DifferentiableReward(Protocol):
    def compute_rewards_differentiable(self, media_tensor, prompts, records=None): ...


@runtime_checkable
class PromptVideoReward(Protocol):
    def covers_prompt_video(self): ...


class RewardService:
    """The host's reward service, as far as it calls its backend."""

    def __init__(self, backend, truncated_reward="zero", require_prompt_video=True):
        if require_prompt_video and isinstance(backend, PromptVideoReward) and not backend.covers_prompt_video():
            raise ValueError("the reward must relate the prompt to the video")
        self.backend = backend

    def score_and_attach(self, request):
        assert self.backend.get_model_name() and self.backend.preferred_input_kind == "video"
        assert self.backend.is_available()
        self.backend.onload()
        response = self.backend.compute_rewards(request)
        self.backend.offload()
        flags = zip(response.successes, response.errors, strict=True)
        if failed := [(index, why) for index, (ok, why) in enumerate(flags) if not ok]:
            raise RuntimeError(f"flagged {len(failed)} of {len(response.successes)} sample(s) as failure: {failed[:3]}")
        parts = {name: torch.tensor(list(values or [])) for name, values in dict(response.component_rewards).items()}
        return torch.tensor(response.rewards, dtype=torch.float32), parts

    def score_differentiable(self, media_tensor, prompts, records=None):
        if not isinstance(self.backend, DifferentiableReward):
            raise TypeError("not a DifferentiableReward")
        return self.backend.compute_rewards_differentiable(media_tensor, list(prompts), records=records)


HOST_CLASSES = {"unirl.reward.service.RewardService": RewardService}


def resolve(config):
    """Build a nested recipe as the host's worker does: children first, then the target with them as keywords."""
    if not isinstance(config, dict):
        return config
    children = {key: resolve(value) for key, value in config.items() if key != "_target_"}
    if "_target_" not in config:
        return children
    module, _, name = config["_target_"].rpartition(".")
    target = HOST_CLASSES.get(config["_target_"]) or getattr(importlib.import_module(module), name)
    return target(**children)


def service(**changes):
    """Return the reward service of the docstring's recipe, with the embedded judge."""
    recipe = yaml.safe_load(BACKEND_RECIPE)["reward"]
    recipe["backend"] |= {"judge": "toy", "fps": FPS, "device": "cpu", **changes}
    return resolve(recipe)


@pytest.mark.parametrize("request_of", [older, newest])
def test_the_recipe_attaches_rewards_and_components(judge, request_of):
    rewards, parts = service().score_and_attach(request_of(clips()))
    assert rewards.tolist() == expected(judge)
    assert set(parts) == {"visual_quality", "motion_quality", "text_alignment", "overall"}


@pytest.mark.parametrize("request_of", [older, newest])
def test_a_backend_with_the_hosts_base_class_serves_too(judge, request_of):
    backend = Backend("toy", FPS, "cpu")
    assert isinstance(backend, RewardBackend)
    rewards, _ = RewardService(backend).score_and_attach(request_of(clips()))
    assert rewards.tolist() == expected(judge)


def test_videos_of_several_lengths_get_their_own_rewards(judge):
    videos = [clips()[0], clips()[1][:3], clips()[2][:4]]
    rewards, _ = service().score_and_attach(newest(videos))
    assert rewards.tolist() == expected(judge, videos)


def test_the_recipe_chooses_between_the_users_prompt_and_the_generators(judge):
    rewards, _ = service(prompt_source="original").score_and_attach(newest(clips()))
    assert rewards.tolist() == expected(judge, prompts=OTHER_PROMPTS)
    with pytest.raises(ValueError, match="needs a UniRL whose requests have two prompts"):
        service(prompt_source="original").score_and_attach(older(clips()))
    with pytest.raises(ValueError, match="prompt_source must be 'original' or 'generation', got 'first'"):
        service(prompt_source="first")


def test_a_request_without_prompts_or_videos_stops_the_step():
    without = newest(clips())
    without.generation_prompt = None
    with pytest.raises(ValueError, match="the request has no generation prompt"):
        service().score_and_attach(without)
    with pytest.raises(ValueError, match="got 0 for 3 videos"):
        service().score_and_attach(RequestOf1a7b501({}, {"video": packed(clips())}))
    with pytest.raises(ValueError, match="the request has no videos"):
        service().score_and_attach(RequestOf104aad6({}, {}, None, Texts(PROMPTS)))


@pytest.mark.parametrize("request_of", [older, newest])
def test_one_bad_clip_is_flagged_with_its_reason_and_stops_the_step(judge, request_of):
    videos = clips()
    videos[1, 2, 0, 5, 5] = math.nan
    response = service().backend.compute_rewards(request_of(videos))
    assert response.successes == [True, False, True] and response.compute_time > 0
    assert "not finite" in response.errors[1] and response.errors[0] is response.errors[2] is None
    assert math.isnan(response.rewards[1])
    assert [response.rewards[0], response.rewards[2]] == expected(judge, clips()[[0, 2]], [PROMPTS[0], PROMPTS[2]])
    with pytest.raises(RuntimeError, match=r"flagged 1 of 3 sample\(s\) as failure: \[\(1, .*not finite"):
        service().score_and_attach(request_of(videos))


def test_a_judge_without_scores_flags_every_sample(mute):
    with pytest.raises(RuntimeError, match=r"flagged 3 of 3 .*five level words"):
        RewardService(JudgeBackend(mute, FPS)).score_and_attach(newest(clips()))


def test_a_reward_that_ignores_the_prompt_says_so():
    assert service(weights={"visual_quality": 1.0, "text_alignment": 0.5})
    with pytest.raises(ValueError, match="must relate the prompt"):
        service(weights={"visual_quality": 1.0})
    with pytest.raises(ValueError, match="must relate the prompt"):
        service(weights={"visual_quality": 1.0, "text_alignment": -1.0})


def test_frames_of_another_range_stop_the_step():
    with pytest.raises(RuntimeError, match=r"flagged 3 of 3 .*must lie in \[0, 1\]"):
        service().score_and_attach(newest(clips() * 2 - 1))


@pytest.fixture
def smooth(monkeypatch):
    """The embedded judge without the rounding of pixels to 8 bits, whose staircase has no slope to measure."""
    judge = load_judge("toy", device="cpu")
    monkeypatch.setattr(judge.judge, "next_token_logits", partial(judge.judge.next_token_logits, quantise=False))
    return judge


def decoded(media_range, still):
    """Return frames as the host's decoders give them: videos [B, C, T, H, W] or stills [B, C, H, W]."""
    media = clips().permute(0, 2, 1, 3, 4).double()
    media = (0.1 + 0.8 * media) if media_range == "unit" else 1.8 * media - 0.9
    return media[:, :, 0] if still else media


@pytest.mark.parametrize("still", [False, True])
@pytest.mark.parametrize("media_range", ["unit", "signed"])
def test_the_differentiable_rewards_have_the_slope_of_central_differences(smooth, media_range, still):
    reward = service(media_range=media_range)
    media = decoded(media_range, still).requires_grad_(True)
    rewards = reward.score_differentiable(media, PROMPTS, [None] * 3)
    assert rewards.shape == (3,)
    (gradient,) = torch.autograd.grad(rewards.sum(), media)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    step = 3e-4  # on random clips the slope changes by 2 % within it, by more than itself within 2e-2
    for index in range(3):  # each clip along its own gradient; the others stay
        direction = torch.zeros_like(gradient)
        direction[index] = gradient[index] / gradient[index].norm()
        with torch.no_grad():
            up, down = (reward.score_differentiable(media + s * direction, PROMPTS) for s in (step, -step))
        slopes = (up - down) / (2 * step)
        # scores in float32 are off by a few 6e-8, their smallest difference is 4e-5
        assert slopes[index].item() == pytest.approx(gradient[index].norm().item(), rel=0.05)
        others = [other for other in range(3) if other != index]
        assert slopes[others].abs().max().item() < 1e-3


def test_differentiable_rewards_are_those_of_the_same_frames(judge):
    rewards = service(media_range="signed").score_differentiable(
        (clips() * 2 - 1).permute(0, 2, 1, 3, 4).requires_grad_(True), PROMPTS
    )
    assert rewards.tolist() == expected(judge) and rewards.requires_grad


def test_one_bad_clip_stops_a_differentiable_step_before_any_gradient():
    media = (clips() * 2 - 1).permute(0, 2, 1, 3, 4)
    media[1, 0, 2, 5, 5] = math.nan
    with pytest.raises(ValueError, match=r"must lie in \[-1, 1\], got video 1 \[nan, nan\]"):
        service(media_range="signed").score_differentiable(media.requires_grad_(True), PROMPTS)
    with pytest.raises(RuntimeError, match="1 of 3 rewards are unavailable: video 1: .*not finite"):
        service(media_range="unit").score_differentiable((media + 1) / 2, PROMPTS)


def test_the_range_of_decoded_frames_is_never_guessed():
    media = clips().permute(0, 2, 1, 3, 4)
    with pytest.raises(ValueError, match="media_range is required"):
        JudgeBackend("toy", FPS).compute_rewards_differentiable(media, PROMPTS)
    with pytest.raises(ValueError, match="media_range must be 'unit'"):
        service(media_range="bytes")
    with pytest.raises(ValueError, match=r"must lie in \[-1, 1\], got video 0 \[0, 255\]"):
        service(media_range="signed").score_differentiable((media > 0.5) * 255.0, PROMPTS)
    with pytest.raises(RuntimeError, match=r"3 of 3 .*must lie in \[0, 1\]"):
        service(media_range="unit").score_differentiable(media * 2 - 1, PROMPTS)
    with pytest.warns(UserWarning, match="no pixel is below 0"):
        service(media_range="signed").score_differentiable(media, PROMPTS)
    for wrong in (media[0, 0], (media * 255).to(torch.uint8)):
        with pytest.raises(ValueError, match="media_tensor must be float"):
            service(media_range="unit").score_differentiable(wrong, PROMPTS)


@dataclass(frozen=True)
class ServiceItem:
    """An item of the host's reward service."""

    history: list[tuple[str, Any]]
    videos: tuple[bytes | str | None, ...] | None = None
    metadata: dict[str, Any] | None = None


class BaseScorer(ABC):
    """The base class of the host's scorers."""

    name = ""
    version = "1"
    input_kind = "image"
    supports_offload = supports_grad = False
    sub_metric_names: tuple[str, ...] = ()

    @abstractmethod
    def score(self, items): ...

    def close(self):
        return None

    def drain(self):
        return None

    def health(self):
        return {"name": self.name, "version": self.version, "input_kind": self.input_kind}


class Actor:
    """The host's worker: it imports the module that the registry names for its scorer, and nothing else."""

    def __init__(self, scorer_name, params):
        registry = sys.modules["reward_service.scorers.registry"]
        if module := registry.SCORER_MODULES.get(scorer_name):
            __import__(module)
        self.scorer = registry.get_scorer_cls(scorer_name)(**params)

    def shutdown(self):
        self.scorer.drain()
        self.scorer.close()


@pytest.fixture
def scorers(tmp_path, monkeypatch):
    """The host's package of scorers with the docstring's file and entry in it."""
    package = tmp_path / "reward_service" / "scorers"
    package.mkdir(parents=True)
    (package / "video_judge.py").write_text(SCORER_MODULE)
    for name in ("reward_service", "reward_service.scorers"):
        module = ModuleType(name)
        module.__path__ = [str(tmp_path / name.replace(".", "/"))]
        monkeypatch.setitem(sys.modules, name, module)
    base, registry = ModuleType("reward_service.scorers.base"), ModuleType("reward_service.scorers.registry")
    base.BaseScorer, registered = BaseScorer, {}
    registry.register, registry.get_scorer_cls = registered.__setitem__, registered.__getitem__
    registry.SCORER_MODULES = {"clip": "reward_service.scorers.clip", **literal_eval(f"{{{REGISTRY_ENTRY}}}")}
    for module in (base, registry):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    yield package
    sys.modules.pop("reward_service.scorers.video_judge", None)


def test_a_worker_reaches_the_scorer_by_the_recipe_and_scores_the_last_turn(judge, scorers, tmp_path):
    write_video(tmp_path / "clip.mp4", clips(1)[0], FPS)
    items = [
        ServiceItem([("a blue ring", None), (PROMPTS[0], None)], (None, encode_video(clips(1)[0], FPS))),
        ServiceItem([(PROMPTS[0], None)], (str(tmp_path / "clip.mp4"),)),
        ServiceItem([(PROMPTS[0], None)], (b"not a video",)),
    ]
    (reward,) = yaml.safe_load(SERVICE_CONFIG)["rewards"]
    actor = Actor(reward["scorer"], reward["params"] | {"judge": "toy", "device": "cpu", "dtype": "float32"})
    assert isinstance(actor.scorer, BaseScorer) and actor.scorer.health()["input_kind"] == "video"
    first, second, broken = actor.scorer.score(items)
    assert first == pytest.approx(second, rel=0, abs=1e-5)
    assert [first["overall"]] == expected(judge, [tmp_path / "clip.mp4"], PROMPTS[:1])
    assert tuple(first) == actor.scorer.sub_metric_names and next(iter(first)) == "overall"
    assert all(math.isnan(value) for value in broken.values())
    assert actor.scorer.score([]) == []
    actor.shutdown()


def test_an_item_without_a_video_is_an_error_of_the_whole_request():
    items = [ServiceItem([(PROMPTS[0], None)], (b"",)), ServiceItem([("a", None)])]
    with pytest.raises(ValueError, match=r"a video on the last turn of every item; items \[1\] have none"):
        JudgeScorer("toy", device="cpu").score(items)
