"""The reward function for TRL's trainers of text, by the arguments that the trainer passes."""

from __future__ import annotations

import asyncio

import pytest
import torch

from reward_model.hosts.trl import in_thread, video_reward
from reward_model.media.video_io import write_video
from reward_model.video_reward import VideoJudgeReward
from tests.host_clips import FPS
from tests.tiny_judge import build_judge

PROMPT = "a red circle moving left"
TEXTS = ["a red circle moving left", "a blue square moving right"]
ALIGNMENT = {"text_alignment": 1.0}


def clips(num=2):
    return torch.rand(num, 5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path):
    """Two clips and a file that is none."""
    for index, clip in enumerate(clips()):
        write_video(tmp_path / f"{index}.mp4", clip, FPS)
    (tmp_path / "notes.mp4").write_text("not a video")
    return tmp_path


def call(function, completions, **columns):
    """Call a reward function as the trainer does."""
    extra, metrics = {}, {}
    rewards = function(
        prompts=[PROMPT] * len(completions),
        completions=completions,
        completion_ids=[[1, 2]] * len(completions),
        trainer_state=None,
        log_extra=lambda name, values: extra.update({name: values}),
        log_metric=lambda name, value: metrics.update({name: value}),
        **columns,
    )
    return rewards, extra, metrics


def test_a_caption_is_scored_against_the_clip_of_its_row(judge, folder):
    paths = [str(folder / "0.mp4"), str(folder / "1.mp4")]
    expected = judge(paths, TEXTS).scores["text_alignment"].tolist()
    rewards, extra, metrics = call(video_reward("toy", weights=ALIGNMENT, device="cpu"), TEXTS, video=paths)
    assert rewards == pytest.approx(expected, abs=1e-5) and all(type(value) is float for value in rewards)
    assert extra == {"video_judge_reason": ["", ""]} and metrics == {"video_judge/failed": 0.0}


def test_videos_of_datasets_come_as_bytes_or_paths(judge, folder):
    column = [{"bytes": (folder / "0.mp4").read_bytes(), "path": None}, {"bytes": None, "path": str(folder / "1.mp4")}]
    rewards, _, _ = call(video_reward(judge, video="clip"), TEXTS, clip=column)
    assert rewards == pytest.approx(judge([folder / "0.mp4", folder / "1.mp4"], TEXTS).rewards.tolist(), abs=1e-5)


def test_a_completion_without_a_score_is_none_with_its_reason(judge, folder):
    paths = [str(folder / "0.mp4"), str(folder / "notes.mp4"), None]
    rewards, extra, metrics = call(video_reward(judge, name="align"), [*TEXTS, "a"], video=paths)
    assert rewards[0] is not None and rewards[1:] == [None, None]
    first, second, third = extra["align_reason"]
    assert first == "" and "not a video" in second and third == "no clip"
    assert metrics == {"align/failed": pytest.approx(2 / 3)}
    mute = VideoJudgeReward(build_judge().requires_grad_(False))
    rewards, extra, _ = call(video_reward(mute), TEXTS, video=[str(folder / "0.mp4")] * 2)
    assert rewards == [None, None] and "five level words" in extra["video_judge_reason"][0]


def test_a_rewritten_prompt_is_rendered_and_judged_against_the_users_own(judge):
    seen = []

    def render(texts):
        seen.extend(texts)
        return [clips()[0], None, clips()[1]]

    function = video_reward(judge, video=render, text="prompt", fps=FPS)
    rewards, _, _ = call(function, ["more red", "nothing", "more blue"])
    assert seen == ["more red", "nothing", "more blue"]
    first, second = judge(clips(), PROMPT, fps=FPS).rewards.tolist()
    assert rewards == [pytest.approx(first, abs=1e-5), None, pytest.approx(second, abs=1e-5)]


def test_an_agent_names_files_of_its_folder_and_no_others(judge, folder):
    good = folder.parent / "better.mp4"
    good.write_bytes((folder / "0.mp4").read_bytes())
    function = video_reward(judge, video="completion", text="prompt", folder=folder)
    rewards, extra, _ = call(function, [" 0.mp4\n", "../better.mp4", str(good), "none.mp4"])
    assert rewards == [pytest.approx(judge([good], PROMPT).rewards.item(), abs=1e-5), None, None, None]
    assert extra["video_judge_reason"][1:] == ["no clip"] * 3


def test_conversations_and_other_columns_are_read(judge, folder):
    paths = [str(folder / "0.mp4"), str(folder / "1.mp4")]
    chats = [[{"role": "assistant", "content": text}] for text in TEXTS]
    parts = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in TEXTS]
    plain = call(video_reward(judge), TEXTS, video=paths)[0]
    assert call(video_reward(judge), chats, video=paths)[0] == plain
    assert call(video_reward(judge), parts, video=paths)[0] == plain
    assert call(video_reward(judge, text="intent"), ["x", "y"], video=paths, intent=TEXTS)[0] == plain


def test_it_can_be_called_without_the_loggers_and_awaited(judge, folder):
    function = video_reward(judge, name="align")
    columns = {"prompts": [PROMPT], "completions": TEXTS[:1], "video": [str(folder / "0.mp4")]}
    awaited = in_thread(function)
    assert awaited.__name__ == "align" and asyncio.iscoroutinefunction(awaited)
    assert asyncio.run(awaited(**columns)) == function(**columns)


def test_settings_that_contradict_each_other_are_refused(judge):
    with pytest.raises(ValueError, match="folder goes with video='completion'"):
        video_reward(judge, video="completion")
    with pytest.raises(ValueError, match="folder goes with video='completion'"):
        video_reward(judge, folder="clips")
    with pytest.raises(ValueError, match="no column 'video' .* the columns are clip, completion, "):
        call(video_reward(judge), ["a"], clip=["a.mp4"])
