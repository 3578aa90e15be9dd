"""One clip that cannot be judged, at every host: it is named with its reason, and the others keep the scores they have alone.

Each host has an entry in `HOSTS`, by its own call; a module of `reward_model.hosts` without one fails the first test.
"""

from __future__ import annotations

import asyncio
import pkgutil
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from reward_model import hosts
from reward_model.hosts import (
    dancegrpo,
    ddpo,
    fastvideo,
    flow_factory,
    flow_grpo,
    miles_diffusion,
    pyiqa,
    trl,
    unirl,
    vader,
    verl,
    video_align,
    videox_fun,
)
from reward_model.hosts.core import TrainingStop
from reward_model.hosts.torchmetrics import VideoJudgeMetric
from reward_model.media.video_io import write_video
from tests.host_clips import FPS, PROMPTS

SHARED = {"core", "micro_batcher"}
"""Modules of the hosts' folder that are no host."""
MISSING = None
"""Score of a clip that has none."""


def clip(seed, height=32, width=32):
    return torch.rand(5, 3, height, width, generator=torch.Generator().manual_seed(seed))


def spoilt(value):
    frames = clip(2)
    frames[3, 1, 7, 9] = value
    return frames


PIXELS = {
    "nan": (spoilt(float("nan")), "not finite|nan"),
    "infinite": (spoilt(float("inf")), r"not finite|inf"),
    "in 0..255": (clip(2) * 255, r"must lie in \[-?[01], 1\]"),
    "beyond": (clip(2) * 8 - 4, r"must lie in \[-?[01], 1\]"),
}
"""Bad clips of the size of the good ones, and their reasons."""
SHAPES = {
    "narrow": (clip(2, height=8, width=2048), "too narrow"),
    "tall": (clip(2, height=1024, width=4), "too narrow"),
    "no frames": (torch.zeros(0, 3, 32, 32), "at least one frame|is empty"),
}
FILES = {
    "narrow": (clip(2, height=8, width=2048), "too narrow"),
    "no video": (b"not a video", "not a video"),
    "empty": (b"", "empty"),
    "cut off": (0.3, "."),
    "absent": (None, "no such file|No such file|not found|cannot|no clip"),
}


@dataclass(frozen=True)
class Host:
    """How a host calls its adapter.

    Attributes:
        sends: "batch" is one tensor [B, T, C, H, W], "list" is B tensors, "bytes" is B uint8 tensors, "paths" is B files.
        ask: (judge, clips, prompts) -> B scores, MISSING where there is none; it raises where the host can take no such value.
        stops: kind of error that ends the batch; None where the other clips are scored.
    """

    sends: str
    ask: Callable
    stops: type[BaseException] | None = None


def plain(values):
    return [MISSING if value is None or value != value else float(value) for value in values]


def loss_of_videox(judge, clips, prompts):
    loss, reward = videox_fun.JudgeFrames(judge, FPS)(clips.transpose(1, 2).requires_grad_(True), prompts)
    return plain([reward] * len(clips))


def reward_of_videox(judge, clips, prompts):
    return plain(videox_fun.JudgeFrames(judge, FPS).get_reward(clips.transpose(1, 2), prompts).tolist())


def loss_of_vader(judge, clips, prompts):
    _, reward = vader.reward_loss(judge, fps=FPS)(clips * 2 - 1, prompts)
    return plain([reward] * len(clips))


def flow_factory_model(kind, judge):
    class Base:
        def __init__(self, config, accelerator):
            self.device, self.dtype = torch.device("cpu"), torch.float32

    class Model(kind, Base): ...

    return Model(SimpleNamespace(extra_kwargs={"judge": judge, "fps": FPS}), None)


def pointwise(judge, clips, prompts):
    return plain(flow_factory_model(flow_factory.PointwiseJudge, judge)(prompts, clips).rewards)


def groupwise(judge, clips, prompts):
    return plain(flow_factory_model(flow_factory.GroupwiseJudge, judge)(prompts[:1] * len(clips), clips).rewards)


def trl_reward(video, fps):
    def ask(judge, clips, prompts):
        function = trl.video_reward(judge, video=(lambda texts: clips) if video is None else video, fps=fps)
        columns = {} if video is None else {video: clips}
        reasons = []
        rewards = function(prompts, prompts, log_extra=lambda name, values: reasons.extend(values), **columns)
        warnings.warn("; ".join(reasons), stacklevel=2)
        return plain(rewards)

    return ask


