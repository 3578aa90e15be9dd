"""Schema of a judge recipe: a mapping of stages, each of which trains a base or an adapter on its data."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from reward_model.config import did_you_mean
from reward_model.datasets.readers import DataConfig
from reward_model.judge.families import FAMILIES
from reward_model.judge.modules.roles import check_targets
from reward_model.language.styles import OWN, STYLES
from reward_model.media.frame_sampling import FramePolicy
from reward_model.media.motion_encoders import MotionConfig
from reward_model.rewards import RewardConfig
from reward_model.training.fit import FitConfig
from reward_model.training.methods.grpo import AnswerGRPOConfig

ROLLOUT_TASKS = ("reason", "compare", "ask")
RATES = ("tokens_per_second", "prompt_tokens_per_second")
TASKS = ("rate", "match", "describe", "reason", "compare", "ask")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Size of a role's adapter, and the layers that it adapts."""

    rank: int = 16
    """Rank of the update."""
    alpha: int = 32
    """Scale: the update is multiplied by alpha / rank."""
    targets: list[str] = field(default_factory=lambda: ["text"])
    """Adapted parts: text (the text model), vision (the vision tower), merger (the projections between them). With vision or
    merger each answer's passes encode the clip again, as its features are no longer the same for reference and policy."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.rank < 1 or self.alpha < 1:
            raise ValueError(f"lora.rank and lora.alpha must be >= 1, got {self.rank}, {self.alpha}")
        check_targets(self.targets)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of training."""

    name: str = ""
    """Key of the stage in the recipe, which fills it in; names the folder of the stage's checkpoint."""
    data: list[DataConfig]
    """Sources of rated clips."""
    style: str = OWN
    """Form of the prompts and answers, a key of `language.styles.STYLES`, in training and use alike: own, or that of a paper, with
    its keys and scale. A judge speaks one style in all its roles; others than own are for grpo, and answer no levels."""
    train_frames: FramePolicy | None = None
    """Frames that training shows of a clip where they differ from the judge's in use (VQAThinker trains on fewer); null shows the
    judge's own."""
    train_min_pixels: int | None = None
    """Least pixels that training shows, as `min_pixels` of the recipe; null is the judge's own, at most `train_max_pixels`."""
    train_max_pixels: int | None = None
    """Most pixels that training shows, as `max_pixels` of the recipe; null is the judge's own."""
    method: Literal["sft", "grpo"] = "sft"
    """sft teaches answers by likelihood, grpo lets the judge answer and learn from rewards."""
    tasks: dict[str, float]
    """sft: task (rate, match, describe, reason, compare, ask) -> weight of its mean loss; grpo: task (reason, compare, ask)
    -> rollout prompts per clip of the batch."""
    fit: FitConfig
    """Steps, rates, batch."""
    add_layers: int = 0
    """Layers that the text model grows by when the stage begins; they need a stage that trains the base."""
    role: str | None = None
    """Trained adapter; null trains all weights of the base, under grpo beside a frozen copy of them if `kl_coef` is not 0."""
    train_motion: bool = False
    """Train the projector of motion tokens, which all roles share, beside the role; the base's training includes it."""
    lora: LoraConfig = LoraConfig()
    """Size and layers of a new adapter."""
    start: str | None = None
    """With a role: the role whose weights (and size) the adapter starts from, also where the judge has the role already; null goes
    on from the role as it is, or starts a new one at the base. Without: an earlier stage whose judge this one starts from, so
    that several judges part ways; null is the stage before."""
    grpo: AnswerGRPOConfig = AnswerGRPOConfig()
    """grpo only: rollout of answers and policy loss."""
    rewards: list[RewardConfig] = field(default_factory=list)
    """grpo only: terms of the reward of answers."""
    task_share: dict[str, float] = field(default_factory=dict)
    """Task -> share of the batch's clips that carry it (default 1); compare: pairs per clip (default 0.5)."""
    reasoned_scores: Literal["label", "own"] = "label"
    """sft: scores that reasoned answers are taught: the label's, or the judge's own expected levels of the moment. A greedy
    answer is the likeliest one; taught labels it gambles where the judge is unsure, taught `own` it agrees with the levels."""
    num_held_out: int = 200
    """Most held-out clips of the stage's data (unseen scenes or sources) on which its table is measured, each shown once; 0
    leaves it out. Once weights were chosen on held-out clips, tables are measured on the other half of them."""
    measure_every: int = 0
    """Steps between measurements on the held-out clips; the best weights measured are kept, not the last. 0 keeps the last."""
    patience: int = 0
    """Measurements without a better one after which the stage ends; 0 runs all steps."""

    def __post_init__(self) -> None:
        """Check task names."""
        for name in (*self.tasks, *self.task_share):
            if name not in TASKS:
                raise ValueError(f"tasks must be of {', '.join(TASKS)}, got {name!r}")
        if not self.tasks or not self.data:
            raise ValueError("tasks and data must each hold at least one entry")
        if self.add_layers < 0 or (self.add_layers and self.role is not None):
            raise ValueError(f"add_layers must be >= 0, and 0 for a stage that trains a role, got {self.add_layers}")
        if self.measure_every < 0 or self.patience < 0 or (self.patience and not self.measure_every):
            raise ValueError(
                "measure_every and patience must be >= 0, and patience needs measure_every, "
                f"got {self.measure_every} and {self.patience}"
            )
        if self.measure_every and not self.num_held_out:
            raise ValueError("measure_every needs num_held_out > 0")
        chosen_by = {"rate", "compare", "ask"} | ({"reason"} if self.method == "grpo" else set())
        if self.measure_every and not chosen_by & set(self.tasks):
            raise ValueError(
                f"measure_every needs a task with a correlation or an accuracy, {', '.join(sorted(chosen_by))}"
            )
        self._check_showing()
        if self.reasoned_scores == "own" and (self.method != "sft" or not {"rate", "reason"} <= set(self.tasks)):
            raise ValueError("reasoned_scores=own needs method sft with the tasks rate and reason")
        if self.method == "grpo":
            self._check_grpo()
        elif self.rewards or self.grpo != AnswerGRPOConfig():
            raise ValueError("method sft reads neither rewards nor grpo; drop them, or set method=grpo")

    def _check_showing(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"style is {self.style!r}{did_you_mean(self.style, tuple(STYLES))}")
        if self.style != OWN and self.method != "grpo":
            raise ValueError(f"style {self.style!r} is learned by grpo; supervision teaches this project's own answers")
        low, high = self.train_min_pixels, self.train_max_pixels
        if min(low or 1, high or 1) < 1 or (low and high and low > high):
            raise ValueError(f"train_min_pixels and train_max_pixels must be >= 1 and ascending, got {low} and {high}")

    def _check_grpo(self) -> None:
        kinds = {reward.kind for reward in self.rewards}
        if set(self.tasks) - set(ROLLOUT_TASKS) or self.task_share:
            raise ValueError(f"tasks of method grpo must be of {', '.join(ROLLOUT_TASKS)}, without task_share")
        if set(self.tasks) != kinds:
            raise ValueError(f"rewards must cover the tasks: it asks {sorted(self.tasks)}, but rewards {sorted(kinds)}")


