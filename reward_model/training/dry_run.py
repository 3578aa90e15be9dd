"""Plan of a recipe before any model is loaded: its files, steps, and estimates of memory and time with their assumptions.

Memory is that of one process, which holds all weights: nothing is divided among processes.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_model.datasets.base import Fault
from reward_model.datasets.readers import READERS
from reward_model.judge.checkpoints.location import CONFIG_FILE
from reward_model.language.styles import STYLES
from reward_model.media.frame_sampling import FramePolicy
from reward_model.records import Annotation
from reward_model.training.fit import resolve_steps
from reward_model.training.recipe import ModelShape, RecipeConfig, StageConfig
from reward_model.training.stages import DONE, stage_folder
from reward_model.training.tasks.mixture import Mixture, open_mixture
from reward_model.training.tasks.quarantine import media_of
from reward_model.training.tasks.rollout_prompts import plan_prompts
from reward_model.video_reward import TOY_JUDGE
from reward_model.weights import tensor_shapes

GIB = 2**30
TEXT_TOKENS = 150
"""Assumed tokens of a prompt beside its clips."""
LOGIT_TOKENS = 512
"""Answer tokens whose logits exist at a time."""
SAMPLED_STEPS = 16
"""Steps whose batches are drawn to count prompts."""


@dataclass(frozen=True)
class StagePlan:
    """One stage of a plan: `lines` to print, and the files and folders that are missing."""

    lines: tuple[str, ...]
    missing: tuple[str, ...]


def plan_recipe(config: RecipeConfig) -> tuple[str, list[str]]:
    """Describe a recipe without loading a model.

    Args:
        config: the recipe.

    Returns:
        The text, and the files and folders that are missing.
    """
    folder, assumed = base_folder(config), config.estimate
    where = "" if folder or not config.base else " (not on this machine: it is downloaded at the start)"
    shape = model_shape(config, folder)
    plans = [_plan_stage(config, number, shape) for number in range(len(config.stages))]
    missing = [path for plan in plans for path in plan.missing]
    lines = [f"base: {config.base or 'built from nothing'}{where}", f"output: {config.output}"]
    if config.motion is not None and config.motion.path:
        lines.append(f"motion encoder: {_marked(config.motion.path, missing)}")
    lines += [line for plan in plans for line in plan.lines]
    lines.append(
        f"assumed (change with estimate.NAME=VALUE): processes={assumed.processes}, each with all weights; "
        f"gib_per_process={assumed.gib_per_process:g}; answer_tokens={assumed.answer_tokens} on average; "
        f"tokens_per_second={assumed.tokens_per_second:g} answer tokens and "
        f"prompt_tokens_per_second={assumed.prompt_tokens_per_second:g} that a process takes through rollout, reference and "
        "training, which suit some 8e9 weights on one GPU; activations of one micro-batch of longest clips and answers, none of them computed again"
    )
    return "\n".join(lines) + "\n", list(dict.fromkeys(missing))


def base_folder(config: RecipeConfig) -> Path | None:
    """Return the folder of the base on this machine, if it is there; the hub is not asked."""
    if config.base is None:
        return None
    place = Path(TOY_JUDGE if config.base == "toy" else config.base)
    if place.is_dir():
        return place
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(config.base, "config.json")
    except HFValidationError:
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def model_shape(config: RecipeConfig, folder: Path | None) -> ModelShape | None:
    """Return the sizes of the base from its files, or else as the recipe states them; None where neither is known."""
    if folder is None:
        return config.estimate.shape
    place = folder / "base" if (folder / "base" / "config.json").is_file() else folder
    weights = sorted(place.glob("*.safetensors"))
    if not weights or not (place / "config.json").is_file():
        return config.estimate.shape
    num = sum(math.prod(shape) for file in weights for shape in tensor_shapes(file).values())
    return _shape_of(json.loads((place / "config.json").read_text(encoding="utf-8")), num)


def _shape_of(settings: Mapping[str, Any], num: int) -> ModelShape:
    """Return the sizes that a config.json of the Qwen-VL families states."""
    text, vision = settings.get("text_config", settings), settings["vision_config"]
    head = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    return ModelShape(
        parameters=num,
        hidden=text["hidden_size"],
        intermediate=text["intermediate_size"],
        layers=text["num_hidden_layers"],
        key_value=head * text["num_key_value_heads"],
        vocabulary=text["vocab_size"],
        vision_hidden=vision["hidden_size"],
        vision_intermediate=vision["intermediate_size"],
        vision_layers=vision["depth"],
        patch_size=vision.get("patch_size", 14),
    )


def _plan_stage(config: RecipeConfig, number: int, shape: ModelShape | None) -> StagePlan:
    stage = [*config.stages.values()][number]
    folder = stage_folder(Path(config.output), number, stage.name)
    mixture, files = _open(stage)
    missing: list[str] = []
    data = ", ".join(_marked(part.path, missing) if part.path else part.kind for part in stage.data)
    media = [_marked(part.media, missing) for part in stage.data if part.media]
    steps = _steps(config, stage, mixture)
    state = "finished" if (folder / DONE).exists() else _length(config, stage, mixture, steps)
    lines = [f"{folder.name}: {stage.method}, {stage.role or 'base'}, {state}; data: {data}"]
    lines += [f"  media: {', '.join(media)}"] if media else []
    lines += [f"  {line}" for line in files]
    lines.append(f"  memory: {_memory(config, stage, mixture, shape)}")
    lines.append(f"  time: {_time(config, stage, mixture, shape, steps)}")
    if config.motion is not None and config.motion.path and not Path(config.motion.path).exists():
        missing.append(config.motion.path)
    return StagePlan(tuple(lines), tuple(missing))


def _length(config: RecipeConfig, stage: StageConfig, mixture: Mixture | None, steps: int | None) -> str:
    size, epochs = f"of {stage.fit.batch_size} clips", stage.fit.num_epochs
    if epochs is None:
        return f"{steps} steps {size}"
    if steps is None:
        return f"{epochs:g} epochs {size} a step, of unknown length while a file is missing"
    clips = (
        f"{config.estimate.clips[stage.name]} clips, assumed" if mixture is None else f"{mixture.clips_per_epoch} clips"
    )
    return f"{steps} steps {size}, which are {epochs:g} epochs of {clips}"


def _marked(path: str, missing: list[str]) -> str:
    """Return a path as it is printed, and note it where nothing is there."""
    if Path(path).exists():
        return path
    missing.append(path)
    return f"{path} (MISSING)"


def _open(stage: StageConfig) -> tuple[Mixture | None, list[str]]:
    """Return the stage's data, None where a file is missing or unreadable, and lines about media that are missing."""
    lines: list[str] = []

    def note(name: str, examples: Sequence[Annotation], faults: Sequence[Fault]) -> Sequence[Annotation]:
        """Keep all examples, and note media that are missing."""
        gone = [file for one in examples for file in media_of(one) if not file.exists()]
        lines.append(
            f"{name}: {len(examples)} examples, {len(faults)} lines that cannot be read, {len(gone)} media missing"
        )
        if gone:
            lines[-1] += f" ({', '.join(map(str, gone[:3]))}{', ...' if len(gone) > 3 else ''})"
        return examples

    try:
        return open_mixture(stage.data, keep=note), lines
    except (ValueError, OSError) as error:
        return None, [*lines, f"cannot be opened: {error}"]


