"""Split attention: the values and gradients of one masked call, and the same values however answers came about.

These are the same bits where matrix products give a row the same bits whatever rows stand beside it.
"""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from reward_model.judge.attention.tree import NAME, NO_MASK, AttentionSpans, splits_attention, tree_attention
from reward_model.judge.engine import decoding, shared_prefix
from reward_model.judge.engine.readouts import read_levels
from reward_model.judge.engine.shared_prefix import Branch, Tree, pack
from reward_model.judge.families.base import text_positions
from reward_model.language.requests import score_request
from reward_model.video_reward import VideoJudgeReward
from tests.tiny_judge import build_judge, make_clip


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl"])
def judge(request):
    return build_judge(request.param)


@pytest.fixture
def masked(monkeypatch):
    """Return a function that makes passes masked from then on, and notes how many common tokens each splits off."""
    common = []
    plain = shared_prefix.num_common

    def switch(least=None):
        for module in (decoding, shared_prefix):
            monkeypatch.setattr(module, "splits_attention", lambda model: False)
        monkeypatch.setattr(
            shared_prefix, "num_common", lambda sequences: common.append(plain(sequences)) or common[-1]
        )
        monkeypatch.setattr(shared_prefix, "LEAST", least or 10**6)
        return common

    return switch


def requests(num=2):
    sizes = [(4, 32, 32), (4, 32, 32), (6, 64, 32)][-num:]  # prefixes of one length, and a longer one
    clips = [make_clip(*size, seed=seed) for seed, size in enumerate(sizes)]
    return [score_request(clip, "a dog", ("visual_quality", "text_alignment", "overall")) for clip in clips]


def values_and_gradients(judge):
    asked = requests(3)
    judge.zero_grad()
    answers = [[["good ."], ["a dog runs", "a cat"], ["bad"]] for _ in asked]
    found = judge.log_probs(asked, answers).values
    (found * torch.linspace(-1, 1, len(found))).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in judge.model.parameters() if p.grad is not None])
    return found.detach(), gradient


@pytest.mark.parametrize("least", [None, 1])
def test_split_attention_equals_a_masked_pass_with_and_without_a_common_start(judge, masked, least):
    judge.train_only(None)
    found, own = values_and_gradients(judge)
    common = masked(least)
    expected, gradient = values_and_gradients(judge)
    assert common == [0] if least is None else common[0] > 20
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert float((own - gradient).norm() / gradient.norm()) < 1e-5


def test_half_precision_equals_a_masked_pass_within_its_rounding(judge, masked):
    judge.to(torch.bfloat16).train_only(None)
    found, own = values_and_gradients(judge)
    masked()
    expected, gradient = values_and_gradients(judge)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)
    assert float((own - gradient).norm() / gradient.norm()) < 0.05


def attended(dtype, peak):
    """Return split attention and its gradients of two trees whose scores span twice `peak`, and those of a masked call."""
    trees = [
        Tree(torch.zeros(5, dtype=torch.long), text_positions(0, 5), 5, (Branch(tuple(range(size))), Branch((0, 1))))
        for size in (3, 17)
    ]
    sequences = pack(trees, pad_id=0)
    suffixes = sequences.suffixes
    spans = AttentionSpans(
        NO_MASK, prefixes=shared_prefix.prefixes_of(sequences), suffixes=(shared_prefix._suffix_spans(suffixes),)
    )
    generator = torch.Generator().manual_seed(0)
    # tokens at 0 and at 4, 5, ... point against one another along one axis, so that some of a suffix's scores are `peak`
    # where the first token's own is -`peak`
    shape = (2, 2, sequences.tokens.shape[1], 4)
    query, key, value, grad = (torch.randn(shape, generator=generator) * 0.1 for _ in range(4))
    query[..., 0], key[..., 0] = peak, 1.0
    key[:, :, :5, 0] = -1.0
    inputs = [t.to(dtype).requires_grad_(True) for t in (query, key, value)]
    out, _ = tree_attention(None, *inputs, None, spans=spans, scaling=1.0)
    real = (sequences.branch >= 0)[:, :, None, None]
    out.masked_fill(~real, 0.0).backward((grad.transpose(1, 2) * real).to(dtype))
    plain = [t.detach().double().requires_grad_(True) for t in inputs]
    mask = shared_prefix.tree_mask(sequences, dtype=torch.float64, device=torch.device("cpu"))
    expected = torch.nn.functional.scaled_dot_product_attention(*plain, attn_mask=mask, scale=1.0).transpose(1, 2)
    expected.masked_fill(~real, 0.0).backward(grad.transpose(1, 2).double() * real)
    return [out * real, *(t.grad for t in inputs)], [expected * real, *(t.grad for t in plain)]


