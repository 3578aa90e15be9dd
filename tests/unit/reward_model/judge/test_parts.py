"""Changes that a judge makes to weights and to the model it is handed: said by name, and undone."""

import re

import pytest
import torch
from torch.testing import assert_close

from generator_loop.refresh.refresh import adapter_tensors, load_adapter_tensors
from reward_model.judge.attention import tree, windows
from reward_model.judge.model import VideoJudge
from reward_model.language.requests import describe_request, score_request
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


def layers_of(judge, role):
    """Return the names of the layers that a role adapts."""
    named = judge.model.named_parameters()
    return {name.split(".lora_")[0].removeprefix("model.") for name, _ in named if f".lora_A.{role}." in name}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_role_adapts_the_linear_layers_of_its_targets_alone(family):
    judge = build_judge(family)
    linear = {
        name.removeprefix("model.") for name, m in judge.model.named_modules() if isinstance(m, torch.nn.Linear)
    } - {"lm_head"}
    tower = {name for name in linear if name.startswith("visual.blocks.")}
    merger = {name for name in linear if name.startswith("visual.")} - tower
    expected = {"text": linear - tower - merger, "vision": tower, "merger": merger}
    assert all(expected.values())
    for part, layers in expected.items():
        judge.add_role(part, rank=2, targets=(part,))
        assert layers_of(judge, part) == layers
    judge.add_role("all", rank=2, targets=tuple(expected))
    judge.add_role("copy", copy_from="all")
    judge.add_role("usual", rank=2)
    assert layers_of(judge, "all") == layers_of(judge, "copy") == linear
    assert layers_of(judge, "usual") == expected["text"]


@pytest.mark.parametrize("targets", [(), ("tower",), ("text", "text")])
def test_unknown_targets_are_refused(judge, targets):
    with pytest.raises(ValueError, match="lora.targets must be one or more of text, vision, merger"):
        judge.add_role("c", targets=targets)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["text", "vision", "merger"])
def test_gradients_of_every_target_behind_shared_prefixes_are_those_of_finite_differences(family, part):
    judge = build_judge(family)
    judge.add_role("policy", rank=2, alpha=4, targets=("text", "vision", "merger"))
    generator = torch.Generator().manual_seed(0)
    for parameter in judge.role_parameters("policy"):
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    requests = [describe_request(make_clip(seed=seed)) for seed in (0, 1)]
    answers = [[[" a red circle", " good"]], [[" bad", " fair"]]]
    own = {id(p) for p in judge.train_only("policy")}
    place = {"text": "language_model", "vision": "visual.blocks", "merger": "merger"}[part]
    chosen = [p for name, p in judge.model.named_parameters() if id(p) in own and place in name]

    def value():
        with judge.remember_clips(), judge.use_role("policy"):  # as GRPO reads it
            found = judge.log_probs(requests, answers).values
        return (found.double() * torch.linspace(-1, 1, len(found))).sum()

    gradients = torch.autograd.grad(value(), chosen)
    size = sum(float((g**2).sum()) for g in gradients) ** 0.5
    assert size > 1e-3
    step = 1e-2 / size

    def moved(sign):
        with torch.no_grad():
            for p, g in zip(chosen, gradients, strict=True):
                p.add_(g, alpha=sign * step / size)
            result = float(value())
            for p, g in zip(chosen, gradients, strict=True):
                p.add_(g, alpha=-sign * step / size)
        return result

    # along the gradient the value rises by its norm; float32 leaves about 1e-5 of the 2e-2 between both ends
    assert (moved(1) - moved(-1)) / (2 * step) == pytest.approx(size, rel=1e-2)


def test_a_widened_role_says_the_same_until_it_learns_and_survives_saving(tmp_path):
    judge = build_judge()
    judge.add_role("a", rank=2, alpha=4)
    judge.add_role("b", rank=2)
    for parameter in judge.role_parameters("a"):
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(3))
    request = describe_request(make_clip())

    def said(judge):
        with judge.use_role("a"), torch.no_grad():
            return judge.next_token_logits([request])[0]

    before, num = said(judge), len(judge.role_parameters("a"))
    judge.widen_role("a", ["text"])
    assert len(judge.role_parameters("a")) == num  # it has these layers
    judge.widen_role("a", ["merger", "vision"])
    assert len(judge.role_parameters("a")) > num and len(judge.role_parameters("b")) == num
    torch.testing.assert_close(said(judge), before, rtol=0, atol=0)
    for parameter in judge.role_parameters("a"):
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(4))
    judge.save_pretrained(tmp_path / "judge")
    loaded = VideoJudge.from_pretrained(tmp_path / "judge")
    torch.testing.assert_close(said(loaded), said(judge), rtol=0, atol=1e-6)
    assert not torch.allclose(said(judge), before)
    with pytest.raises(ValueError, match="unknown role 'c'"):
        judge.widen_role("c", ["vision"])
    with pytest.raises(ValueError, match="lora.targets must be"):
        judge.widen_role("b", ["eyes"])


def test_an_adapter_that_lists_its_layers_by_name_can_be_widened():
    from reward_model.judge.modules.roles import TARGETS, _pattern

    pattern = _pattern({"q_proj", "v_proj"})
    assert re.fullmatch(f"{pattern}|{TARGETS['vision']}", "model.language_model.layers.0.self_attn.q_proj")
    assert (
        re.fullmatch(pattern, "q_proj")
        and not re.fullmatch(pattern, "model.k_proj")
        and not re.fullmatch(pattern, "xq_proj")
    )
