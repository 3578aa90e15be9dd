"""LoRA weights that would not reach the model stop the run."""

import copy

import pytest
import torch

from generator_loop.adapters.base import OLD, POLICY
from tests.tiny_wan import build_generator


def test_weights_that_reach_every_layer_pass_and_are_computed_with():
    generator = build_generator()
    weights = {name: torch.full_like(tensor, 0.5) for name, tensor in generator.weights(POLICY).items()}
    generator.set_weights(POLICY, weights)
    live = dict(generator.pipeline.transformer.named_parameters())
    assert all(torch.equal(live[_live_name(name)], weights[name]) for name in weights)


def _live_name(name: str) -> str:
    return name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")


def replace_all(transformer):
    """Put copies in the place of all blocks, as a wrapper that rebuilds modules does."""
    transformer.blocks = copy.deepcopy(transformer.blocks)


def replace_one(transformer):
    """Put a copy in the place of one layer."""
    transformer.blocks[1].attn1.to_q = copy.deepcopy(transformer.blocks[1].attn1.to_q)


def take_away(transformer):
    """Leave the base layer alone in the place of an adapted one."""
    transformer.blocks[0].attn1.to_q = transformer.blocks[0].attn1.to_q.base_layer


def merge(transformer):
    """Add LoRA to the base weights, after which setting it changes nothing."""
    for module in transformer.modules():
        if hasattr(module, "merge") and hasattr(module, "lora_A"):
            module.merge()


BREAKS = {
    replace_all: "reach 0 of 40 tensors",
    replace_one: r"reach 38 of 40 tensors.*blocks.1.attn1.to_q",
    take_away: r"reach 38 of 40 tensors.*blocks.0.attn1.to_q",
    merge: "reach 0 of 40 tensors",
    lambda transformer: transformer.disable_adapters(): "reach 0 of 40 tensors",
}


@pytest.mark.parametrize("name", [POLICY, OLD])
@pytest.mark.parametrize("break_it", BREAKS, ids=lambda break_it: break_it.__name__)
def test_weights_that_miss_a_layer_stop_the_run(break_it, name):
    generator = build_generator()
    weights = {name: tensor.clone() for name, tensor in generator.weights(POLICY).items()}
    break_it(generator.pipeline.transformer)
    with pytest.raises(RuntimeError, match=BREAKS[break_it]):
        generator.set_weights(name, weights)
