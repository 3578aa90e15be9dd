"""The cost of a run in clips, hours and memory, measured by one small step of each kind before anything is written."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import nn

from generator_loop.adapters.base import POLICY
from generator_loop.config import GeneratorConfig
from generator_loop.optim.step import policies_of
from generator_loop.records import Draw
from generator_loop.rewards.advantages import group_advantages
from generator_loop.run.memory import PROCESSES, Footprint, footprint_of
from generator_loop.run.session import Session
from reward_model import VideoJudgeReward

Result = TypeVar("Result")
NUM_COPIES = 2
"""Copies of the trained weights beside the live ones: old and reference."""


def estimate(session: Session) -> str:
    """Return a table of clips, hours and memory.

    One group of clips is sampled, scored and learned from; the trained weights are put back. The result is this
    process's; all processes work at the same time.

    Args:
        session: a freshly opened run.

    Returns:
        Lines of text.
    """
    config, generator, objective = session.config, session.generator, session.learner.objective
    clips = num_clips(session)
    before = {name: tensor.to("cpu", copy=True) for name, tensor in generator.weights(POLICY).items()}
    draw, group = Draw(config.run.seed, 0).fork("estimate"), config.sampling.group_size
    samples, sample_seconds = _timed(lambda: session.sampler.sample(session.sampler.prompts[:1], draw, policy=POLICY))
    scored, score_seconds = _timed(lambda: session.scorer.score(samples))
    advantages = group_advantages(scored.rewards, group_size=group)
    steps = objective.plan(samples, scored, advantages, draw=draw, micro_batch_size=config.update.micro_batch_size)
    first = next(steps)
    policies = policies_of(generator, session.scorer.differentiable)
    _, update_seconds = _timed(lambda: session.learner.updater.step(objective, first, policies))
    generator.set_weights(POLICY, before)
    processes = session.processes.count
    seconds = {
        "sampling": clips["sampled"] / group * sample_seconds / processes,
        "scoring": clips["judged"] / group * score_seconds / processes,
        "updates": clips["trained"] / group * update_seconds * objective.num_updates / processes,
    }
    lines = [f"{name:<12}{value:>12,} clips" for name, value in clips.items()]
    lines += [f"{name:<12}{value / 3600:>12.2f} hours" for name, value in seconds.items()]
    lines.append(
        f"{'in all':<12}{sum(seconds.values()) / 3600:>12.2f} hours on {processes} process(es), refreshes apart"
    )
    lines.append(f"{'memory':<12}{_peak_gigabytes(generator.device):>12.2f} GB per process at the peak of these steps")
    if config.generator.train == "lora":  # else nothing can be spread, and the lines below say it all
        lines += memory_lines(session)
    lines += trained_lines(generator.trainable_parameters(), config.generator)
    return "\n".join(lines)


def trained_lines(trained: Mapping[str, nn.Parameter], config: GeneratorConfig) -> list[str]:
    """Return lines with the number of trained parameters and the memory of all that a run keeps of them.

    Args:
        trained: parameters by name.
        config: how they are trained, and where their copies wait.

    Returns:
        Two lines of text.
    """
    parameters = list(trained.values())
    size = sum(parameter.numel() * parameter.element_size() for parameter in parameters) / 1e9
    kept = {"weights": 1, "gradients": 1, "moments": 2, "old and reference": 2}
    parts = ", ".join(f"{name} {count * size:.2f}" for name, count in kept.items())
    place = " (these in the computer's memory)" if config.copies == "cpu" else ""
    return [
        f"{'trained':<12}{sum(parameter.numel() for parameter in parameters):>12,} parameters, generator.train={config.train}",
        f"{'kept':<12}{sum(kept.values()) * size:>12.2f} GB of these for the whole run: {parts}{place}",
    ]


def memory_lines(session: Session) -> list[str]:
    """Return lines with the memory that weights and moments take on each process, by layout and number of processes."""
    heads = "".join(f"{num:>9}" for num in PROCESSES)
    return [
        f"weights and moments in GB per process, by layout and number of processes:{heads}",
        *(
            f"  {name:<71}" + "".join(f"{size:>9.2f}" for size in sizes)
            for name, sizes in run_footprint(session).table()
        ),
    ]


def run_footprint(session: Session) -> Footprint:
    """Return the footprint of a run's models, whole or spread."""
    adapter = sum(p.numel() * p.element_size() for p in session.generator.trainable_parameters().values())
    judges = {id(one.judge.model): one.judge.model for one in judges_of(session) if isinstance(one, VideoJudgeReward)}
    return footprint_of(session.generator.models(), judges.values(), adapter=adapter, num_copies=NUM_COPIES)


def judges_of(session: Session) -> list[object]:
    """Return the judges of a run, some of which may share their weights."""
    return [session.judge, *session.scorer.others, *session.evaluator.judges.values()]


def num_clips(session: Session) -> dict[str, int]:
    """Return how many clips a whole run samples, judges (once per judge) and trains on."""
    config, num_held_out = session.config, len(session.evaluator.prompts)
    rounds, group = config.loop.num_rounds, config.sampling.group_size
    trained = rounds * config.loop.num_iterations * config.sampling.num_prompts * group
    between = min(config.evaluation.num_round_prompts, num_held_out) * (rounds - 1)
    evaluated = (2 * num_held_out + between) * config.evaluation.num_seeds
    num_refreshes = rounds // config.refresh.every if config.refresh.every else 0
    refreshed = num_refreshes * config.refresh.num_prompts * group
    judged = trained + refreshed + evaluated * len(session.evaluator.judges)
    return {"sampled": trained + refreshed + evaluated, "judged": judged, "trained": trained}


def _timed(call: Callable[[], Result]) -> tuple[Result, float]:
    _synchronize()
    start = time.monotonic()
    result = call()
    _synchronize()
    return result, time.monotonic() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_gigabytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