@pytest.mark.parametrize("peak", [1.0, 30.0, 200.0])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.bfloat16, 0.3), (torch.float16, 0.03)])
def test_gradients_beside_padding_are_finite_and_right_however_high_the_scores(dtype, atol, peak):
    found, expected = attended(dtype, peak)
    for own, right in zip(found, expected, strict=True):
        assert torch.isfinite(own).all()
        assert_close(own.double(), right, rtol=0, atol=atol * max(1.0, float(right.detach().abs().max())))


def test_a_float16_judge_gives_both_prompts_of_a_batch_the_gradient_of_float32():
    judge = VideoJudgeReward.from_pretrained("toy", role=None, device="cpu").judge
    prompts = ("a dog", "a large red circle moving left slowly over a plain floor")
    gradients = []
    for dtype in (torch.float32, torch.float16):
        judge.to(dtype)
        clips = [make_clip(4, 64, 64, seed=seed) for seed in (0, 1)]
        for clip in clips:
            clip.frames.requires_grad_(True)
        asked = [score_request(c, p, ("visual_quality", "overall")) for c, p in zip(clips, prompts, strict=True)]
        logits = torch.cat(judge.next_token_logits(asked))
        read_levels(logits, judge.level_ids).quality.sum().backward()
        gradients.append([clip.frames.grad for clip in clips])
    for right, half in zip(*gradients, strict=True):
        assert torch.isfinite(half).all()
        assert float((half - right).norm() / right.norm()) < 0.05


def test_autocast_reaches_split_attention(judge, masked):
    judge.train_only(None)
    with torch.autocast("cpu", torch.bfloat16):
        found, own = values_and_gradients(judge)
        ((drawn,), *_), *_ = judge.sample(requests(1), max_new_tokens=9)
        read = judge.log_probs(requests(1), [[[drawn.tokens], [], []]], suppressed=judge.suppressed_ids).values
        masked()
        expected, gradient = values_and_gradients(judge)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)
    torch.testing.assert_close(drawn.log_probs, read.detach(), rtol=0, atol=0.05)
    assert float((own - gradient).norm() / gradient.norm()) < 0.05


def test_dropout_is_left_to_the_masked_pass(judge):
    config = judge.model.model.language_model.config
    assert splits_attention(judge.eval().model) and splits_attention(judge.train().model)
    config.attention_dropout = 0.1
    assert not splits_attention(judge.model) and splits_attention(judge.eval().model)


@pytest.mark.parametrize("least", [None, 1])
def test_answers_are_those_of_masked_passes(judge, masked, least):
    settings = dict(max_new_tokens=5, temperature=1.0, num_samples=2)
    found = judge.sample(requests(), **settings)
    masked(least)
    expected = judge.sample(requests(), **settings)
    assert [[[c.tokens for c in branch] for branch in one] for one in found] == [
        [[c.tokens for c in branch] for branch in one] for one in expected
    ]


def products_are_by_row(judge):
    """Return whether this machine's products with the weights do not depend on how many rows there are."""
    weights = [p for p in (*judge.model.model.language_model.parameters(), judge.model.lm_head.weight) if p.ndim == 2]
    for weight in weights:
        rows = torch.randn(500, weight.shape[1], generator=torch.Generator().manual_seed(0))
        every = torch.nn.functional.linear(rows, weight)
        for num in (4, 5, 9, 12, 27, 100):
            if not torch.equal(torch.nn.functional.linear(rows[:num], weight), every[:num]):
                return False
    return True


