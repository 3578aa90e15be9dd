"""Compares DRaFT-K's memory-flat gradient with plain and with checkpointed back-propagation through the sampler, and
decoding a run of latent frames with decoding the whole clip.

python scripts/bench/draft.py [--generator toy] [--judge toy] [--tails K ...] [--clips N] [--frames F] [--runs N ...]

The embedded generator and judge, one thread; K = 1, 4, 16 last steps, and runs of 1, 2 and 4 of 9 latent frames at the clip's
beginning, middle and end. Results are compared before anything is printed; seconds are the processor's, memory is the most
bytes that were held for the backward pass at any one time, weights left out. Prints two tables and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from generator_loop.objectives.draft import Draft, DraftBatch, DraftConfig
from generator_loop.optim.step import policies_of
from generator_loop.records import Rollout, TailStates
from generator_loop.run.build import open_session, read_config
from generator_loop.run.launch import Processes
from generator_loop.run.session import Session

TOLERANCE = 1e-5
"""Largest relative difference of the gradients."""

REPEATS = 3
"""Timings of a decode, the shortest of which counts."""

Result = TypeVar("Result")

RECIPE = Path(__file__).parents[2] / "configs" / "toy.yaml"


@dataclass
class Held:
    """Bytes held for the backward pass: each storage once, those of `weights` not at all."""

    weights: frozenset[int]
    now: int = 0
    peak: int = 0
    users: dict[int, int] = field(default_factory=dict)

    def take(self, tensor: Tensor) -> HeldTensor:
        """Count a saved tensor for as long as the graph holds the returned object."""
        place, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        if place in self.weights:
            size = 0
        if self.users.setdefault(place, 0) == 0:
            self.now += size
            self.peak = max(self.peak, self.now)
        self.users[place] += 1
        return HeldTensor(self, tensor, place, size)


class HeldTensor:
    """A saved tensor; when the graph lets go of it, its bytes count no more."""

    def __init__(self, held: Held, tensor: Tensor, place: int, size: int) -> None:
        """Keep the tensor."""
        self.held, self.tensor, self.place, self.size = held, tensor, place, size

    def __del__(self) -> None:
        """Stop counting."""
        self.held.users[self.place] -= 1
        if self.held.users[self.place] == 0:
            self.held.now -= self.size


@contextmanager
def counting(parameters: Sequence[Tensor]) -> Iterator[Held]:
    """Yield the count of bytes that are held for backward passes inside the context."""
    held = Held(frozenset(p.untyped_storage().data_ptr() for p in parameters))
    with torch.autograd.graph.saved_tensors_hooks(held.take, lambda holder: holder.tensor):
        yield held


def flat(session: Session, samples: Rollout, num_steps: int) -> None:
    """Add the gradient of the last steps, one in memory at a time."""
    assert samples.tail is not None
    batch = DraftBatch(
        prompts=_prompts(samples),
        latents=samples.latents,
        tail=TailStates(samples.tail.states[-num_steps:], samples.tail.sigmas[-num_steps - 1 :]),
        cond=samples.cond,
    )
    Draft(DraftConfig()).backward(batch, policies_of(session.generator, session.scorer.differentiable), scale=1.0)


def through_time(session: Session, samples: Rollout, num_steps: int, *, recompute: bool) -> None:
    """Add the gradient of the last steps by one graph through all of them; `recompute` checkpoints each step."""
    assert samples.tail is not None
    policies = policies_of(session.generator, session.scorer.differentiable)
    sigmas, state = samples.tail.sigmas[-num_steps - 1 :], samples.tail.states[-num_steps]

    def step(state: Tensor, index: int) -> Tensor:
        """Return the state after one step of Euler's method."""
        velocity = policies.policy(state, sigmas[index].expand(len(state)), samples.cond)
        return state + (sigmas[index + 1] - sigmas[index]) * velocity

    for index in range(num_steps):
        state = checkpoint(step, state, index, use_reentrant=False) if recompute else step(state, index)
    (-policies.reward(policies.decode(state), _prompts(samples)).mean()).backward()


def _prompts(samples: Rollout) -> tuple:
    return tuple(prompt for prompt in samples.prompts for _ in range(samples.group_size))


def measure(session: Session, action: Callable[[], Result]) -> tuple[Result, int, float]:
    """Return the result of `action`, the most bytes that it held, and its seconds."""
    generator = session.generator
    frozen = [*generator.pipeline.transformer.parameters(), *generator.pipeline.vae.parameters()]  # type: ignore[attr-defined]
    with counting([*frozen, *session.judge.judge.parameters()]) as held:
        start = time.process_time()
        result = action()
        seconds = time.process_time() - start
    return result, held.peak, seconds


def trained_gradient(session: Session, action: Callable[[], None]) -> Tensor:
    """Return the gradient [P] that `action` adds to the trained parameters, and take it away."""
    trained = list(session.generator.trainable_parameters().values())
    action()
    gradient = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
    for parameter in trained:
        parameter.grad = None
    return gradient


