"""Named weights of the generator: swaps are exact and leave training as it was."""

import pytest
import torch
from safetensors.torch import load_file

from generator_loop.adapters.base import OLD, POLICY, REFERENCE, predict_with
from generator_loop.adapters.lora import LORA_FILE
from generator_loop.records import Conditioning
from tests.tiny_wan import build_generator, build_wan, randomise_lora


@pytest.fixture
def generator():
    return build_generator()


@pytest.fixture
def inputs(generator):
    noise = torch.Generator().manual_seed(0)
    cond = generator.encode_prompts(["a red ball", "a blue square"])
    return torch.randn(2, 4, 2, 4, 4, generator=noise), torch.tensor([0.3, 0.9]), cond


def requires_grad(generator):
    return {name: p.requires_grad for name, p in generator.pipeline.transformer.named_parameters()}


def test_only_lora_is_trainable_and_in_float32(generator):
    trainable = generator.trainable_parameters().values()
    assert {id(p) for p in generator.pipeline.transformer.parameters() if p.requires_grad} == {id(p) for p in trainable}
    assert all(parameter.dtype == torch.float32 for parameter in trainable)
    assert len(trainable) == 2 * 2 * 10  # A and B of 2 blocks with 8 attention and 2 feed-forward layers


def test_fresh_lora_predicts_exactly_like_the_base(generator, inputs):
    latents, sigma, cond = inputs
    base = build_wan().transformer
    with torch.no_grad():
        expected = base(latents, sigma * 1000, cond.tensors["positive"], return_dict=False)[0]
        for name in (POLICY, OLD, REFERENCE):
            assert torch.equal(predict_with(generator, name)(*inputs), expected)


def test_reference_stays_put_while_the_policy_moves(generator, inputs):
    before = predict_with(generator, REFERENCE)(*inputs)
    randomise_lora(generator)
    assert torch.equal(predict_with(generator, REFERENCE)(*inputs), before)
    assert not torch.allclose(predict_with(generator, POLICY)(*inputs), before)


def test_switching_is_exact_and_leaves_requires_grad_alone(generator, inputs):
    randomise_lora(generator)
    flags, before = requires_grad(generator), predict_with(generator, POLICY)(*inputs)
    with generator.use(OLD), generator.use(REFERENCE), generator.use(POLICY):
        assert torch.equal(generator.predict(*inputs), before)
    assert torch.equal(generator.predict(*inputs), before)
    assert requires_grad(generator) == flags


def test_an_error_inside_a_switch_brings_the_policy_back(generator):
    randomise_lora(generator)
    before = {name: tensor.clone() for name, tensor in generator.weights(POLICY).items()}
    with pytest.raises(KeyError), generator.use(REFERENCE):
        raise KeyError("inside")
    assert all(torch.equal(before[name], tensor) for name, tensor in generator.trainable_parameters().items())


def test_only_the_policy_carries_gradient(generator, inputs):
    assert predict_with(generator, POLICY)(*inputs).requires_grad
    assert not predict_with(generator, OLD)(*inputs).requires_grad


def test_gradient_of_the_policy_survives_a_switch_before_backward(generator, inputs):
    randomise_lora(generator)
    parameters = list(generator.trainable_parameters().values())
    expected = torch.autograd.grad(generator.predict(*inputs).square().mean(), parameters)
    loss = generator.predict(*inputs).square().mean()
    predict_with(generator, REFERENCE)(*inputs)
    found = torch.autograd.grad(loss, parameters)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_set_weights_copies_rather_than_shares(generator):
    generator.set_weights(OLD, generator.weights(POLICY))
    kept = {name: tensor.clone() for name, tensor in generator.weights(OLD).items()}
    randomise_lora(generator)
    assert all(torch.equal(kept[name], tensor) for name, tensor in generator.weights(OLD).items())


def test_a_new_name_can_be_stored_and_sampled(generator, inputs):
    randomise_lora(generator)
    generator.set_weights("average", generator.weights(POLICY))
    assert torch.equal(predict_with(generator, "average")(*inputs), predict_with(generator, POLICY)(*inputs))


def test_an_unknown_name_is_refused_with_the_known_ones(generator):
    with pytest.raises(ValueError, match="no weights named 'average'.*reference"), generator.use("average"):
        pass


def test_weights_that_do_not_fit_are_refused(generator):
    with pytest.raises(ValueError, match="do not fit"):
        generator.set_weights(OLD, build_generator(lora_rank=2).weights(POLICY))


def test_a_lora_target_without_a_module_is_refused():
    with pytest.raises(ValueError, match="'to_quantum' matches no module of WanTransformer3DModel"):
        build_generator(lora_targets=("to_q", "to_quantum"))


def test_the_first_lora_depends_on_its_seed_alone():
    torch.manual_seed(1)
    one = build_generator().weights(POLICY)
    torch.manual_seed(2)
    same, other = build_generator().weights(POLICY), build_generator(lora_seed=1).weights(POLICY)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_selecting_rows_keeps_each_rows_prediction(generator, inputs):
    latents, sigma, cond = inputs
    row = torch.tensor([1])
    alone = generator.predict(latents[row], sigma[row], cond.select(row))
    torch.testing.assert_close(alone, generator.predict(*inputs)[row], atol=1e-5, rtol=0)
    assert isinstance(cond, Conditioning)


@pytest.mark.parametrize("kind", ["2.1", "2.2 A14B"])
def test_weights_are_named_as_in_the_saved_files_those_of_a_second_transformer_after_its_name(tmp_path, kind):
    generator = build_generator(pipeline=build_wan(kind=kind))
    randomise_lora(generator)
    generator.save(tmp_path)
    saved = {name.removeprefix("transformer."): value for name, value in load_file(tmp_path / LORA_FILE).items()}
    if kind == "2.2 A14B":
        second = load_file(tmp_path / "transformer_2" / LORA_FILE)
        saved |= {f"transformer_2.{name.removeprefix('transformer.')}": value for name, value in second.items()}
    weights = generator.weights(POLICY)
    assert weights.keys() == generator.trainable_parameters().keys() == saved.keys()
    assert all(torch.equal(weights[name], saved[name]) for name in saved)
