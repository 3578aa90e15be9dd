"""Sources of training examples: listed clips, labelled pairs and questions, from files as published."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reward_model.datasets.readers import DataConfig, open_source
from reward_model.datasets.sources import Listed, is_held_out
from reward_model.media.video_io import write_video
from reward_model.records import RatedClip, VideoPair, VideoQuestion
from reward_model.training.fit import FitConfig
from reward_model.training.recipe import StageConfig
from reward_model.training.stages import make_examples
from reward_model.training.tasks.mixture import Mixture, clip_planner, open_mixture
from reward_model.training.tasks.supervised import choices_of, closed_example
from tests.tiny_judge import build_judge

NAMES = [f"clip{number}.mp4" for number in range(40)]


@pytest.fixture
def folder(tmp_path):
    """Write one small video and give it many names."""
    write_video(tmp_path / "one.mp4", torch.rand(4, 3, 32, 32), fps=8)
    for name in NAMES:
        (tmp_path / name).symlink_to("one.mp4")
    return tmp_path


def visionreward(folder):
    """Write labelled pairs, two of a prompt."""
    rows = [
        {
            "prompt": f"prompt {number // 2}",
            "video1_path": NAMES[number],
            "video2_path": NAMES[number + 1],
            "standard_answer": ("video1", "video2", "tie")[number % 3],
        }
        for number in range(0, 39)
    ]
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return DataConfig(kind="visionreward", path=str(path))


def stage(data, tasks, **changes):
    settings = FitConfig(num_steps=1, learning_rate=1e-3, batch_size=4)
    return StageConfig(name="s", data=data, tasks=tasks, fit=settings, **changes)


def test_a_labelled_pair_takes_the_place_of_two_clips_and_is_compared_in_both_orders(folder):
    source = open_mixture([visionreward(folder)])
    drawn = source(0, 8)
    assert len(drawn) == 4 and all(isinstance(example, VideoPair) for example in drawn)
    examples = make_examples(build_judge(), source(0, 8), stage([visionreward(folder)], {"compare": 1.0}), num=8)
    assert len(examples) == 4  # half a comparison a clip: two pairs in both orders
    opposite = {" A": " B", " B": " A", " neither": " neither"}
    for one, other in (examples[:2], examples[2:]):
        assert other.answers == tuple(opposite[answer] for answer in one.answers)


def test_what_is_held_out_of_a_file_is_never_drawn_for_training(folder):
    data = visionreward(folder)
    drawn = {side: open_source(data, part="held_out" if side else "train")(1, 400) for side in (False, True)}
    assert all(is_held_out(pair.source_id) == side for side, pairs in drawn.items() for pair in pairs)
    assert drawn[True]


def test_rows_of_video_r1_are_clips_pairs_and_questions_of_one_source(folder):
    rows = [
        *(
            {"problem_type": "regression", "problem": "?", "solution": "<answer>50</answer>", "path": n}
            for n in NAMES[:13]
        ),
        *(
            {
                "problem_type": "multiple choice",
                "problem": "?",
                "solution": "<answer>A</answer>",
                "path1": a,
                "path2": "x",
            }
            for a in NAMES[13:26]
        ),
        *(
            {
                "problem_type": "multiple choice",
                "problem": "Is it red?",
                "options": ["A. yes", "B. no"],
                "solution": "<answer>B</answer>",
                "path": n,
            }
            for n in NAMES[26:]
        ),
    ]
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    data = DataConfig(kind="video_r1", path=str(path), scale=[0, 100])
    kinds = {type(example) for example in open_source(data)(0, 100)}
    assert kinds == {RatedClip, VideoPair, VideoQuestion}
    asked = [example for example in open_source(data)(0, 100) if isinstance(example, VideoQuestion)]
    example = closed_example(asked[0], clip_planner(build_judge()))
    assert example.answers == ("B<|im_end|>",)
    assert "Is it red?\nAnswer: A. yes / B. no" in example.request.branches[0]


@pytest.mark.parametrize(
    ("options", "answer", "choices"),
    [
        (("A. yes", "B. no"), "B", ("A", "B")),
        (("red", "blue"), "red", ("red", "blue")),
        ((), "yes", ("yes", "no")),
        ((), "No", ("Yes", "No")),
    ],
)
def test_choices_of_a_question(options, answer, choices):
    assert choices_of(VideoQuestion(NAMES[0], "?", options, answer, "multiple choice", "x")) == choices


def test_an_open_question_is_refused():
    with pytest.raises(ValueError, match="question about x is an open one: 'a cat'"):
        choices_of(VideoQuestion(NAMES[0], "?", (), "a cat", "free-form", "x"))


def test_an_image_is_a_clip_of_one_frame(tmp_path):
    from PIL import Image

    rows = ["image_name,c_total,MOS,SD,set"]
    for number in range(30):
        Image.new("RGB", (40, 32), (200, 10, 10)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,100,{2 * number + 10},1,training")
    (tmp_path / "sets.csv").write_text("\n".join(rows))
    data = DataConfig(kind="koniq", path=str(tmp_path / "sets.csv"), split="training")
    source, judge = open_source(data), build_judge()
    clip = clip_planner(judge)(source(0, 1)[0].video)
    assert clip.frames.shape == (1, 3, 32, 40)
    torch.testing.assert_close(clip.frames[0, :, 5, 5] * 255, torch.tensor([200.0, 10, 10]), atol=2, rtol=0)
    examples = make_examples(judge, source(0, 4), stage([data], {"rate": 1.0}), num=4)
    assert [len(example.answers) for example in examples] == [1] * 4
    assert judge.next_token_logits([examples[0].request])[0].shape[0] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "manifest", "path": "x.csv", "split": "train"}, "data.split is read for koniq, lsvq only"),
        ({"kind": "lsvq", "path": "x.csv", "columns": {"video": "v"}}, "data.columns is read for manifest, pairs only"),
        ({"kind": "video_r1", "path": "x.json", "scale": [1.0]}, "two numbers"),
        ({"kind": "pairs"}, "data.path must be given"),
        ({"kind": "manifest", "path": "x.csv", "num_clips": 4}, "data.num_clips is read for moving_shapes only"),
        ({"kind": "moving_shapes", "num_clips": 1}, "num_clips must be 0 or at least 2"),
    ],
)
def test_settings_that_nothing_reads_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**changes)


def test_few_clips_come_again_and_again_while_held_out_ones_never_end():
    few = DataConfig(kind="moving_shapes", num_clips=4)
    seen = {clip.source_id for seed in range(20) for clip in open_source(few)(seed, 6)}
    assert len(seen) == 4
    others = [clip.source_id for clip in open_source(few, part="held_out")(3, 6)]
    assert others == [clip.source_id for clip in open_source(DataConfig(kind="moving_shapes"), part="held_out")(3, 6)]
    images = open_source(replace(few, images=True))(3, 2)
    assert all(image.quality.keys() == {"visual_quality"} and image.source_id in seen for image in images)


def test_images_are_the_middle_frames_of_the_same_clips_rated_on_visual_quality_alone():
    clips = open_source(DataConfig(kind="moving_shapes"))(3, 4)
    images = open_source(DataConfig(kind="moving_shapes", images=True))(3, 4)
    for clip, image in zip(clips, images, strict=True):
        assert torch.equal(image.video.frames, clip.video.frames[4:5])
        assert image.quality == {"visual_quality": clip.quality["visual_quality"]}
        assert image.facts["faults"].keys() <= {"visual_quality"}
        assert image.prompt is None
        assert image.source_id == clip.source_id


def test_clips_can_be_rated_on_some_dimensions_alone():
    every = open_source(DataConfig(kind="moving_shapes"))(3, 6)
    some = open_source(DataConfig(kind="moving_shapes", dimensions=["motion_quality", "overall"]))(3, 6)
    for clip, part in zip(every, some, strict=True):
        assert part.quality == {name: clip.quality[name] for name in ("motion_quality", "overall")}
        assert part.facts["faults"] == {k: v for k, v in clip.facts["faults"].items() if k in part.quality}
        assert part.prompt == clip.prompt and torch.equal(part.video.frames, clip.video.frames)
    assert any("visual_quality" in clip.facts["faults"] for clip in every)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "manifest", "path": "x.csv", "dimensions": ["overall"]}, "dimensions is read for moving_shapes only"),
        ({"kind": "moving_shapes", "dimensions": ["sharpness"]}, "data.dimensions must be of .* got 'sharpness'"),
        ({"kind": "moving_shapes", "images": True, "dimensions": ["overall"]}, "data.images are rated on visual_qual"),
    ],
)
def test_dimensions_that_cannot_be_rated_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        DataConfig(**changes)


def test_images_of_a_file_are_refused():
    with pytest.raises(ValueError, match=r"data\.images is read for moving_shapes only"):
        DataConfig(kind="manifest", path="x.csv", images=True)


def test_stages_of_other_seeds_and_steps_of_one_stage_draw_from_sections_of_their_own():
    sections = [Listed([RatedClip(Path(f"{i}.mp4"), None, {"overall": 0.5}, str(i))]) for i in range(64)]
    drawn = set()
    for seed in range(4):
        mixture = Mixture(sections, [1.0] * len(sections))
        for step in range(32):
            drawn.add(tuple(one.source_id for one in mixture.draw(seed, step, 64)))
    assert len(drawn) == 4 * 32
