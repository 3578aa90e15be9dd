"""The papers' recipes and ours run every stage for two steps on tiny random judges, on small files in the published forms."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reward_model import load_config
from reward_model.judge.model import VideoJudge
from reward_model.media.video_io import write_video
from reward_model.training.recipe import RecipeConfig
from scripts.train_judge import main
from tests.tiny_judge import build_judge

ROOT = Path(__file__).resolve().parents[4]
NUM = 6

pytestmark = pytest.mark.filterwarnings("ignore:.*never on level words")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Write a tiny stock-like base and the files that the recipes name, and return the folder that they are named from."""
    folder = tmp_path_factory.mktemp("world")
    build_judge(hidden=32, layers=1, vision_hidden=16, vision_layers=1).save_pretrained(folder / "tiny")
    data = folder / "data"
    _write_koniq(data / "koniq")
    _write_videos(data / "lsvq" / "videos", [f"batch/{n}.mp4" for n in range(NUM)])
    _write_videos(data / "lgvq", [f"{n}.mp4" for n in range(NUM)])
    _write_videos(data / "visionreward" / "videos", [f"{n}.mp4" for n in range(NUM)])
    _write_table(
        data / "lsvq" / "labels_train_test.csv",
        [{"name": f"batch/{n}", "mos": 20 + 10 * n, "is_test": n > 4} for n in range(NUM)],
    )
    _write_table(
        data / "lgvq" / "train.csv",
        [
            {"video": f"{n}.mp4", "prompt": f"a dog {n % 2}", "spatial": 50 + n, "temporal": 40, "alignment": 60 + n}
            for n in range(NUM)
        ],
    )
    _write_jsonl(data / "lsvq" / "LSVQ_labels_train.jsonl")
    _write_visionreward(data / "visionreward")
    return folder


def _write_koniq(folder):
    from PIL import Image

    (folder / "1024x768").mkdir(parents=True)
    for n in range(NUM):
        Image.new("RGB", (64, 48), (40 * n, 90, 200 - 20 * n)).save(folder / "1024x768" / f"{n}.jpg")
    counts = dict.fromkeys(("c1", "c2", "c3", "c4", "c5", "c_total"), 10)
    _write_table(
        folder / "koniq10k_distributions_sets.csv",
        [
            {"image_name": f"{n}.jpg", **counts, "MOS": 30 + 10 * n, "SD": 1.0, "set": "training" if n < 5 else "test"}
            for n in range(NUM)
        ],
    )


def _write_videos(folder, names):
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        frames = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        write_video(folder / name, frames, fps=8)


