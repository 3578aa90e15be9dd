"""Progress of a run, saved and restored exactly.

Everything random is keyed by seed, iteration, prompt and sample, so that progress is counters, weights and moments.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from generator_loop.adapters.base import OLD, POLICY, REFERENCE
from generator_loop.config import JointConfig
from generator_loop.evaluation.columns import INITIAL, Evaluation
from generator_loop.run.build import read_config
from generator_loop.run.session import Progress, Session
from generator_loop.run.sharding import collected
from generator_loop.tracking import checkpoint
from reward_model import VideoJudgeReward
from reward_model.config import save_config
from reward_model.files import write_json

log = logging.getLogger(__name__)

GOOD = "last_good"
"""Folder of the models to which a guard returns."""


def begin(session: Session) -> None:
    """Make the folder of a new run, with its resolved config."""
    if session.processes.is_main:
        session.output.mkdir(parents=True, exist_ok=True)
        save_config(session.config, session.output / "config.yaml")
    session.processes.wait()


def save(session: Session) -> Path:
    """Write a checkpoint of everything that a resumed run needs; all processes call it, the first one writes."""
    progress = session.progress
    name = f"round-{progress.round:03d}" + (f"-iteration-{progress.iteration:04d}" if progress.iteration else "")
    root = session.output / "checkpoints"
    writer = _writer(session)
    if session.processes.is_main:
        checkpoint.save(root, name, writer, keep=session.config.run.keep_checkpoints)
    session.processes.wait()
    return root / name


def _writer(session: Session) -> Callable[[Path], None]:
    progress, base, moments = session.progress, None, session.learner.updater.state()
    if isinstance(session.judge, VideoJudgeReward) and session.config.judge.shard:
        base = collected(session.judge.judge.base_state())

    def write(folder: Path) -> None:
        """Write everything that a resumed run needs into `folder`."""
        session.generator.save(folder / "generator")
        state = folder / "state"
        state.mkdir()
        if isinstance(session.judge, VideoJudgeReward):
            session.judge.save_pretrained(folder / "judge", base=base, without=[INITIAL])
        for name in (POLICY, OLD, REFERENCE):
            checkpoint.write_tensors(state / f"{name}.safetensors", session.generator.weights(name))
        checkpoint.write_tensors(state / "optimizer.safetensors", moments)
        checkpoint.write_tensors(state / "rng.safetensors", {"torch": torch.get_rng_state()})
        if session.refresher is not None:
            checkpoint.write_tensors(state / "refresher.safetensors", session.refresher.state())
        counters = {
            "round": progress.round,
            "iteration": progress.iteration,
            "seconds": session.round_seconds(),
            "rounds": progress.rounds,
            "before": progress.before.to_json() if progress.before else None,
            "after": progress.after.to_json() if progress.after else None,
            "first": session.watch.first,
            "alarms": progress.alarms,
            "ended": progress.ended,
            "regularisers": {name: dict(one.state()) for name, one in session.learner.regularisers.items()},
        }
        write_json(state / "progress.json", counters)
        save_config(session.config, folder / "config.yaml")

    return write


def restore(session: Session) -> None:
    """Continue from the newest checkpoint of the run's folder.

    Args:
        session: freshly opened parts, which are changed in place.

    Raises:
        ValueError: there is none, or it was written with other settings.
    """
    root = session.output / "checkpoints"
    folder, notes = checkpoint.newest_intact(root)
    for note in notes:
        log.warning(note)
    if folder is None:
        reason = "; ".join(notes) or "no finished checkpoint is there"
        raise ValueError(f"{root} holds nothing to resume from: {reason}; start the run without resume=")
    _refuse_other_settings(session.config, folder / "config.yaml")
    state = folder / "state"
    _load_models(session, state)
    torch.set_rng_state(checkpoint.read_tensors(state / "rng.safetensors")["torch"])
    saved = json.loads((state / "progress.json").read_text(encoding="utf-8"))
    session.progress = Progress(
        **{name: saved[name] for name in ("round", "iteration", "seconds", "rounds", "alarms", "ended")},
        before=Evaluation.from_json(saved["before"]),
        after=Evaluation.from_json(saved["after"]),
    )
    session.watch.first = saved["first"]
    progress = session.progress
    if progress.round > session.config.loop.num_rounds:
        raise ValueError(
            f"loop.num_rounds={session.config.loop.num_rounds}, but {folder} holds {progress.round} finished rounds"
        )
    is_open = not progress.rounds or progress.iteration == session.config.loop.num_iterations
    session.log.rewind(session.step, round_is_open=is_open)
    session.bar.start_at(session.step)
    log.info("resumed from %s: round %d, iteration %d", folder, session.progress.round, session.progress.iteration)


def _load_models(session: Session, state: Path) -> None:
    """Take weights, moments, penalties and the judge's adapters from the `state` folder of a checkpoint."""
    for name in (POLICY, OLD, REFERENCE):
        session.generator.set_weights(name, checkpoint.read_tensors(state / f"{name}.safetensors"))
    session.learner.updater.load_state(checkpoint.read_tensors(state / "optimizer.safetensors"))
    saved = json.loads((state / "progress.json").read_text(encoding="utf-8"))
    for name, regulariser in session.learner.regularisers.items():
        regulariser.load_state(saved["regularisers"][name])
    if session.refresher is not None:
        device = session.generator.device
        refreshed = checkpoint.read_tensors(state / "refresher.safetensors")
        session.refresher.load_state({name: tensor.to(device) for name, tensor in refreshed.items()})


def save_good(session: Session) -> None:
    """Keep the models of a good round, whatever becomes of its checkpoint; all processes call it, the first one writes."""
    if session.processes.is_main:
        name = f"round-{session.progress.round:03d}"
        checkpoint.save(session.output / GOOD, name, _writer(session), keep=1)
    session.processes.wait()


def return_to_good(session: Session) -> None:
    """Take the models of the last good round; counters, log and random streams go on.

    Args:
        session: its models are changed in place.

    Raises:
        ValueError: no good round is kept.
    """
    folder, notes = checkpoint.newest_intact(session.output / GOOD)
    if folder is None:
        raise ValueError(f"{session.output / GOOD} holds no round to return to: {'; '.join(notes)}")
    _load_models(session, folder / "state")
    log.info("returned to the models of %s", folder)


def ends(output: Path) -> tuple[Evaluation, Evaluation]:
    """Return a finished run's measurements before any update and at its end, clip by clip.

    Args:
        output: the run's folder.

    Returns:
        Before and after.

    Raises:
        ValueError: the run has not finished.
    """
    folder = checkpoint.latest(output / "checkpoints")
    saved = json.loads((folder / "state" / "progress.json").read_text(encoding="utf-8")) if folder else {}
    before, after = (Evaluation.from_json(saved.get(name)) for name in ("before", "after"))
    if before is None or after is None:
        raise ValueError(f"{output} holds no finished run")
    return before, after


def _refuse_other_settings(config: JointConfig, path: Path) -> None:
    """Refuse to continue a run with settings that change its results."""
    written = read_config(path, [])
    allowed = replace(
        written,
        run=replace(config.run, seed=written.run.seed),
        loop=replace(written.loop, num_rounds=config.loop.num_rounds),
        judge=replace(written.judge, shard=config.judge.shard),
    )
    if allowed != config:
        changed = [name for name in vars(config) if getattr(allowed, name) != getattr(config, name)]
        raise ValueError(
            f"resume= continues the run of {path}, but these sections differ from it: {', '.join(changed)}; "
            "only loop.num_rounds, judge.shard and run.* but the seed may change"
        )
