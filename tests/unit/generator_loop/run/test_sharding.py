"""A transformer that is spread over two processes computes as a whole one does, whoever calls it and how often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from generator_loop.objectives import OBJECTIVES
from generator_loop.optim.step import Updater, policies_of
from generator_loop.processes import LOCKSTEP, all_sum, any_process, gather, in_step, wait
from generator_loop.records import Draw, Prompt
from generator_loop.rewards.advantages import group_advantages
from generator_loop.run.memory import footprint_of
from generator_loop.run.sharding import Layout
from generator_loop.sampling.rollout import PromptEncoder, rollout
from tests.forked import run_forked
from tests.tiny_cogvideox import build_cogvideox, build_cogvideox_generator
from tests.tiny_hunyuan_video import build_hunyuan_video, build_hunyuan_video_generator
from tests.tiny_ltx import build_ltx, build_ltx_generator
from tests.tiny_mochi import build_mochi, build_mochi_generator
from tests.tiny_wan import build_generator, build_wan, randomise_lora
from tests.toy_flow import toy_scores

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
FAMILIES: dict[str, tuple[Any, Any]] = {
    "wan": (build_wan, build_generator),
    "ltx": (build_ltx, build_ltx_generator),
    "cogvideox": (build_cogvideox, build_cogvideox_generator),
    "hunyuan_video": (build_hunyuan_video, build_hunyuan_video_generator),
    "mochi": (build_mochi, build_mochi_generator),
}
LAYOUTS = {"given up": Layout(kind="fsdp2"), "kept": Layout(kind="fsdp2", reshards=False)}
NUM_CLIPS = 3
STEPS = [("nft", "no"), ("nft", "two"), ("draft", "no"), ("draft", "two"), ("flow_grpo", "two")]


def pair_of(build_pipeline: Any, build: Any, layout: Layout, **settings: Any) -> tuple[Any, Any]:
    """Return a whole generator and one that is spread over the processes, with the same weights."""
    whole, pipeline = build(pipeline=build_pipeline()), build_pipeline()
    for name in ("transformer", "transformer_2"):
        if getattr(pipeline, name, None) is not None:
            layout.place(getattr(pipeline, name), CPU)
    spread = build(pipeline=pipeline, **settings)
    for generator in (whole, spread):
        randomise_lora(generator)
    return whole, spread


def inputs_of(generator: Any, sigmas: Tensor) -> tuple[Any, ...]:
    streams = [torch.Generator().manual_seed(seed) for seed in range(len(sigmas))]
    return generator.init_latents(streams), sigmas, generator.encode_prompts(["a red ball"] * len(sigmas))


def gradients_of(generator: Any, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Return the gradient of a loss of the policy's and the old policy's velocities."""
    for parameter in generator.trainable_parameters().values():
        parameter.grad = None
    with LOCKSTEP.together():
        velocity = generator.predict(*inputs)
        with generator.use("old"):
            old = generator.predict(*inputs)
    (velocity - old).square().sum().backward()
    return [p.grad for p in generator.trainable_parameters().values()]