def _write_table(path, records):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def _write_jsonl(path):
    lines = [
        {
            "id": n,
            "dataset_name": "LSVQ",
            "image": [f"batch/{n}.mp4"],
            "conversations": [
                {"from": "human", "value": "<image>How good is it?"},
                {"from": "gpt", "value": f"{1.5 + 0.5 * n:.6f}"},
            ],
        }
        for n in range(NUM)
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")


def _write_visionreward(folder):
    import pyarrow
    from pyarrow import parquet

    answers = ["video1", "tie", "video2"]
    pairs = [
        {
            "internal_id": str(n),
            "prompt": f"a cat {n}",
            "standard_answer": answers[n % 3],
            "video1_path": f"{n}.mp4",
            "video2_path": f"{(n + 1) % NUM}.mp4",
        }
        for n in range(NUM)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(pairs), folder / "regression.parquet")
    questions = [
        {
            "problem_id": n,
            "problem": "Does the dog look natural?",
            "data_type": "video",
            "problem_type": "multiple choice",
            "options": [],
            "solution": f"<answer>{'yes' if n % 2 else 'no'}</answer>",
            "path": f"{n}.mp4",
        }
        for n in range(NUM)
    ]
    (folder / "questions.json").write_text(json.dumps(questions))


def two_steps(name, world, output):
    """Return the overrides that make a recipe's stages two short steps of a tiny base."""
    config = load_config(RecipeConfig, ROOT / "configs" / "judge" / f"{name}.yaml")
    items = [f"base={world / 'tiny'}", f"output={output}", "num_sanity=0", "min_pixels=1024", "max_pixels=1024"]
    if config.motion is not None:
        items += ["motion.encoder=temporal_differences", "motion.path=''"]
    for stage in config.stages.values():
        place = f"stages.{stage.name}"
        items += [f"{place}.fit.num_epochs=null", f"{place}.fit.num_steps=2", f"{place}.fit.batch_size=4"]
        # answers of random weights all earn nothing: the decay alone moves what is trained
        items += [f"{place}.fit.learning_rate=0.1", f"{place}.fit.weight_decay=0.5"]
        items += [f"{place}.grpo.group_size=2", f"{place}.grpo.num_perturbed=2", f"{place}.grpo.max_answer_tokens=6"]
        items += [f"{place}.num_held_out=0", f"{place}.measure_every=0"]
        for bound in ("train_min_pixels", "train_max_pixels"):
            items += [f"{place}.{bound}=2048"] if getattr(stage, bound) is not None else []
    return items


@pytest.fixture(params=["vq_insight", "vqathinker"])
def launched(request, world, tmp_path):
    """Run a paper's recipe as a user does, and return its name and output."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
        "--cpu",
    ]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", str(ROOT / "scripts" / "train_judge.py")]
    command += [str(ROOT / "configs" / "judge" / f"{request.param}.yaml"), *two_steps(request.param, world, tmp_path)]
    ran = subprocess.run(
        command, cwd=world, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return request.param, tmp_path


def test_every_stage_of_a_papers_recipe_trains_all_weights_for_two_steps(launched, world):
    name, output = launched
    config = load_config(RecipeConfig, ROOT / "configs" / "judge" / f"{name}.yaml")
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [(stage, 2) for stage in config.stages]
    assert all({"reward", "parse_rate", "kl", "answer_tokens"} <= set(line) for line in lines)
    before = dict(VideoJudge.from_pretrained(world / "tiny").named_parameters())
    styles = []
    for number, stage in enumerate(config.stages.values()):
        judge = VideoJudge.from_pretrained(output / "stages" / f"{number:02d}-{stage.name}")
        assert not judge.roles and judge.config.frame_policy == config.frame_policy.to_dict()
        assert (judge.config.min_pixels, judge.config.max_pixels) == (1024, 1024)
        after = dict(judge.named_parameters())
        assert all(after[key].shape == value.shape for key, value in before.items())
        styles.append(judge.config.prompt_style)
        lineage = [] if stage.start is None else [stage.start]
        assert list(judge.config.lineage) == [*lineage, stage.name]
    assert styles == [stage.style for stage in config.stages.values()]
    trained = VideoJudge.from_pretrained(output / "judge")
    moved = [key for key, value in trained.named_parameters() if key in before and not torch.equal(value, before[key])]
    assert any("visual" in key for key in moved) and any("language_model" in key for key in moved)
    if name == "vqathinker":
        assert trained.config.motion["tokens"] == "one_of_planned"
        shown = trained.config.trained_range["frames"]
        assert shown == [6, 6]  # in use it sees 12


@pytest.mark.parametrize("name", ["vq_insight_ours", "vqathinker_ours"])
def test_every_stage_of_our_recipes_trains_its_role_for_two_steps(name, world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    assert main([str(ROOT / "configs" / "judge" / f"{name}.yaml"), *two_steps(name, world, tmp_path)]) == 0
    config = load_config(RecipeConfig, ROOT / "configs" / "judge" / f"{name}.yaml")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [(stage, 2) for stage in config.stages]
    judge = VideoJudge.from_pretrained(tmp_path / "judge")
    assert set(judge.roles) == set(config.stages) and judge.config.prompt_style == "own"
