"""Runs a recipe: every stage starts from the one before, trains, is measured, saved once and skipped on restart."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from reward_model.datasets.sources import Source
from reward_model.files import put_back, write_beside, write_text
from reward_model.judge.checkpoints.format import BASE_FOLDER
from reward_model.judge.model import VideoJudge
from reward_model.media.trained_range import widened
from reward_model.records import DIMENSIONS, Annotation, Clip, RatedClip, Video, VideoPair, VideoQuestion
from reward_model.rewards import build_rewards
from reward_model.training.finish import finish
from reward_model.training.fit import Loss, fit, rank_and_world
from reward_model.training.measure import measure_stage, own_levels
from reward_model.training.methods.grpo import GRPOSteps
from reward_model.training.methods.sft import example_loss
from reward_model.training.recipe import RecipeConfig, StageConfig
from reward_model.training.selection import BestWeights
from reward_model.training.start import add_layers, start_judge
from reward_model.training.tasks.mixture import clip_planner, open_mixture
from reward_model.training.tasks.rollout_prompts import build_prompt, plan_prompts
from reward_model.training.tasks.supervised import (
    SFTExample,
    clip_example,
    closed_example,
    neighbours,
    pair_example,
    pair_of,
    swapped,
)

log = logging.getLogger(__name__)

PAIRS_PER_CLIP = 0.5
"""Default number of comparisons per clip of a batch."""


def run_recipe(config: RecipeConfig, *, num_stages: int | None = None) -> Path:
    """Train all stages of a recipe and return the folder of the finished judge.

    Args:
        config: the recipe.
        num_stages: stop after that many stages; None runs all.

    Returns:
        `config.output`/judge, with its provenance and model card, which the first process of several writes.
    """
    output = Path(config.output)
    done: list[Path] = []
    for number, stage in enumerate([*config.stages.values()][:num_stages]):
        folder = output / "stages" / f"{number:02d}-{stage.name}"
        _find_again(folder)
        if not (folder / "done.json").exists():
            judge = _load(done[-1], config) if done else start_judge(config)
            add_layers(judge, stage.add_layers)
            seed = config.seed * 1000 + number
            _forget(output / "metrics.jsonl", stage.name)
            metrics = run_stage(judge, stage, seed=seed, log_file=output / "metrics.jsonl")
            metrics |= measure_stage(judge, stage)
            judge.configure(lineage=(*judge.config.lineage, stage.name))
            _save(judge, folder, {"stage": asdict(stage), "metrics": metrics})
        done.append(folder)
    if rank_and_world()[0] == 0:
        # the others need not wait: the card of a large judge takes longer than a barrier's timeout
        finish(config, done, output / "judge")
    return output / "judge"


def _load(folder: Path, config: RecipeConfig) -> VideoJudge:
    return VideoJudge.from_pretrained(folder, dtype=getattr(torch, config.dtype))


def run_stage(judge: VideoJudge, stage: StageConfig, *, seed: int, log_file: Path) -> dict[str, float]:
    """Train one stage in place and return its last metrics.

    Args:
        judge: the judge; a new role gets an adapter.
        stage: role, data, tasks and optimisation.
        seed: seed of data order and of a new adapter.
        log_file: JSONL that receives the metrics.

    Returns:
        Means of the metrics over the last logged stretch.

    Raises:
        ValueError: The batch does not divide among the processes.
    """
    torch.manual_seed(seed)
    _prepare_role(judge, stage)
    log_file.parent.mkdir(parents=True, exist_ok=True)

    def write(metrics: dict[str, float]) -> None:
        """Log the metrics of a stretch of steps."""
        log.info("%s %s", stage.name, " ".join(f"{k}={v:.4g}" for k, v in metrics.items()))
        with log_file.open("a") as file:
            file.write(json.dumps({"stage": stage.name, **metrics}) + "\n")

    rank, world = rank_and_world()
    if stage.fit.batch_size % world:
        raise ValueError(
            f"fit.batch_size of stage {stage.name!r} is {stage.fit.batch_size}, not a multiple of {world} processes"
        )
    judge.train()
    with METHODS[stage.method](judge, stage, seed) as loss, judge.use_role(stage.role):
        parameters = judge.train_only(stage.role, motion=stage.train_motion)
        matrices, report = layer_matrices(judge, parameters), write if rank == 0 else None
        if not stage.measure_every:
            metrics = fit(parameters, loss, stage.fit, matrices=matrices, log=report)
        else:
            best = _watch(judge, stage, parameters)
            metrics = fit(parameters, loss, stage.fit, matrices=matrices, log=report, after_step=best.after_step)
            best.restore()
            metrics |= {"best_step": best.step, "best_held_out": best.score}
    judge.eval()
    if stage.role is None:
        judge.configure(base=BASE_FOLDER, revision=None)  # its weights are its own from now on, and are saved with it
    return metrics


def _watch(judge: VideoJudge, stage: StageConfig, parameters: Sequence[nn.Parameter]) -> BestWeights:
    """Return the keeper of the best weights, which measures them on held-out clips as the stage goes."""

    def measure() -> dict[str, float]:
        """Return the table of the held-out clips."""
        judge.eval()
        try:
            return measure_stage(judge, stage)
        finally:
            judge.train()

    return BestWeights(parameters, measure, every=stage.measure_every, patience=stage.patience)


def _prepare_role(judge: VideoJudge, stage: StageConfig) -> None:
    if stage.role is None or (stage.role in judge.roles and stage.start in (None, stage.role)):
        return
    if stage.role in judge.roles:
        judge.remove_role(stage.role)
    lora = stage.lora
    judge.add_role(stage.role, rank=lora.rank, alpha=lora.alpha, targets=lora.targets, copy_from=stage.start)


@contextmanager
def _sft(judge: VideoJudge, stage: StageConfig, seed: int) -> Iterator[Loss]:
    """Yield the supervised loss of each step on this process's share of the batch."""
    source, (rank, world) = open_mixture(stage.data), rank_and_world()

    def loss(step: int) -> list[tuple[torch.Tensor, dict[str, float]]]:
        """Return the loss of one step."""
        examples = draw_examples(
            judge, source, stage, (seed * 1_000_003 + step) * world + rank, stage.fit.batch_size // world
        )
        return [example_loss(judge, examples, stage.tasks)]

    yield loss


