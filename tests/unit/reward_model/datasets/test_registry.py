"""The table of readers: one entry adds a kind of data, and each kind refuses settings that it does not read."""

from __future__ import annotations

import pytest
import torch

from reward_model.config import load_config
from reward_model.datasets import readers
from reward_model.datasets.readers import READERS, DataConfig, open_source
from reward_model.records import RatedClip, Video
from reward_model.training.recipe import RecipeConfig
from reward_model.training.stages import run_recipe

RECIPE = """
name: judge
output: {output}
trained_on: noise
num_sanity: 0
scratch: {{hidden: 32, layers: 1}}
stages:
  see:
    data: [{{kind: noise, path: {path}, split: loud}}]
    tasks: {{rate: 1.0}}
    fit: {{num_steps: 2, learning_rate: 1.0e-3, batch_size: 4}}
    num_held_out: 4
"""


def read_noise(path, split):
    """Return rated noise, one clip per word of the file."""
    names = [name for name in open(path).read().split() if name.startswith(split)]
    frames = [torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(len(names))]
    clips = zip(names, frames, strict=True)
    return [RatedClip(Video(one, 8.0), "noise", {"overall": len(name) / 20}, name) for name, one in clips]


@pytest.fixture
def noise(monkeypatch, tmp_path):
    """Add a reader by one entry of the table, and write a file for it."""
    monkeypatch.setitem(READERS, "noise", readers.listed(lambda data: read_noise(data.path, data.split), "split"))
    path = tmp_path / "noise.txt"
    path.write_text(
        " ".join(f"{kind}{'o' * (number % 9)}{number}" for number in range(60) for kind in ("loud", "soft"))
    )
    return path


def test_a_reader_of_ones_own_trains_a_stage_through_its_entry(noise, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(output=tmp_path / "out", path=noise))
    config = load_config(RecipeConfig, recipe)
    assert {clip.source_id[:4] for clip in open_source(config.stages["see"].data[0])(0, 20)} == {"loud"}
    folder = run_recipe(config)
    assert '"srcc_overall"' in (folder / "provenance.json").read_text()


def test_the_messages_follow_the_table(noise):
    with pytest.raises(ValueError, match=r"data\.path must be given for noise"):
        DataConfig(kind="noise")
    with pytest.raises(ValueError, match=r"data\.columns is read for manifest, pairs only, got it with noise"):
        DataConfig(kind="noise", path=str(noise), columns={"video": "v"})
    with pytest.raises(ValueError, match=r"data\.split is read for koniq, lsvq, noise only"):
        DataConfig(kind="manifest", path=str(noise), split="loud")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "manifst", "path": "x.csv"}, "data.kind is 'manifst'; did you mean 'manifest'"),
        ({"kind": "zzz", "path": "x.csv"}, "data.kind is 'zzz'; expected one of koniq, lsvq, manifest"),
        (
            {"kind": "moving_shapes", "path": "x.csv"},
            "data.path is read for stored, .* only, got it with moving_shapes",
        ),
        ({"kind": "stored", "path": "x", "clean_share": 0.5}, "data.clean_share is read for moving_shapes only"),
    ],
)
def test_a_kind_that_no_reader_has_and_settings_that_it_does_not_read_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**changes)