def together(function, judge, samples):
    """Call a coroutine function for all samples at once; an exception of one is warned of, and its score is missing."""

    async def all_of_them():
        calls = (function(data_source="", judge=judge, **sample) for sample in samples)
        return await asyncio.gather(*calls, return_exceptions=True)

    results = asyncio.run(all_of_them())
    for result in results:
        if isinstance(result, BaseException):
            assert type(result) in (RuntimeError, ValueError), result
            warnings.warn(str(result), stacklevel=2)
    return [MISSING if isinstance(result, BaseException) else result["score"] for result in results]


def verl_omni(judge, clips, prompts):
    samples = [{"solution_image": c, "ground_truth": p, "fps": FPS} for c, p in zip(clips, prompts, strict=True)]
    return together(verl.compute_score_video, judge, samples)


def verl_text(judge, paths, prompts):
    info = [{"video": path} for path in paths]
    samples = [{"solution_str": p, "ground_truth": None, "extra_info": i} for p, i in zip(prompts, info, strict=True)]
    return together(verl.compute_score_caption, judge, samples)


def unirl_backend(judge, clips, prompts):
    request = SimpleNamespace(prompts=prompts, videos=[one.transpose(0, 1) for one in clips])
    response = unirl.JudgeBackend(judge, FPS).compute_rewards(request)
    warnings.warn("; ".join(filter(None, response.errors)), stacklevel=2)
    assert response.successes == [value == value for value in response.rewards]
    return plain(response.rewards)


def unirl_service(judge, paths, prompts):
    items = [SimpleNamespace(history=[(p, None)], videos=(path,)) for path, p in zip(paths, prompts, strict=True)]
    return plain(record["overall"] for record in unirl.JudgeScorer(judge).score(items))


def aligned(on_missing):
    def ask(judge, paths, prompts):
        inferencer = video_align.VideoVLMRewardInference(judge, device="cpu", on_missing=on_missing)
        return plain(record["Overall"] for record in inferencer.reward(paths, prompts))

    return ask


def torchmetrics_update(judge, clips, prompts):
    metric = VideoJudgeMetric(judge, fps=FPS)
    metric.update(clips, prompts)
    scores = torch.cat(metric.scores).view(len(clips), -1)[:, -1]
    torch.testing.assert_close(metric.compute()["valid"], scores.isfinite().float().mean())
    torch.testing.assert_close(metric.compute()["overall"], scores.nanmean(), rtol=0, atol=1e-6, equal_nan=True)
    return plain(scores.tolist())


def pyiqa_metric(judge, clips, prompts):
    metric = pyiqa.JudgeMetric(judge, fps=FPS, dimension="overall", loss_weight=None)
    return plain(metric(clips, prompts=prompts).tolist())


def pyiqa_loss(judge, clips, prompts):
    metric = pyiqa.JudgeMetric(judge, fps=FPS, dimension="overall", loss_weight=-1.0)
    return [-metric(clips, prompts=prompts).item()] * len(clips)


def flow_grpo_reward(judge, clips, prompts):
    return plain(flow_grpo.reward_factory(judge, fps=FPS)("cpu")(clips, prompts, {})[0])


def ddpo_reward(judge, clips, prompts):
    return plain(ddpo.tuple_reward(judge, fps=FPS)(clips, prompts, {})[0].tolist())


def dancegrpo_step(judge, clips, prompts):
    reward = dancegrpo.clip_reward(judge, fps=FPS)
    rewards = []
    for frames, prompt in zip(clips, prompts, strict=True):
        try:
            rewards.append(reward(frames.permute(0, 2, 3, 1), prompt))
        except TrainingStop as stop:
            raise TrainingStop(f"video {len(rewards)}: {stop}") from stop  # the host sends one clip a call
    return plain(torch.cat(rewards).tolist())


def fastvideo_scorer(judge, clips, prompts):
    return plain(fastvideo.reward_scorer(judge, fps=FPS)(clips.transpose(1, 2), prompts).tolist())


def miles_rollout(judge, clips, prompts):
    samples = [
        SimpleNamespace(prompt=p, generated_output=c.transpose(0, 1)) for p, c in zip(prompts, clips, strict=True)
    ]
    reward = miles_diffusion.batched_reward(judge, fps=FPS)
    return plain(asyncio.run(reward(SimpleNamespace(reward_key=None), samples)))


