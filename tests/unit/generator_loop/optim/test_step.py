"""The optimiser step: accumulation, several processes, exact resume, and stopping on what is not finite."""

import multiprocessing
import socket

import pytest
import torch
from torch.testing import assert_close

from generator_loop.objectives import OBJECTIVES
from generator_loop.objectives.base import backward_of
from generator_loop.optim.step import NonFiniteError, Updater, policies_of
from generator_loop.processes import all_sum
from generator_loop.records import Draw, LossOutput
from generator_loop.rewards.advantages import group_advantages
from tests.toy_flow import LinearField, policies, toy_rollout, toy_scores, with_walk

NUM_PROMPTS, GROUP_SIZE = 4, 4
REWARDS = torch.tensor([0.1, 0.9, 0.5, 0.4, 0.0, 0.2, 0.6, 1.0, 0.3, 0.3, 0.3, 0.3, 0.7, float("nan"), 0.2, 0.8])


class SquaredRows:
    """Mean over rows of (w . row)^2, with a metric."""

    metrics = ("loss", "row_mean")
    num_updates, tail_span = 1, 0.0

    def __init__(self, weight):
        self.weight = weight

    def backward(self, batch, _actors, *, scale):
        rows = batch @ self.weight
        return backward_of(LossOutput(rows.square().mean(), {"row_mean": float(rows.detach().mean())}), scale=scale)


def parameter():
    return torch.nn.Parameter(torch.tensor([0.5, -0.3, 0.8]))


def rows(num=8):
    return torch.randn(num, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sizes", [[1] * 8, [5, 3], [8], [3, 2]])
def test_micro_batches_of_any_size_take_the_same_step(sizes):
    whole, weight, expected = rows(sum(sizes)), parameter(), parameter()
    updater = Updater({"w": weight}, lr=0.1, max_grad_norm=100.0)
    metrics = updater.step(SquaredRows(weight), whole.split(sizes), None)
    optimizer = torch.optim.AdamW([expected], lr=0.1, weight_decay=0.0)
    loss = (whole @ expected).square().mean()
    loss.backward()
    optimizer.step()
    assert_close(weight, expected, atol=1e-6, rtol=0)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(expected.grad.norm().item(), rel=1e-5)
    assert metrics["row_mean"] == pytest.approx((whole @ parameter()).mean().item(), rel=1e-4)
    assert metrics["num_samples"] == len(whole)


def test_gradients_are_scaled_down_to_the_norm_and_reported_as_they_were():
    weight = parameter()
    metrics = Updater({"w": weight}, lr=0.1, max_grad_norm=1e-3).step(SquaredRows(weight), [rows()], None)
    assert metrics["grad_norm"] > 0.1
    assert weight.grad.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_without_rows_nothing_changes():
    weight = parameter()
    updater = Updater({"w": weight}, lr=0.1, weight_decay=0.5)
    assert updater.step(SquaredRows(weight), [], None) == {"num_samples": 0.0}
    assert torch.equal(weight, parameter()) and updater.state() == {}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_any_weight_changes(bad):
    weight = parameter()
    updater = Updater({"w": weight}, lr=0.1)
    with pytest.raises(NonFiniteError, match="not finite: .*loss"):
        updater.step(SquaredRows(weight), [rows(), torch.full((1, 3), bad)], None)
    assert torch.equal(weight, parameter()) and weight.grad is None


def test_a_gradient_that_overflows_alone_stops_as_well():
    class Overflow(SquaredRows):
        def backward(self, batch, who, *, scale):
            metrics = super().backward(batch, who, scale=scale)
            self.weight.grad[0] = float("inf")
            return metrics

    weight = parameter()
    with pytest.raises(NonFiniteError, match="grad_norm"):
        Updater({"w": weight}, lr=0.1).step(Overflow(weight), [rows()], None)


def test_resume_from_plain_tensors_equals_the_uninterrupted_run(tmp_path):
    from safetensors.torch import load_file, save_file

    def train(updater, weight, num):
        for _ in range(num):
            updater.step(SquaredRows(weight), [rows()], None)

    weight = parameter()
    updater = Updater({"w": weight}, lr=0.1)
    train(updater, weight, 3)
    save_file({**updater.state(), "weight": weight.detach()}, tmp_path / "state.safetensors")
    train(updater, weight, 3)
    state = load_file(tmp_path / "state.safetensors")
    resumed = torch.nn.Parameter(state.pop("weight"))
    other = Updater({"w": resumed}, lr=0.1)
    other.load_state(state)
    train(other, resumed, 3)
    assert torch.equal(resumed, weight)
    assert {name: value.tolist() for name, value in other.state().items()} == {
        name: value.tolist() for name, value in updater.state().items()
    }


def test_a_state_of_other_parameters_is_refused():
    with pytest.raises(ValueError, match="belongs to other parameters"):
        Updater({"w": parameter()}, lr=0.1).load_state({"v.step": torch.zeros(())})


def train_share(name, rank, num_ranks):
    """Train on this rank's prompts for two rounds; return the weights and the last metrics."""
    policy, reference = LinearField(), LinearField(seed=3)
    objective = OBJECTIVES[name](OBJECTIVES[name].config_class())
    updater = Updater(dict(policy.named_parameters()), lr=0.05)
    share = NUM_PROMPTS // num_ranks
    mine = slice(rank * share * GROUP_SIZE, (rank + 1) * share * GROUP_SIZE)
    metrics = {}
    for step in range(2):
        shape = dict(num_prompts=share, group_size=GROUP_SIZE, num_kept=2, first_id=rank * share)
        rollout, rewards = toy_rollout(**shape, seed=step), REWARDS[mine]
        if objective.random_steps is not None:
            rollout = with_walk(rollout, policy, objective.kernel)
        advantages = group_advantages(rewards, group_size=GROUP_SIZE, all_sum=all_sum)
        plan = objective.plan(rollout, toy_scores(rewards), advantages, draw=Draw(0, step), micro_batch_size=3)
        for batches in plan:
            metrics = updater.step(objective, batches, policies(policy, reference, reference))
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()]), metrics