def _steps(config: RecipeConfig, stage: StageConfig, mixture: Mixture | None) -> int | None:
    if stage.fit.num_steps is not None:
        return stage.fit.num_steps
    clips = config.estimate.clips.get(stage.name) if mixture is None else mixture.clips_per_epoch
    return resolve_steps(stage.fit, clips).num_steps if clips is not None else None


def memory_parts(config: RecipeConfig, stage: StageConfig, shape: ModelShape, *, prompts: int) -> dict[str, float]:
    """Return the parts of a process's memory in a stage, in bytes.

    Args:
        config: the recipe.
        stage: one of its stages.
        shape: sizes of the base.
        prompts: of a micro-batch.

    Returns:
        Name of the part -> bytes, the parts that are 0 left out.
    """
    width = 2 if config.dtype == "bfloat16" else 4
    trained = shape.parameters if stage.role is None else lora_parameters(stage, shape)
    adapters = 0.0 if stage.role is None else 4.0 * trained
    penalised = stage.method == "grpo" and bool(stage.grpo.kl_coef)
    parts = {
        "weights": width * shape.parameters + adapters,
        "gradients": 4.0 * trained,
        "AdamW": 8.0 * trained,
        "reference": 4.0 * trained * penalised,
        "best weights": 4.0 * trained * bool(stage.measure_every),
        "activations": activation_bytes(config, stage, shape, prompts=prompts),
    }
    return {name: value for name, value in parts.items() if value}


