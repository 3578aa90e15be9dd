"""verl-omni and verl: a minimal reward loop calls the embedded judge sample by sample."""

from __future__ import annotations

import asyncio
import inspect
import math
from functools import partial

import pytest
import torch

from reward_model.hosts import verl
from reward_model.media.video_io import write_video
from tests.host_clips import FPS, PROMPTS, clips, expected


def manage(function, samples, **config):
    """The host's reward loop: every sample by keyword, coroutines awaited side by side, others in the default executor."""
    bound = partial(function, **config)

    async def one(sample):
        arguments = {"data_source": "toy", "extra_info": {"num_turns": None}, **sample}
        if inspect.iscoroutinefunction(function):
            return await bound(**arguments, model_name=None)
        call = partial(bound, **arguments, model_name=None)
        return await asyncio.get_running_loop().run_in_executor(None, call)

    async def all_of_them():
        return await asyncio.gather(*(one(sample) for sample in samples))

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("name", ["compute_score_video", "compute_score_video_sync"])
def test_verl_omni_scores_bytes_sample_by_sample(judge, name):
    videos = (clips() * 255).round().to(torch.uint8)
    samples = [{"solution_image": v, "ground_truth": p} for v, p in zip(videos, PROMPTS, strict=True)]
    found = manage(getattr(verl, name), samples, judge="toy", fps=FPS)
    assert [record["score"] for record in found] == expected(judge, videos)
    assert set(found[0]) == {"score", "visual_quality", "motion_quality", "text_alignment", "overall"}
    assert all(type(value) is float for record in found for value in record.values())


def test_verl_omni_may_hand_over_a_still_without_a_prompt(judge):
    still = (clips(1)[0, 0] * 255).round().to(torch.uint8)
    (record,) = manage(verl.compute_score_video, [{"solution_image": still, "ground_truth": ""}], judge="toy", fps=FPS)
    assert [record["score"]] == expected(judge, still[None, None], None)
    assert math.isnan(record["text_alignment"])


LAYOUTS = {"TCHW": (0, 1, 2, 3), "CTHW": (1, 0, 2, 3), "THWC": (0, 2, 3, 1)}


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [None, "layout"])
def test_verl_omni_sends_pixels_in_layouts_of_its_own(judge, layout, batched, name):
    video = (clips(1) * 255).round().to(torch.uint8)
    sent = video[0].permute(LAYOUTS[layout]).contiguous()
    sent, layout = (sent[None], f"B{layout}") if batched else (sent, layout)
    named = {} if name is None else {name: layout}
    record = verl.compute_score_video_sync("toy", sent, PROMPTS[0], {}, judge=judge, fps=FPS, **named)
    assert [record["score"]] == expected(judge, video, PROMPTS[:1])


def test_several_videos_of_one_sample_have_the_mean_of_their_scores(judge):
    videos = (clips(2) * 255).round().to(torch.uint8)
    record = verl.compute_score_video_sync("toy", videos, PROMPTS[0], {}, judge=judge, fps=FPS)
    each = judge(videos, PROMPTS[0], fps=FPS)
    assert record["score"] == pytest.approx(each.rewards.mean().item(), abs=1e-5)
    assert record["motion_quality"] == pytest.approx(each.scores["motion_quality"].mean().item(), abs=1e-5)


@pytest.mark.parametrize(
    ("shape", "cause"),
    [
        ((3, 3, 32, 32), "may be any of TCHW, CTHW"),  # three frames of three channels, in one order or the other
        ((3, 8, 32, 3), "may be any of CTHW, THWC"),
        ((1, 3, 3, 32, 32), "may be any of BCTHW, BTCHW"),
        ((5, 32, 32), "is none of CHW, .* with 3 channels"),
        ((32, 32, 3), "is none of CHW, .* with 3 channels"),
        ((5, 4, 32, 32), "is none of"),
        ((0,), "is empty"),
        ((0, 5, 3, 32, 32), "is empty"),
    ],
)
def test_pixels_whose_axes_cannot_be_told_apart_are_refused(judge, shape, cause):
    with pytest.raises(ValueError, match=rf"solution_image.* {cause}"):
        verl.compute_score_video_sync("toy", torch.zeros(shape, dtype=torch.uint8), "a", {}, judge=judge, fps=FPS)


