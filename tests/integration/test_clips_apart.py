"""One clip that a judge cannot take goes without a score, and the others of its batch are scored as if it were not there."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from reward_model import cli
from reward_model.media import intake
from reward_model.media.frame_sampling import FramePolicy
from reward_model.media.video_io import write_video
from reward_model.records import Video, VideoError
from reward_model.video_reward import VideoJudgeReward

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases" / "media"
PROMPT = "a red ball moves right"


@pytest.fixture(scope="module")
def reward():
    return VideoJudgeReward.from_pretrained("toy", device="cpu")


def clip(seed: int = 0, num: int = 8, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.rand(num, 3, height, width, generator=torch.Generator().manual_seed(seed))


def spoilt(value: float) -> torch.Tensor:
    frames = clip(5)
    frames[3, 1, 7, 9] = value
    return frames


BAD = {
    "narrow": (clip(5, height=8, width=2048), "too narrow"),
    "tall": (clip(5, height=1024, width=4), "too narrow"),
    "nan": (spoilt(float("nan")), "not finite"),
    "infinite": (spoilt(float("inf")), "not finite"),
    "minus infinite": (spoilt(float("-inf")), "not finite"),
    "signed": (clip(5) * 2 - 1, r"\[0, 1\]"),
    "bytes as floats": (clip(5) * 255, r"\[0, 1\]"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_clip_that_cannot_be_judged_leaves_the_others_their_scores(reward, kind):
    bad, reason = BAD[kind]
    alone = reward([clip(0), clip(1)], PROMPT, fps=8).rewards
    out = reward([clip(0), bad, clip(1)], PROMPT, fps=8)
    assert torch.isfinite(out.rewards).tolist() == [True, False, True]
    torch.testing.assert_close(out.rewards[[0, 2]], alone, rtol=0, atol=1e-5)
    for reasons in out.reasons.values():
        assert [bool(text) for text in reasons] == [False, True, False]
    assert re.search(reason, out.reasons["overall"][1])


@pytest.mark.parametrize("kind", BAD)
def test_such_a_clip_is_left_out_of_comparisons_and_ranks_and_cannot_be_explained(reward, kind):
    bad, reason = BAD[kind]
    judge = reward.with_role("comparator") if "comparator" in reward.judge.roles else reward
    outcome = judge.compare([clip(0), bad, clip(1)], [clip(1), clip(0), bad], PROMPT, fps=8)
    assert outcome.valid.tolist() == [True, False, False]
    assert torch.isfinite(outcome.margin).tolist() == [True, False, False]
    ranking = judge.rank([clip(0), bad, clip(1)], PROMPT, fps=8)
    assert sorted(ranking.order) == [0, 2] and ranking.reasons[1]
    with pytest.raises(VideoError, match=reason):
        reward.explain(bad, PROMPT, fps=8)


def test_a_record_of_frames_is_checked_as_a_tensor_is(reward):
    out = reward([Video(clip(0), 8.0), Video(spoilt(float("nan")), 8.0)], PROMPT)
    assert torch.isfinite(out.rewards).tolist() == [True, False]


def test_wrong_calls_still_raise(reward):
    for videos, more, message in (
        ([clip(0), clip(1)], {}, "fps is required"),
        ([clip(0), clip(1)[:, :1]], {"fps": 8}, "3 channels"),
        ([clip(0), (clip(1) * 255).int()], {"fps": 8}, "uint8"),
        ([clip(0), clip(1)[0]], {"fps": 8}, "axes"),
        ([clip(0)], {"fps": 8, "batch_size": 0}, "batch_size must be >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            reward(videos, PROMPT, **more)


def test_one_video_is_one_video(reward, tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, clip(0), 8.0)
    expected = reward([path], PROMPT).rewards
    assert expected.shape == (1,) and bool(torch.isfinite(expected).all())
    for one in (str(path), path, path.read_bytes()):
        assert torch.equal(reward(one, PROMPT).rewards, expected)
    assert reward.compare(str(path), path, PROMPT).valid.shape == (1,)
    assert reward.rank(str(path), PROMPT).order == (0,)


def test_arrays_and_pictures_are_videos(reward):
    image = pytest.importorskip("PIL.Image")
    whole = (clip(0) * 255).round().to(torch.uint8)
    expected = reward([whole], PROMPT, fps=8).rewards
    array = whole.permute(0, 2, 3, 1).numpy()
    forms = {
        "tensor": whole,
        "array": array,
        "list of arrays": [array],
        "batch": array[None],
        "floats": array.astype(np.float32) / 255,
        "doubles": [array / 255.0],
        "pictures": [image.fromarray(frame) for frame in array],
        "list of pictures": [[image.fromarray(frame) for frame in array]],
        "arrays of pictures": list(array),
        "turned memory": array[:, :, ::-1][:, :, ::-1],
    }
    for name, form in forms.items():
        rewards = reward(form, PROMPT, fps=8).rewards
        assert rewards.shape == (1,), name
        torch.testing.assert_close(rewards, expected, rtol=0, atol=1e-5, msg=name)
    assert reward(np.stack([array, array]), PROMPT, fps=8).rewards.shape == (2,)
    with pytest.raises(ValueError, match=r"numpy arrays is \[T, H, W, C\]"):
        reward(whole.numpy(), PROMPT, fps=8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int3"}, "dtype must be"),
        ({"device": "cudaa"}, "device must be such as 'cpu'"),
        ({"device": "cuda:99"}, "not available here"),
    ],
)
def test_unknown_types_and_devices_are_refused_in_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        VideoJudgeReward.from_pretrained("toy", **settings)
    assert "\n" not in str(caught.value)


def test_usual_short_names_of_types_are_known():
    judge = VideoJudgeReward.from_pretrained("toy", dtype="bf16", device="cpu").judge
    assert judge.model.lm_head.weight.dtype == torch.bfloat16


def test_large_clips_are_planned_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(intake, "MAX_PIXELS_AHEAD", 3 * 4 * 32 * 32)
    policy = FramePolicy(mode="all", max_frames=4)
    num, chunks = intake.clips_ahead([clip(n) for n in range(8)], 16, read_ahead=False, policy=policy, fps=8)
    assert (num, [len(chunk) for chunk in chunks]) == (8, [3, 3, 2])


def test_a_list_with_such_a_clip_is_scored_resumed_and_ends_with_one(tmp_path, capsys):
    write_video(tmp_path / "a.mp4", clip(0), 8.0)
    if CASES.is_dir():
        shutil.copy(CASES / "wide_256to1.mp4", tmp_path / "b.mp4")
    else:
        write_video(tmp_path / "b.mp4", clip(1, height=8, width=2048), 8.0)
    write_video(tmp_path / "c.mp4", clip(2), 8.0)
    listing, output = tmp_path / "list.csv", tmp_path / "scores.jsonl"
    listing.write_text("path,prompt\n" + "".join(f"{name}.mp4,{PROMPT}\n" for name in "abc"))
    argv = ["score", str(listing), "--output", str(output), "--batch-size", "3", "--device", "cpu"]
    assert cli.main(argv) == 1
    whole = output.read_text()
    results = [json.loads(line) for line in whole.splitlines() if "path" in json.loads(line)]
    assert [result["valid"] for result in results[-3:]] == [True, False, True]
    assert "too narrow" in results[-2]["reasons"]["overall"]
    output.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    assert cli.main([*argv, "--resume"]) == 1
    assert output.read_text() == whole


def test_a_folder_says_which_files_it_leaves_out(tmp_path, capsys):
    from reward_model.commands.inputs import list_items

    names = ["a.mp4", "b.m2ts", "c.MTS", "d.3gp", "e.VOB", "f.ogg", "._x.mp4", "notes.txt"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    items = [Path(item.path).name for item in list_items([str(tmp_path)])]
    assert items == ["a.mp4", "b.m2ts", "c.MTS", "d.3gp", "e.VOB", "f.ogg"]
    said = capsys.readouterr().err
    assert "2 files left out" in said and "._x.mp4" in said and "notes.txt" in said


def test_a_ranking_reads_large_files_at_the_size_of_the_judge_and_again_where_they_do_not_fit(tmp_path, monkeypatch):
    """The order and the number of comparisons are those of the whole frames, whatever stays in memory."""
    from reward_model.media import intake, shelf
    from reward_model.media.video_io import write_video
    from reward_model.scoring.compare import rank_clips

    judge = VideoJudgeReward.from_pretrained("toy").with_role("comparator")
    paths = []
    for seed in range(7):
        small = torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        paths.append(tmp_path / f"{seed}.mp4")
        write_video(paths[-1], torch.nn.functional.interpolate(small, size=(120, 200), mode="bicubic").clamp(0, 1), 8.0)
    whole = intake.to_clips(paths, policy=judge.frame_policy)
    wanted = rank_clips(judge.judge, judge.role, whole, PROMPT, batch_size=16)
    held = []

    class Watched(shelf.ClipShelf):
        def _keep(self, place, clip):
            super()._keep(place, clip)
            held.append(self.num_bytes)

    monkeypatch.setattr("reward_model.video_reward.ClipShelf", Watched)
    assert judge.rank(paths, PROMPT) == wanted
    one = held[0]
    assert one < 9 * 3 * 32 * 32 + 1 and len(held) == 7 and max(held) == 7 * one
    held.clear()
    monkeypatch.setattr("reward_model.video_reward.ClipShelf", partial(Watched, max_bytes=3 * one))
    assert judge.rank(paths, PROMPT, batch_size=2) == wanted
    assert len(held) > 7 and max(held) == 3 * one