def lora_parameters(stage: StageConfig, shape: ModelShape) -> float:
    """Return the number of weights of a stage's adapter on text model and vision tower; mergers are too small to count."""
    text = shape.layers * (_attention(shape.hidden, shape.key_value) + 3 * (shape.hidden + shape.intermediate))
    tower = shape.vision_layers * (6 * shape.vision_hidden + 3 * (shape.vision_hidden + shape.vision_intermediate))
    targets = stage.lora.targets
    return stage.lora.rank * (text * ("text" in targets) + tower * ("vision" in targets))


def _attention(hidden: int, key_value: int) -> int:
    """Return the sum of inputs and outputs of the four projections of grouped attention."""
    return 2 * (hidden + hidden) + 2 * (hidden + key_value)


def activation_bytes(config: RecipeConfig, stage: StageConfig, shape: ModelShape, *, prompts: int) -> float:
    """Return the bytes that one micro-batch keeps for its backward pass, for clips and answers of full length.

    A layer keeps, for each token, the inputs of its projections and of its products in the precision of the forward pass (5
    times the width, twice keys and values, 4 times the inner width) and the inputs of two norms in 4 bytes.

    Args:
        config: the recipe.
        stage: one of its stages.
        shape: sizes of the base.
        prompts: of a micro-batch.

    Returns:
        Bytes; the vision tower counts only where it is trained.
    """
    width = 2 if stage.fit.mixed_precision == "bf16" or config.dtype == "bfloat16" else 4
    clips, answers = (2 if "compare" in stage.tasks else 1), stage.grpo.group_size * _longest_answer(stage)
    if stage.method == "sft":
        clips, answers = 1, config.max_answer_tokens or TEXT_TOKENS
    seen = clips * clip_tokens(config, stage, shape)
    tokens = prompts * (seen + TEXT_TOKENS + answers)
    layer = width * (5 * shape.hidden + 2 * shape.key_value + 4 * shape.intermediate) + 8 * shape.hidden
    logits = 3 * 4.0 * LOGIT_TOKENS * shape.vocabulary
    tower = 0.0
    if stage.role is None or set(stage.lora.targets) - {"text"}:
        one = width * (7 * shape.vision_hidden + 4 * shape.vision_intermediate) + 8 * shape.vision_hidden
        tower = 4.0 * prompts * seen * shape.vision_layers * one  # 2 x 2 patches are one token
    return tokens * shape.layers * layer + tower + logits


