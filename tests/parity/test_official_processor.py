"""Preprocessing against the official processors of transformers: stored outputs everywhere, live ones in .venv-parity."""

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from reward_model.judge.engine.batching import clip_grid, patches_of
from reward_model.judge.families import family_of
from reward_model.judge.families.base import prefix_positions
from reward_model.judge.families.qwen2_5_vl import SPACING_RULE
from reward_model.judge.families.qwen3_vl import UNWRAPPED_RULE
from reward_model.judge.families.tiny import build_tiny, build_tokenizer
from reward_model.media.frame_sampling import FramePolicy, plan_frames
from reward_model.records import Clip
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
    policy = FramePolicy(mode="uniform", num_frames=case.num_frames)
    plan = plan_frames(case.source_frames or case.num_frames, case.fps, policy)
    assert list(plan.indices) == case.indices
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


@pytest.mark.parametrize("case", (*official.CASES, *official.SAMPLED), ids=lambda case: case.name)
def test_placeholders_become_the_tokens_of_the_official_processor(case, live):
    tokenizer, found = live
    before, after = official.TEXT
    _, _, placeholder = project_inputs(case, found[f"{case.name}.frames"])
    assert tokenizer.encode(before + placeholder + after) == found[f"{case.name}.input_ids"][0].tolist()


def tiny(case, tokenizer, ticks):
    """Return a small model of the case's family whose time axis has that many ticks a second."""
    size = {"hidden": 32, "layers": 1, "vision_hidden": 16, "vision_layers": 1, "patch_size": case.patch_size}
    model, _ = build_tiny(case.family, **size, tokenizer=tokenizer)
    model.config.vision_config.tokens_per_second = ticks
    return model


def both_positions(case, model, ids, seconds, rule=None):
    """Return the prompt's positions as the library finds them, and ours."""
    family = family_of(model.config, case.min_pixels, case.max_pixels, rule)
    plan = plan_frames(case.source_frames, case.fps, FramePolicy(mode="uniform", num_frames=case.num_frames))
    grid = clip_grid(Clip(torch.zeros(case.num_frames, 3, case.height, case.width), plan), family)
    is_video = ids == family.facts.video_token_id
    expected, _ = model.model.get_rope_index(
        ids[None],
        mm_token_type_ids=is_video[None].int() * 2,
        video_grid_thw=torch.tensor([grid]),
        second_per_grid_ts=seconds,
    )
    return expected[:, 0], prefix_positions(is_video, family.video_spans(plan, grid))[0]


@pytest.mark.parametrize("ticks", [2, 4])
@pytest.mark.parametrize("case", official.SAMPLED, ids=lambda case: case.name)
def test_positions_of_sampled_clips_are_those_of_the_official_processor_and_model(case, ticks, live):
    tokenizer, found = live
    seconds = found.get(f"{case.name}.seconds")
    assert (seconds is None) == (case.family == "qwen3_vl")
    model = tiny(case, tokenizer, ticks)
    expected, positions = both_positions(case, model, found[f"{case.name}.input_ids"][0], seconds)
    assert torch.equal(positions, expected)


@pytest.mark.parametrize("case", official.SAMPLED, ids=lambda case: case.name)
def test_positions_of_sampled_clips_are_those_of_the_library_with_its_own_metadata(case):
    from transformers.video_utils import VideoMetadata

    tokenizer = build_tokenizer()
    model = tiny(case, tokenizer, 2)
    family = family_of(model.config, case.min_pixels, case.max_pixels)
    plan = plan_frames(case.source_frames, case.fps, FramePolicy(mode="uniform", num_frames=case.num_frames))
    grid = clip_grid(Clip(torch.zeros(case.num_frames, 3, case.height, case.width), plan), family)
    ids = torch.tensor(tokenizer.encode(f"A clip: {family.placeholder(plan, grid)} good?"))
    metadata = VideoMetadata(case.source_frames, fps=case.fps, frames_indices=case.indices)
    seconds = torch.tensor([family.facts.temporal_patch_size / metadata.sampled_fps])
    expected, positions = both_positions(case, model, ids, seconds if case.family == "qwen2_5_vl" else None)
    assert torch.equal(positions, expected)


def time_steps(rule):
    """Return the time axis of 81 frames at 16 Hz of which 16 are shown, at 2 ticks a second."""
    case = official.SAMPLED[0]
    family = family_of(tiny(case, build_tokenizer(), 2).config, case.min_pixels, case.max_pixels, rule)
    plan = plan_frames(81, 16.0, FramePolicy(mode="uniform", num_frames=16))
    ((_, lines, columns), step), *_ = family.video_spans(plan, (8, 2, 2))
    is_video = torch.ones(8 * lines * columns, dtype=torch.bool)
    return prefix_positions(is_video, [((8, lines, columns), step)])[0][0, :: lines * columns].tolist()


def test_judges_keep_the_positions_that_they_were_trained_with():
    assert time_steps(None) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert time_steps(SPACING_RULE) == [0, 1, 2, 4, 5, 6, 8, 9]


def test_the_unwrapped_stamps_are_those_of_transformers_4_57():
    case = next(case for case in official.SAMPLED if case.family == "qwen3_vl" and case.num_frames == 4)
    config = tiny(case, build_tokenizer(), 2).config
    now, before = (family_of(config, case.min_pixels, case.max_pixels, rule) for rule in (None, UNWRAPPED_RULE))
    plan = plan_frames(case.source_frames, case.fps, FramePolicy(mode="uniform", num_frames=4))
    # frames 0, 11, 21, 32 at 8 Hz: means of 0 and 1.375 s, and of 2.625 and 4 s
    group = "<|vision_start|><|video_pad|><|vision_end|>"
    assert before.placeholder(plan, (2, 2, 2)) == f"<0.7 seconds>{group}<3.3 seconds>{group}"
    assert now.placeholder(plan, (2, 2, 2)) == f"<|vision_start|><0.7 seconds>{group}<3.3 seconds>{group}<|vision_end|>"