@contextmanager
def _grpo(judge: VideoJudge, stage: StageConfig, seed: int) -> Iterator[Loss]:
    """Yield the policy loss of each step on this process's prompts; the reference is the role as it is now."""
    assert stage.role is not None
    source, planner, (rank, world) = open_mixture(stage.data), _noting_planner(judge), rank_and_world()
    reference = f"{stage.role}-at-start"
    judge.add_role(reference, copy_from=stage.role)
    steps = GRPOSteps(judge, build_rewards(stage.rewards), stage.grpo, role=stage.role, reference=reference)

    def loss(step: int) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
        """Yield the loss of one step in micro-batches."""
        # every process plans the whole batch and asks its share: any number of them asks the same prompts
        planned = plan_prompts(source(seed * 1_000_003 + step, stage.fit.batch_size), stage.tasks)
        mine = [build_prompt(*planned[group], planner, group=group) for group in range(rank, len(planned), world)]
        _note_reasoned(judge, stage, [e for kind, e in planned if kind == "reason"])
        return steps.micro_batches(mine, step, seed=seed * 1_000_003)

    try:
        yield loss
    finally:
        judge.remove_role(reference)


METHODS = {"sft": _sft, "grpo": _grpo}


def layer_matrices(judge: VideoJudge, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Return those of `parameters` that are weight matrices of repeated layers (no embeddings, no heads)."""
    chosen = {id(p) for p in parameters}
    layers = ("language_model.layers.", "visual.blocks.")
    named = judge.model.named_parameters()
    return [p for name, p in named if id(p) in chosen and p.ndim == 2 and any(layer in name for layer in layers)]


def draw_examples(judge: VideoJudge, source: Source, stage: StageConfig, seed: int, num: int) -> list[SFTExample]:
    """Return the supervised examples of one step: every clip with its tasks behind one prefix, then the comparisons."""
    planner = _noting_planner(judge)
    annotations = source(seed, num)
    kinds = [kind for kind in stage.tasks if kind not in ("compare", "ask")]
    examples = []
    clips = [one for one in annotations if isinstance(one, RatedClip)]
    own = "reason" in kinds and stage.reasoned_scores == "own"
    scores = own_levels(judge, clips[: math.ceil(num * stage.task_share.get("reason", 1.0))]) if own else []
    for place, rated in enumerate(clips):
        chosen = [kind for kind in kinds if place < num * stage.task_share.get(kind, 1.0)]
        if "reason" in chosen:
            _note_reasoned(judge, stage, [rated])
        if chosen:
            examples.append(clip_example(rated, planner, chosen, scores=scores[place] if place < len(scores) else None))
    if "compare" in stage.tasks:
        orders = _both_orders(annotations)[: round(num * stage.task_share.get("compare", PAIRS_PER_CLIP))]
        examples += [pair_example(pair, planner) for pair in orders]
    if "ask" in stage.tasks:
        examples += [closed_example(e, planner) for e in annotations if isinstance(e, VideoQuestion)]
    return examples


def _noting_planner(judge: VideoJudge) -> Callable[[Video | Path], Clip]:
    """Return the planner of this judge's clips that widens its trained range by each; the first process's range is saved."""
    planner = clip_planner(judge)

    def plan(video: Video | Path) -> Clip:
        """Plan a video and widen the trained range by it."""
        clip = planner(video)
        if (wider := widened(judge.config.trained_range, clip)) != judge.config.trained_range:
            judge.configure(trained_range=wider)
        return clip

    return plan


def _note_reasoned(judge: VideoJudge, stage: StageConfig, asked: Sequence[Annotation]) -> None:
    """Note the dimensions that the stage's role is taught to rate in one reasoned answer."""
    known, role = judge.config.reasoned, stage.role or ""
    rated = [one.quality for one in asked if isinstance(one, RatedClip)]
    sets = list(dict.fromkeys(tuple(name for name in DIMENSIONS if name in quality) for quality in rated))
    if new := [one for one in sets if one not in known.get(role, ())]:
        judge.configure(reasoned={**known, role: [*known.get(role, ()), *new]})


def _both_orders(annotations: Sequence[Annotation]) -> list[VideoPair]:
    """Return the labelled pairs and those of neighbouring clips, each in both orders, so the order teaches nothing."""
    pairs = [e for e in annotations if isinstance(e, VideoPair)] + [pair_of(*two) for two in neighbours(annotations)]
    return [order for pair in pairs for order in (pair, swapped(pair))]


def _forget(log_file: Path, stage: str) -> None:
    """Remove log lines left by a killed attempt of this stage."""
    if rank_and_world()[0] == 0 and log_file.exists():
        lines = log_file.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["stage"] != stage]
        write_text(log_file, "".join(kept))


def _save(judge: VideoJudge, folder: Path, record: dict[str, object]) -> None:
    """Save a finished stage as a whole folder by the first process, while the others wait."""

    def write(beside: Path) -> None:
        """Write the judge and the record of its stage."""
        judge.save_pretrained(beside)
        (beside / "done.json").write_text(json.dumps(record, indent=1) + "\n")

    if rank_and_world()[0] == 0:
        write_beside(folder, write)
    _wait_for_all()


def _find_again(folder: Path) -> None:
    """Return a stage's folder to its place if its replacement was killed, before any process looks for it."""
    if rank_and_world()[0] == 0:
        put_back(folder)
    _wait_for_all()


def _wait_for_all() -> None:
    if rank_and_world()[1] > 1:
        torch.distributed.barrier()
