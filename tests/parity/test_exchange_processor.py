"""The files that a merged judge carries for stock processors: they show a clip as the judge itself does."""

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from reward_model.judge.engine.batching import clip_grid, patches_of
from reward_model.judge.exchange.merge import merge_role
from reward_model.records import Clip
from tests.parity import merged_processor as program
from tests.tiny_judge import FAMILIES, build_judge, make_clip

PYTHON = Path(__file__).parents[2] / ".venv-parity" / "bin" / "python"

pytestmark = [pytest.mark.parity, pytest.mark.slow]


def test_the_stock_processors_of_merged_judges_make_their_patches_and_tokens(tmp_path):
    if not PYTHON.exists():
        pytest.skip("no .venv-parity with torchvision; `make setup-parity` builds it")
    clip, judges = make_clip(5, 61, 93, 3.0), {family: build_judge(family) for family in FAMILIES}
    frames = (clip.frames * 255).round().to(torch.uint8)
    save_file({"frames": frames, "fps": torch.tensor(3.0)}, tmp_path / "clip.safetensors")
    for family, judge in judges.items():
        judge.configure(min_pixels=2048, max_pixels=6000)
        merge_role(judge, None, tmp_path / family)
    command = [
        str(PYTHON),
        program.__file__,
        str(tmp_path / "clip.safetensors"),
        *(str(tmp_path / f) for f in FAMILIES),
    ]
    subprocess.run(command, check=True, timeout=300, cwd=tmp_path)
    shown = Clip(frames.float() / 255, clip.plan)
    for family, judge in judges.items():
        found = load_file(tmp_path / f"{family}.safetensors")
        patches, grid = patches_of([shown], judge.family, quantise=True, device=torch.device("cpu"))
        assert torch.equal(grid, found["grid"])
        assert_close(patches, found["patches"], atol=1e-5, rtol=0)
        placeholder = judge.family.placeholder(clip.plan, clip_grid(shown, judge.family))
        text = f"<|im_start|>user\n{placeholder}{program.QUESTION}<|im_end|>\n<|im_start|>assistant\n"
        assert judge.tokenizer.encode(text) == found["input_ids"][0].tolist()
