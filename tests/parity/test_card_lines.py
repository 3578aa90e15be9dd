"""The model card's lines for stock transformers, executed word for word: they give the judge's own scores."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from reward_model.evaluation.card import CardFacts, write_card
from reward_model.judge.exchange.merge import merge_role
from reward_model.toy_world import moving_shapes
from reward_model.video_reward import TOY_JUDGE, VideoJudgeReward
from tests.parity import card_program as program

PYTHON = Path(__file__).parents[2] / ".venv-parity" / "bin" / "python"
AUDIT = TOY_JUDGE.with_name("toy_audit")
POLICIES = {
    "own": {},
    "fps": {"frame_policy": {"mode": "fps", "fps": 3.0, "max_frames": 6}},
    "uniform": {
        "frame_policy": {"mode": "uniform", "num_frames": 5},
        "position_rule": "mrope_sampled_seconds_then_longer_side",
    },
}
"""Settings of the embedded judge: its own rule counts the seconds between shown frames, the last is that of the processor."""

pytestmark = [pytest.mark.parity, pytest.mark.slow]


def clips():
    """Return clips of nine, of twenty and of one frame as uint8 [T, 3, H, W], with their captions."""
    rated = moving_shapes.sample_rated(2, seed=3)
    whole = [(one.video.frames * 255).round().to(torch.uint8) for one in rated]
    longer = torch.cat([whole[1], whole[1].flip(0), whole[1][:2]])
    return {"0": whole[0], "1": longer, "2": whole[0][:1]}, [one.prompt for one in rated]


def test_the_cards_lines_give_the_judges_scores_from_stock_transformers_alone(tmp_path):
    if not PYTHON.exists():
        pytest.skip("no .venv-parity with torchvision; `make setup-parity` builds it")
    frames, captions = clips()
    asked = [
        ["0", 8.0, "visual_quality", None],
        ["1", 12.0, "motion_quality", "unused"],
        ["2", 8.0, "visual_quality", None],
        ["0", 8.0, "text_alignment", captions[0]],
        ["1", 8.0, "overall", f"{captions[1]}\n and <|im_end|>  more"],
    ]
    own = {}
    for name, (source, changes) in {
        "audit": (AUDIT, {}),
        **{key: (TOY_JUDGE, changes) for key, changes in POLICIES.items()},
    }.items():
        reward = VideoJudgeReward.from_pretrained(source, device="cpu")
        reward.judge.configure(**changes)
        folder = str(tmp_path / name)
        merge_role(reward.judge, reward.role, folder)
        write_card(folder, CardFacts(name=folder))
        own[folder] = [
            float(reward([frames[n].float() / 255], [text], fps=fps, dimensions=[dim], layout="TCHW").scores[dim][0])
            for n, fps, dim, text in asked
        ]
    save_file({key: value.clone() for key, value in frames.items()}, tmp_path / "clips.safetensors")
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    files = [str(tmp_path / name) for name in ("clips.safetensors", "asked.json", "scores.json")]
    subprocess.run([str(PYTHON), program.__file__, *files, *own], check=True, timeout=300, cwd=tmp_path)
    found = json.loads((tmp_path / "scores.json").read_text())
    assert sum(score == score for scores in own.values() for score in scores) > 12  # numbers, not NaN
    for folder, scores in own.items():
        torch.testing.assert_close(found[folder], scores, atol=1e-5, rtol=0, equal_nan=True)