@pytest.mark.parametrize("num_samples", [1, 3, 4])
def test_an_answer_has_the_same_bits_written_token_by_token_and_read_as_a_whole(judge, num_samples):
    asked = requests(3)
    drawn = judge.sample(asked, max_new_tokens=40, temperature=1.0, num_samples=num_samples)
    tokens = [[[c.tokens for c in branch] for branch in one] for one in drawn]
    written = torch.cat([c.log_probs for one in drawn for branch in one for c in branch])
    with torch.no_grad():
        whole = judge.log_probs(asked, tokens, suppressed=judge.suppressed_ids).values
        pairs = zip(asked, tokens, strict=True)
        apart = [judge.log_probs([one], [answers], suppressed=judge.suppressed_ids).values for one, answers in pairs]
    assert len(whole) > 200
    # some 10 roundings of 6e-8 of log-probabilities near 7
    torch.testing.assert_close(written, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat(apart), whole, rtol=0, atol=1e-5)
    if products_are_by_row(judge):
        assert (whole != written).float().mean() < 0.01


def passes(judge, monkeypatch, asked, *, grad):
    """Return the logits of some requests, and whether the pass was split."""
    split = []
    plain = shared_prefix._suffix_spans
    monkeypatch.setattr(shared_prefix, "_suffix_spans", lambda places: split.append(True) or plain(places))
    with torch.set_grad_enabled(grad):
        logits = torch.cat(judge.next_token_logits(asked))
    monkeypatch.setattr(shared_prefix, "_suffix_spans", plain)
    return logits.detach(), bool(split)


@pytest.mark.parametrize("least", [256, 1])
def test_scores_are_read_by_the_cheaper_pass_and_gradients_by_the_exact_one(judge, monkeypatch, least):
    monkeypatch.setattr(shared_prefix, "LEAST", least)
    exact, was_split = passes(judge, monkeypatch, requests(3), grad=True)
    cheap, was_split_too = passes(judge, monkeypatch, requests(3), grad=False)
    assert was_split and not was_split_too
    assert_close(cheap, exact, rtol=0, atol=1e-5)
    monkeypatch.setattr(shared_prefix, "MAX_MASK", 1000)
    split, was_split = passes(judge, monkeypatch, requests(3), grad=False)
    assert was_split and torch.equal(split, exact)


def test_a_mask_of_the_last_tokens_is_the_last_lines_of_the_whole(judge):
    sequences = judge._pack(requests(3), None).sequences
    settings = dict(dtype=torch.float32, device=torch.device("cpu"))
    whole = shared_prefix.tree_mask(sequences, **settings)
    for start in (0, 7, whole.shape[2] - 1):
        assert torch.equal(shared_prefix.tree_mask(sequences, start=start, **settings), whole[:, :, start:])


def test_the_common_part_is_that_of_the_shortest_prefix(judge, monkeypatch):
    monkeypatch.setattr(shared_prefix, "LEAST", 1)
    sequences = judge._pack(requests(3), None).sequences
    lengths = [(branch == 0).sum().item() for branch in sequences.branch]
    assert shared_prefix.prefixes_of(sequences) == ((2, lengths[0]), (1, lengths[2]))
    assert shared_prefix.num_common(sequences) == lengths[0] < lengths[2]
    monkeypatch.setattr(shared_prefix, "LEAST", lengths[0] + 1)
    assert shared_prefix.num_common(sequences) == 0


def test_the_text_model_uses_it_and_stock_calls_still_work(judge):
    assert judge.model.model.language_model.config._attn_implementation == NAME
    ids = torch.tensor([judge.tokenizer.encode("a dog runs over a plain floor")])
    ours = judge.model(input_ids=ids).logits
    judge.model.model.language_model.config._attn_implementation = "sdpa"
    torch.testing.assert_close(ours, judge.model(input_ids=ids).logits)