@dataclass(frozen=True, kw_only=True)
class ScratchConfig:
    """A judge trained from nothing, for the embedded world: the real architecture at a small size."""

    family: str = "qwen2_5_vl"
    """Architecture, a key of `judge.families.FAMILIES`."""
    hidden: int = 128
    """Width of the language model and of the vision tower."""
    layers: int = 4
    """Depth of each."""
    patch_size: int = 8
    """Pixels per patch side; a token covers 2 x 2 patches of 2 frames."""

    def __post_init__(self) -> None:
        """Check the family's name."""
        if self.family not in FAMILIES:
            nearest = did_you_mean(self.family, tuple(FAMILIES))
            raise ValueError(f"scratch.family: Invalid value {self.family!r}{nearest}")


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a base, as its config.json states them."""

    parameters: float
    """Weights of the whole model."""
    hidden: int
    """Width of the text model."""
    intermediate: int
    """Inner width of its feed-forward layers."""
    layers: int
    """Its depth."""
    key_value: int
    """Width of its keys, and of its values."""
    vocabulary: int
    """Number of its tokens."""
    vision_hidden: int
    """Width of the vision tower."""
    vision_intermediate: int
    """Inner width of its feed-forward layers."""
    vision_layers: int
    """Its depth."""
    patch_size: int = 14
    """Pixels per patch side; a token covers 2 x 2 patches of 2 frames."""


@dataclass(frozen=True, kw_only=True)
class EstimateConfig:
    """Assumptions of the memory and time that `--dry-run` prints; training does not read them."""

    shape: ModelShape | None = None
    """Sizes of a base that is not on this machine; those of one that is are read from its files."""
    clips: dict[str, int] = field(default_factory=dict)
    """Stage -> published number of its clips (a pair counts as two), assumed while a file is missing."""
    processes: int = 1
    """Processes that share the work, each with all weights."""
    gib_per_process: float = 80.0
    """Memory of a process's device in GiB, above which the estimate says so."""
    answer_tokens: int = 300
    """Mean length of an answer."""
    tokens_per_second: float = 250.0
    """Answer tokens that a process samples, rewards and learns from in a second: 8 answers of one prompt at some 30 tokens a second
    each. Measure it on a few steps: model, hardware and answers at a time change it much."""
    prompt_tokens_per_second: float = 3000.0
    """Prompt tokens that a process takes through rollout, reference and training in a second: 8e9 weights at some 2.5e14
    operations a second, five passes."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("processes", "gib_per_process", "answer_tokens", *RATES):
            if not getattr(self, name) > 0:
                raise ValueError(f"estimate.{name} must be > 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """A judge recipe."""

    name: Literal["judge"]
    """Names the schema of the file."""
    output: str
    """Folder of checkpoints, metrics and the finished judge."""
    base: str | None = None
    """Folder or hub id of a Qwen2.5-VL / Qwen3-VL checkpoint or a judge, or "toy" for the embedded judge; null
    builds `scratch`."""
    scratch: ScratchConfig | None = None
    """Architecture of a judge trained from nothing; needs base: null."""
    stages: dict[str, StageConfig]
    """Name -> stage; trained in the order of the mapping, each from the one before."""
    frame_policy: FramePolicy | None = None
    """Which frames the judge sees of a clip; null keeps the base's plan. Not for scratch."""
    min_pixels: int | None = None
    """Least pixels, as `max_pixels`; equal to it, small clips are enlarged. Null keeps the base's, at most `max_pixels`."""
    max_pixels: int | None = None
    """Most pixels of a frame (Qwen2.5-VL) or of all frames (Qwen3-VL), as the family's processor counts; null keeps the base's.
    Not for scratch."""
    max_answer_tokens: int | None = None
    """Longest reasoned answer when the judge is used; null keeps the base's."""
    motion: MotionConfig | None = None
    """Motion encoder whose features the judge is shown behind the frames; null shows frames only. A base that has motion
    tokens already keeps its own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the base's weights; adapters are always float32. bfloat16 halves the memory, for recipes that train roles only."""
    num_sanity: int = 100
    """Best-rated held-out clips of the last stage that rates; they are damaged on purpose for the table in the model card. 0
    leaves it out."""
    max_unreadable: float = 0.2
    """Share of a file's examples, in [0, 1], that may be unreadable or unusable: they are left out, named in the log and listed
    in `output`/quarantine.jsonl. More refuse the training; raising it trains on what is left of worse files."""
    estimate: EstimateConfig = EstimateConfig()
    """Assumptions of `--dry-run`."""
    seed: int = 0
    """Seed of initial weights, data and order."""
    trained_on: str
    """One phrase that tells users the judge's training data."""

    def __post_init__(self) -> None:
        """Check that exactly one start is given, and name the stages by their keys."""
        if (self.base is None) == (self.scratch is None):
            raise ValueError("exactly one of base and scratch must be given")
        shown = (self.frame_policy, self.min_pixels, self.max_pixels)
        if self.scratch is not None and any(one is not None for one in shown):
            raise ValueError(
                "frame_policy, min_pixels and max_pixels need a base; scratch is made for the embedded world's clips"
            )
        if min(self.min_pixels or 1, self.max_pixels or 1) < 1 or (self.min_pixels or 1) > (
            self.max_pixels or math.inf
        ):
            raise ValueError(
                f"min_pixels and max_pixels must be >= 1 and ascending, got {self.min_pixels} and {self.max_pixels}"
            )
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"max_unreadable must be in [0, 1], got {self.max_unreadable}")
        if not self.stages:
            raise ValueError("stages must hold at least one stage")
        for name, stage in self.stages.items():
            if stage.name not in ("", name):
                raise ValueError(f"stages.{name}.name is {stage.name!r}; leave it out, the key is the stage's name")
        self._check_chain()
        named = {name: dataclasses.replace(stage, name=name) for name, stage in self.stages.items()}
        object.__setattr__(self, "stages", named)
        if self.dtype != "float32" and any(stage.role is None for stage in self.stages.values()):
            raise ValueError(
                f"dtype {self.dtype} is for recipes whose stages all have a role: a base learns in float32"
            )

    def _check_chain(self) -> None:
        """Check what stages begin from, and that a judge that goes on with roles keeps its style."""
        names = list(self.stages)
        for place, (name, stage) in enumerate(self.stages.items()):
            if stage.role is None and stage.start is not None and stage.start not in names[:place]:
                raise ValueError(f"stages.{name}.start must be an earlier stage, got {stage.start!r}")
        styles = {stage.style for stage in self.stages.values()}
        if len(styles) > 1 and any(stage.role is not None for stage in self.stages.values()):
            raise ValueError(f"a judge speaks one style in all its roles, got {', '.join(sorted(styles))}")
