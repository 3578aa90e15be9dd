"""The method: generator and judge learn from each other in turn.

A round is `loop.num_iterations` of (sample, score, update), then a judge refresh when due, and an evaluation on fixed
held-out prompts with fixed noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from generator_loop.adapters.base import POLICY, REFERENCE
from generator_loop.evaluation.columns import Evaluation
from generator_loop.evaluation.samples import SampleWriter
from generator_loop.evaluation.summary import diversity, log_record, round_record, summary
from generator_loop.guards.monitors import refuse_invalid, statistics
from generator_loop.guards.rounds import decide, triggered
from generator_loop.processes import all_sum
from generator_loop.records import Rollout, Scored
from generator_loop.refresh.anchors import Affine
from generator_loop.rewards.advantages import Advantages, part_advantages
from generator_loop.rewards.scorer import transformed
from generator_loop.run import rounds
from generator_loop.run.launch import CheckpointClock, Stopped
from generator_loop.run.session import Session
from generator_loop.run.state import return_to_good, save, save_good
from generator_loop.tracking.checkpoint import latest
from generator_loop.tracking.model_card import write_model_card
from generator_loop.tracking.report import write_report
from reward_model.files import write_json


def run(session: Session, stop: Callable[[], bool]) -> Path | None:
    """Train the generator and the judge by turns, and write everything to `run.output`.

    Args:
        session: the run's parts, new or restored.
        stop: says, on all processes alike, whether to save and leave; asked after each iteration, between the clips of
            an evaluation and the steps of a refresh.

    Returns:
        The summary file, or None if the run was told to stop before its end; it can then be resumed.
    """
    loop, progress = session.config.loop, session.progress
    clock = CheckpointClock(session.config.run.checkpoint_minutes)

    def check() -> None:
        """Leave for the handler below if any process was told to stop."""
        if stop():
            raise Stopped

    try:
        if not progress.rounds:
            evaluate(session, refreshed=None, check=check)
            act_on_round(session)
        while progress.round < loop.num_rounds and not progress.ended:
            if progress.iteration < loop.num_iterations:
                iterate(session)
                progress.iteration += 1
                check()
            else:
                end_round(session, check)
            if progress.iteration == 0 or clock.is_due():
                save(session)
                clock.restart()
                rounds.forget(session)
        measure_result(session, check)
    except Stopped:
        save(session)
        return None
    return finish(session)


def iterate(session: Session) -> None:
    """Sample, score and learn once."""
    samples = rounds.sampled(session)
    scored = rounds.scored(session, samples)
    refuse_invalid(scored, max_fraction=session.config.reward.max_invalid_fraction, all_sum=all_sum)
    if session.refresher is not None:
        session.refresher.collector.observe(samples, scored, session.pair_tools)
    scored = transformed(scored, samples, session.config.reward.transform, draw=session.draw)
    advantages = compare_siblings(session, scored)
    metrics = session.learner.learn(samples, scored, advantages, session.draw)
    logged = record_iteration(session, samples, scored, advantages, metrics)
    warn(session, (*scored.left_out.values(), *session.watch.check(logged)))


def compare_siblings(session: Session, scored: Scored) -> Advantages:
    """Return how much better each clip is than its siblings of the same prompt."""
    update = session.config.update
    parts = [(1.0, scored.rewards)]
    if update.advantages == "per_reward":
        parts = [
            (weight, scored.scores[name])
            for name, weight in session.scorer.parts.items()
            if name not in scored.left_out
        ]
    return part_advantages(
        parts, group_size=session.config.sampling.group_size, std=update.advantage_std, all_sum=all_sum
    )


def record_iteration(
    session: Session, samples: Rollout, scored: Scored, advantages: Advantages, metrics: Mapping[str, float]
) -> dict[str, float]:
    """Log the iteration's statistics and return them as means over processes."""
    numbers = statistics(samples, scored) | session.watch.measure(samples, scored)
    numbers |= {"flat_groups": advantages.num_flat_groups / advantages.num_groups}
    numbers |= {f"left_out_{name}": float(name in scored.left_out) for name in session.scorer.terms}
    numbers |= {f"update_{name}": value for name, value in metrics.items()}
    logged = session.log.write("iteration", session.step + 1, numbers)
    session.bar.advance(f"round {session.progress.round + 1}, reward {logged['reward']:.3f}")
    return logged


def warn(session: Session, sentences: tuple[str, ...]) -> None:
    """Keep the guards' sentences for the summary, the report and the model card."""
    session.progress.alarms += [f"iteration {session.step + 1}: {sentence}" for sentence in sentences]


def end_round(session: Session, check: Callable[[], None]) -> None:
    """Refresh the judge where it is due, evaluate, and begin the next round.

    Args:
        session: the run's parts, after the last iteration of a round.
        check: raises `Stopped` where the run should stop; the round's end is then undone, for a resumed run to do it.
    """
    progress, refresher = session.progress, session.refresher
    before = None if refresher is None else refresher.state()
    number, num_iterations, num_records = progress.round, progress.iteration, len(progress.rounds)
    num_alarms, after = len(progress.alarms), progress.after
    seconds, started, randomness = progress.seconds, session.started, torch.get_rng_state()
    progress.round, progress.iteration = number + 1, 0
    try:
        is_due = refresher is not None and refresher.is_due(progress.round)
        evaluate(session, refreshed=refresh_judge(session, check) if is_due else None, check=check)
        if not is_due:
            refresh_where_measures_ask(session, check)
    except Stopped:
        progress.round, progress.iteration, progress.after = number, num_iterations, after
        progress.seconds, session.started = seconds, started
        torch.set_rng_state(randomness)
        del progress.rounds[num_records:], progress.alarms[num_alarms:]
        if refresher is not None and before is not None:
            refresher.load_state(before)
        raise
    act_on_round(session)
    if session.config.loop.reset_reference:
        session.generator.set_weights(REFERENCE, session.generator.weights(POLICY))