def worker(rank, port, folder):
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    found = {name: train_share(name, rank, 2) for name in OBJECTIVES}
    weight = parameter()
    share = rows() if rank == 0 else torch.full((1, 3), float("nan"))
    try:
        Updater({"w": weight}, lr=0.1).step(SquaredRows(weight), [share], None)
        stopped = False
    except NonFiniteError:
        stopped = torch.equal(weight, parameter())
    torch.save((found, stopped), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Return what each of two gloo processes ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # one process imports torch and forks both, which halves the cost of two fresh interpreters
    multiprocessing.set_forkserver_preload(["generator_loop.objectives", "generator_loop.optim.step"])
    torch.multiprocessing.start_processes(worker, args=(port, str(folder)), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_train_like_one_with_the_same_prompts(two_processes, name):
    weights, metrics = train_share(name, 0, 1)
    (first, first_metrics), (second, _) = (found[name] for found, _ in two_processes)
    assert torch.equal(first, second)
    assert_close(first, weights, atol=1e-5, rtol=0)
    assert first_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-6)
    start = torch.cat([parameter.detach().flatten() for parameter in LinearField().parameters()])
    assert (weights - start).abs().max() > 0.01


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_process_stops_both(two_processes):
    assert [stopped for _, stopped in two_processes] == [True, True]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_trains_a_real_generator_through_its_actors(name):
    from generator_loop.records import Prompt
    from generator_loop.sampling.rollout import PromptEncoder, rollout
    from tests.tiny_wan import build_generator

    generator = build_generator(decode_batch_size=4)
    objective = OBJECTIVES[name](OBJECTIVES[name].config_class())
    draw, prompts = Draw(0, 0), (Prompt(0, "a red ball"), Prompt(1, "a blue square"))
    settings = dict(encoder=PromptEncoder(generator), draw=draw, group_size=4, num_steps=3, batch_size=8)
    kept = {"tail_span": objective.tail_span, "random_steps": objective.random_steps}
    samples = rollout(generator, prompts, **settings, **kept)
    rewards = torch.linspace(0, 1, 8)
    advantages = group_advantages(rewards, group_size=4)
    updater = Updater(generator.trainable_parameters(), lr=1e-3)
    who = policies_of(generator, lambda frames, _prompts: frames.flatten(1).mean(1))
    base = [p.clone() for p in generator.pipeline.transformer.parameters() if not p.requires_grad]
    before = generator.weights("policy")["blocks.0.attn1.to_q.lora_B.weight"].clone()
    for batches in objective.plan(samples, toy_scores(rewards), advantages, draw=draw, micro_batch_size=3):
        metrics = updater.step(objective, batches, who)
    assert set(metrics) == {*objective.metrics, "grad_norm", "num_samples"} and metrics["grad_norm"] > 0
    assert not torch.equal(before, generator.weights("policy")["blocks.0.attn1.to_q.lora_B.weight"])
    after = [p for p in generator.pipeline.transformer.parameters() if not p.requires_grad]
    assert all(torch.equal(one, other) and other.grad is None for one, other in zip(base, after, strict=True))
