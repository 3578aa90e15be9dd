"""Shared prefixes against plain teacher forcing: positions, values and gradients."""

import pytest
import torch
from torch.testing import assert_close

from reward_model.judge.engine.shared_prefix import Branch, Tree, pack, tree_mask
from reward_model.language.requests import (
    compare_request,
    describe_answer,
    describe_request,
    reason_answer,
    reason_request,
    score_request,
)
from reward_model.records import DIMENSIONS, Clip
from tests.tiny_judge import FAMILIES, build_judge, forced_log_probs, library_inputs, make_clip


def mixed_requests():
    """Several grids, frame rates, clips, prefixes, branches and numbers of answers in one batch."""
    clips = [make_clip(8, 32, 32, 8.0, 0), make_clip(5, 48, 40, 3.0, 1), make_clip(4, 33, 70, 29.97, 2)]
    requests = [
        score_request(clips[0], "a red cat", DIMENSIONS),
        compare_request(clips[1], clips[2], "a dog"),
        describe_request(clips[1]),
        reason_request(clips[0], None, ["overall"]),
        score_request(clips[2], None, ("overall",)),
    ]
    answers = [
        [[" bad", " excellent"], [], [" good"], [" fair"]],
        [[" A", " neither"]],
        [[describe_answer("a red cat jumps over it"), describe_answer("no")]],
        [[reason_answer({"overall": 0.3}, "why not")]],
        [[" good"]],
    ]
    return clips, requests, answers


@pytest.fixture(scope="module", params=FAMILIES)
def judge(request):
    return build_judge(request.param)


def test_a_token_sees_the_prefix_its_branch_and_its_answer_only():
    tree = Tree(torch.tensor([7, 8]), torch.zeros(3, 2), 2, (Branch((1,), ((2, 3), (4,))), Branch((5,))))
    short = Tree(torch.tensor([9]), torch.zeros(3, 1), 1, (Branch((1,)),))
    packed = pack([tree, short], pad_id=0)
    assert packed.tokens.tolist() == [[7, 8, 1, 2, 3, 4, 5], [9, 1, 0, 0, 0, 0, 0]]
    assert packed.positions[0].tolist() == [[0, 0, 2, 3, 4, 3, 2], [0, 1, 0, 0, 0, 0, 0]]
    seen = tree_mask(packed, dtype=torch.float32, device=torch.device("cpu"))[0, 0] == 0
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 0, 1],
    ]
    assert packed.ends.tolist() == [2, 6, 7 + 1]
    assert packed.sources.tolist() == [2, 3, 2]
    assert packed.targets.tolist() == [2, 3, 4]
    assert packed.owners.tolist() == [0, 0, 1]
    assert packed.next_positions.tolist() == [3, 3, 2]


def test_positions_equal_those_of_the_library(judge):
    _, requests, _ = mixed_requests()
    for request in requests:
        for number, branch in enumerate(request.branches):
            inputs = library_inputs(judge, request, branch)
            keys = ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts", "attention_mask")
            known = {key: inputs[key] for key in keys if key in inputs}
            expected, _ = judge.model.model.get_rope_index(**known)  # [3, 1, L]
            packed = judge._pack([request], None).sequences
            mine = packed.positions[:, (packed.branch == 0) | (packed.branch == number + 1)]
            assert torch.equal(mine, expected[:, 0])


def forced_all(judge, requests, answers):
    """Return the log-probs of every answer in order, each by a forward of its own."""
    return [
        forced_log_probs(judge, request, branch, text)
        for request, texts in zip(requests, answers, strict=True)
        for branch, completions in zip(request.branches, texts, strict=True)
        for text in completions
    ]


def test_log_probs_equal_teacher_forcing_of_each_sequence_alone(judge):
    _, requests, answers = mixed_requests()
    found = judge.log_probs(requests, answers).by_answer()
    for value, forced in zip(found, forced_all(judge, requests, answers), strict=True):
        assert_close(value, forced, atol=1e-5, rtol=0)


def test_the_head_in_chunks_says_the_same(judge, monkeypatch):
    _, requests, answers = mixed_requests()
    whole = judge.log_probs(requests, answers)
    monkeypatch.setattr("reward_model.judge.engine.answers.CHUNK", 2)
    parts = judge.log_probs(requests, answers)
    assert_close(parts.values, whole.values)
    assert_close(parts.entropy, whole.entropy)


