"""Judge training on a user's files: unreadable ones are left out and named, epochs, held-out parts, finished outputs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from reward_model.datasets.readers import DataConfig
from reward_model.datasets.sources import Listed, is_held_out, part_holds
from reward_model.judge.model import VideoJudge
from reward_model.media.video_io import write_video
from reward_model.records import RatedClip, VideoPair
from reward_model.rewards import RewardConfig
from reward_model.training.fit import FitConfig
from reward_model.training.methods.grpo import AnswerGRPOConfig
from reward_model.training.processes import TrainingStopped, TrainingStopRequest
from reward_model.training.recipe import LoraConfig, RecipeConfig, ScratchConfig, StageConfig
from reward_model.training.stages import run_recipe
from reward_model.training.tasks.mixture import Mixture, clip_planner
from reward_model.training.tasks.quarantine import FILE
from reward_model.training.tasks.rollout_prompts import plan_prompts

NUM_FILES = 60
BAD = {
    3: "missing",
    9: "empty",
    14: "truncated",
    20: "narrow",
    27: "folder",
    33: "text",
    41: "rating",
    48: "scale",
    55: "noise",
}


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Write sixty clips, nine of which cannot be used in nine ways."""
    folder = tmp_path_factory.mktemp("media")
    write_video(folder / "good.mp4", torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)), fps=8)
    write_video(folder / "thin.mp4", torch.rand(4, 3, 8, 2048), fps=8)
    whole = (folder / "good.mp4").read_bytes()
    for number in range(NUM_FILES):
        file, fault = folder / f"{number}.mp4", BAD.get(number)
        if fault in (None, "rating", "scale"):
            shutil.copy(folder / "good.mp4", file)
        elif fault == "narrow":
            shutil.copy(folder / "thin.mp4", file)
        elif fault == "folder":
            file.mkdir()
        elif fault != "missing":
            content = {"empty": b"", "truncated": whole[: len(whole) // 3], "text": b"a text\n", "noise": bytes(999)}
            file.write_bytes(content[fault])
    return folder


def manifest(folder, name, *, without_bad=False):
    """Write the list of the clips, with or without the bad ones."""
    lines = ["video,prompt,overall"]
    for number in range(NUM_FILES):
        rating = {"rating": "good", "scale": "7"}.get(BAD.get(number), f"{(number % 10) / 10}")
        if not (without_bad and number in BAD):
            lines.append(f"{number}.mp4,prompt {number // 3},{rating}")
    (folder / name).write_text("\n".join(lines) + "\n")
    return DataConfig(kind="manifest", path=str(folder / name))


def recipe(output, data, *, stages=None, **changes):
    stage = StageConfig(
        name="see",
        data=[data],
        tasks={"rate": 1.0},
        lora=LoraConfig(rank=4, alpha=8),
        num_held_out=changes.pop("num_held_out", 6),
        measure_every=changes.pop("measure_every", 0),
        fit=FitConfig(num_steps=3, learning_rate=changes.pop("learning_rate", 1e-3), batch_size=4),
    )
    settings = {"scratch": ScratchConfig(hidden=32, layers=1), "trained_on": "noise", "num_sanity": 2, **changes}
    return RecipeConfig(name="judge", output=str(output), stages=stages or {"see": stage}, **settings)


def weights(folder):
    return dict(VideoJudge.from_pretrained(folder).named_parameters())


def test_nine_unreadable_files_are_named_and_change_nothing(media, tmp_path, caplog):
    dirty = run_recipe(recipe(tmp_path / "dirty", manifest(media, "dirty.csv")))
    clean = run_recipe(recipe(tmp_path / "clean", manifest(media, "clean.csv", without_bad=True)))
    ours, theirs = weights(dirty), weights(clean)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    metrics = [
        json.loads((tmp_path / n / "stages/00-see/done.json").read_text())["metrics"] for n in ("dirty", "clean")
    ]
    for one in metrics:
        one.pop("seconds")
    assert metrics[0] == metrics[1]
    listed = [json.loads(line) for line in (tmp_path / "dirty" / FILE).read_text().splitlines()]
    assert {(entry["manifest"], entry["line"]) for entry in listed} == {
        (str(media / "dirty.csv"), number + 2) for number in BAD
    }
    assert len(listed) == 9 and all(entry["reason"] and entry["file"] for entry in listed)
    assert {entry["file"].rpartition("/")[2] for entry in listed} == {f"{number}.mp4" for number in BAD}
    assert "9 of 60 examples cannot be used" in caplog.text
    assert not (tmp_path / "clean" / FILE).exists()


def vp8(folder, name, *, hidden):
    """Write a VP8 file, on request with a picture before it that is decoded but not shown."""
    with av.open(folder / name, "w", format="webm") as file:
        stream = file.add_stream("libvpx", rate=8, options={"auto-alt-ref": "0", "lag-in-frames": "0"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        packets = []
        for number in range(6):
            picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 30 * number, np.uint8), format="rgb24")
            packets += stream.encode(picture.reformat(format="yuv420p"))
        packets += stream.encode()
        if hidden:
            first = bytearray(bytes(packets[0]))
            first[0] &= ~0x10  # show_frame
            copy = av.Packet(bytes(first))
            copy.pts = copy.dts = packets[0].pts
            copy.stream, copy.time_base, copy.is_keyframe = stream, packets[0].time_base, True
            packets.insert(0, copy)
        file.mux(packets)


def test_one_picture_is_left_out_and_vp8_is_trained_on(tmp_path, caplog):
    write_video(tmp_path / "one.mp4", torch.rand(1, 3, 32, 32), fps=8)
    for number in range(8):
        write_video(tmp_path / f"{number}.mp4", torch.rand(6, 3, 32, 32), fps=8)
    vp8(tmp_path, "plain.webm", hidden=False)
    vp8(tmp_path, "hidden.webm", hidden=True)
    names = [*(f"{number}.mp4" for number in range(8)), "one.mp4", "plain.webm", "hidden.webm"]
    lists = {"all.csv": names, "clean.csv": [name for name in names if name != "one.mp4"]}
    for name, files in lists.items():
        lines = [f"{file},a dog,{names.index(file) / 10:.1f}" for file in files]
        (tmp_path / name).write_text("\n".join(["video,prompt,overall", *lines]) + "\n")
    made = [
        weights(run_recipe(recipe(tmp_path / name[:-4], DataConfig(kind="manifest", path=str(tmp_path / name)))))
        for name in lists
    ]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[1])
    (listed,) = map(json.loads, (tmp_path / "all" / FILE).read_text().splitlines())
    assert (listed["file"], listed["line"]) == (str(tmp_path / "one.mp4"), 10)
    assert "a single frame" in listed["reason"]
    assert "1 of 11 examples cannot be used" in caplog.text and not (tmp_path / "clean" / FILE).exists()


def test_a_still_image_is_a_clip_of_one_picture_and_an_animated_one_is_sampled(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pictures = [image.new("RGB", (32, 32), (20 * n, 0, 0)) for n in range(9)]
    for suffix in ("png", "jpg"):
        pictures[0].save(tmp_path / f"still.{suffix}")
    for suffix in ("png", "webp"):
        pictures[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=pictures[1:], duration=100)
    plan = clip_planner(SimpleNamespace(config=SimpleNamespace(frame_policy={"num_frames": 4}, motion=None)))
    for suffix in ("png", "jpg"):
        assert len(plan(tmp_path / f"still.{suffix}").frames) == 1
    for suffix in ("png", "webp"):
        assert len(plan(tmp_path / f"moving.{suffix}").frames) == 4


def test_more_unreadable_files_than_the_share_are_refused(media, tmp_path):
    with pytest.raises(ValueError, match=r"9 of 60 examples cannot be used.* max_unreadable=0.1 allows 10%"):
        run_recipe(recipe(tmp_path, manifest(media, "dirty.csv"), max_unreadable=0.1))
    assert len((tmp_path / FILE).read_text().splitlines()) == 9


def grpo(data, **changes):
    return StageConfig(
        name="choose",
        method="grpo",
        role="comparator",
        data=[data],
        tasks={"compare": 0.5},
        lora=LoraConfig(rank=4, alpha=8),
        grpo=AnswerGRPOConfig(group_size=2),
        rewards=[RewardConfig(kind="compare", name="choice")],
        num_held_out=0,
        fit=FitConfig(num_steps=2, learning_rate=1e-3, batch_size=4),
        **changes,
    )


def test_pairs_of_unreadable_files_or_without_a_label_are_left_out(media, tmp_path):
    lines = ["path_A,path_B,prompt,Overall"]
    for number in range(0, NUM_FILES, 2):
        lines.append(f"{number}.mp4,{number + 1}.mp4,a dog,{ {6: 'both', 10: ''}.get(number, 'A') }")
    (media / "pairs.csv").write_text("\n".join(lines))
    data = DataConfig(kind="pairs", path=str(media / "pairs.csv"))
    bad_files = {number // 2 for number, fault in BAD.items() if fault not in ("rating", "scale")}
    expected = {place + 2 for place in bad_files | {3, 5}}
    run_recipe(recipe(tmp_path, data, stages={"choose": grpo(data)}, max_unreadable=0.5, num_sanity=0))
    listed = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert {entry["line"] for entry in listed} == expected and len(listed) == len(expected)


def clips(num, prompts=4):
    return [RatedClip(torch.zeros(1), f"p{n % prompts}", {"overall": n / num}, str(n)) for n in range(num)]


def pairs(num):
    return [VideoPair(torch.zeros(1), torch.zeros(1), "p", {"overall": 1.0}, str(n)) for n in range(num)]


@pytest.mark.parametrize("num", [1, 3, 4, 7])
def test_every_clip_is_seen_once_an_epoch_whatever_the_batch(num):
    source = Mixture([Listed(clips(21))], [1.0])
    drawn = [one.source_id for step in range(21) for one in source.draw(5, step, num)]
    for epoch in range(num):
        assert Counter(drawn[21 * epoch : 21 * (epoch + 1)]) == Counter(map(str, range(21)))
    if num > 1:
        assert drawn[:21] != drawn[21:42]


def test_pairs_and_clips_of_one_list_are_each_seen_once_an_epoch():
    source = Listed([*clips(9), *pairs(6)])  # 9 + 2 x 6 = 21 clips an epoch
    drawn = [(type(one), one.source_id) for step in range(21) for one in source.draw(1, step * 5, 5)]
    assert set(Counter(drawn).values()) == {5} and len(set(drawn)) == 15


def test_a_step_draws_the_same_alone_and_in_turn_and_over_any_number_of_processes():
    examples, weights = [clips(21), pairs(5)], [2.0, 1.0]
    source = Mixture([Listed(one) for one in examples], weights)
    in_turn = [source.draw(3, step, 12) for step in range(9)]
    resumed = Mixture([Listed(one) for one in examples], weights)
    assert resumed.draw(3, 8, 12) == in_turn[8] and source.draw(3, 2, 12) == in_turn[2]
    for world in (2, 3, 4):
        shares = [Mixture([Listed(one) for one in examples], weights) for _ in range(world)]
        drawn = [one for rank, mine in enumerate(shares) for one in mine.draw(3, 8, 12, rank=rank, world=world)]
        assert Counter(one.source_id for one in drawn) == Counter(one.source_id for one in in_turn[8])
    seen = Counter(one.source_id for step in in_turn for one in step if isinstance(one, RatedClip))
    assert max(seen.values()) - min(seen.values()) <= 1


def test_neighbouring_clips_share_their_prompt_and_change_from_epoch_to_epoch():
    source = Listed(clips(24))
    epochs = [source.draw(0, 24 * epoch, 24) for epoch in range(2)]
    twos = [{frozenset((a.source_id, b.source_id)) for a, b in zip(e[::2], e[1::2], strict=True)} for e in epochs]
    assert all(a.prompt == b.prompt for e in epochs for a, b in zip(e[::2], e[1::2], strict=True))
    assert twos[0] != twos[1]


@pytest.mark.parametrize("batch", [2, 6, 8])
def test_a_file_whose_winner_stands_first_asks_for_both_answers_equally(batch):
    source = Mixture([Listed(pairs(40))], [1.0])
    asked = [
        pair.preference["overall"]
        for step in range(400)
        for _, pair in plan_prompts(source.draw(0, step, batch), {"compare": 0.5}, turn=step)
    ]
    assert len(asked) == 200 * batch and sum(asked) == len(asked) / 2


def test_selection_and_report_are_halves_of_the_held_out_tenth_without_a_common_source():
    names = [f"clip {number}" for number in range(4000)]
    parts = {part: {n for n in names if part_holds(part, n)} for part in ("train", "held_out", "selection", "report")}
    assert parts["selection"] | parts["report"] == parts["held_out"] == {n for n in names if is_held_out(n)}
    assert not parts["selection"] & parts["report"] and not parts["train"] & parts["held_out"]
    assert abs(len(parts["selection"]) - len(parts["report"])) < 80


def test_held_out_clips_are_shown_once_each():
    source = Mixture([Listed(clips(38))], [1.0])
    assert len(source(0, 200)) == 38 == len({one.source_id for one in source(0, 200)})


def test_weights_are_chosen_on_other_clips_than_they_are_reported_on(media, tmp_path, monkeypatch):
    from reward_model.training import measure, stages

    shown = {}
    plain = measure._measure_levels

    def note(judge, stage, clips, *rest, **more):
        """Note the clips of a measurement."""
        shown.setdefault(phase[0], set()).update(clip.source_id for clip in clips)
        return plain(judge, stage, clips, *rest, **more)

    phase = ["choose"]
    monkeypatch.setattr(measure, "_measure_levels", note)
    ran = stages.run_stage
    monkeypatch.setattr(stages, "run_stage", lambda *a, **k: (ran(*a, **k), phase.__setitem__(0, "report"))[0])
    lines = ["video,overall", *(f"good.mp4,{n / 200},s{n}" for n in range(200))]
    (media / "many.csv").write_text("\n".join([lines[0] + ",source_id", *lines[1:]]))
    data = DataConfig(kind="manifest", path=str(media / "many.csv"))
    run_recipe(recipe(tmp_path, data, measure_every=2, num_held_out=200, num_sanity=0))
    assert shown["choose"] and shown["report"] and not shown["choose"] & shown["report"]
    assert shown["choose"] | shown["report"] == {f"s{n}" for n in range(200) if is_held_out(f"s{n}")}


def test_eight_clips_without_held_out_ones_make_a_judge(media, tmp_path):
    names = [name for name in map(str, range(20)) if not is_held_out(name)][:8]
    lines = ["video,overall,source_id", *(f"good.mp4,0.{n},{name}" for n, name in enumerate(names))]
    (media / "eight.csv").write_text("\n".join(lines))
    data = DataConfig(kind="manifest", path=str(media / "eight.csv"))
    folder = run_recipe(recipe(tmp_path, data, num_held_out=0))
    assert (folder / "judge_config.json").exists() and (folder / "README.md").exists()
    with pytest.raises(ValueError, match="nothing to hold out.*num_held_out: 0"):
        run_recipe(recipe(tmp_path / "other", data, num_held_out=4))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rate": 2e-3}, r"stages\.see\.fit\.learning_rate=0\.001, the recipe says 0\.002"),
        ({"seed": 3}, r"seed=0, the recipe says 3"),
        ({"scratch": ScratchConfig(hidden=64, layers=1)}, r"scratch\.hidden=32, the recipe says 64"),
    ],
)
def test_a_changed_recipe_of_a_finished_output_is_refused(media, tmp_path, changes, said):
    data = manifest(media, "clean.csv", without_bad=True)
    before = run_recipe(recipe(tmp_path, data))
    written = (before / "provenance.json").stat().st_mtime_ns
    run_recipe(recipe(tmp_path, data))
    assert (before / "provenance.json").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=said):
        run_recipe(recipe(tmp_path, data, **changes))


