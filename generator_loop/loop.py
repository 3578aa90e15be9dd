"""The method: generator and judge learn from each other in turn.

A round is `loop.num_iterations` of (rollout, score, update), then a judge refresh when due, and an evaluation on fixed
held-out prompts with fixed noise.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from generator_loop.adapters.base import OLD, POLICY, REFERENCE
from generator_loop.evaluation import summary
from generator_loop.evaluation.held_out import Evaluation
from generator_loop.guards import monitors
from generator_loop.optim.ema import blend
from generator_loop.optim.step import all_sum, policies_of
from generator_loop.records import Prompt, Rollout, Scored
from generator_loop.refresh import refresh as judge_refresh
from generator_loop.refresh.new_beats_old import losers_of, new_beats_old, winners_of
from generator_loop.rewards.advantages import Advantages, part_advantages
from generator_loop.rewards.scorer import transformed
from generator_loop.run.session import Session, anchored
from generator_loop.run.state import save
from generator_loop.sampling.prompts import draw_prompts
from generator_loop.sampling.rollout import rollout
from generator_loop.tracking.checkpoint import latest
from generator_loop.tracking.metric_log import is_distributed
from generator_loop.tracking.model_card import write_model_card
from generator_loop.tracking.report import write_report
from reward_model import VideoJudgeReward, write_video
from reward_model.files import write_json

log = logging.getLogger(__name__)

Item = TypeVar("Item")


def run(session: Session, stop: Callable[[], bool]) -> Path | None:
    """Train the generator and the judge by turns, and write everything to `run.output`.

    Args:
        session: the run's parts, new or restored.
        stop: says after each iteration, on all processes alike, whether to save and leave.

    Returns:
        The summary file, or None if the run was told to stop before its end; it can then be resumed.
    """
    loop, refresh, progress = session.config.loop, session.config.refresh, session.progress
    if not progress.rounds:
        evaluate(session, refreshed=None)
    while progress.round < loop.num_rounds:
        iterate(session)
        progress.iteration += 1
        leave = stop()
        if progress.iteration == loop.num_iterations:
            progress.round, progress.iteration = progress.round + 1, 0
            due = refresh.every > 0 and progress.round % refresh.every == 0
            evaluate(session, refreshed=refresh_judge(session) if due else None)
            save(session)
        elif leave:
            save(session)
        if leave and progress.round < loop.num_rounds:
            return None
    return finish(session)


def iterate(session: Session) -> None:
    """Sample, score and learn once."""
    samples = sample_groups(session, choose_prompts(session))
    scored = score(session, samples)
    advantages = compare_siblings(session, samples, scored)
    metrics = update_generator(session, samples, scored, advantages)
    check_monitors(session, samples, scored, advantages, metrics)


def choose_prompts(session: Session) -> tuple[Prompt, ...]:
    """Draw this process's share of the iteration's prompts."""
    return draw_prompts(
        session.train_prompts,
        num_prompts=session.config.sampling.num_prompts,
        seed=session.config.run.seed,
        round_index=session.step,
        rank=session.processes.rank,
        num_ranks=session.processes.count,
    )


def sample_groups(session: Session, prompts: tuple[Prompt, ...], *, policy: str = OLD) -> Rollout:
    """Draw a group of clips for each prompt from the policy of the last iteration's end."""
    settings = session.config.sampling
    return rollout(
        session.generator,
        prompts,
        encoder=session.encoder,
        draw=session.draw,
        group_size=settings.group_size,
        num_steps=settings.num_steps,
        batch_size=settings.batch_size,
        policy=policy,
        tail_span=session.objective.tail_span,
        random_steps=session.objective.random_steps,
    )


def score(session: Session, samples: Rollout) -> Scored:
    """Let the judge score the clips, and remember each prompt's first loser of the round for the refresh."""
    settings = session.config.reward
    scored = session.scorer.score(samples)
    monitors.refuse_invalid(scored, max_fraction=settings.max_invalid_fraction)
    if session.config.refresh.every:
        for loser in gathered(losers_of(samples, scored)):
            session.progress.losers.setdefault(loser.prompt.prompt_id, loser)
    return transformed(scored, samples, settings.transform, draw=session.draw)


def compare_siblings(session: Session, samples: Rollout, scored: Scored) -> Advantages:
    """Compare each clip with its siblings."""
    parts = [(1.0, scored.rewards)]
    if session.config.update.advantages == "per_reward":
        parts = [(weight, scored.scores[name]) for name, weight in session.scorer.parts.items()]
    return part_advantages(
        parts, group_size=samples.group_size, std=session.config.update.advantage_std, all_sum=all_sum
    )


def update_generator(session: Session, samples: Rollout, scored: Scored, advantages: Advantages) -> dict[str, float]:
    """Take the objective's optimiser steps, then let the sampling policy follow; return means of their metrics."""
    generator, objective = session.generator, session.objective
    policies = policies_of(generator, session.scorer.differentiable)
    steps = objective.plan(
        samples, scored, advantages, draw=session.draw, micro_batch_size=session.config.update.micro_batch_size
    )
    rows = [session.updater.step(objective, batches, policies) for batches in steps]
    followed = blend(generator.weights(OLD), generator.weights(POLICY), decay=session.config.update.old_decay)
    generator.set_weights(OLD, followed)
    names = sorted({name for row in rows for name in row})
    return {name: sum(row[name] for row in rows if name in row) / sum(name in row for row in rows) for name in names}


