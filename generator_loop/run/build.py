"""Builds a run's parts from its config: the only place that loads models."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from generator_loop.adapters import generator_class
from generator_loop.adapters.base import VideoGenerator
from generator_loop.config import JointConfig, is_address
from generator_loop.evaluation import toy_world as world
from generator_loop.evaluation.columns import AUDIT, CURRENT, INITIAL
from generator_loop.evaluation.held_out import Evaluator
from generator_loop.evaluation.probes import Probes
from generator_loop.guards import GUARDS
from generator_loop.guards.base import Watch
from generator_loop.objectives import OBJECTIVES, objective_configs
from generator_loop.objectives.base import Regulariser
from generator_loop.optim.adaptive_kl import AdaptiveKL
from generator_loop.optim.data_loss import Clips, DataLoss, FileClips
from generator_loop.optim.learner import Learner
from generator_loop.processes import any_process
from generator_loop.real_clips import RealClips
from generator_loop.records import Draw, Prompt
from generator_loop.refresh import PAIR_SOURCES, pair_source_configs
from generator_loop.refresh.anchors import read_anchors
from generator_loop.refresh.new_beats_old import NewBeatsOldConfig
from generator_loop.refresh.pairs import PairCollector
from generator_loop.refresh.refresh import JudgeRefresher
from generator_loop.refresh.trainees import READOUTS
from generator_loop.rewards import COLUMNS, column_configs
from generator_loop.rewards.column import RewardColumn
from generator_loop.rewards.scorer import RemoteJudge, Scorer, load_term
from generator_loop.run.launch import Processes
from generator_loop.run.session import Progress, RewardingJudge, Session
from generator_loop.run.sharding import Layout
from generator_loop.sampling.prompts import open_prompts
from generator_loop.sampling.rollout import PromptEncoder, rollout
from generator_loop.sampling.sampler import Sampler
from generator_loop.tracking.metric_log import MetricLog, ProgressBar
from reward_model import VideoJudgeReward
from reward_model.config import did_you_mean, load_config
from reward_model.records import RatedClip

Served = Callable[[str], RemoteJudge]
"""Address to the judge that is served there."""

TOY = "toy"
"""Path that stands for the embedded models."""


def read_config(path: str | Path, overrides: list[str]) -> JointConfig:
    """Return the config of a joint run.

    Args:
        path: YAML file; None starts from the defaults.
        overrides: "section.key=value" items.

    Returns:
        The checked config.

    Raises:
        ValueError: see `load_config`; or a name that no registry knows.
    """
    variants = {"objective": objective_configs(), "refresh.sources": pair_source_configs()}
    variants["reward.columns"] = column_configs()
    config = load_config(JointConfig, path, overrides, variants=variants)
    generator_class(config.generator.family)
    for name in config.refresh.readouts:
        if name not in READOUTS:
            place = f"{path}: " if path else ""
            raise ValueError(f"{place}refresh.readouts holds {name!r}{did_you_mean(name, list(READOUTS))}")
    return config


def open_session(
    config: JointConfig, processes: Processes, *, before_pause: Callable[[], None] = lambda: None
) -> Session:
    """Load the models, and fix the probes and anchors while the policy and the judge still are the initial ones.

    Args:
        config: the run.
        processes: this process among the others.
        before_pause: called while the run waits for a served judge; it may raise to stop.

    Returns:
        The parts, with no progress yet.

    Raises:
        ValueError: the config names a model, file or role that does not exist.
    """
    served = partial(_served, config, before_pause=before_pause)
    generator = open_generator(config, processes.device, processes.layout)
    judge, initial_judge = _open_judge(config, processes, served)
    train_prompts, held_out = open_prompts(config.prompts, seed=config.run.seed)
    encoder, objective = PromptEncoder(generator), OBJECTIVES[config.objective.name](config.objective)
    if config.run.keep_rounds != "none" and (objective.tail_span or objective.random_steps is not None):
        raise ValueError(
            f"run.keep_rounds stores clean samples, but objective.name={config.objective.name} learns from steps of the "
            "sampler: set run.keep_rounds=none"
        )
    draw, output = Draw(seed=config.run.seed, step=0), Path(config.run.output)
    scorer = _scorer(config, judge, processes, served)
    return Session(
        config=config,
        output=output,
        processes=processes,
        generator=generator,
        judge=judge,
        sampler=Sampler(
            generator=generator,
            encoder=encoder,
            prompts=train_prompts,
            config=config.sampling,
            seed=config.run.seed,
            rank=processes.rank,
            num_ranks=processes.count,
            tail_span=objective.tail_span,
            random_steps=objective.random_steps,
        ),
        scorer=scorer,
        learner=Learner(
            generator,
            objective,
            reward=scorer.differentiable,
            config=config.update,
            moments=processes.layout.moments,
            regularisers=_regularisers(config, generator, train_prompts, encoder, processes),
        ),
        refresher=_refresher(config, judge, initial_judge, train_prompts),
        watch=Watch(GUARDS),
        evaluator=_evaluator(config, held_out, judge, initial_judge, encoder, processes, served),
        probes=_probes(config, generator, held_out, encoder, draw),
        renderer=_renderer(config, held_out, draw),
        log=MetricLog(output / "metrics.jsonl", is_main=processes.is_main),
        bar=ProgressBar(config.loop.num_rounds * config.loop.num_iterations, is_shown=processes.is_main),
        progress=Progress(),
        started=time.monotonic(),
    )


def open_generator(config: JointConfig, device: torch.device, layout: Layout | None = None) -> VideoGenerator:
    """Return the generator that a config names, which as yet is its base."""
    layout = layout or Layout()
    generator = layout.with_precision(config.generator)
    if generator.compile and layout.is_sharded:
        raise ValueError(
            "generator.compile=true is untried on a transformer that is sharded; set generator.compile=false"
        )
    family = generator_class(generator.family)
    if generator.path == TOY:
        generator = replace(generator, path=str(embedded("generator_loop", "toy_wan")))
    return family.from_pretrained(generator, device=device, lora_seed=config.run.seed, place=layout.place)


def _load_judge(config: JointConfig, path: Path | str, device: torch.device) -> VideoJudgeReward:
    settings = config.judge
    return VideoJudgeReward.from_pretrained(
        path, role=None, dtype=settings.dtype, device=device, attn_implementation=settings.attention
    )


def _served(config: JointConfig, url: str, *, before_pause: Callable[[], None]) -> RemoteJudge:
    if config.objective.differentiates and url != config.judge.audit_path:
        raise ValueError(
            f"objective.name={config.objective.name} needs the judge's gradient, which a served judge does not send: load "
            f"{url}'s judge by its folder"
        )
    file = config.judge.token_file
    token = None if file is None else Path(file).read_text(encoding="utf-8").strip()
    return RemoteJudge(url, token=token, before_pause=before_pause)


def _open_judge(config: JointConfig, processes: Processes, served: Served) -> tuple[RewardingJudge, RewardingJudge]:
    """Return the judge that learns and a frozen view of its present state; both share the base, or the server."""
    path = config.judge.path
    if config.judge.is_served:
        remote = served(path)
        return remote, remote
    base = _load_judge(config, embedded("reward_model", "toy_judge") if path == TOY else path, processes.device)
    role = config.judge.role
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)  # new adapter weights are the same on all processes and in a resumed run
        if role in base.judge.roles:
            base.judge.add_role(INITIAL, copy_from=role)
            initial = base.with_role(INITIAL)
        elif base.judge.roles:
            raise ValueError(f"judge.role is {role!r}, but {path} has the roles {', '.join(base.judge.roles)}")
        else:
            base.judge.add_role(role)
            initial = base.with_role(None)
        if config.refresh.is_on:
            for learning in {READOUTS[name].compares: None for name in config.refresh.readouts}:
                base.judge.widen_role(config.refresh.comparator_role if learning else role, config.refresh.targets)
    _freeze(config, base, processes)
    return base.with_role(role), initial


def _freeze(config: JointConfig, judge: VideoJudgeReward, processes: Processes) -> None:
    """Let no weight of a judge learn until a refresh says so, and spread them over the processes where that is asked for."""
    judge.judge.requires_grad_(False)
    if config.judge.shard:
        processes.layout.shard_judge(judge.judge.model, processes.device)


def _scorer(config: JointConfig, judge: RewardingJudge, processes: Processes, served: Served) -> Scorer:
    return Scorer(
        others=[_watcher(config, path, processes, served) for path in config.judge.ensemble],
        pessimism=config.reward.pessimism,
        judge=judge,
        weights=config.reward.weights,
        columns=_columns(config, judge),
        terms={name: (load_term(term.callable), term.weight) for name, term in config.reward.terms.items()},
        fps=config.generator.fps,
        batch_size=config.judge.batch_size,
        any_process=any_process,
    )


def _columns(config: JointConfig, judge: RewardingJudge) -> dict[str, tuple[RewardColumn, float]]:
    fps, size = config.generator.fps, config.judge.batch_size
    if not isinstance(judge, VideoJudgeReward):
        return {}
    return {
        name: (COLUMNS[own.name](own, judge, fps=fps, batch_size=size), own.weight)
        for name, own in config.reward.columns.items()
    }


def _regularisers(
    config: JointConfig,
    generator: VideoGenerator,
    prompts: tuple[Prompt, ...],
    encoder: PromptEncoder,
    processes: Processes,
) -> dict[str, Regulariser]:
    guards, shares = config.guards, {"rank": processes.rank, "num_ranks": processes.count}
    regularisers: dict[str, Regulariser] = {}
    if guards.data_weight:
        path = guards.data_path
        clips: Clips = partial(_rendered, generator, prompts)
        if path is not None:
            listed = RealClips(path)
            listed.refuse_unusable(size=(generator.num_frames, *generator.size), fps=generator.fps)
            clips = FileClips(listed, generator)
        regularisers["data"] = DataLoss(
            clips, encoder, weight=guards.data_weight, batch_size=guards.data_batch_size, **shares
        )
    if guards.kl_target is not None:
        regularisers["kl"] = AdaptiveKL(
            target=guards.kl_target,
            coefficient=guards.kl_start,
            fraction=guards.kl_fraction,
            batch_size=guards.kl_batch_size,
            **shares,
        )
    return regularisers


def _rendered(
    generator: VideoGenerator, prompts: tuple[Prompt, ...], num: int, draw: Draw, share: slice
) -> tuple[list[Prompt], torch.Tensor]:
    """Return training prompts of the world with latents of clean clips; see `optim.data_loss.Clips`."""
    order = torch.randperm(len(prompts), generator=draw.generator(0, 0))[:num].tolist()
    chosen = [prompts[place] for place in order[share]]
    if not chosen:
        return [], torch.zeros(0)
    frames = world.clean_clips(chosen, draw, sample=0, num_frames=generator.num_frames, size=generator.size)
    return chosen, generator.encode(frames)


def _watcher(config: JointConfig, path: str | Path, processes: Processes, served: Served) -> RewardingJudge:
    """Return another judge in the role that scores, or without one where it has no such role; it is never trained."""
    if is_address(str(path)):
        return served(str(path))
    other = _load_judge(config, path, processes.device)
    _freeze(config, other, processes)
    return other.with_role(config.judge.role if config.judge.role in other.judge.roles else None)


def _evaluator(
    config: JointConfig,
    held_out: tuple[Prompt, ...],
    judge: RewardingJudge,
    initial_judge: RewardingJudge,
    encoder: PromptEncoder,
    processes: Processes,
    served: Served,
) -> Evaluator:
    judges: dict[str, RewardingJudge] = {INITIAL: initial_judge, CURRENT: judge}
    if config.judge.audit_path is not None:
        path = config.judge.audit_path
        judges[AUDIT] = _watcher(
            config, embedded("reward_model", "toy_audit") if path == TOY else path, processes, served
        )
    return Evaluator(
        prompts=held_out,
        judges=judges,
        measures=world.measures() if config.prompts.world else {},
        weights=config.reward.weights,
        encoder=encoder,
        draw=Draw(seed=config.run.seed, step=0).fork("evaluation"),
        num_seeds=config.evaluation.num_seeds,
        num_steps=config.sampling.num_steps,
        batch_size=config.sampling.batch_size,
        judge_batch_size=config.judge.batch_size,
        rank=processes.rank,
        num_ranks=processes.count,
    )


def _probes(
    config: JointConfig, generator: VideoGenerator, held_out: tuple[Prompt, ...], encoder: PromptEncoder, draw: Draw
) -> Probes:
    prompts = held_out[: config.evaluation.num_probes]
    sampled = rollout(
        generator,
        prompts,
        encoder=encoder,
        draw=draw.fork("probes"),
        group_size=1,
        num_steps=config.sampling.num_steps,
        batch_size=config.sampling.batch_size,
    )
    clean = None
    if config.prompts.world:
        clips = world.clean_clips(
            prompts, draw.fork("clean"), sample=0, num_frames=generator.num_frames, size=generator.size
        )
        clean = (clips, prompts)
    return Probes(generator, sampled, clean=clean, encoder=encoder, draw=draw.fork("probes"))


def _renderer(config: JointConfig, held_out: tuple[Prompt, ...], draw: Draw) -> dict[str, float] | None:
    if not config.prompts.world:
        return None
    return world.renderer_spread(
        held_out,
        draw.fork("renderer"),
        num_seeds=config.evaluation.num_seeds,
        num_frames=config.generator.num_frames,
        size=(config.generator.height, config.generator.width),
    )


def _reason_of(judge: VideoJudgeReward, clip: RatedClip) -> str:
    """Return why the judge gives a clip no score in any dimension on which it is rated, nothing where it gives one."""
    try:
        output = judge([clip.video], [clip.prompt], readout="level")
    except ValueError as error:
        return str(error)
    reasons = [output.reasons[name][0] for name in clip.quality if name in output.reasons]
    return reasons[0] if reasons and all(reasons) else ""


def _refresher(
    config: JointConfig, judge: RewardingJudge, initial: RewardingJudge, prompts: tuple[Prompt, ...]
) -> JudgeRefresher | None:
    if not config.refresh.is_on:
        return None
    assert isinstance(judge, VideoJudgeReward) and isinstance(initial, VideoJudgeReward), (
        "a served judge is not refreshed"
    )
    return JudgeRefresher(
        judge,
        initial=initial,
        collector=_collector(config, prompts),
        anchors=read_anchors(
            config.refresh.anchors,
            clips_per_prompt=2 if any(READOUTS[name].compares for name in config.refresh.readouts) else 1,
            reason_of=partial(_reason_of, judge),
            quarantine=Path(config.run.output) / "quarantine.jsonl",
        ),
        weights=config.reward.weights,
        config=config.refresh,
    )


def _collector(config: JointConfig, prompts: tuple[Prompt, ...]) -> PairCollector:
    settings = config.refresh.sources or {"new_beats_old": NewBeatsOldConfig()}
    sources = {name: (PAIR_SOURCES[own.name](own), own.weight) for name, own in settings.items()}
    return PairCollector(prompts, sources, num_remembered=config.refresh.num_remembered, rank_by=config.refresh.rank_by)


def embedded(package: str, name: str) -> Path:
    """Return the folder of an embedded model.

    Args:
        package: the package that holds it.
        name: its folder among the package's assets.

    Returns:
        An existing folder.

    Raises:
        ValueError: it is not there.
    """
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "assets" / name
    if not folder.is_dir():
        raise ValueError(f"the embedded model {folder} is missing; build it with scripts/build_toy_models.py")
    return folder
