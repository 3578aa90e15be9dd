"""Runs a recipe: every stage starts from the one before, trains, is measured, saved once and skipped on restart."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reward_model.config import plain
from reward_model.datasets.base import Fault
from reward_model.datasets.readers import Keep, refuse_faults
from reward_model.datasets.sources import Part
from reward_model.evaluation.benchmark import ProgressCallback
from reward_model.files import put_back, write_beside, write_text
from reward_model.judge.checkpoints.format import BASE_FOLDER
from reward_model.judge.engine.batching import clip_grid
from reward_model.judge.model import VideoJudge
from reward_model.language.styles import Style
from reward_model.media.trained_range import widened
from reward_model.records import DIMENSIONS, Annotation, Clip, RatedClip, Video, VideoPair, VideoQuestion
from reward_model.rewards import build_rewards
from reward_model.training.finish import finish
from reward_model.training.fit import Loss, fit, rank_and_world, resolve_steps
from reward_model.training.measure import measure_stage, own_levels
from reward_model.training.methods.grpo import GRPOSteps, Reference
from reward_model.training.methods.sft import example_loss
from reward_model.training.methods.weight_copy import WeightCopy
from reward_model.training.processes import TrainingStopRequest, refuse_other_files, together
from reward_model.training.recipe import RecipeConfig, StageConfig
from reward_model.training.selection import BestWeights
from reward_model.training.start import add_layers, shown_for_training, start_judge
from reward_model.training.tasks.mixture import SEED_STRIDE, clip_planner, open_mixture
from reward_model.training.tasks.quarantine import Quarantine
from reward_model.training.tasks.rollout_prompts import build_prompt, plan_prompts
from reward_model.training.tasks.supervised import (
    SFTExample,
    ToClip,
    clip_example,
    closed_example,
    neighbours,
    pair_example,
    pair_of,
    swapped,
)
from reward_model.weights import digest

log = logging.getLogger(__name__)

PAIRS_PER_CLIP = 0.5
"""Default number of comparisons per clip of a batch."""


Show = Callable[[str], ProgressCallback]
"""show(unit) -> a callback that shows how many of the "steps", "files" or "clips" are done."""


def run_recipe(
    config: RecipeConfig,
    *,
    num_stages: int | None = None,
    stop: TrainingStopRequest | None = None,
    show: Show = lambda unit: lambda done, total: None,
) -> Path:
    """Train all stages of a recipe and return the folder of the finished judge.

    Args:
        config: the recipe.
        num_stages: stop after that many stages; None runs all.
        stop: asked between steps and batches.
        show: shows the progress of a kind of work.

    Returns:
        `config.output`/judge, with its provenance and model card, which the first process of several writes.

    Raises:
        ValueError: A finished stage was made with other settings, or data cannot be used.
        TrainingStopped: The training was asked to stop; it goes on at the stage that it was in.
    """
    output = Path(config.output)
    pause = stop or TrainingStopRequest()
    check_finished(config)
    started = any(output.glob(f"stages/[0-9]*/{DONE}"))
    quarantine = Quarantine(output, max_unreadable=config.max_unreadable, show=partial(show, "files"), go_on=started)
    done: list[Path] = []
    chosen = False
    for number, stage in enumerate([*config.stages.values()][:num_stages]):
        folder = stage_folder(output, number, stage.name)
        chosen = chosen or bool(stage.measure_every)
        part: Part = "report" if chosen else "held_out"
        if not (folder / DONE).exists():
            begin = _begin(stage, done, config)
            judge = _load(begin, config) if begin is not None else start_judge(config)
            judge.configure(prompt_style=stage.style)
            keep = _keep(quarantine, stage, judge)
            _check_held_out(stage, part, keep)
            add_layers(judge, stage.add_layers)
            seed = config.seed * 1000 + number
            _forget(output / "metrics.jsonl", stage.name)
            log_file = output / "metrics.jsonl"
            metrics = run_stage(
                judge, stage, seed=seed, log_file=log_file, keep=keep, pause=pause, progress=show("steps")
            )
            metrics |= measure_stage(judge, stage, part=part, keep=keep, pause=pause)
            judge.configure(lineage=(*judge.config.lineage, stage.name))
            _save(judge, folder, {"stage": asdict(stage), "made_from": made_from(config, stage), "metrics": metrics})
        done.append(folder)
    if rank_and_world()[0] == 0:
        damaged = show("clips")

        def damage(number: int, total: int) -> None:
            """Show how many clips are damaged, and stop where it is asked."""
            damaged(number, total)
            pause.alone()

        # the others need not wait: the card of a large judge takes longer than a barrier's timeout
        quarantine.leave_the_others()
        finish(config, done, output / "judge", part=part, keep=partial(_keep, quarantine), progress=damage)
    return output / "judge"


def _begin(stage: StageConfig, done: Sequence[Path], config: RecipeConfig) -> Path | None:
    """Return the folder of the stage that a stage begins from; None for the recipe's own start."""
    if stage.role is None and stage.start is not None:
        return done[[*config.stages].index(stage.start)]
    return done[-1] if done else None