def refresh_where_measures_ask(session: Session, check: Callable[[], None]) -> None:
    """Refresh the judge, outside its turn, where a measure of the round has passed its limit."""
    limits = session.config.refresh.triggers
    asked = triggered(session.progress.rounds[-1], limits) if limits else ()
    if not asked:
        return
    warn(session, asked)
    refreshed = refresh_judge(session, check)
    assert refreshed is not None, "triggers come with a refresher"
    session.log.write("refresh", session.step, refreshed)
    session.progress.rounds[-1]["judge_kept"] = bool(refreshed["kept"])


def act_on_round(session: Session) -> None:
    """Remember a good round; from a bad one return to the last good one, or end the run there.

    Nothing here asks whether to stop: models that were returned from are gone, so that a round's end could not be undone.
    """
    progress, guards = session.progress, session.config.guards
    if not guards.watch_rounds:
        return
    *_, newest = progress.rounds
    num_returns = sum(not record["is_good"] for record in progress.rounds[:-1])
    decision = decide(progress.rounds, guards, num_returns=num_returns)
    newest["is_good"] = decision.action == "go_on"
    warn(session, tuple(filter(None, (decision.reason,))))
    if newest["is_good"]:
        save_good(session)
        return
    return_to_good(session)
    progress.ended = decision.reason if decision.action == "stop" else ""
    progress.after = None


def measure_result(session: Session, check: Callable[[], None]) -> None:
    """Measure the models with which a run ends, where its last round did not: it was returned from, or was no last one then."""
    progress = session.progress
    if progress.after is not None:
        return
    evaluate(session, refreshed=None, check=check)
    if session.config.guards.watch_rounds:
        progress.rounds[-1]["is_good"] = True
    save(session)


def refresh_judge(session: Session, check: Callable[[], None]) -> dict[str, float] | None:
    """Refresh the judge now, and return the metrics; None where there is none to refresh."""
    refresher = session.refresher
    if refresher is None:
        return None
    with torch.no_grad():
        collected = refresher.collector.collect(session.pair_tools)
    return refresher.refresh(collected, seed=session.draw.fork("refresh").key(), check=check)


def evaluate(session: Session, *, refreshed: Mapping[str, float] | None, check: Callable[[], None]) -> None:
    """Measure the held-out prompts, write the clips shown, and append the round to the summary."""
    shown = session.evaluator.prompts[: session.config.evaluation.num_samples]
    folder = session.output / "samples" / f"round-{session.progress.round:03d}"
    writer = SampleWriter(folder, shown, fps=session.config.generator.fps)
    evaluation = measure_held_out(session, writer, check)
    record_round(session, evaluation, refreshed)
    if session.processes.is_main:
        writer.write_scores(evaluation)


def measure_held_out(session: Session, writer: SampleWriter, check: Callable[[], None]) -> Evaluation:
    """Measure all held-out prompts before and after the run, some between its rounds."""
    progress, evaluator = session.progress, session.evaluator
    is_first, is_last = progress.round == 0, progress.is_over(session.config.loop.num_rounds)
    num_prompts = len(evaluator.prompts) if is_first or is_last else session.config.evaluation.num_round_prompts
    session.bar.say(f"evaluating round {progress.round}")
    refresher = session.refresher
    evaluation = evaluator.evaluate(
        session.generator,
        num_prompts,
        judge_is_initial=refresher is None or refresher.num_kept == 0,
        keep=writer,
        check=check,
    )
    progress.before = evaluation if is_first else progress.before
    progress.after = evaluation if is_last else None
    return evaluation


def record_round(session: Session, evaluation: Evaluation, refreshed: Mapping[str, float] | None) -> None:
    """Append the round's record to the summary and the log, and start the clock of the next round."""
    progress, num_prompts = session.progress, session.config.evaluation.num_round_prompts
    assert progress.before is not None
    if refreshed is not None:
        refreshed = session.log.write("refresh", session.step, refreshed)
    compared, first = evaluation.first(num_prompts), progress.before.first(num_prompts)
    anchored, accuracy = session.refresher.scale() if session.refresher is not None else (Affine(), float("nan"))
    record = round_record(
        progress.round,
        compared,
        anchored=anchored,
        probes=session.probes.measure(),
        diversity=diversity(compared, first, session.renderer),
        refresh=refreshed,
        anchor_accuracy=accuracy,
        seconds=session.round_seconds(),
        first=progress.rounds[0] if progress.rounds else None,
    )
    progress.rounds.append(record)
    session.log.write("round", session.step, log_record(record))
    progress.seconds, session.started = 0.0, time.monotonic()


def finish(session: Session) -> Path:
    """Write `summary.json`, the report and the model card from the run's measurements."""
    config, progress = session.config, session.progress
    path = session.output / "summary.json"
    if session.processes.is_main:
        checkpoint = latest(session.output / "checkpoints")
        assert checkpoint is not None
        content = summary(
            config,
            progress.rounds,
            progress.before,
            progress.after,
            alarms=progress.alarms,
            ended=progress.ended,
            checkpoint=checkpoint,
        )
        write_json(path, content)
        write_report(session.output)
        write_model_card(session.output, pipeline=session.generator.pipeline_name)
    session.processes.wait()
    session.bar.close()
    return path