def test_a_changed_file_and_a_missing_stage_are_refused(media, tmp_path):
    data = manifest(media, "own.csv", without_bad=True)
    run_recipe(recipe(tmp_path, data))
    stage = dataclasses.replace(recipe(tmp_path, data).stages["see"], name="")
    with pytest.raises(ValueError, match="00-see holds a finished stage that is not in the recipe"):
        run_recipe(recipe(tmp_path, data, stages={"look": stage}))
    (media / "own.csv").write_text((media / "own.csv").read_text().replace("0.3", "0.4"))
    with pytest.raises(ValueError, match=r"another content of .*own\.csv"):
        run_recipe(recipe(tmp_path, data))


def test_a_stopped_training_goes_on_to_the_same_weights(media, tmp_path):
    data, asked = manifest(media, "clean.csv", without_bad=True), TrainingStopRequest()

    def show(unit):
        """Ask to stop at the second step."""
        return lambda done, total: setattr(asked, "is_signalled", unit == "steps" and done == 2)

    with pytest.raises(TrainingStopped):
        run_recipe(recipe(tmp_path / "stopped", data), stop=asked, show=show)
    assert not (tmp_path / "stopped" / "stages").exists()
    ours, theirs = (weights(run_recipe(recipe(tmp_path / name, data))) for name in ("stopped", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
