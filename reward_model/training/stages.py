"""Runs a recipe: every stage starts from the one before, trains, is measured, saved once and skipped on restart."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from reward_model.datasets import moving_shapes
from reward_model.evaluation.metrics import srcc
from reward_model.judge.checkpoint import JudgeConfig
from reward_model.judge.model import VideoJudge
from reward_model.judge.readouts import read_levels
from reward_model.judge.tiny import build_tiny, build_tokenizer
from reward_model.media.distortions import DEFECTS
from reward_model.media.frame_sampling import FramePolicy, take
from reward_model.media.video_io import read_video
from reward_model.records import Clip, RatedClip, Video
from reward_model.training.fit import fit
from reward_model.training.recipe import RecipeConfig, ScratchConfig, StageConfig
from reward_model.training.sft import lesson_loss
from reward_model.training.sources import Source, open_mixture
from reward_model.training.tasks import Lesson, clip_lesson, pair_lesson

log = logging.getLogger(__name__)

WORLD_SIZE, WORLD_FRAMES = 32, 9
"""Pixels per side and frames of the clips that a judge built from nothing is made for."""

HELD_OUT_SEED = 2**40
"""Seed of held-out clips, above every training draw."""

PAIRS_PER_CLIP = 0.5
"""Default number of comparisons per clip of a batch."""


def run_recipe(config: RecipeConfig, *, num_stages: int | None = None) -> Path:
    """Train all stages of a recipe and return the folder of the finished judge.

    Args:
        config: the recipe.
        num_stages: stop after that many stages; None runs all.

    Returns:
        `config.output`/judge.
    """
    output = Path(config.output)
    previous: Path | None = None
    for number, stage in enumerate(config.stages[:num_stages]):
        folder = output / "stages" / f"{number:02d}-{stage.name}"
        if not (folder / "done.json").exists():
            judge = (
                start_judge(config) if previous is None else VideoJudge.from_pretrained(previous, dtype=torch.float32)
            )
            seed = config.seed * 1000 + number
            metrics = run_stage(judge, stage, seed=seed, log_file=output / "metrics.jsonl")
            metrics |= measure_stage(judge, stage, seed=HELD_OUT_SEED)
            judge.configure(lineage=(*judge.config.lineage, stage.name))
            _save_atomically(judge, folder, {"stage": asdict(stage), "metrics": metrics})
        previous = folder
    assert previous is not None
    finished = output / "judge"
    if _rank_and_world()[0] == 0:
        shutil.rmtree(finished, ignore_errors=True)
        shutil.copytree(previous, finished, ignore=shutil.ignore_patterns("done.json"))
    _wait_for_all()
    return finished


def start_judge(config: RecipeConfig) -> VideoJudge:
    """Return the judge that the first stage trains: a loaded checkpoint or a small one with random weights."""
    if config.base is not None:
        return VideoJudge.from_pretrained(config.base, dtype=torch.float32)
    assert config.scratch is not None
    return _build_judge(config.scratch, seed=config.seed, trained_on=config.trained_on)


def _build_judge(scratch: ScratchConfig, *, seed: int, trained_on: str) -> VideoJudge:
    """Return an untrained judge of the moving-shapes world, which it sees frame by frame at its own size."""
    tokenizer = build_tokenizer([*_world_words(), *DEFECTS])
    sizes = {"hidden": scratch.hidden, "layers": scratch.layers, "patch_size": scratch.patch_size}
    width = {"vision_hidden": scratch.hidden, "vision_layers": scratch.layers}
    model, tokenizer = build_tiny(scratch.family, **sizes, **width, seed=seed, tokenizer=tokenizer)
    pixels = WORLD_SIZE**2 * (1 if scratch.family == "qwen2_5_vl" else WORLD_FRAMES + 1)
    config = JudgeConfig.for_model(
        model.config,
        min_pixels=pixels,
        max_pixels=pixels,
        frame_policy={"mode": "all", "max_frames": WORLD_FRAMES},
        max_answer_tokens=160,
        trained_on=trained_on,
    )
    return VideoJudge(model, tokenizer, config)


def _world_words() -> list[str]:
    grammar = moving_shapes.FULL
    words = [value for name in moving_shapes.ATTRIBUTES for value in grammar.values(name)]
    return [*words, *moving_shapes.ATTRIBUTES, moving_shapes.caption(grammar.scenes()[0])]


def run_stage(judge: VideoJudge, stage: StageConfig, *, seed: int, log_file: Path) -> dict[str, float]:
    """Train one stage in place and return its last metrics.

    Args:
        judge: the judge; a new role gets an adapter.
        stage: what to train and on what.
        seed: seed of data order and of a new adapter.
        log_file: JSONL that receives the metrics.

    Returns:
        Means of the metrics over the last logged stretch.

    Raises:
        ValueError: the batch does not divide among the processes.
    """
    torch.manual_seed(seed)
    if stage.role is not None and stage.role not in judge.roles:
        judge.add_role(stage.role, rank=stage.lora.rank, alpha=stage.lora.alpha)
    source = open_mixture(stage.data)
    log_file.parent.mkdir(parents=True, exist_ok=True)

    def write(row: dict[str, float]) -> None:
        log.info("%s %s", stage.name, " ".join(f"{k}={v:.4g}" for k, v in row.items()))
        with log_file.open("a") as file:
            file.write(json.dumps({"stage": stage.name, **row}) + "\n")

    rank, world = _rank_and_world()
    share, rest = divmod(stage.fit.batch_size, world)
    if rest or not share:
        raise ValueError(
            f"fit.batch_size of stage {stage.name!r} is {stage.fit.batch_size}, not a multiple of {world} processes"
        )
    judge.train()
    with judge.use_role(stage.role):
        parameters = judge.trainable_parameters(stage.role)

        def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            draw = (seed * 1_000_003 + step) * world + rank
            return lesson_loss(judge, draw_lessons(judge, source, stage, draw, share), stage.tasks)

        matrices = layer_matrices(judge, parameters)
        metrics = fit(parameters, loss, stage.fit, matrices=matrices, log=write if rank == 0 else None)
    judge.eval()
    return metrics


@torch.no_grad()
def measure_stage(judge: VideoJudge, stage: StageConfig, *, seed: int, batch_size: int = 16) -> dict[str, float]:
    """Score held-out clips of the stage's data by levels; set the judge's calibration constants from them.

    Args:
        judge: the judge after the stage; its configuration receives mean and standard deviation of each dimension.
        stage: whose role, data and number of clips are used.
        seed: seed of the held-out clips.
        batch_size: clips per forward pass.

    Returns:
        "srcc_<dimension>" against the labels; empty for a stage that rates nothing or holds nothing out.
    """
    if "rate" not in stage.tasks or not stage.num_held_out:
        return {}
    clips, planner = open_mixture(stage.data, held_out=True)(seed, stage.num_held_out), clip_planner(judge)
    lessons = [clip_lesson(clip, planner, ["rate"]) for clip in clips]
    found: dict[str, list[float]] = {name: [] for name in judge.config.dimensions}
    labels: dict[str, list[float]] = {name: [] for name in judge.config.dimensions}
    with judge.use_role(stage.role):
        for start in range(0, len(lessons), batch_size):
            logits = judge.next_token_logits([lesson.request for lesson in lessons[start : start + batch_size]])
            for clip, branches in zip(clips[start : start + batch_size], logits, strict=True):
                qualities = read_levels(branches, judge.level_ids).quality.tolist()
                for (name, label), quality in zip(clip.quality.items(), qualities, strict=True):
                    found[name].append(quality)
                    labels[name].append(label)
    rated = {name: torch.tensor(values) for name, values in found.items() if len(values) > 1}
    constants = {name: {"mean": float(q.mean()), "std": float(q.std())} for name, q in rated.items()}
    judge.configure(calibration=constants)
    return {f"srcc_{name}": srcc(values.numpy(), labels[name]) for name, values in rated.items()}


def layer_matrices(judge: VideoJudge, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Return those of `parameters` that are weight matrices of repeated layers (no embeddings, no heads)."""
    chosen = {id(p) for p in parameters}
    layers = ("language_model.layers.", "visual.blocks.")
    named = judge.model.named_parameters()
    return [p for name, p in named if id(p) in chosen and p.ndim == 2 and any(part in name for part in layers)]


