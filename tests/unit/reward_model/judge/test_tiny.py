"""The small tokenizer and models that judges are built from."""

import pytest
import torch
from transformers import AutoTokenizer

from reward_model.judge.families.tiny import build_tiny, build_tokenizer
from reward_model.language.requests import (
    compare_request,
    describe_answer,
    describe_request,
    level_answer,
    preference_answer,
    reason_answer,
    reason_request,
    score_request,
)
from reward_model.records import DIMENSIONS
from tests.tiny_judge import make_clip

WORDS = ["a large red circle moving left slowly over a plain floor", "triangle", "teal", "flicker"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(WORDS)


@pytest.mark.parametrize("word", ["circle", "triangle", "teal", "flicker", "slowly", "excellent", "A", "neither", "7"])
def test_each_known_word_is_one_token_with_and_without_a_space(tokenizer, word):
    assert len(tokenizer.encode(word)) == 1
    assert len(tokenizer.encode(f"red {word}")) == (3 if word.isdigit() else 2)


def test_a_caption_costs_one_token_a_word(tokenizer):
    answer = describe_answer(WORDS[0])
    assert len(tokenizer.encode(answer)) == len(WORDS[0].split()) + 1


def test_text_outside_the_vocabulary_survives_a_round_trip(tokenizer):
    text = "Ein sch\u00f6ner Tag, 12.5 % {mit} <Zeichen>\n\n  und \u732b"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_prefix_branch_and_answer_tokenised_apart_are_the_whole(tokenizer):
    clip, caption = make_clip(), WORDS[0]
    cases = [
        (score_request(clip, caption, DIMENSIONS), level_answer(0.4)),
        (describe_request(clip), describe_answer(caption)),
        (
            reason_request(clip, caption, ["overall"]),
            reason_answer({"overall": 0.4}, f"the video shows {caption}."),
        ),
        (compare_request(clip, clip, caption), preference_answer(0)),
    ]
    for request, answer in cases:
        prefix = "".join("<|video_pad|>" if isinstance(part, int) else part for part in request.prefix)
        for branch in request.branches:
            apart = [tokenizer.encode(text) for text in (prefix, branch, answer)]
            assert sum(apart, []) == tokenizer.encode(prefix + branch + answer)


def test_the_tokenizer_does_not_depend_on_the_order_of_its_words(tokenizer):
    again = build_tokenizer(reversed(WORDS))
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_a_saved_tokenizer_is_reloaded_faithfully(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = f"<|im_start|>user\n{WORDS[0]} unknown 3.5<|im_end|>"
    assert again.encode(text) == tokenizer.encode(text)
    assert (again.eos_token_id, again.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_the_default_size_is_two_to_three_million_parameters(tokenizer):
    model, _ = build_tiny("qwen2_5_vl", tokenizer=tokenizer)
    assert 2e6 < sum(p.numel() for p in model.parameters()) < 3e6


def test_weights_follow_from_the_seed_alone(tokenizer):
    size = {"hidden": 32, "layers": 1, "vision_hidden": 16, "vision_layers": 1, "tokenizer": tokenizer}
    state = torch.random.get_rng_state()
    first, _ = build_tiny("qwen3_vl", seed=3, **size)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    second, _ = build_tiny("qwen3_vl", seed=3, **size)
    other, _ = build_tiny("qwen3_vl", seed=4, **size)
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim < 2 or not torch.equal(a, c), name


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="family must be one of qwen2_5_vl, qwen3_vl, qwen2_vl, got 'llava'"):
        build_tiny("llava")