def largest(first: list[Tensor], second: list[Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(first, second, strict=True))


def compare_family(rank: int, family: str, layout: Layout) -> Tensor:
    """Return how far a spread generator's velocities and gradients are from a whole one's, and its share of the weights."""
    whole, spread = pair_of(*FAMILIES[family], layout, checkpoint_transformer=True)
    sigmas = torch.linspace(0.3, 0.8, NUM_CLIPS)
    away = 0.0
    if rank == 0:  # the other one waits meanwhile
        inputs = inputs_of(whole, sigmas)
        with torch.no_grad():
            away = max(away, *(float((spread.predict(*inputs) - whole.predict(*inputs)).abs().max()) for _ in range(2)))
    wait()
    inputs = inputs_of(whole, sigmas[: 1 + rank])
    for _ in range(2):
        away = max(away, largest(gradients_of(spread, inputs), gradients_of(whole, inputs)))
    base = [weight for weight in spread.pipeline.transformer.parameters() if not weight.requires_grad]
    here = sum(weight.to_local().numel() for weight in base)
    least = min(float(gradient.abs().max()) > 0 for gradient in gradients_of(whole, inputs))
    gradients_of(spread, inputs)
    return torch.tensor([away, here / sum(weight.numel() for weight in base), float(least)])


def footprints() -> list[Any]:
    """Return the footprints of a whole generator and of a spread one."""
    pair = pair_of(build_wan, build_generator, LAYOUTS["given up"])
    return [footprint_of(generator.models(), [], adapter=1, num_copies=2) for generator in pair]


def compare_experts(rank: int) -> Tensor:
    """Return the same of two transformers, of which one process calls both and the other one only."""
    whole, spread = pair_of(lambda: build_wan(kind="2.2 A14B"), build_generator, LAYOUTS["given up"])
    both, late = torch.tensor([0.9, 0.5]), torch.tensor([0.4, 0.5])  # they change over at 0.8
    inputs = inputs_of(whole, both if rank == 0 else late)
    expected = gradients_of(whole, inputs)
    found = gradients_of(spread, inputs)
    expected = [torch.zeros_like(other) if one is None else one for one, other in zip(expected, found, strict=True)]
    return torch.tensor([largest(found, expected)])


SECOND = {"no": [torch.nan] * 3, "two": [0.3, torch.nan, 0.7]}
"""Rewards of the second prompt, whose process has fewer batches than the first one's or none."""


def step_of(generator: Any, name: str, second: str, rank: int, num_ranks: int) -> Tensor:
    """Take the objective's optimiser steps with some clips that have no reward, and return the trained weights."""
    objective = OBJECTIVES[name](OBJECTIVES[name].config_class())
    prompts = [Prompt(0, "a red ball"), Prompt(1, "a blue square")][rank::num_ranks]
    kept = dict(tail_span=objective.tail_span, random_steps=objective.random_steps)
    settings = dict(encoder=PromptEncoder(generator), draw=Draw(0, 0), group_size=3, num_steps=3, batch_size=2)
    samples = rollout(generator, prompts, **settings, **kept)
    rewards = torch.tensor([[0.1, 0.9, 0.5], SECOND[second]])[rank::num_ranks].flatten()
    advantages = group_advantages(rewards, group_size=3, all_sum=all_sum)
    updater = Updater(generator.trainable_parameters(), lr=1e-2)
    policies = policies_of(generator, lambda frames, found: frames.flatten(1).mean(1) + 0 * float(found[0].prompt_id))
    plan = objective.plan(samples, toy_scores(rewards), advantages, draw=Draw(0, 0), micro_batch_size=2)
    for batches in plan:
        updater.step(objective, batches, policies)
    return torch.cat([weight.detach().flatten() for weight in generator.trainable_parameters().values()])


def refuse_out_of_step(rank: int) -> Tensor:
    """Return whether both processes stop where one calls with gradient and the other one does not."""
    _, spread = pair_of(build_wan, build_generator, LAYOUTS["given up"])
    try:
        if rank == 0:
            spread.predict(*inputs_of(spread, torch.tensor([0.5])))
        else:
            wait()
    except RuntimeError as error:
        return torch.tensor([float("out of step" in str(error))])
    return torch.zeros(1)


def scenarios(rank: int) -> dict[str, Tensor]:
    found = {}
    for family in FAMILIES:
        LOCKSTEP.clear()
        found[family] = compare_family(rank, family, LAYOUTS["given up"])
    LOCKSTEP.clear()
    found["kept"] = compare_family(rank, "wan", LAYOUTS["kept"])
    LOCKSTEP.clear()
    whole, spread = footprints()
    found["footprints are equal"] = torch.tensor([float(whole == spread and spread.block > 0)])
    LOCKSTEP.clear()
    found["experts"] = compare_experts(rank)
    for name, second in STEPS:
        LOCKSTEP.clear()
        _, spread = pair_of(build_wan, build_generator, LAYOUTS["given up"])
        found[f"{name} {second}"] = step_of(spread, name, second, rank, 2)
    LOCKSTEP.clear()
    found["dealt"] = torch.tensor(gather([0, 2, 4] if rank == 0 else [1]))
    _, spread = pair_of(build_wan, build_generator, LAYOUTS["given up"])
    found["flag"] = torch.tensor([float(any_process(rank == 1)), float(any_process(False))])
    lent = in_step([torch.full((2,), 7.0)] if rank == 1 else [], device=CPU)
    found["lent"] = torch.stack([torch.cat([batch, torch.tensor([float(own)])]) for batch, own in lent])
    LOCKSTEP.clear()
    found["out of step"] = refuse_out_of_step(rank)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """Return what each of two processes found."""
    folder, before = tmp_path_factory.mktemp("ranks"), torch.get_num_threads()
    torch.set_num_threads(1)
    build_wan()  # the libraries are imported once, not in each process

    def work(rank: int) -> None:
        torch.save(scenarios(rank), folder / f"{rank}.pt")

    codes = run_forked(work, Path(folder), num_processes=2)
    torch.set_num_threads(before)
    assert codes == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", [*FAMILIES, "kept"])
def test_a_spread_transformer_computes_as_a_whole_one_and_each_process_holds_half(found, name: str) -> None:
    for numbers in found:
        away, share, has_gradient = numbers[name].tolist()
        assert away < 1e-5 and has_gradient
        assert 0.4 < share < 0.65  # tiny tensors do not split evenly


def test_the_memory_of_each_layout_is_estimated_alike_from_whole_and_from_spread_models(found) -> None:
    assert [float(numbers["footprints are equal"]) for numbers in found] == [1, 1]


def test_two_transformers_of_which_a_process_needs_one_alone_stay_in_step(found) -> None:
    for numbers in found:
        assert float(numbers["experts"]) < 1e-5


@pytest.mark.parametrize(("name", "second"), STEPS)
def test_a_process_with_fewer_scored_clips_or_none_steps_as_the_others_do(found, name: str, second: str) -> None:
    whole = build_generator()
    randomise_lora(whole)
    before = torch.cat([weight.detach().flatten().clone() for weight in whole.trainable_parameters().values()])
    expected = step_of(whole, name, second, 0, 1)
    assert float((expected - before).abs().max()) > 1e-3
    for numbers in found:
        # Adam divides a gradient by itself, so that one near 0 may step by any amount: the step is compared as a whole
        apart = numbers[f"{name} {second}"] - expected
        assert float(apart.norm() / (expected - before).norm()) < 1e-3


def test_items_of_all_processes_come_in_the_order_of_one(found) -> None:
    for numbers in found:
        assert numbers["dealt"].tolist() == [0, 1, 2, 4]
        assert numbers["flag"].tolist() == [1, 0]


def test_a_process_that_has_no_batch_left_borrows_one_and_knows_it(found) -> None:
    assert found[0]["lent"].tolist() == [[7, 7, 0]]
    assert found[1]["lent"].tolist() == [[7, 7, 1]]


def test_processes_that_fell_out_of_step_stop_instead_of_waiting_for_ever(found) -> None:
    assert [float(numbers["out of step"]) for numbers in found] == [1, 1]
