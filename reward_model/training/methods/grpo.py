"""GRPO of a video judge: each clip and prompt is encoded once, and its G answers branch behind that prefix.

This holds in the rollout, in the log-probabilities of reference and policy, and in the backward pass; a trainer that
repeats the prompt for every answer encodes video and prompt G times in each of them.

Shapes: Q rollout prompts of an optimiser step over all processes, G answers each, N = Q x G, M tokens of some answers.

Source: Shao et al., DeepSeekMath (arXiv 2402.03300); VQ-Insight (arXiv 2506.18564), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from reward_model.judge.engine.decoding import Completion
from reward_model.judge.model import VideoJudge
from reward_model.media.motion import MotionEncoder
from reward_model.media.motion_encoders import encoder_of
from reward_model.media.perturbations import ANY, BLACK, MEAN_GREY, PERTURBATIONS
from reward_model.records import Answer, Label, RewardValues
from reward_model.rewards.base import AnswerReward, Perturbed
from reward_model.training.fit import rank_and_world
from reward_model.training.methods.policy_loss import LossType, grpo_advantages, policy_loss
from reward_model.training.tasks.rollout_prompts import RolloutPrompt, perturbed


@dataclass(frozen=True, kw_only=True)
class AnswerGRPOConfig:
    """Settings of the rollout of answers and of the policy loss."""

    group_size: int = 8
    """G, answers per rollout prompt; raising it steadies the advantages and costs rollout time (VQ-Insight: 8)."""
    kl_coef: float = 0.001
    """Weight of the penalty towards the adapter as it was when the stage began (VQ-Insight: 0.001, VQAThinker: 0.04)."""
    clip_range: float | None = 0.2
    """The ratio of the policy to the one that sampled the answers counts within 1 +- this only (VQAThinker: 0.2); null takes
    the ratio of the policy to itself, which needs no bounds (VQ-Insight's code), and one update for each rollout."""
    clip_range_high: float | None = None
    """The ratio counts up to 1 + this only; null is `clip_range`. A larger one lets unlikely tokens rise faster (DAPO: 0.28)."""
    kl_log_ratio_limit: float | None = None
    """The penalty counts log-ratios within +- this only, so that a wild token cannot outweigh a batch (VQ-Insight's code:
    10); null bounds nothing."""
    loss_type: LossType = "grpo"
    """grpo averages over each answer's tokens first (both papers), so that a long answer's tokens count less; bnpo and dapo
    over all tokens of a micro-batch and of the step; dr_grpo divides by `max_answer_tokens`."""
    temperature: float = 1.0
    """Temperature of the rollout and of the log-probabilities alike; raising it explores more."""
    top_p: float = 1.0
    """Answers are drawn from the likeliest tokens that together have this probability; 1 draws from all. The log-probabilities
    of all policies are those of the distribution cut to the tokens that the sampling policy could draw, and normalised."""
    top_k: int = 0
    """Answers are drawn from this many likeliest tokens; 0 draws from all. Counted in the log-probabilities as `top_p` is."""
    max_answer_tokens: int = 160
    """Longer answers are cut, and count as unreadable."""
    num_updates: int = 1
    """Optimiser steps on one set of answers; above 1 the clip range matters (both papers: 1)."""
    normalize_std: bool = True
    """Divide advantages by their group's standard deviation."""
    exclude_unparsed: bool = False
    """Compare rewards among a group's readable answers only, since one unreadable answer outweighs all differences between
    scores, and add an advantage for the form: 1 for a readable answer, 0 for another, less the group's mean."""
    perturbation: str | None = None
    """Name of the disturbance in time of extra rollouts, which temporal rewards compare with, or any: one of all of them,
    drawn anew; null samples none."""
    perturb_each: Literal["prompt", "rollout"] = "prompt"
    """Unit that a disturbance is drawn for: a prompt, whose extra answers see one disturbed clip (VQ-Insight), or each extra answer
    (VQAThinker), which encodes a clip for each."""
    blank_colour: Literal["black", "grey"] = "black"
    """Colour of frames that a disturbance loses; grey is the mean colour that VQAThinker's code shows."""
    num_perturbed: int = 4
    """Extra answers per reasoned prompt on the disturbed clip (VQ-Insight: half of G, VQAThinker: G)."""
    questions_per_part: int = 4
    """Rollout prompts of a micro-batch, whose graph is in memory at a time."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("group_size", "num_updates", "max_answer_tokens", "num_perturbed", "questions_per_part"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.group_size < 2:
            raise ValueError(f"group_size must be >= 2, got {self.group_size}: an advantage compares answers")
        if self.temperature <= 0 or self.kl_coef < 0:
            raise ValueError(f"temperature must be > 0 and kl_coef >= 0, got {self.temperature}, {self.kl_coef}")
        for name in ("clip_range", "clip_range_high", "kl_log_ratio_limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be > 0, got {value}")
        if self.clip_range is None and (self.clip_range_high is not None or self.num_updates > 1):
            raise ValueError(
                "without a clip_range the ratio is to the policy itself: leave clip_range_high out, and num_updates at 1, "
                f"got {self.clip_range_high} and {self.num_updates}"
            )
        if self.perturbation not in (None, ANY, *PERTURBATIONS):
            raise ValueError(
                f"perturbation must be one of {', '.join([*PERTURBATIONS, ANY])}, got {self.perturbation!r}"
            )
        if not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(f"top_p must be in (0, 1] and top_k >= 0, got {self.top_p} and {self.top_k}")


Reference = Callable[[], AbstractContextManager[None]]
"""reference() -> a context in which the judge is the policy that the penalty pulls towards."""


@dataclass(frozen=True)
class LabelledAnswers:
    """Answers one after another, each with the kind, label and group of its rollout prompt."""

    kinds: tuple[str, ...]
    labels: tuple[Label, ...]
    groups: tuple[int, ...]
    answers: tuple[Answer, ...]

    def of_kind(self, kind: str) -> tuple[list[Answer], list[Label], Tensor]:
        """Return answers, labels and groups [n] of one kind of prompt, as rewards take them."""
        places = [place for place, other in enumerate(self.kinds) if other == kind]
        groups = torch.tensor([self.groups[place] for place in places], dtype=torch.long)
        return [self.answers[place] for place in places], [self.labels[place] for place in places], groups


@dataclass(frozen=True)
class AnswerGroups:
    """This process's rollout prompts, the G `completions` of each, and all of those as `labelled` answers."""

    prompts: tuple[RolloutPrompt, ...]
    completions: tuple[tuple[Completion, ...], ...]
    labelled: LabelledAnswers


@dataclass(frozen=True)
class AnswerAdvantages:
    """`advantages` [n] of this process's answers; `num_answers`, `num_tokens` and `metrics` of all processes."""

    advantages: Tensor
    num_answers: int
    num_tokens: int
    metrics: Mapping[str, float]


def sample_answers(
    judge: VideoJudge, prompts: Sequence[RolloutPrompt], config: AnswerGRPOConfig, *, num_samples: int, seed: int
) -> AnswerGroups:
    """Answer each rollout prompt several times with the role in use.

    Args:
        judge: with the policy's role active.
        prompts: of this process.
        config: temperature and length.
        num_samples: answers per prompt.
        seed: keys the sampling, together with the prompt's group and the answer's number.

    Returns:
        The groups of answers, in the order of `prompts`.
    """
    sampled: dict[int, tuple[Completion, ...]] = {}
    for one_token in (False, True):
        places = [place for place, prompt in enumerate(prompts) if prompt.one_token == one_token]
        if places:
            branches = judge.sample(
                [prompts[place].request for place in places],
                max_new_tokens=1 if one_token else config.max_answer_tokens,
                temperature=config.temperature,
                top_p=config.top_p,
                top_k=config.top_k,
                num_samples=num_samples,
                seed=seed,
                names=[prompts[place].name for place in places],
            )
            sampled |= {place: tuple(one[0]) for place, one in zip(places, branches, strict=True)}
    completions = tuple(sampled[place] for place in range(len(prompts)))
    each = [(prompt, one) for prompt, group in zip(prompts, completions, strict=True) for one in group]
    answers = [prompt.read(judge.decode(one), num_tokens=len(one.tokens), ended=one.ended) for prompt, one in each]
    labelled = LabelledAnswers(
        kinds=tuple(prompt.kind for prompt, _ in each),
        labels=tuple(prompt.label for prompt, _ in each),
        groups=tuple(prompt.group for prompt, _ in each),
        answers=tuple(answers),
    )
    return AnswerGroups(tuple(prompts), completions, labelled)


def answer_advantages(
    groups: AnswerGroups,
    rewards: Mapping[str, AnswerReward],
    config: AnswerGRPOConfig,
    *,
    disturbed: AnswerGroups | None = None,
) -> AnswerAdvantages:
    """Reward the answers of all processes, and return the advantages of this process's.

    Args:
        groups: this process's answers.
        rewards: kind of prompt -> reward.
        config: how advantages are normalised.
        disturbed: this process's answers on disturbed clips.

    Returns:
        The advantages, with the metrics of all processes.
    """
    everything = gather(groups.labelled)
    others = None if disturbed is None else gather(disturbed.labelled)
    values, metrics = reward_answers(rewards, everything, others)
    group_ids = torch.tensor(everything.groups)
    readable = torch.tensor([not answer.fault for answer in everything.answers])
    compared = grpo_advantages(
        values,
        group_ids,
        normalize_std=config.normalize_std,
        usable=readable if config.exclude_unparsed else None,
    )
    num_tokens = sum(answer.num_tokens for answer in everything.answers)
    metrics |= {
        "reward": float(values.mean()),
        "parse_rate": float(readable.float().mean()),
        "flat_groups": compared.num_flat / compared.num_groups,
        "answer_tokens": num_tokens / len(values),
    }
    advantages = compared.values
    if config.exclude_unparsed:
        # centred: a push down alone, where most answers are unreadable, scatters them further
        advantages = advantages + grpo_advantages(readable.float(), group_ids, normalize_std=False).values
    own = torch.isin(group_ids, torch.tensor(groups.labelled.groups))
    return AnswerAdvantages(advantages[own], len(values), num_tokens, metrics)


def reward_answers(
    rewards: Mapping[str, AnswerReward], labelled: LabelledAnswers, disturbed: LabelledAnswers | None
) -> tuple[Tensor, dict[str, float]]:
    """Return the reward [N] of every answer, and the mean of each term of each kind's reward."""
    values = torch.zeros(len(labelled.answers))
    metrics: dict[str, float] = {}
    for kind in sorted(set(labelled.kinds)):
        if kind not in rewards:
            raise ValueError(f"prompts of kind {kind!r} are asked, but only {', '.join(rewards)} have rewards")
        others = None if disturbed is None else Perturbed(*disturbed.of_kind(kind))
        earned: RewardValues = rewards[kind](*labelled.of_kind(kind), perturbed=others)
        values[[place for place, other in enumerate(labelled.kinds) if other == kind]] = earned.values
        metrics |= {f"reward_{kind}_{name}": float(term.mean()) for name, term in earned.breakdown.items()}
    return values, metrics


def grpo_micro_batches(
    judge: VideoJudge,
    groups: AnswerGroups,
    advantages: AnswerAdvantages,
    config: AnswerGRPOConfig,
    *,
    role: str | None,
    reference: Reference,
) -> Iterator[tuple[Tensor, dict[str, float]]]:
    """Yield the loss of a few prompts at a time; its sum over micro-batches, averaged over processes, is the step's loss.

    Args:
        judge: the judge.
        groups: this process's answers.
        advantages: of these answers.
        config: clip range, penalty, size of a micro-batch.
        role: adapter of the policy; None is the base.
        reference: policy that the penalty pulls towards.

    Yields:
        The loss of a micro-batch, and metrics of this process so far.
    """
    world = rank_and_world()[1]
    totals: dict[str, float] = {}
    log_probs = partial(judge.log_probs, temperature=config.temperature, suppressed=judge.suppressed_ids)
    entropy, num_tokens, start = 0.0, 0, 0
    for first in range(0, len(groups.prompts), config.questions_per_part):
        chosen = slice(first, first + config.questions_per_part)
        requests = [prompt.request for prompt in groups.prompts[chosen]]
        completions = groups.completions[chosen]
        tokens = [[[one.tokens for one in group]] for group in completions]
        allowed = [keep for group in completions for one in group for keep in one.allowed] or None
        before = None
        if config.kl_coef:
            with torch.no_grad(), reference():
                before = log_probs(requests, tokens, allowed=allowed).values
        with judge.use_role(role):
            now = log_probs(requests, tokens, allowed=allowed)
        old = torch.cat([one.log_probs for group in completions for one in group]).to(now.values.device)
        count = sum(len(group) for group in completions)
        loss, metrics = policy_loss(
            now.values,
            old,
            before,
            advantages.advantages[start : start + count].to(now.values.device),
            now.owner.to(now.values.device),
            clip_range=config.clip_range,
            kl_coef=config.kl_coef,
            num_answers=advantages.num_answers / world,
            clip_range_high=config.clip_range_high,
            kl_log_ratio_limit=config.kl_log_ratio_limit,
            loss_type=config.loss_type,
            num_tokens=advantages.num_tokens / world,
            max_answer_tokens=config.max_answer_tokens,
        )
        start += count
        entropy, num_tokens = entropy + float(now.entropy.sum()), num_tokens + len(now.entropy)
        worst = max(totals.get("ratio_error", 0.0), metrics.pop("ratio_error"))
        totals = {name: totals.get(name, 0.0) + value for name, value in metrics.items()} | {"ratio_error": worst}
        yield loss, {**advantages.metrics, **totals, "entropy": entropy / num_tokens}


class GRPOSteps:
    """The loss of every optimiser step of a stage; answers are sampled anew every `num_updates` steps."""

    def __init__(
        self,
        judge: VideoJudge,
        rewards: Mapping[str, AnswerReward],
        config: AnswerGRPOConfig,
        *,
        role: str | None,
        reference: Reference,
    ) -> None:
        """Keep what all steps of a stage share.

        Args:
            judge: the judge.
            rewards: kind of prompt -> reward.
            config: of the stage.
            role: adapter that is trained; None is the base.
            reference: policy that the penalty pulls towards.
        """
        self.judge, self.rewards, self.config = judge, rewards, config
        self.role, self.reference = role, reference
        self._sampled: tuple[AnswerGroups, AnswerAdvantages] | None = None

    def micro_batches(
        self, prompts: Sequence[RolloutPrompt], step: int, *, seed: int
    ) -> Iterator[tuple[Tensor, dict[str, float]]]:
        """Sample and reward answers where it is time, then yield the loss in micro-batches.

        Args:
            prompts: this process's share; read only when answers are sampled.
            step: number of the optimiser step.
            seed: of all sampling of the stage.

        Yields:
            Micro-batches as `training.fit.Loss` states them.
        """
        with self.judge.remember_clips():  # for rollout, reference and policy
            if self._sampled is None or step % self.config.num_updates == 0:
                self._sampled = self.sample(prompts, seed + step)
            groups, advantages = self._sampled
            yield from grpo_micro_batches(
                self.judge, groups, advantages, self.config, role=self.role, reference=self.reference
            )

    def sample(self, prompts: Sequence[RolloutPrompt], seed: int) -> tuple[AnswerGroups, AnswerAdvantages]:
        """Return the policy's answers and their advantages, rewarded with the help of answers on disturbed clips."""
        config, disturbed = self.config, None
        with self.judge.use_role(self.role):
            groups = sample_answers(self.judge, prompts, config, num_samples=config.group_size, seed=seed)
            if config.perturbation is not None:
                other = disturbed_prompts(prompts, config, seed=seed, motion=encoder_of(self.judge.config.motion))
                each = 1 if config.perturb_each == "rollout" else config.num_perturbed
                disturbed = sample_answers(self.judge, other, config, num_samples=each, seed=seed)
        return groups, answer_advantages(groups, self.rewards, config, disturbed=disturbed)


def disturbed_prompts(
    prompts: Sequence[RolloutPrompt], config: AnswerGRPOConfig, *, seed: int, motion: MotionEncoder | None = None
) -> list[RolloutPrompt]:
    """Return the reasoned prompts about disturbed clips, one for each prompt or for each of its extra answers.

    Args:
        prompts: of this process; those of other kinds have no disturbed form.
        config: which disturbance, and how often it is drawn.
        seed: of the step; a draw depends on it, on the prompt's group and on its own number, not on the processes.
        motion: the judge's encoder.

    Returns:
        The prompts, those of one group next to each other.
    """
    assert config.perturbation is not None
    draws = config.num_perturbed if config.perturb_each == "rollout" else 1
    colour = BLACK if config.blank_colour == "black" else MEAN_GREY
    disturbed = []
    for prompt in prompts:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + prompt.group)
        for draw in range(draws if prompt.kind == "reason" else 0):
            other = perturbed(prompt, config.perturbation, generator, motion=motion, blank_colour=colour)
            disturbed.append(replace(other, draw=draw))
    return disturbed


def gather(labelled: LabelledAnswers) -> LabelledAnswers:
    """Return the answers of all processes, in the order of the processes."""
    if rank_and_world()[1] == 1:
        return labelled
    shares: list[LabelledAnswers] = [labelled] * rank_and_world()[1]
    torch.distributed.all_gather_object(shares, labelled)
    return LabelledAnswers(
        kinds=tuple(kind for share in shares for kind in share.kinds),
        labels=tuple(label for share in shares for label in share.labels),
        groups=tuple(group for share in shares for group in share.groups),
        answers=tuple(answer for share in shares for answer in share.answers),
    )
