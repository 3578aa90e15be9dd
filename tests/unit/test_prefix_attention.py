"""Attention in two parts: the values and gradients of one masked call."""

from __future__ import annotations

import pytest
import torch

from reward_model.judge import prefix_attention
from reward_model.judge.prefix_attention import NAME
from reward_model.language import prompts
from tests.tiny_judge import build_judge, make_clip


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl"])
def judge(request):
    return build_judge(request.param)


def requests():
    clips = [make_clip(4, 32, 32, seed=1), make_clip(6, 64, 32, seed=2)]  # rows whose prefixes differ in length
    return [prompts.score_request(clip, "a dog", ("visual_quality", "text_alignment", "overall")) for clip in clips]


def values_and_gradients(judge):
    asked = requests()
    judge.zero_grad()
    answers = [[["good ."], ["a dog runs", "a cat"], ["bad"]] for _ in asked]
    found = judge.log_probs(asked, answers).values
    (found * torch.linspace(-1, 1, len(found))).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in judge.model.parameters() if p.grad is not None])
    return found.detach(), gradient


def count_splits(monkeypatch):
    seen = []
    plain = prefix_attention.num_common
    monkeypatch.setattr("reward_model.judge.model.num_common", lambda rows: seen.append(plain(rows)) or seen[-1])
    return seen


def test_two_parts_equal_one(judge, monkeypatch):
    judge.trainable_parameters(None)
    seen = count_splits(monkeypatch)
    expected, gradient = values_and_gradients(judge)
    monkeypatch.setattr(prefix_attention, "LEAST", 1)
    found, own = values_and_gradients(judge)
    assert seen[0] == 0 and seen[1] > 20
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert float((own - gradient).norm() / gradient.norm()) < 1e-5


def test_answers_are_the_same(judge, monkeypatch):
    settings = dict(max_new_tokens=5, temperature=1.0, num_samples=2)
    expected = judge.sample(requests(), **settings)
    monkeypatch.setattr(prefix_attention, "LEAST", 1)
    found = judge.sample(requests(), **settings)
    for one, other in zip(found, expected, strict=True):
        for ours, theirs in zip(one, other, strict=True):
            assert [c.tokens for c in ours] == [c.tokens for c in theirs]


def test_the_common_part_is_that_of_the_shortest_prefix(judge, monkeypatch):
    monkeypatch.setattr(prefix_attention, "LEAST", 1)
    rows = judge._lay_out(requests(), None).rows
    lengths = [(row == 0).sum().item() for row in rows.branch]
    assert prefix_attention.num_common(rows) == min(lengths) < max(lengths)
    monkeypatch.setattr(prefix_attention, "LEAST", min(lengths) + 1)
    assert prefix_attention.num_common(rows) == 0


def test_the_text_model_uses_it_and_stock_calls_still_work(judge):
    assert judge.model.model.language_model.config._attn_implementation == NAME
    ids = torch.tensor([judge.tokenizer.encode("a dog runs over a plain floor")])
    ours = judge.model(input_ids=ids).logits
    judge.model.model.language_model.config._attn_implementation = "sdpa"
    torch.testing.assert_close(ours, judge.model(input_ids=ids).logits)