def other_judges(config: RecipeConfig) -> list[Path]:
    """Return the stage folders of the judges that no later stage goes on from, the last stage's aside."""
    folders = [stage_folder(Path(config.output), n, name) for n, name in enumerate(config.stages)]
    begun = {_begin(stage, folders[:n], config) for n, stage in enumerate(config.stages.values())}
    return [folder for folder in folders[:-1] if folder not in begun]


DONE = "done.json"


def stage_folder(output: Path, number: int, name: str) -> Path:
    """Return the folder of a stage's checkpoint."""
    return output / "stages" / f"{number:02d}-{name}"


def check_finished(config: RecipeConfig) -> None:
    """Compare the finished stages of the output with the recipe.

    Args:
        config: the recipe.

    Raises:
        ValueError: A stage was made with another setting or from another file, which the message names, or is not in the
            recipe.
    """
    output = Path(config.output)
    expected = {stage_folder(output, n, stage.name): stage for n, stage in enumerate(config.stages.values())}
    if rank_and_world()[0] == 0:
        for folder in expected:
            put_back(folder)
    _wait_for_all()
    with together():
        _compare_finished(config, expected)


def _compare_finished(config: RecipeConfig, expected: Mapping[Path, StageConfig]) -> None:
    output, advice = Path(config.output), "give another output, or take the finished stages away"
    for mark in sorted(output.glob(f"stages/[0-9]*/{DONE}")):
        if mark.parent not in expected:
            raise ValueError(f"{mark.parent} holds a finished stage that is not in the recipe; {advice}")
        stage = expected[mark.parent]
        record = json.loads(mark.read_text())
        made = {**record.get("made_from", {}), f"stages.{stage.name}": record["stage"]}
        now = {**made_from(config, stage), f"stages.{stage.name}": json.loads(json.dumps(asdict(stage)))}
        if difference := _difference(made, now):
            raise ValueError(f"{mark.parent} was made with {difference}; {advice}")


def made_from(config: RecipeConfig, stage: StageConfig) -> dict[str, Any]:
    """Return what a stage is made from beside its own settings: those of the recipe, and its files by their content."""
    apart = ("stages", "output", "num_sanity", "estimate")
    others = {name: value for name, value in plain(config).items() if name not in apart}
    return json.loads(json.dumps({**others, "files": _digests([stage])}))


def _digests(stages: Iterable[StageConfig]) -> dict[str, str]:
    """Return the SHA-256 of the annotation files of stages by their paths."""
    files = sorted({data.path for stage in stages for data in stage.data if Path(data.path).is_file()})
    return {path: digest(Path(path)) for path in files}


def check_alike(config: RecipeConfig) -> None:
    """Refuse (ValueError, on all processes) to train where the processes have other recipes or other annotation files."""
    settings = {f"recipe: {name}": json.dumps(value, sort_keys=True) for name, value in plain(config).items()}
    refuse_other_files({**settings, **_digests(config.stages.values())})


def _difference(made: Any, now: Any, key: str = "") -> str:
    """Return the first setting that both hold and that differs, as "key=old, the recipe says new"; empty without one."""
    if isinstance(made, dict) and isinstance(now, dict):
        names = [name for name in made if name in now]
        if not key.startswith("files"):
            names += [name for name in now if name not in made and key.endswith(("tasks", "task_share", "columns"))]
            names += [name for name in made if name not in now and key.endswith(("tasks", "task_share", "columns"))]
        each = (_difference(made.get(n), now.get(n), f"{key}.{n}".lstrip(".")) for n in names)
        return next((one for one in each if one), "")
    if isinstance(made, list) and isinstance(now, list) and len(made) == len(now):
        each = (_difference(a, b, f"{key}[{i}]") for i, (a, b) in enumerate(zip(made, now, strict=True)))
        return next((one for one in each if one), "")
    if made == now:
        return ""
    if key.startswith("files."):
        return f"another content of {key.removeprefix('files.')}"
    return f"{key}={json.dumps(made)}, the recipe says {json.dumps(now)}"