def test_a_named_layout_settles_three_frames(judge):
    video = (clips(1)[:, :3] * 255).round().to(torch.uint8)
    for layout, sent in (("TCHW", video[0]), ("CTHW", video[0].transpose(0, 1))):
        record = verl.compute_score_video_sync("", sent, PROMPTS[0], {}, judge=judge, fps=FPS, layout=layout)
        assert [record["score"]] == expected(judge, video, PROMPTS[:1])
    for wrong in ("TCHWB", "THW", "TTHW", "THWC", "ABCD"):
        with pytest.raises(ValueError, match="layout must name the 4 axes of solution_image"):
            verl.compute_score_video_sync("", video[0], "a", {}, judge=judge, fps=FPS, layout=wrong)


def test_verl_omni_hears_of_latents_and_of_missing_scores(mute):
    with pytest.raises(ValueError, match=r"solution_image must be uint8 .* got torch.float32 \[16, 2, 4, 4\]"):
        verl.compute_score_video_sync("toy", torch.rand(16, 2, 4, 4), "", {}, judge="toy", fps=FPS)
    frames = torch.zeros(5, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="five level words. In verl-omni set required=true"):
        verl.compute_score_video_sync("toy", frames, "a red circle", {}, judge=mute, fps=FPS)


def sum_up(entries, sample):
    """verl-omni's MultiVisualRewardManager: arguments that a function names, a weighted sum, and 0 for what fails."""
    total, log = 0.0, {}
    for key, entry in entries.items():
        extra = {name: value for name, value in entry.items() if name not in ("fn", "weight", "required")}
        parameters = inspect.signature(entry["fn"]).parameters.values()
        everything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)
        named = {one.name for one in parameters}
        given = {k: v for k, v in {**sample, **extra}.items() if everything or k in named}
        try:
            result = asyncio.run(entry["fn"](**given))
        except Exception as error:
            if entry["required"]:
                raise RuntimeError(f"Required sub-reward {key!r} failed: {error}") from error
            result = {"score": 0.0}
        log.update({f"reward/{key}/{name}": value for name, value in result.items() if name != "score"})
        total += entry["weight"] * float(result["score"])
    return total, log


def test_the_manager_of_several_rewards_weighs_the_judge_and_stops_where_it_is_required(judge, mute):
    video = (clips(1) * 255).round().to(torch.uint8)
    sample = {"data_source": "toy", "solution_image": video[0], "ground_truth": PROMPTS[0], "extra_info": {}}
    entry = {"fn": verl.compute_score_video, "weight": 2.0, "required": True, "judge": judge, "fps": FPS}
    total, log = sum_up({"video": entry}, sample)
    assert [total / 2] == expected(judge, video, PROMPTS[:1]) and "reward/video/motion_quality" in log
    with pytest.raises(RuntimeError, match="Required sub-reward 'video' failed: 1 of 1 rewards are unavailable"):
        sum_up({"video": {**entry, "judge": mute}}, sample)


def test_verl_scores_a_text_against_the_video_it_describes(judge, tmp_path):
    write_video(tmp_path / "clip.mp4", clips(1)[0], FPS)
    info = {"video": str(tmp_path / "clip.mp4")}
    sample = {"solution_str": PROMPTS[0], "ground_truth": None, "extra_info": info}
    (record,) = manage(verl.compute_score_caption, [sample], judge="toy")
    assert [record["score"]] == expected(judge, [info["video"]], PROMPTS[:1], weights={"text_alignment": 1.0})
    assert record["score"] == record["text_alignment"]
    with pytest.raises(ValueError, match=r"extra_info must hold a path or bytes as 'clip', got \['video'\]"):
        verl.compute_score_caption_sync("toy", "a", None, info, judge="toy", key="clip")
