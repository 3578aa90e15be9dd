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


def test_verl_omni_hears_of_latents_and_of_missing_scores(mute):
    with pytest.raises(ValueError, match=r"solution_image must be uint8 .* got torch.float32 \[16, 2, 4, 4\]"):
        verl.compute_score_video_sync("toy", torch.rand(16, 2, 4, 4), "", {}, judge="toy", fps=FPS)
    frames = torch.zeros(5, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="five level words. In verl-omni set required=true"):
        verl.compute_score_video_sync("toy", frames, "a red circle", {}, judge=mute, fps=FPS)


def test_verl_scores_a_text_against_the_video_it_describes(judge, tmp_path):
    write_video(tmp_path / "clip.mp4", clips(1)[0], FPS)
    info = {"video": str(tmp_path / "clip.mp4")}
    sample = {"solution_str": PROMPTS[0], "ground_truth": None, "extra_info": info}
    (record,) = manage(verl.compute_score_caption, [sample], judge="toy")
    assert [record["score"]] == expected(judge, [info["video"]], PROMPTS[:1], weights={"text_alignment": 1.0})
    assert record["score"] == record["text_alignment"]
    with pytest.raises(ValueError, match=r"extra_info must hold a path or bytes as 'clip', got \['video'\]"):
        verl.compute_score_caption_sync("toy", "a", None, info, judge="toy", key="clip")