def _keep(quarantine: Quarantine, stage: StageConfig, judge: VideoJudge) -> Keep:
    """Return the function that leaves out what this stage cannot use for this judge."""
    planner = clip_planner(judge)

    def plan(video: Video | Path) -> Clip:
        """Read a clip and refuse one that the judge's family cannot take."""
        clip = planner(video)
        clip_grid(clip, judge.family)
        return clip

    def keep(name: str, examples: Sequence[Annotation], faults: Sequence[Fault]) -> Sequence[Annotation]:
        """Return the usable examples of a file."""
        return quarantine.keep(name, examples, faults, plan=plan, attempt=partial(_attempt, stage, judge.style))

    return keep


def _attempt(stage: StageConfig, style: Style, example: Annotation, to_clip: ToClip) -> None:
    """Build what a stage makes of one example; ValueError where it cannot."""
    if isinstance(example, VideoPair) and "compare" in stage.tasks:
        if not example.preference:
            raise ValueError("no label")
        if stage.method == "grpo":
            build_prompt("compare", example, to_clip, group=0, style=style)
        pair_example(example, to_clip)
    elif isinstance(example, VideoQuestion) and "ask" in stage.tasks:
        closed_example(example, to_clip)
    elif isinstance(example, RatedClip):
        kinds = [kind for kind in stage.tasks if kind not in ("compare", "ask")]
        if stage.method == "grpo" and "reason" in stage.tasks:
            build_prompt("reason", example, to_clip, group=0, style=style)
        elif stage.method == "sft" and kinds:
            clip_example(example, to_clip, kinds)


def check_data(config: RecipeConfig) -> None:
    """Look for the annotation files of all stages before a base is loaded.

    Args:
        config: the recipe.

    Raises:
        ValueError: A file is missing or malformed, or holds nothing on one side of the split.
    """
    chosen = False
    with together():
        for stage in config.stages.values():
            chosen = chosen or bool(stage.measure_every)
            open_mixture(stage.data, keep=_as_read)
            _check_held_out(stage, "report" if chosen else "held_out", _as_read)


def _as_read(name: str, examples: Sequence[Annotation], faults: Sequence[Fault]) -> Sequence[Annotation]:
    if not examples and faults:
        raise ValueError(f"{name}: no line can be read; {faults[0].reason}")
    return examples


def _check_held_out(stage: StageConfig, part: Part, keep: Keep) -> None:
    """Refuse a stage that is to be measured, or to choose its weights, on nothing."""
    for wanted, name in ((bool(stage.num_held_out), part), (bool(stage.measure_every), "selection")):
        if wanted and open_mixture(stage.data, part=name, keep=keep).is_empty:
            raise ValueError(
                f"stage {stage.name!r} has nothing to hold out for its {name} part: too few sources; set num_held_out: 0"
                + (" and measure_every: 0" if stage.measure_every else "")
            )


def _load(folder: Path, config: RecipeConfig) -> VideoJudge:
    return VideoJudge.from_pretrained(folder, dtype=getattr(torch, config.dtype))


