"""Schema of a joint run, which `joint_train.py` reads from a recipe and its overrides.

The objective's own settings live beside its formula in `objectives/`; `run.build.read_config` puts both together.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from reward_model.records import DIMENSIONS


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where and how long a run works."""

    output: str
    """Folder for everything that the run writes."""
    seed: int = 0
    """Root of every random stream; another seed gives other prompts, noise and adapters."""
    max_hours: float | None = None
    """Hours after which the run saves and exits cleanly at the next iteration; null never stops it."""
    num_threads: int | None = None
    """CPU threads per process; null takes one per process."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models live; auto takes a GPU if there is one."""
    checkpoint_minutes: float | None = None
    """Minutes between checkpoints within a round; null saves at the end of each round only."""
    keep_checkpoints: int = 2
    """Finished checkpoints kept on disk; more cost space only."""
    keep_rounds: Literal["none", "last", "all"] = "none"
    """Write each iteration's candidates (latents) and judgements to `rounds/`: a resumed run then samples and judges nothing a
    second time. last keeps the round under way, all every round. Not for objectives that learn from sampling steps."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _positive("run", self, "keep_checkpoints", "checkpoint_minutes", "num_threads", "max_hours")


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """The text-to-video model and its adapter."""

    path: str
    """Local pipeline folder, hub id, or "toy" for the embedded generator."""
    family: str = "wan"
    """Adapter that knows the model, one of `GENERATORS`: wan, ltx, cogvideox, hunyuan_video or mochi."""
    revision: str | None = None
    """Hub revision; null takes the newest."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the frozen weights, and of the transformer's arithmetic; auto is float32 on a CPU and bfloat16 elsewhere. What
    learns, the adapter or with train=full the transformer, is always kept in float32."""
    train: Literal["lora", "full"] = "lora"
    """lora trains an adapter; full trains every weight of the transformers, at some six times their 32-bit size in memory, and
    saves them whole. Full wants a lower `update.learning_rate`, 1e-5 rather than 3e-4 (DanceGRPO)."""
    copies: Literal["device", "cpu"] = "device"
    """Where the copies of the trained weights that sampled last and that the policy stays near (old, reference) wait; cpu frees
    twice the trained size on the GPU, and costs a transfer each time that one of them predicts."""
    num_frames: int
    """Pixel frames per clip, 4k + 1 for Wan; more cost memory and time in proportion."""
    height: int
    """Frame height in pixels, a multiple of 16 for most models."""
    width: int
    """Frame width in pixels."""
    fps: float
    """Frames per second at which clips are shown and judged."""
    lora_rank: int = 16
    """Rank of the adapter (train=lora); raising it adds capacity and memory (32 in DiffusionNFT's recipes)."""
    lora_alpha: int = 32
    """Scale of the adapter (train=lora), in ranks: its output is multiplied by alpha / rank."""
    guidance_scale: float = 1.0
    """Classifier-free guidance while sampling and learning; 1 is off, halves the cost, as in the papers."""
    guidance_scale_2: float | None = None
    """Guidance of Wan 2.2 A14B's second transformer, which takes over at low noise; null takes `guidance_scale`."""
    negative_prompt: str = ""
    """Prompt that guidance leads away from."""
    max_sequence_length: int = 512
    """Text tokens; longer prompts are cut, fewer cost less time."""
    decode_batch_size: int = 1
    """Clips decoded or encoded at once; costs memory."""
    checkpoint_decode: bool = False
    """Recompute the decoder in the backward pass (DRaFT), on Wan latent frame by latent frame: less memory, more time."""
    checkpoint_transformer: bool = False
    """Recompute the transformer in the backward pass: less memory, a third more time."""
    attention: Literal["native", "cudnn", "flash", "flash_3", "xformers"] = "native"
    """Attention kernel of the transformer, by diffusers' own switch; flash, flash_3 and xformers need their package."""
    compile: bool = False
    """Compile the transformer's blocks (torch.compile) on Wan, LTX and HunyuanVideo: meant for GPUs, costs minutes before the
    first steps. Samples and updates then are two programs, which may round differently; Flow-GRPO's `ratio_error` shows it."""
    vae_tiling: bool = False
    """Decode tile by tile: less memory on large frames, faint seams."""
    offload: Literal["none", "model"] = "none"
    """model keeps text encoders and VAE in the computer's memory while they are not in use: frees their size on the GPU, costs
    a transfer there and back for each batch of clips and each iteration with new prompts. Transformers stay. GPU only."""

    def __post_init__(self) -> None:
        """Check ranges."""
        names = ("num_frames", "height", "width", "fps", "lora_rank", "lora_alpha", "max_sequence_length")
        _positive("generator", self, *names, "decode_batch_size")
        if self.train == "full" and self.dtype == "float16":
            raise ValueError(
                "generator.train=full cannot compute in generator.dtype=float16, whose small gradients vanish unless they are "
                "scaled; set generator.dtype=bfloat16 or float32"
            )
        if self.guidance_scale < 1:
            raise ValueError(f"generator.guidance_scale must be >= 1, got {self.guidance_scale}")
        if self.guidance_scale_2 is not None and self.guidance_scale_2 < 1:
            raise ValueError(f"generator.guidance_scale_2 must be >= 1 or null, got {self.guidance_scale_2}")


def is_address(path: str) -> bool:
    """Return whether a judge's path is the address of a server."""
    return path.startswith(("http://", "https://"))


@dataclass(frozen=True, kw_only=True)
class JudgesConfig:
    """The judge that rewards, and the one that audits."""

    path: str
    """Judge folder, hub id of a judge or of a stock checkpoint, "toy" for the embedded judge, or the http(s) address of a
    `video-judge serve`, which scores sampled clips but can be neither refreshed nor differentiated."""
    token_file: str | None = None
    """File with the bearer token of served judges; null sends none."""
    role: str = "generated"
    """Adapter that scores; refreshed where `refresh.every` is set."""
    audit_path: str | None = None
    """Second judge, of another family and seed, that only watches; "toy" for the embedded one, null for none."""
    ensemble: list[str] = field(default_factory=list)
    """Further judges (folders, hub ids, addresses) that score beside this one for `reward.pessimism`; never refreshed."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the judges' weights; auto keeps the stored one."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention backend of the judges."""
    batch_size: int = 16
    """Clips per forward pass; raising it costs memory, results do not change."""
    shard: bool = False
    """Spread the weights of all judges that are loaded here over the processes, where accelerate is launched with FSDP2: less
    memory on each, and transfers for every batch. false keeps them whole on each process."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _positive("judge", self, "batch_size")

    @property
    def is_served(self) -> bool:
        """Whether the rewarding judge answers over HTTP."""
        return is_address(self.path)


@dataclass(frozen=True, kw_only=True)
class RewardTermConfig:
    """A reward of the user's own, beside the judge's."""

    callable: str
    """`module:function`, called as function(frames [B, T, C, H, W], prompts, fps=...) -> [B]; NaN marks no score."""
    weight: float = 1.0
    """Factor in the sum of rewards; negative punishes."""

    def __post_init__(self) -> None:
        """Check the form of the name."""
        module, colon, function = self.callable.partition(":")
        if not (module and colon and function):
            raise ValueError(f"reward.terms.*.callable must look like module:function, got {self.callable!r}")


@dataclass(frozen=True, kw_only=True)
class RewardMixConfig:
    """The reward of a sample: a weighted sum of the judge's dimensions and the user's own terms."""

    weights: dict[str, float] = field(default_factory=lambda: {"overall": 1.0})
    """Dimension of the judge -> weight."""
    terms: dict[str, RewardTermConfig] = field(default_factory=dict)
    """Name -> reward of the user's own."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Name -> further readout of the judge (`rewards.COLUMNS`): comparator counts the siblings that a clip beats, specialist
    asks another role. Each has a weight; 0 measures it for `objective.pair_by` and `refresh.rank_by` alone."""
    pessimism: float = 0.0
    """c: a clip is worth the mean of the judge and its ensemble minus c times their standard deviation, so that
    clips that fool only one judge earn less."""
    transform: Literal["none", "shuffle", "negate"] = "none"
    """Control experiments: shuffle permutes rewards within each group, negate flips their sign."""
    max_invalid_fraction: float = 0.5
    """Share of samples without a score in one iteration above which the run stops."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 <= self.max_invalid_fraction <= 1:
            raise ValueError(f"reward.max_invalid_fraction must be in [0, 1], got {self.max_invalid_fraction}")
        if self.pessimism < 0:
            raise ValueError(f"reward.pessimism must be >= 0, got {self.pessimism}")
        for name in self.weights:
            if name not in DIMENSIONS:
                raise ValueError(f"reward.weights.{name} is no dimension; expected one of {', '.join(DIMENSIONS)}")
        if not any(self.weights.values()):
            raise ValueError("reward.weights are all zero: give the judge's dimensions a part in the reward")
        if taken := sorted({*self.columns} & {*DIMENSIONS, *self.terms, "reward"}):
            raise ValueError(
                f"reward.columns.{taken[0]} has the name of a dimension, a term or the reward: choose another"
            )


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Which prompts are trained on, and which are held out for the evaluation."""

    world: Literal["moving_shapes"] | None = None
    """Embedded world whose captions are the prompts; its oracle then measures every evaluation."""
    path: str | None = None
    """File of prompts: .csv or .jsonl with a column, or .txt with one a line; excludes `world`."""
    column: str = "prompt"
    """Column of the file that holds the prompts."""
    num_held_out: int = 64
    """Prompts kept from training for the evaluation: the world's own held-out ones, or drawn from the file by the seed."""
    max_prompts: int | None = None
    """Most training prompts; null takes all."""

    def __post_init__(self) -> None:
        """Check that exactly one source is named."""
        _positive("prompts", self, "num_held_out", "max_prompts")
        if (self.world is None) == (self.path is None):
            raise ValueError("prompts needs exactly one of prompts.world and prompts.path")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How groups of clips are drawn from the generator."""

    num_prompts: int = 8
    """Prompts per iteration over all processes; batches do not grow with the number of processes."""
    group_size: int = 8
    """Samples of one prompt; more sharpen the group mean at proportional cost."""
    num_steps: int = 12
    """Euler steps of the sampler; more cost time in proportion."""
    batch_size: int = 16
    """Clips per forward pass of the generator; costs memory, results differ by rounding only."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _positive("sampling", self, "num_prompts", "num_steps", "batch_size")
        if self.group_size < 2:
            raise ValueError(f"sampling.group_size must be >= 2, got {self.group_size}: advantages compare siblings")


@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """How the generator's adapter is optimised."""

    learning_rate: float = 3e-4
    """Rate of AdamW; 3e-4 is DiffusionNFT's, 1e-4 suits DPO."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    micro_batch_size: int = 32
    """Samples per backward pass; costs memory, results differ by rounding only."""
    old_decay: float = 0.0
    """Share of itself that the sampling policy keeps at each iteration; 0 samples from the newest weights."""
    advantage_std: Literal["global", "group"] = "global"
    """Rewards are divided by one deviation of the whole batch, or by each group's own."""
    advantages: Literal["sum", "per_reward"] = "sum"
    """sum compares the weighted sum of all rewards; per_reward (GDPO) normalises each one first, so that a reward of large
    spread does not drown the others."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _positive("update", self, "learning_rate", "max_grad_norm", "micro_batch_size")
        if self.weight_decay < 0:
            raise ValueError(f"update.weight_decay must be >= 0, got {self.weight_decay}")
        if not 0 <= self.old_decay < 1:
            raise ValueError(f"update.old_decay must be in [0, 1), got {self.old_decay}")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How generator and judge alternate."""

    num_rounds: int
    """Rounds; each ends with a judge refresh (when due), an evaluation and a checkpoint."""
    num_iterations: int
    """Iterations of (rollout, score, update) per round."""
    reset_reference: bool = False
    """Move the reference to the policy at each round's start, as alternating DPO does; false keeps the first."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _positive("loop", self, "num_rounds", "num_iterations")


@dataclass(frozen=True, kw_only=True)
class AnchorConfig:
    """Clips of known quality that hold the judge in place."""

    path: str | None = None
    """CSV or JSONL of rated clips (columns video, prompt and one per known dimension); null renders moving shapes."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our name (video, prompt, source_id or a dimension) -> the file's column, such as `overall: "MOS[1,5]"` where the ratings
    run from 1 to 5; empty reads columns of our own names, with qualities in [0, 1]."""
    num_train: int = 256
    """Anchors mixed into a refresh."""
    num_held_out: int = 128
    """Anchors on which a refresh is accepted or rolled back, and rounds are brought to one scale."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _positive("refresh.anchors", self, "num_train", "num_held_out")
        if self.columns and self.path is None:
            raise ValueError("refresh.anchors.columns describes the file refresh.anchors.path, which is null")


TRIGGERS = ("anchor_accuracy", "audit_gap", "uncertainty")
"""Measures of a round whose limit may call for a refresh; `guards.rounds` says on which side."""


@dataclass(frozen=True, kw_only=True)
class RefreshConfig:
    """How the judge learns from the generator's newest clips."""

    every: int = 1
    """Rounds between two refreshes; 0 refreshes where one of `triggers` asks for it, or never."""
    triggers: dict[str, float] = field(default_factory=dict)
    """Measure of a round -> limit at which the judge is refreshed at once, whatever `every` says: anchor_accuracy below it;
    audit_gap, the growth since round 0 of the judge's reward less the audit's, above it; uncertainty, the spread of its ratings
    relative to round 0, above it."""
    sources: dict[str, Any] = field(default_factory=dict)
    """Sources of the preference pairs by name (`refresh.PAIR_SOURCES`), each with its settings and a weight, such as
    `{new_beats_old: {}, real_beats_generated: {weight: 2, path: clips.csv}}`. Empty takes new_beats_old, VQ-Insight's, alone."""
    num_prompts: int = 16
    """Prompts of the round whose clips the sources pair."""
    rank_by: str = "reward"
    """Score by which a prompt's best and worst clip are chosen: reward, a dimension, or a column of `reward.columns`."""
    num_remembered: int = 0
    """Newest pairs of each source that later refreshes draw from as well; a checkpoint keeps them, in 8 bits."""
    readouts: list[str] = field(default_factory=lambda: ["levels"])
    """Readouts that learn (`refresh.trainees.READOUTS`): levels, the score of `judge.role`; comparator_sft and comparator_grpo, the
    comparison of `refresh.comparator_role`, by likelihood or by GRPO as VQ-Insight."""
    comparator_role: str = "comparator"
    """Adapter that compares, where a readout of the comparator learns."""
    targets: list[str] = field(default_factory=lambda: ["text"])
    """Parts of the judge that learn: text, vision (the tower) and merger. The role's adapter gets new weights where it has none;
    vision is what lets a judge see what it did not see before, at the cost of a backward pass through the tower."""
    num_steps: int = 30
    """Optimiser steps of one refresh."""
    batch_size: int = 16
    """Pairs and anchors per optimiser step."""
    learning_rate: float = 1e-4
    """Rate of AdamW on the judge's adapter."""
    max_accuracy_loss: float = 0.01
    """Held-out anchor accuracy, as a fraction, that a refresh may lose before it is rolled back."""
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    """The labelled clips."""

    @property
    def is_on(self) -> bool:
        """Whether the judge may ever be refreshed."""
        return bool(self.every or self.triggers)

    def __post_init__(self) -> None:
        """Check ranges."""
        if unknown := sorted(self.triggers.keys() - set(TRIGGERS)):
            raise ValueError(f"refresh.triggers.{unknown[0]} is no measure; expected one of {', '.join(TRIGGERS)}")
        _positive("refresh", self, "num_prompts", "num_steps", "batch_size", "learning_rate")
        if not self.readouts or len(set(self.readouts)) < len(self.readouts):
            raise ValueError(f"refresh.readouts must name readouts, each once, got {self.readouts}")
        if {"comparator_sft", "comparator_grpo"} <= set(self.readouts):
            raise ValueError(
                "refresh.readouts: comparator_sft and comparator_grpo train the same comparison; name one of them"
            )
        if self.num_remembered < 0:
            raise ValueError(f"refresh.num_remembered must be >= 0, got {self.num_remembered}")
        if not self.targets or not set(self.targets) <= {"text", "vision", "merger"}:
            raise ValueError(f"refresh.targets must be some of text, vision and merger, got {self.targets}")
        if self.every < 0 or not 0 <= self.max_accuracy_loss <= 1:
            raise ValueError(
                f"refresh.every must be >= 0 and refresh.max_accuracy_loss in [0, 1], got {self.every} and "
                f"{self.max_accuracy_loss}"
            )


@dataclass(frozen=True, kw_only=True)
class GuardsConfig:
    """Guards that act against reward hacking; every one is off unless it is set."""

    data_weight: float = 0.0
    """Weight of the flow-matching loss on real clips beside the objective (DDRL, arXiv 2512.04332); 0 adds none."""
    data_path: str | None = None
    """CSV or JSONL of real clips with captions (columns video and prompt) for it; null renders the prompts' world."""
    data_batch_size: int = 8
    """Real clips of one optimiser step over all processes."""
    kl_target: float | None = None
    """Mean squared velocity difference to the reference that an adaptive penalty aims at (PPO, arXiv 1707.06347, section 4); null
    adds none. The objective's own `kl_coef`, where it has one, is another penalty."""
    kl_start: float = 1e-2
    """First coefficient of that penalty, which is then doubled or halved."""
    kl_fraction: float = 1.0
    """Share of the samples that it holds, those on which the judges of `judge.ensemble` disagree most (GARDO, arXiv 2512.24138); 1
    holds all."""
    kl_batch_size: int = 16
    """Samples of one optimiser step over all processes that it holds."""
    max_audit_drop: float | None = None
    """The run returns to its last good round when the audit judge's reward falls by more than this below its best; null never."""
    max_anchor_drop: float | None = None
    """As `max_audit_drop`, for the judge's accuracy on held-out anchors, a fraction."""
    max_returns: int = 2
    """Returns before the run ends with its last good round; 0 ends at the first fall."""

    @property
    def watch_rounds(self) -> bool:
        """Whether a round may be returned from."""
        return self.max_audit_drop is not None or self.max_anchor_drop is not None

    def __post_init__(self) -> None:
        """Check ranges."""
        _positive("guards", self, "data_batch_size", "kl_target", "kl_start", "kl_batch_size")
        if not 0 < self.kl_fraction <= 1:
            raise ValueError(f"guards.kl_fraction must be in (0, 1], got {self.kl_fraction}")
        for name in ("data_weight", "max_audit_drop", "max_anchor_drop", "max_returns"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"guards.{name} must be >= 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How progress is measured on held-out prompts, with the same noise each time."""

    num_seeds: int = 4
    """Clips per held-out prompt before and after."""
    num_round_prompts: int = 16
    """Held-out prompts evaluated between rounds; before and after use all of them."""
    num_probes: int = 16
    """Noisy latents on which the velocity difference to the reference is measured, and clips of the flow loss."""
    num_samples: int = 8
    """Clips written as video after each round and shown in the report."""
    num_resamples: int = 1000
    """Bootstrap resamples of the difference."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _positive("evaluation", self, *(item.name for item in fields(self)))


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """One joint run."""

    run: RunConfig
    """Where and how long."""
    generator: GeneratorConfig
    """The text-to-video model."""
    judge: JudgesConfig
    """The judges."""
    prompts: PromptConfig
    """Training and held-out prompts."""
    objective: Any
    """How the generator learns; the settings of the objective that `objective.name` chooses."""
    loop: LoopConfig
    """How generator and judge alternate."""
    reward: RewardMixConfig = field(default_factory=RewardMixConfig)
    """The reward of a sample."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How clips are drawn."""
    update: UpdateConfig = field(default_factory=UpdateConfig)
    """How the adapter is optimised."""
    refresh: RefreshConfig = field(default_factory=RefreshConfig)
    """How the judge learns."""
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    """Guards that act."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How progress is measured."""

    def __post_init__(self) -> None:
        """Check settings that concern several sections."""
        if self.refresh.is_on and self.judge.is_served:
            raise ValueError(
                "a served judge cannot be refreshed from here: set refresh.every=0, or load it by its folder"
            )
        if self.refresh.is_on and self.prompts.world is None and self.refresh.anchors.path is None:
            raise ValueError(
                "the judge's refresh needs labelled clips of your domain: set refresh.anchors.path, or refresh.every=0 without "
                "refresh.triggers"
            )
        for name, source in self.refresh.sources.items():
            if self.refresh.is_on and source.needs_world and self.prompts.world is None:
                raise ValueError(
                    f"refresh.sources.{name} needs a world's clips or oracle: set prompts.world, or its path"
                )
        guards = self.guards
        if guards.data_weight and guards.data_path is None and self.prompts.world is None:
            raise ValueError("guards.data_weight needs real clips: set guards.data_path, or prompts.world")
        if guards.kl_fraction < 1 and not (guards.kl_target and self.judge.ensemble):
            raise ValueError("guards.kl_fraction < 1 needs guards.kl_target and the judges of judge.ensemble")
        if "audit_gap" in self.refresh.triggers and self.judge.audit_path is None:
            raise ValueError("refresh.triggers.audit_gap needs judge.audit_path")
        if guards.max_audit_drop is not None and self.judge.audit_path is None:
            raise ValueError("guards.max_audit_drop needs judge.audit_path")
        if guards.max_anchor_drop is not None and not self.refresh.is_on:
            raise ValueError("guards.max_anchor_drop needs the anchors of a refresh: set refresh.every")
        if self.reward.pessimism and not self.judge.ensemble:
            raise ValueError("reward.pessimism > 0 needs other judges: name them in judge.ensemble")
        if self.judge.ensemble and not (self.reward.pessimism or guards.kl_fraction < 1):
            raise ValueError(
                "judge.ensemble serves reward.pessimism or guards.kl_fraction: set one of them, or no ensemble"
            )
        if self.reward.columns and (self.judge.is_served or self.objective.differentiates):
            raise ValueError(
                "reward.columns asks other readouts of a judge that is loaded here, without gradient: not of a served judge, and "
                f"not for objective.name={self.objective.name} if it differentiates the reward"
            )
        for name in self._ranking_names():
            if name not in self._score_names():
                raise ValueError(
                    f"{name!r} in objective.pair_by or refresh.rank_by is no score of this run: {self._score_names()}"
                )
        if self.update.advantages == "per_reward" and self.reward.pessimism:
            raise ValueError("update.advantages=per_reward reads each dimension of one judge: set reward.pessimism=0")
        if self.update.advantages == "per_reward" and self.reward.transform != "none":
            raise ValueError(
                "update.advantages=per_reward reads each reward by itself, which reward.transform leaves alone: drop one"
            )
        if self.objective.differentiates and (self.reward.terms or self.reward.transform != "none"):
            raise ValueError(
                f"objective.name={self.objective.name} differentiates the judges alone: drop reward.terms and reward.transform"
            )

    def _ranking_names(self) -> tuple[str, ...]:
        return (*getattr(self.objective, "pair_by", ()), self.refresh.rank_by)

    def _score_names(self) -> list[str]:
        """Return the names by which clips of this run can be ordered."""
        return [
            "reward",
            *(name for name, weight in self.reward.weights.items() if weight),
            *self.reward.columns,
            *self.reward.terms,
        ]


def _positive(section: str, settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and value <= 0:
            raise ValueError(f"{section}.{name} must be > 0, got {value}")