def draw_lessons(judge: VideoJudge, source: Source, stage: StageConfig, seed: int, num: int) -> list[Lesson]:
    """Return the lessons of one step: every clip with its tasks behind one prefix, then the comparisons."""
    planner = clip_planner(judge)
    clips = source(seed, num)
    kinds = [kind for kind in stage.tasks if kind != "compare"]
    lessons = []
    for place, rated in enumerate(clips):
        chosen = [kind for kind in kinds if place < num * stage.task_share.get(kind, 1.0)]
        if chosen:
            lessons.append(clip_lesson(rated, planner, chosen))
    if "compare" in stage.tasks:
        lessons += _comparisons(clips, planner, round(num * stage.task_share.get("compare", PAIRS_PER_CLIP)))
    return lessons


def _comparisons(clips: Sequence[RatedClip], planner: Callable[[RatedClip], Clip], num: int) -> list[Lesson]:
    """Pair clips of one prompt; a batch must bring them as neighbours that share `source_id`'s prompt."""
    pairs = [(a, b) for a, b in zip(clips, clips[1:], strict=False) if a.prompt == b.prompt]
    return [pair_lesson(a, b, planner) for a, b in pairs[:num]]


def clip_planner(judge: VideoJudge) -> Callable[[RatedClip], Clip]:
    """Return the function that reads and plans a rated clip the way this judge sees clips."""
    policy = FramePolicy.from_dict(judge.config.frame_policy)

    def plan(rated: RatedClip) -> Clip:
        if isinstance(rated.video, Video):
            return take(rated.video, policy)
        video, frames = read_video(rated.video, policy=policy)
        return Clip(video.frames, frames)

    return plan


def _save_atomically(judge: VideoJudge, folder: Path, record: dict[str, object]) -> None:
    if _rank_and_world()[0] == 0:
        _write_beside(judge, folder, record)
    _wait_for_all()


def _write_beside(judge: VideoJudge, folder: Path, record: dict[str, object]) -> None:
    beside = folder.with_name(f".{folder.name}")
    shutil.rmtree(beside, ignore_errors=True)
    judge.save_pretrained(beside)
    (beside / "done.json").write_text(json.dumps(record, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(beside, folder)


def _wait_for_all() -> None:
    if _rank_and_world()[1] > 1:
        torch.distributed.barrier()


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