def run_stage(
    judge: VideoJudge,
    stage: StageConfig,
    *,
    seed: int,
    log_file: Path,
    keep: Keep = refuse_faults,
    pause: Callable[[], None] = lambda: None,
    progress: ProgressCallback | None = None,
) -> dict[str, float]:
    """Train one stage in place and return its last metrics.

    Args:
        judge: the judge; a new role gets an adapter.
        stage: role, data, tasks and optimisation.
        seed: seed of data order and of a new adapter.
        log_file: JSONL that receives the metrics.
        keep: which examples of a file can be used.
        pause: called between steps.
        progress: told of the steps done, and their number.

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
    settings = stage.fit
    if settings.num_epochs is not None:
        settings = resolve_steps(settings, open_mixture(stage.data, keep=keep).clips_per_epoch)
    num_steps = settings.num_steps
    assert num_steps is not None
    judge.train()
    with METHODS[stage.method](judge, stage, seed, keep) as loss, judge.use_role(stage.role):
        parameters = judge.train_only(stage.role, motion=stage.train_motion)
        matrices, report = layer_matrices(judge, parameters), write if rank == 0 else None
        best = _watch(judge, stage, parameters, keep, pause) if stage.measure_every else None

        def after_step(step: int) -> bool:
            """Show the step, stop where it is asked, and measure where it is time."""
            if progress is not None:
                progress(step, num_steps)
            pause()
            return best is not None and best.after_step(step)

        metrics = fit(parameters, loss, settings, matrices=matrices, log=report, after_step=after_step)
        if best is not None:
            best.restore()
            metrics["best_step"] = best.step
            if math.isfinite(best.score):
                metrics["best_held_out"] = best.score
    judge.eval()
    if stage.role is None:
        judge.configure(base=BASE_FOLDER, revision=None)  # its weights are its own from now on, and are saved with it
    return metrics


def _watch(
    judge: VideoJudge, stage: StageConfig, parameters: Sequence[nn.Parameter], keep: Keep, pause: Callable[[], None]
) -> BestWeights:
    """Return the keeper of the best weights, which measures them on held-out clips for selection as the stage goes."""

    def measure() -> dict[str, float]:
        """Return the table of the held-out clips."""
        judge.eval()
        try:
            return measure_stage(judge, stage, part="selection", keep=keep, pause=pause)
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
def _sft(judge: VideoJudge, stage: StageConfig, seed: int, keep: Keep) -> Iterator[Loss]:
    """Yield the supervised loss of each step on this process's share of the batch."""
    source, (rank, world) = open_mixture(stage.data, keep=keep), rank_and_world()

    def loss(step: int) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
        """Yield the loss of one step."""
        annotations = source.draw(seed, step, stage.fit.batch_size, rank=rank, world=world)
        with shown_for_training(judge, stage):
            examples = make_examples(judge, annotations, stage, num=stage.fit.batch_size // world, turn=step + rank)
            yield example_loss(judge, examples, stage.tasks)

    yield loss


@contextmanager
def _grpo(judge: VideoJudge, stage: StageConfig, seed: int, keep: Keep) -> Iterator[Loss]:
    """Yield the policy loss of each step on this process's prompts; the reference is the role as it is now."""
    source, (rank, world) = open_mixture(stage.data, keep=keep), rank_and_world()
    with _reference(judge, stage) as reference:
        steps = GRPOSteps(judge, build_rewards(stage.rewards), stage.grpo, role=stage.role, reference=reference)

        def loss(step: int) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
            """Yield the loss of one step in micro-batches."""
            # every process plans the whole batch and asks its share: any number of them asks the same prompts
            annotations = source.draw(seed, step // stage.grpo.num_updates, stage.fit.batch_size)
            planned = plan_prompts(annotations, stage.tasks, turn=step // stage.grpo.num_updates)
            with shown_for_training(judge, stage):
                planner = _noting_planner(judge)
                mine = [
                    build_prompt(*planned[group], planner, group=group, style=judge.style)
                    for group in range(rank, len(planned), world)
                ]
                _note_reasoned(judge, stage, [e for kind, e in planned if kind == "reason"])
                yield from steps.micro_batches(mine, step, seed=seed * SEED_STRIDE)

        yield loss


@contextmanager
def _reference(judge: VideoJudge, stage: StageConfig) -> Iterator[Reference]:
    """Yield the context of the policy as it is now: a second adapter, or a copy of all trained weights."""
    if stage.role is None:
        weights = judge.role_parameters(None) if stage.grpo.kl_coef else []
        yield WeightCopy(weights).in_use
        return
    name = f"{stage.role}-at-start"
    judge.add_role(name, copy_from=stage.role)
    try:
        yield partial(judge.use_role, name)
    finally:
        judge.remove_role(name)


METHODS = {"sft": _sft, "grpo": _grpo}


def layer_matrices(judge: VideoJudge, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Return those of `parameters` that are weight matrices of repeated layers (no embeddings, no heads)."""
    chosen = {id(p) for p in parameters}
    layers = ("language_model.layers.", "visual.blocks.")
    named = judge.model.named_parameters()
    return [p for name, p in named if id(p) in chosen and p.ndim == 2 and any(layer in name for layer in layers)]


def make_examples(
    judge: VideoJudge, annotations: Sequence[Annotation], stage: StageConfig, *, num: int, turn: int = 0
) -> list[SFTExample]:
    """Return the supervised examples of one step: every clip with its tasks behind one prefix, then the comparisons.

    Args:
        judge: whose planner shows the clips.
        annotations: drawn from the stage's data.
        stage: its tasks and their shares.
        num: clips asked for, of which the shares are taken.
        turn: number of the step; a labelled pair that is shown in one order alone is swapped in odd ones.

    Returns:
        The examples.
    """
    planner = _noting_planner(judge)
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
        orders = _both_orders(annotations, turn)[: round(num * stage.task_share.get("compare", PAIRS_PER_CLIP))]
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


def _both_orders(annotations: Sequence[Annotation], turn: int) -> list[VideoPair]:
    """Return the labelled pairs and those of neighbouring clips, each in both orders, so the order teaches nothing."""
    labelled = [e for e in annotations if isinstance(e, VideoPair)]
    pairs = [swapped(pair) if turn % 2 else pair for pair in labelled] + [
        pair_of(*two) for two in neighbours(annotations)
    ]
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
        (beside / DONE).write_text(json.dumps(record, indent=1) + "\n")

    if rank_and_world()[0] == 0:
        write_beside(folder, write)
    _wait_for_all()


def _wait_for_all() -> None:
    if rank_and_world()[1] > 1:
        torch.distributed.barrier()