HOSTS = {
    "dancegrpo": Host("list", dancegrpo_step, stops=TrainingStop),
    "fastvideo": Host("batch", fastvideo_scorer, stops=RuntimeError),
    "miles_diffusion": Host("list", miles_rollout, stops=RuntimeError),
    "ddpo": Host("batch", ddpo_reward, stops=RuntimeError),
    "flow_factory pointwise": Host("list", pointwise, stops=RuntimeError),
    "flow_factory groupwise": Host("list", groupwise, stops=RuntimeError),
    "flow_grpo": Host("batch", flow_grpo_reward, stops=RuntimeError),
    "pyiqa": Host("batch", pyiqa_metric),
    "pyiqa of files": Host("paths", pyiqa_metric),
    "pyiqa as a loss": Host("batch", pyiqa_loss, stops=RuntimeError),
    "torchmetrics": Host("batch", torchmetrics_update),
    "torchmetrics of lists": Host("list", torchmetrics_update),
    "torchmetrics of files": Host("paths", torchmetrics_update),
    "trl rendered": Host("list", trl_reward(None, FPS)),
    "trl column": Host("paths", trl_reward("video", None)),
    "unirl backend": Host("list", unirl_backend),
    "unirl service": Host("paths", unirl_service),
    "vader": Host("batch", loss_of_vader, stops=(RuntimeError, ValueError)),
    "verl omni": Host("bytes", verl_omni),
    "verl text": Host("paths", verl_text),
    "video_align stop": Host("paths", aligned("stop"), stops=TrainingStop),
    "video_align nan": Host("paths", aligned("nan")),
    "videox_fun training": Host("batch", loss_of_videox, stops=RuntimeError),
    "videox_fun get_reward": Host("batch", reward_of_videox),
}
"""Module and use -> the host's call."""

KINDS = {"batch": PIXELS, "list": PIXELS | SHAPES, "bytes": SHAPES, "paths": FILES}
CASES = [(name, kind) for name, host in HOSTS.items() for kind in KINDS[host.sends]]


def sent(host, clips, folder):
    """Return the clips in the form in which the host sends them."""
    if host.sends == "batch":
        return torch.stack(clips)
    if host.sends == "bytes":
        return [(one * 255).round().to(torch.uint8) for one in clips]
    if host.sends == "list":
        return clips
    return [str(file_of(one, folder / f"{index}.mp4")) for index, one in enumerate(clips)]


def file_of(content, path):
    """Return a file of frames, of bytes, of a share of a good file, or of nothing."""
    if isinstance(content, torch.Tensor):
        write_video(path, content, FPS)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        write_video(path, clip(2), FPS)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * content)])
    return path


def ask(host, judge, clips, prompts, folder):
    """Return scores, and the text of all warnings."""
    folder.mkdir()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        scores = host.ask(judge, sent(host, clips, folder), prompts)
    return scores, " ".join(str(one.message) for one in heard)


def test_every_host_is_tried():
    modules = {module.name for module in pkgutil.iter_modules(hosts.__path__)} - SHARED
    assert modules == {name.split()[0] for name in HOSTS}


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_bad_clip_is_named_and_leaves_the_others_their_scores(judge, tmp_path, name, kind):
    host = HOSTS[name]
    bad, reason = KINDS[host.sends][kind]
    clips, prompts = [clip(0), bad, clip(1)], PROMPTS
    if host.stops is not None:
        with pytest.raises(host.stops) as stopped:
            ask(host, judge, clips, prompts, tmp_path / "all")
        assert re.search(reason, str(stopped.value)) and re.search(r"video 1\b", str(stopped.value)), stopped.value
        assert ask(host, judge, clips[::2], prompts[::2], tmp_path / "good")[0].count(MISSING) == 0
        return
    (first, second), _ = ask(host, judge, clips[::2], prompts[::2], tmp_path / "good")
    scores, told = ask(host, judge, clips, prompts, tmp_path / "all")
    assert scores[1] is MISSING and None not in (first, second)
    assert [scores[0], scores[2]] == pytest.approx([first, second], abs=1e-5)
    assert re.search(reason, told) or name == "unirl service", told  # the service answers by numbers alone


@pytest.mark.parametrize("name", [name for name, host in HOSTS.items() if host.sends in ("batch", "list")])
@pytest.mark.parametrize("num", [1, 2, 3])
def test_a_call_of_nothing_but_another_range_is_treated_alike_for_any_number_of_clips(judge, tmp_path, name, num):
    host, clips = HOSTS[name], [clip(seed) * 255 for seed in range(num)]
    if name == "flow_factory groupwise" and num == 1:
        pytest.skip("a group has two videos or more")
    if host.stops is not None:
        with pytest.raises(host.stops, match=r"must lie in \[-?[01], 1\], got"):
            ask(host, judge, clips, PROMPTS[:num], tmp_path / "all")
        return
    scores, told = ask(host, judge, clips, PROMPTS[:num], tmp_path / "all")
    assert scores == [MISSING] * num and told.count("must lie in") >= num