def check_monitors(
    session: Session, samples: Rollout, scored: Scored, advantages: Advantages, metrics: Mapping[str, float]
) -> None:
    """Log the iteration, and warn where the clips drift in ways that no reward sees."""
    progress = session.progress
    found = monitors.statistics(samples, scored)
    found |= {"flat_groups": advantages.num_flat_groups / advantages.num_groups}
    found |= {f"update_{name}": value for name, value in metrics.items()}
    found = session.log.write("iteration", session.step + 1, found)
    progress.first = progress.first or {name: found[name] for name in monitors.LIMITS}
    for sentence in monitors.alarms(found, progress.first):
        progress.alarms.append(f"iteration {session.step + 1}: {sentence}")
    session.bar.advance(f"round {progress.round + 1}, reward {found['reward']:.3f}")


def refresh_judge(session: Session) -> dict[str, float]:
    """Teach the judge that the newest best clips beat this round's first losers; keep it if the anchors agree."""
    config, progress = session.config, session.progress
    assert session.anchors is not None and isinstance(session.judge, VideoJudgeReward)
    losers = list(progress.losers.values())[: config.refresh.num_prompts]
    progress.losers = {}
    mine = losers[session.processes.rank :: session.processes.count]
    winners = []
    if mine:
        samples = sample_groups(session, tuple(loser.prompt for loser in mine), policy=POLICY)
        winners = winners_of(samples, session.scorer.score(samples))
    with torch.no_grad():
        old = [(loser.prompt, session.generator.decode(loser.latents[None])[0].cpu()) for loser in losers]
    pairs = new_beats_old(gathered(winners), old, config.generator.fps)
    found = judge_refresh.refresh(session.judge, pairs, session.anchors, config.refresh, seed=session.draw.seed)
    progress.num_kept += int(found["kept"])
    if config.loop.reset_reference:
        session.generator.set_weights(REFERENCE, session.generator.weights(POLICY))
    return session.log.write("refresh", session.step, found)


def evaluate(session: Session, *, refreshed: Mapping[str, float] | None) -> None:
    """Measure the held-out prompts (all before and after, some between) and append the round to the summary."""
    config, progress, evaluator = session.config, session.progress, session.evaluator
    number, ends = progress.round, progress.round in (0, config.loop.num_rounds)
    num_round = min(config.evaluation.num_round_prompts, len(evaluator.prompts))
    shown = {prompt.prompt_id for prompt in evaluator.prompts[: config.evaluation.num_samples]}
    folder = session.output / "samples" / f"round-{number:03d}"

    def keep(prompt: Prompt, frames: Tensor) -> None:
        """Write the clips of the prompts that are shown."""
        if prompt.prompt_id in shown:
            write_video(folder / f"prompt-{prompt.prompt_id:05d}.mp4", frames, config.generator.fps)

    session.bar.say(f"evaluating round {number}")
    whole = evaluator.evaluate(
        session.generator,
        len(evaluator.prompts) if ends else num_round,
        judge_is_initial=progress.num_kept == 0,
        keep=keep,
    )
    part = whole.first(num_round)
    progress.before = whole if number == 0 else progress.before
    progress.after = whole if number == config.loop.num_rounds else None
    assert progress.before is not None
    affine, accuracy = anchored(session)
    record = summary.round_record(
        number,
        part,
        anchored=affine,
        probes=session.probes.measure(),
        diversity=summary.diversity(part, progress.before.first(num_round), session.renderer),
        refresh=refreshed,
        anchor_accuracy=accuracy,
        seconds=session.round_seconds(),
    )
    progress.rounds.append(record)
    session.log.write("round", session.step, summary.flat(record))
    if session.processes.is_main:
        write_json(folder / "samples.json", _samples(evaluator.prompts, whole, shown))
    progress.seconds, session.started = 0.0, time.monotonic()


def _samples(prompts: tuple[Prompt, ...], evaluation: Evaluation, shown: set[int]) -> list[dict[str, Any]]:
    """Return what is known of each written clip, the first of its prompt."""
    texts = {prompt.prompt_id: prompt.text for prompt in prompts}
    return [
        {
            "file": f"prompt-{prompt_id:05d}.mp4",
            "prompt": texts[prompt_id],
            "scores": summary.row_of(evaluation, evaluation.prompt_ids.index(prompt_id)),
        }
        for prompt_id in dict.fromkeys(evaluation.prompt_ids)
        if prompt_id in shown
    ]


def finish(session: Session) -> Path:
    """Write `summary.json` and the report from what the run measured."""
    config, progress = session.config, session.progress
    path = session.output / "summary.json"
    if session.processes.is_main:
        checkpoint = latest(session.output / "checkpoints")
        assert checkpoint is not None
        found = summary.summary(
            config, progress.rounds, progress.before, progress.after, alarms=progress.alarms, checkpoint=checkpoint
        )
        write_json(path, found)
        write_report(session.output)
        write_model_card(session.output, pipeline=session.generator.pipeline_name)
    session.processes.wait()
    session.bar.close()
    return path


def gathered(items: list[Item]) -> list[Item]:
    """Return the items of all processes, in the order of the processes."""
    if not is_distributed():
        return items
    shares: list[list[Item]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(shares, items)
    return [item for share in shares for item in share]
