"""Changes that a judge makes to weights and to the model it is handed: said by name, and undone."""

import pytest
import torch
from torch.testing import assert_close

from generator_loop.refresh.refresh import adapter_tensors, load_adapter_tensors
from reward_model.judge.attention import tree, windows
from reward_model.language.requests import score_request
from reward_model.records import DIMENSIONS
from reward_model.video_reward import VideoJudgeReward
from tests.tiny_judge import FAMILIES, build_judge, library_inputs, make_clip


@pytest.fixture
def judge():
    judge = build_judge()
    judge.add_role("a", rank=4)
    judge.add_role("b", rank=4)
    return judge


def flags(judge):
    return {name: parameter.requires_grad for name, parameter in judge.named_parameters()}


@pytest.mark.parametrize("trained", [None, "a", "b"])
def test_asking_for_a_roles_weights_leaves_every_requires_grad_as_it_was(judge, trained):
    judge.train_only(trained)
    before = flags(judge)
    for role in (None, "a", "b"):
        assert judge.role_parameters(role)
    assert flags(judge) == before and set(before.values()) == {True, False}


@pytest.mark.parametrize("role", [None, "a", "b"])
def test_training_one_role_returns_its_weights_and_turns_all_others_off(judge, role):
    chosen = judge.train_only(role)
    expected = judge.role_parameters(role)
    assert [id(p) for p in chosen] == [id(p) for p in expected]
    on = {name for name, flag in flags(judge).items() if flag}
    assert on == {n for n, _ in judge.named_parameters() if (f".{role}." in n if role else ".lora_" not in n)}


def test_saving_and_restoring_an_adapter_leaves_every_requires_grad_as_it_was(judge):
    reward = VideoJudgeReward(judge, role="a")
    judge.train_only("b")
    before = flags(judge)
    saved = adapter_tensors(reward)
    with torch.no_grad():
        for parameter in judge.role_parameters("a"):
            parameter.add_(1)
    load_adapter_tensors(reward, saved)
    assert flags(judge) == before
    assert all(torch.equal(p, saved[f"{i:04d}"]) for i, p in enumerate(judge.role_parameters("a")))


def implementations(model):
    configs = (model.config, model.model.language_model.config, model.model.visual.config)
    return [config._attn_implementation for config in configs]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_released_model_is_as_it_came(family):
    judge = build_judge(family)
    model, stock = judge.model, build_judge(family).release()
    assert implementations(model) == ["sdpa", tree.NAME, windows.NAME]
    methods = {name: vars(module).keys() & {"forward"} for name, module in model.named_modules()}
    assert judge.release() is model and implementations(model) == implementations(stock) == ["sdpa"] * 3
    assert not any(methods.values())
    with torch.no_grad():
        inputs = library_inputs(judge, score_request(make_clip(), "a dog", ("overall",)), " ?")
        assert torch.equal(model(**inputs).logits, stock(**inputs).logits)
    judge.release()
    assert implementations(model) == ["sdpa"] * 3


def test_a_judge_still_answers_after_its_model_was_released():
    judge, requests = build_judge(), [score_request(make_clip(seed=i), "a dog", DIMENSIONS) for i in range(2)]
    with torch.no_grad():
        before = torch.cat(judge.next_token_logits(requests))
        judge.release()
        assert_close(torch.cat(judge.next_token_logits(requests)), before, atol=1e-5, rtol=0)


def test_a_model_that_came_with_eager_attention_is_left_alone():
    judge = build_judge()
    model = judge.release()
    for config in (model.config, model.model.language_model.config, model.model.visual.config):
        config._attn_implementation = "eager"
    again = type(judge)(model, judge.tokenizer, judge.config)
    assert implementations(model) == ["eager"] * 3
    assert implementations(again.release()) == ["eager"] * 3