def test_what_was_sampled_has_the_log_probs_of_the_rollout_and_lacks_suppressed_tokens(judge):
    _, requests, _ = mixed_requests()
    bias = torch.zeros(judge.model.lm_head.weight.shape[0])
    bias[list(judge.suppressed_ids)] = (
        3.0  # suppressed tokens take much of the probability away if they are not left out
    )
    handle = judge.model.lm_head.register_forward_hook(lambda *args: args[2] + bias)
    drawn = judge.sample(requests, max_new_tokens=7, temperature=0.7, num_samples=3)
    tokens = [[[answer.tokens for answer in answers] for answers in branches] for branches in drawn]
    found = judge.log_probs(requests, tokens, temperature=0.7, suppressed=judge.suppressed_ids)
    handle.remove()
    old = [answer.log_probs for branches in drawn for answers in branches for answer in answers]
    assert not set(judge.suppressed_ids) & {
        t for branches in tokens for answers in branches for a in answers for t in a
    }
    for value, rollout in zip(found.by_answer(), old, strict=True):
        assert_close(value, rollout, atol=1e-5, rtol=0)
    assert float(found.entropy.min()) > 0 and not found.entropy.requires_grad


def test_gradients_in_weights_and_pixels_equal_those_of_teacher_forcing(judge):
    clips, requests, answers = mixed_requests()
    for clip in clips:
        clip.frames.requires_grad_()
    found, forced = judge.log_probs(requests, answers).by_answer(), forced_all(judge, requests, answers)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(value.shape, generator=generator) for value in found]
    inputs = [*judge.model.parameters(), *(clip.frames for clip in clips)]
    mine, theirs = (
        torch.autograd.grad(sum((v * w).sum() for v, w in zip(values, weights, strict=True)), inputs, allow_unused=True)
        for values in (found, forced)
    )
    for a, b in zip(mine, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            # relative to the tensor's norm: sums over thousands of tokens are taken in another order
            assert (a - b).norm() <= 1e-5 * b.norm()
    assert all(gradient.abs().sum() > 0 for gradient in mine[-len(clips) :])


def test_next_token_logits_do_not_depend_on_the_batch(judge):
    _, requests, _ = mixed_requests()
    together = judge.next_token_logits(requests)
    for request, logits in zip(requests, together, strict=True):
        assert logits.shape == (len(request.branches), judge.model.lm_head.weight.shape[0])
        assert_close(logits, judge.next_token_logits([request])[0], atol=1e-5, rtol=0)
    backwards = judge.next_token_logits(requests[::-1])[::-1]
    for a, b in zip(together, backwards, strict=True):
        assert_close(a, b, atol=1e-5, rtol=0)


def test_answer_logits_name_their_answers_in_the_order_of_the_requests(judge):
    _, requests, answers = mixed_requests()
    single = [[(completions or [" poor"])[0] for completions in texts] for texts in answers]
    read = judge.answer_logits(requests, single)
    texts = [text for branches in single for text in branches]
    assert [int((read.owner == i).sum()) for i in range(len(texts))] == [len(judge.tokenizer.encode(t)) for t in texts]
    assert judge.tokenizer.decode(read.targets[read.owner == 4]) == texts[4]
    assert int(read.is_first.sum()) == len(texts)
    values = -torch.nn.functional.cross_entropy(read.logits, read.targets, reduction="none")
    expected = judge.log_probs(requests, [[[text] for text in branches] for branches in single]).by_answer()
    for i, value in enumerate(expected):
        assert_close(values[read.owner == i], value)


def test_a_clip_that_several_requests_share_is_encoded_once(judge):
    clip, other = make_clip(seed=1), make_clip(seed=2)
    requests = [
        score_request(clip, "a dog", DIMENSIONS),
        describe_request(clip),
        compare_request(clip, other, None),
    ]
    calls = []
    handle = judge.model.model.visual.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    batch = judge._pack(requests, None)
    judge.next_token_logits(requests)
    handle.remove()
    assert len(batch.sequences.tokens) == 2
    assert calls == [2 * 2 * 16]  # two clips of two frame pairs with 16 patches


def test_the_same_frames_at_another_rate_are_another_clip(judge):
    slow, fast = make_clip(4, fps=1.0), make_clip(4, fps=8.0)
    fast = Clip(slow.frames, fast.plan)
    requests = [describe_request(clip) for clip in (slow, fast)]
    together = judge.next_token_logits(requests)
    assert (together[0] - together[1]).abs().max() > 1e-3
    assert_close(together[1], judge.next_token_logits(requests[1:])[0], atol=1e-5, rtol=0)


def test_answers_that_do_not_fit_the_branches_are_refused(judge):
    request = score_request(make_clip(), "a dog", DIMENSIONS)
    with pytest.raises(ValueError, match=r"answers must match the branches of each request: expected \[4\], got \[3\]"):
        judge.log_probs([request], [[[" good"]] * 3])
    with pytest.raises(ValueError, match="must not be empty"):
        judge.log_probs([request], [[[""]] * 4])
    with pytest.raises(ValueError, match="at least one request"):
        judge.next_token_logits([])
