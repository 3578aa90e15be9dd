"""Released judges: transformers 4.51's own logits from a checkpoint as it wrote them, and plain forwards of whole prompts."""

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from reward_model.judge.attention.tree import AttentionSpans
from reward_model.judge.engine.batching import clip_grid, patches_of
from reward_model.judge.families.base import prefix_positions
from reward_model.judge.families.tiny import build_tokenizer
from reward_model.judge.model import VideoJudge
from reward_model.records import DIMENSIONS, FramePlan
from tests.parity import released_layout as layout
from tests.tiny_judge import build_judge, make_clip

GOLDEN = Path(__file__).parents[1] / "golden" / "released_layout.safetensors"

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:.*never on level words")]


def released(folder, name):
    """Write a tiny random Qwen2.5-VL as a released sub-folder and load it."""
    judge = build_judge()
    judge.model.save_pretrained(folder / name)
    judge.tokenizer.save_pretrained(folder / name)
    found = VideoJudge.from_pretrained(folder, subfolder=name, device="cpu")
    found.configure(min_pixels=1024, max_pixels=40_000)  # the released ones hold for patches of 14 pixels
    return found


def whole_forward(judge, text, clips):
    """Return the last logits of one plain forward, with positions by hand as transformers 4.51 has them."""
    ids = torch.tensor([judge.tokenizer.encode(text)])
    parts = [patches_of([clip], judge.family, quantise=True, device=torch.device("cpu")) for clip in clips]
    pad, rows, following = judge.family.facts.video_token_id, [], 0
    grids = [grid[0].tolist() for _, grid in parts]
    place, ticks = 0, judge.model.config.vision_config.tokens_per_second
    while place < ids.shape[1]:
        if ids[0, place] != pad:
            rows.append([following] * 3)
            following, place = following + 1, place + 1
            continue
        groups, height, width = grids.pop(0)
        block = [
            [following + ticks * t, following + y, following + x]  # a frame group a second, whatever the clip's rate
            for t in range(groups)
            for y in range(height // 2)
            for x in range(width // 2)
        ]
        rows += block
        following, place = max(max(row) for row in block) + 1, place + len(block)
    inputs = {
        "pixel_values_videos": torch.cat([patches for patches, _ in parts]),
        "video_grid_thw": torch.cat([grid for _, grid in parts]),
    }
    with torch.no_grad():
        found = judge.model(ids, position_ids=torch.tensor(rows).T[:, None], use_cache=False, **inputs)
    return found.logits[0, -1]


def placeholder(judge, clip):
    return judge.family.placeholder(clip.plan, clip_grid(clip, judge.family))


def test_a_checkpoint_in_the_released_layout_has_the_logits_of_the_transformers_that_wrote_it(tmp_path):
    golden = load_file(GOLDEN)
    folder = tmp_path / "vqinsight-aigcvideo"
    layout.write(folder)
    build_tokenizer().save_pretrained(folder)
    judge = VideoJudge.from_pretrained(folder, device="cpu")
    ids = golden["input_ids"]
    plan = FramePlan(tuple(range(8)), tuple(i / 24 for i in range(8)), ("slow",) * 8, 24.0)
    positions, following = prefix_positions(ids == layout.VIDEO_PAD, judge.family.video_spans(plan, layout.GRID))
    assert torch.equal(positions, golden["positions"])
    assert following == int(golden["positions"].max()) + 1
    grid, seen = torch.tensor([layout.GRID]), torch.ones(1, 1, len(ids), len(ids)).tril()
    with torch.no_grad():
        features = judge.family.encode(judge.model, layout.patches(), grid)
        embeddings = judge.model.get_input_embeddings()(ids)
        embeddings = embeddings.masked_scatter((ids == layout.VIDEO_PAD)[:, None], features.tokens)[None]
        hidden = judge.family.text(judge.model, embeddings, positions[:, None], AttentionSpans((1 - seen) * -1e9))
        logits = judge.model.lm_head(hidden[0, -2:])
    # written on another machine: roundings of 6e-8 of sums of 32 products, through all layers
    assert_close(logits, golden["logits"], atol=5e-5, rtol=0)


def test_the_current_rule_would_give_other_positions():
    golden = load_file(GOLDEN)
    runs = [((4, 2, 3), 2.0)]
    positions, _ = prefix_positions(golden["input_ids"] == layout.VIDEO_PAD, runs)
    assert not torch.equal(positions, golden["positions"])


@pytest.mark.parametrize("fps", [8.0, 2.0])
@pytest.mark.parametrize("name", ["vqinsight-naturalvideo", "vqinsight-aigcvideo", "score_degradation"])
def test_a_released_scorer_is_asked_as_one_plain_forward_of_its_whole_prompt(tmp_path, name, fps):
    judge, clip = released(tmp_path, name), make_clip(10, 32, 32, fps)
    request = judge.style.reason_request(clip, "a red ball", judge.config.dimensions)
    wording = judge.style.wording
    given = wording.with_prompt.replace("{prompt}", "a red ball")
    text = (
        f"<|im_start|>system\n{wording.system}<|im_end|>\n<|im_start|>user\n{placeholder(judge, clip)}"
        f"{given}{wording.question}<|im_end|>\n<|im_start|>assistant\n"
    )
    with torch.no_grad():
        logits = judge.next_token_logits([request])[0][0]
    assert_close(logits, whole_forward(judge, text, [clip]), atol=1e-5, rtol=0)


def test_a_question_before_the_clip_is_asked_as_one_plain_forward_of_its_whole_prompt(tmp_path):
    judge, clip = released(tmp_path, "score_degradation"), make_clip(1, 32, 48)
    judge.configure(wording={"system": "Think.", "question": "", "before_clip": "Good? 1 to 5."})
    request = judge.style.reason_request(clip, "a red ball", judge.config.dimensions)
    text = (
        "<|im_start|>system\nThink.<|im_end|>\n<|im_start|>user\nGood? 1 to 5."
        f"{placeholder(judge, clip)}<|im_end|>\n<|im_start|>assistant\n"
    )
    with torch.no_grad():
        logits = judge.next_token_logits([request])[0][0]
    assert_close(logits, whole_forward(judge, text, [clip]), atol=1e-5, rtol=0)


def test_the_released_comparator_is_asked_as_one_plain_forward_of_its_whole_prompt(tmp_path):
    judge = released(tmp_path, "vqinsight-comp")
    first, second = make_clip(10, 32, 32, 8.0, seed=1), make_clip(6, 32, 48, 8.0, seed=2)
    request = judge.style.compare_request(first, second, None)
    wording = judge.style.wording
    text = (
        f"<|im_start|>system\n{wording.system}<|im_end|>\n<|im_start|>user\nVideo A:{placeholder(judge, first)}"
        f"Video B:{placeholder(judge, second)}{wording.comparison}<|im_end|>\n<|im_start|>assistant\n<answer>Video"
    )
    with torch.no_grad():
        logits = judge.next_token_logits([request])[0][0]
    assert_close(logits, whole_forward(judge, text, [first, second]), atol=1e-5, rtol=0)


def test_every_released_scorer_answers_a_level_question_with_finite_logits(tmp_path):
    from reward_model.language.requests import score_request

    judge = released(tmp_path, "vqinsight-aigcvideo")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits = judge.next_token_logits([score_request(make_clip(), "a dog", DIMENSIONS)])[0]
    assert logits.shape[0] == 4 and logits.isfinite().all()
