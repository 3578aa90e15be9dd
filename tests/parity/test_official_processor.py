"""Preprocessing against the official processors of transformers: stored outputs everywhere, live ones in .venv-parity."""

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from reward_model.judge.engine.batching import clip_grid, patches_of
from reward_model.judge.families import family_of
from reward_model.judge.families.tiny import build_tiny, build_tokenizer
from reward_model.records import Clip, FramePlan
from tests.parity import official_processor as official

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "official_processor.safetensors"
PYTHON = ROOT / ".venv-parity" / "bin" / "python"

pytestmark = pytest.mark.parity


def project_inputs(case, frames):
    """Return our patches, grid and placeholder text for a case."""
    model, _ = build_tiny(
        case.family, hidden=32, layers=1, vision_hidden=16, vision_layers=1, patch_size=case.patch_size
    )
    family = family_of(model.config, case.min_pixels, case.max_pixels)
    times = tuple(i / case.fps for i in range(case.num_frames))
    plan = FramePlan(tuple(range(case.num_frames)), times, ("slow",) * case.num_frames, case.fps)
    clip = Clip(frames.float() / 255, plan)
    patches, grid = patches_of([clip], family, quantise=True, device=torch.device("cpu"))
    return patches, grid, family.placeholder(plan, clip_grid(clip, family))


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    if not PYTHON.exists():
        pytest.skip("no .venv-parity with torchvision; `make setup-parity` builds it")
    folder = tmp_path_factory.mktemp("parity")
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    out = folder / "official.safetensors"
    command = [str(PYTHON), official.__file__, str(folder / "tokenizer"), str(out)]
    subprocess.run(command, check=True, timeout=300, cwd=folder)
    return tokenizer, load_file(out)


@pytest.mark.parametrize("name", official.GOLDEN)
def test_patches_equal_the_stored_ones_of_the_official_processor(name):
    stored = load_file(GOLDEN)
    case = next(case for case in official.CASES if case.name == name)
    patches, grid, _ = project_inputs(case, stored[f"{name}.frames"])
    assert torch.equal(grid, stored[f"{name}.grid"])
    assert_close(patches, stored[f"{name}.patches"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", official.CASES, ids=lambda case: case.name)
def test_patches_equal_those_of_the_official_processor(case, live):
    found = live[1]
    patches, grid, _ = project_inputs(case, found[f"{case.name}.frames"])
    assert torch.equal(grid, found[f"{case.name}.grid"])
    assert_close(patches, found[f"{case.name}.patches"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", official.CASES, ids=lambda case: case.name)
def test_placeholders_become_the_tokens_of_the_official_processor(case, live):
    tokenizer, found = live
    before, after = official.TEXT
    _, _, placeholder = project_inputs(case, found[f"{case.name}.frames"])
    assert tokenizer.encode(before + placeholder + after) == found[f"{case.name}.input_ids"][0].tolist()