def compare_sampler(session: Session, tails: Sequence[int]) -> list[dict]:
    """Return a record for each number of steps and way to their gradient; ValueError where ways disagree."""
    samples = session.sampler.sample(session.sampler.prompts[:1], session.draw)
    table = []
    for num_steps in tails:
        ways: dict[str, Callable[[], None]] = {
            "plain": lambda k=num_steps: through_time(session, samples, k, recompute=False),
            "flat": lambda k=num_steps: flat(session, samples, k),
            "checkpointed": lambda k=num_steps: through_time(session, samples, k, recompute=True),
        }
        measured = {
            name: measure(session, lambda way=way: trained_gradient(session, way)) for name, way in ways.items()
        }
        expected, _, plain_seconds = measured["plain"]
        for name, (gradient, held, seconds) in measured.items():
            record = {
                "K": num_steps,
                "way": name,
                "held_mib": held / 2**20,
                "difference": _same(name, gradient, expected),
            }
            table.append({**record, "seconds": seconds, "seconds_ratio": seconds / plain_seconds})
    return table


def compare_decoder(session: Session, num_clips: int, num_frames: int, runs: Sequence[int]) -> list[dict]:
    """Return a record for each span of latent frames and way to the gradient of its reward; ValueError where ways disagree.

    `cut` decodes the whole clip and shows the judge the frames of the span; `run` decodes those alone, with the same gradient
    in the span's latent frames. `all` is a reward of the whole clip.
    """
    shape = session.generator.init_latents([torch.Generator().manual_seed(0)]).shape[1:]
    noise = torch.randn(num_clips, shape[0], num_frames, *shape[2:], generator=torch.Generator().manual_seed(0))
    prompts = session.sampler.prompts[:1] * num_clips
    policies = policies_of(session.generator, session.scorer.differentiable)

    def gradient(decode: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the gradient of the mean reward to the latents."""
        latents = noise.clone().requires_grad_(True)
        (gradient_to_latents,) = torch.autograd.grad(-policies.reward(decode(latents), prompts).mean(), latents)
        return gradient_to_latents

    def record(place: str, way: str, difference: float, action: Callable[[], Tensor]) -> dict:
        """Return the bytes that an action holds for its backward pass, and its seconds."""
        timings = [measure(session, action) for _ in range(REPEATS)]
        held, seconds = timings[0][1] / 2**20, min(seconds for _, _, seconds in timings)
        return {"run": place, "way": way, "held_mib": held, "difference": difference, "seconds": seconds}

    table = [record(f"0-{num_frames}", "all", 0.0, lambda: gradient(policies.decode))]
    for run in _places(num_frames, runs):
        ways = {
            "cut": lambda run=run: gradient(lambda x: policies.decode(x)[:, session.generator.frames_of(run)]),
            "run": lambda run=run: gradient(lambda x: policies.decode(x, run)),
        }
        inside = slice(run.start, run.stop)
        difference = _same("run", ways["run"]()[:, :, inside], ways["cut"]()[:, :, inside])
        place = f"{run.start}-{run.stop}"
        table += [record(place, "cut", 0.0, ways["cut"]), record(place, "run", difference, ways["run"])]
    return table


def _places(num_frames: int, runs: Sequence[int]) -> list[range]:
    """Return runs of these lengths at the clip's beginning, middle and end."""
    starts = [(start, num) for num in runs for start in (0, (num_frames - num) // 2, num_frames - num)]
    return [range(start, start + num) for start, num in starts]


def _same(name: str, value: Tensor, expected: Tensor) -> float:
    """Return the relative difference; ValueError where it is too large."""
    difference = float((value - expected).norm() / expected.norm())
    if not difference <= TOLERANCE:
        raise ValueError(f"{name} differs by {difference}, more than {TOLERANCE}")
    return difference


def main(argv: Sequence[str]) -> int:
    """Check that all ways agree, print bytes and seconds; 1 where they disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default="toy", help="folder of a Wan pipeline (default: the embedded one)")
    parser.add_argument("--judge", default="toy", help="judge folder (default: the embedded one)")
    parser.add_argument("--tails", type=int, nargs="+", default=[1, 4, 16], help="numbers of differentiated steps K")
    parser.add_argument("--clips", type=int, default=2, help="clips in one micro-batch")
    parser.add_argument("--frames", type=int, default=9, help="latent frames of the clips that are decoded")
    parser.add_argument(
        "--runs", type=int, nargs="+", default=[1, 2, 4], help="numbers of latent frames decoded of them"
    )
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    overrides = [
        f"generator.path={arguments.generator}",
        f"judge.path={arguments.judge}",
        "judge.audit_path=null",
        "refresh.every=0",
        "objective.name=draft",
        "objective.tail_span=1.0",
        f"sampling.num_steps={max(arguments.tails)}",
        f"sampling.group_size={arguments.clips}",
    ]
    session = open_session(read_config(RECIPE, overrides), Processes(device=torch.device("cpu")))
    try:
        sampler = compare_sampler(session, arguments.tails)
        decoder = compare_decoder(session, arguments.clips, arguments.frames, arguments.runs)
    except ValueError as error:
        sys.stdout.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{'K':>3} {'way':>12} {'held MiB':>9} {'difference':>11} {'time / plain':>12}\n")
    for record in sampler:
        sys.stdout.write(
            f"{record['K']:>3} {record['way']:>12} {record['held_mib']:>9.1f} {record['difference']:>11.1e} {record['seconds_ratio']:>12.2f}\n"
        )
    sys.stdout.write(f"\n{'run':>5} {'way':>4} {'held MiB':>9} {'difference':>11} {'seconds':>8}\n")
    for record in decoder:
        sys.stdout.write(
            f"{record['run']:>5} {record['way']:>4} {record['held_mib']:>9.1f} {record['difference']:>11.1e} {record['seconds']:>8.2f}\n"
        )
    sys.stdout.write(json.dumps({"sampler": sampler, "decoder": decoder}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
