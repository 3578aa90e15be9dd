"""VideoAlign's checkpoints: the states of transformers 4.45 at the reward tokens, and plain forwards of whole prompts."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from reward_model.judge.attention.tree import AttentionSpans
from reward_model.judge.engine.batching import clip_grid, patches_of
from reward_model.judge.exchange.videoalign import load_videoalign
from reward_model.judge.families.base import prefix_positions
from reward_model.judge.families.tiny import build_tokenizer
from reward_model.judge.model import VideoJudge
from reward_model.judge.modules.score_head import states_at
from tests.parity import videoalign_layout as layout
from tests.tiny_judge import make_clip

GOLDEN = Path(__file__).parents[1] / "golden" / "videoalign_layout.safetensors"
TEMPLATE = "Look. <|VQ_reward|>\nMotion? <|MQ_reward|>\nText: {text_prompt} <|TA_reward|>\n"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"

pytestmark = pytest.mark.parity


def write_tokenizer(folder, num_tokens=layout.VOCAB - 3):
    """Write a tokenizer of a certain size, as a checkpoint's embeddings have one row for each token."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([f"filler{i}" for i in range(num_tokens - len(tokenizer))])
    tokenizer.save_pretrained(folder)
    return tokenizer


def judge_of(folder, *, num_rows=1):
    """Return VideoAlign's judge from a checkpoint whose token ids are those of the golden file."""
    layout.write_base(folder / "base")
    layout.write(folder / "checkpoint", num_rows=num_rows)
    write_tokenizer(folder / "base")
    return load_videoalign(folder / "checkpoint", base=folder / "base", template=TEMPLATE)


@torch.no_grad()
def states_of(judge, ids):
    """Return the states at the reward tokens as the judge's parts make them."""
    family, is_video = judge.family, ids == judge.family.facts.video_token_id
    positions, _ = prefix_positions(is_video, family.video_spans(make_clip(8).plan, layout.GRID))
    found = family.encode(judge.model, layout.patches(), torch.tensor([layout.GRID])).tokens
    embeddings = judge.model.get_input_embeddings()(ids).masked_scatter(is_video[:, None], found)[None]
    mask = (1 - torch.ones(1, 1, len(ids), len(ids)).tril()) * -1e9
    hidden = family.text(judge.model, embeddings, positions[:, None], AttentionSpans(mask))
    return states_at(hidden, ids[None], torch.zeros_like(ids)[None], [len(ids) - 1], judge.head.token_ids)


@pytest.mark.parametrize("num_rows", [1, 3])
def test_reward_tokens_have_the_states_and_scores_of_the_transformers_it_was_trained_with(tmp_path, num_rows):
    judge, golden = judge_of(tmp_path, num_rows=num_rows), load_file(GOLDEN)
    assert judge.head.token_ids == layout.REWARDS
    states = states_of(judge, golden["input_ids"])
    assert_close(states[0], golden["states"], atol=1e-5, rtol=1e-5)
    rows = layout.draw("rm_head", num_rows, layout.HIDDEN)
    by_hand = torch.stack([golden["states"][k] @ rows[k if num_rows == 3 else 0] for k in range(3)])
    assert_close(judge.head(states)[0], by_hand, atol=5e-5, rtol=1e-5)  # sums of 32 products of size 1


def test_a_whole_question_scores_as_one_plain_forward_with_positions_of_text(tmp_path):
    judge = judge_of(tmp_path)
    ids = {name: judge.tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("video_pad", "image_pad")}
    judge.model.config.video_token_id = ids["video_pad"]
    judge.model.config.image_token_id = ids["image_pad"]
    judge.configure(min_pixels=1024, max_pixels=40_000)
    clips, texts = [make_clip(4, 32, 48, seed=1), make_clip(6, 32, 32, 3.0, seed=2)], ["a dog", "a red ball"]
    with torch.no_grad():
        scores = judge.head_scores(clips, texts)
    for clip, text, found in zip(clips, texts, scores, strict=True):
        shown = judge.family.placeholder(clip.plan, clip_grid(clip, judge.family))
        question = TEMPLATE.replace("{text_prompt}", text)
        tokens = judge.tokenizer.encode(f"{SYSTEM}{shown}{question}<|im_end|>\n<|im_start|>assistant\n")
        patches, grid = patches_of([clip], judge.family, quantise=True, device=torch.device("cpu"))
        inputs = {"input_ids": torch.tensor([tokens]), "pixel_values_videos": patches, "video_grid_thw": grid}
        with torch.no_grad():
            places = torch.arange(len(tokens)).expand(3, 1, -1)
            hidden = judge.model.model(**inputs, position_ids=places, use_cache=False).last_hidden_state[0]
        expected = torch.stack([hidden[tokens.index(token)] @ judge.head.weight[0] for token in judge.head.token_ids])
        assert_close(found, expected, atol=5e-5, rtol=1e-5)
    constants = torch.tensor([[3.0, 1.0, 2.5], [2.0, 0.5, 4.0]])
    assert_close(judge.head.normalise(scores), (scores - constants[0]) / constants[1])


def test_the_checkpoint_survives_as_a_judges_folder(tmp_path):
    judge = judge_of(tmp_path)
    judge.save_pretrained(tmp_path / "saved")
    again = VideoJudge.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.config == judge.config and again.head.config == judge.head.config
    ids = layout.question()
    assert torch.equal(states_of(again, ids), states_of(judge, ids))
    assert torch.equal(again.head.weight, judge.head.weight)
    assert not list((tmp_path / "saved").rglob("*.pt*"))