def clip_tokens(config: RecipeConfig, stage: StageConfig, shape: ModelShape | None) -> int:
    """Return the tokens of the longest clip that a stage shows: two frames share their tokens."""
    policy = stage.train_frames or config.frame_policy or FramePolicy()
    frames = {
        "fps": policy.max_frames,
        "all": policy.max_frames,
        "slowfast": policy.num_frames + policy.num_fast_frames,
    }
    num = (
        1
        if all(READERS[part.kind].still or part.images for part in stage.data)
        else frames.get(policy.mode, policy.num_frames)
    )
    pixels = stage.train_max_pixels or config.max_pixels or _saved_pixels(config)
    patch = shape.patch_size if shape is not None else 14
    return -(-num // 2) * max(1, pixels // (2 * patch) ** 2)


def _saved_pixels(config: RecipeConfig) -> int:
    """Return the pixel bound of a base that is a judge, or the default of the Qwen families."""
    folder = base_folder(config)
    file = folder / CONFIG_FILE if folder is not None else None
    return int(json.loads(file.read_text())["max_pixels"]) if file is not None and file.is_file() else 768 * 28 * 28


def _longest_answer(stage: StageConfig) -> int:
    """Return the most tokens of an answer of a stage of grpo."""
    one_token = set(stage.tasks) == {"compare"} and not STYLES[stage.style].reasons_to_compare
    return 1 if one_token else stage.grpo.max_answer_tokens


def _micro_batch(config: RecipeConfig, stage: StageConfig, mixture: Mixture | None) -> int:
    """Return the prompts of a micro-batch: all of a process under supervision, at most `questions_per_part` of them under grpo."""
    if stage.method == "sft":
        return math.ceil(stage.fit.batch_size / config.estimate.processes)
    own = math.ceil(sum(prompts_per_step(stage, mixture).values()) / config.estimate.processes)
    return max(1, min(stage.grpo.questions_per_part, own))


def _memory(config: RecipeConfig, stage: StageConfig, mixture: Mixture | None, shape: ModelShape | None) -> str:
    if shape is None:
        why = (
            "a judge built from nothing is small"
            if config.base is None
            else "give estimate.shape, or have the base here"
        )
        return f"not estimated: {why}"
    parts = memory_parts(config, stage, shape, prompts=_micro_batch(config, stage, mixture))
    room = config.estimate.gib_per_process
    total = sum(parts.values()) / GIB
    said = ", ".join(f"{name} {value / GIB:.1f}" for name, value in parts.items())
    fits = "" if total <= room else f"; MORE than the {room:g} GiB of a process"
    if fits and parts["activations"] > parts["weights"]:
        fits += "; lower grpo.questions_per_part or max_answer_tokens"
    if fits and stage.role is None:
        fits += "; name a role, which trains an adapter, or take a smaller base"
    return f"about {total:.1f} GiB a process ({said}){fits}"


def _time(
    config: RecipeConfig, stage: StageConfig, mixture: Mixture | None, shape: ModelShape | None, steps: int | None
) -> str:
    if shape is None and config.base is None:
        return "not estimated: the assumed rates are those of a large base"
    if steps is None:
        return "unknown while a file is missing"
    assumed, (answers, prompts) = config.estimate, tokens_per_step(config, stage, mixture, shape)
    seconds = (answers / assumed.tokens_per_second + prompts / assumed.prompt_tokens_per_second) / assumed.processes
    of = f"{answers:.0f} answer tokens and {prompts:.0f} prompt tokens"
    return f"about {steps * seconds / 3600:.3g} hours ({steps} steps of {of})"


def tokens_per_step(
    config: RecipeConfig, stage: StageConfig, mixture: Mixture | None, shape: ModelShape | None
) -> tuple[float, float]:
    """Return the tokens of a step over all processes, those about disturbed clips among them.

    Args:
        config: the recipe, with the assumed length of an answer.
        stage: one of its stages.
        mixture: its data; None while a file is missing.
        shape: sizes of the base, where they are known.

    Returns:
        Answer tokens, where a comparison by the next token has one and supervision none, and prompt tokens.
    """
    seen, grpo = clip_tokens(config, stage, shape), stage.grpo
    if stage.method == "sft":
        return 0.0, float(stage.fit.batch_size * (seen + TEXT_TOKENS))
    extra = grpo.num_perturbed if grpo.perturbation is not None else 0
    forms = 1 + (0 if not extra else extra if grpo.perturb_each == "rollout" else 1)
    answers = prompts = 0.0
    for kind, count in prompts_per_step(stage, mixture).items():
        one_token = kind == "compare" and not STYLES[stage.style].reasons_to_compare
        length = 1 if one_token else min(config.estimate.answer_tokens, grpo.max_answer_tokens)
        answers += count * length * (grpo.group_size + (extra if kind == "reason" else 0))
        prompts += count * ((2 if kind == "compare" else 1) * seen + TEXT_TOKENS) * (forms if kind == "reason" else 1)
    return answers, prompts


def prompts_per_step(stage: StageConfig, mixture: Mixture | None) -> dict[str, float]:
    """Return kind of prompt -> mean number of rollout prompts of a step, counted over the first batches of listed examples.

    Args:
        stage: its tasks and batch.
        mixture: its data; of clips that are rendered, or missing, each is assumed to be asked about, and every two to be compared.

    Returns:
        The numbers.
    """
    batch = stage.fit.batch_size
    if mixture is None or not mixture.clips_per_epoch:
        most = {"reason": 1.0, "compare": 0.5, "ask": 1.0}
        return {kind: batch * min(most[kind], share) for kind, share in stage.tasks.items()}
    counted = Counter[str]()
    for step in range(SAMPLED_STEPS):
        counted.update(kind for kind, _ in plan_prompts(mixture.draw(0, step, batch), stage.tasks))
    return {kind: count / SAMPLED_STEPS for kind, count in counted.items()}
