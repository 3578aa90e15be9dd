"""GRPO of a video judge: each clip and question is encoded once, and its G answers branch behind that.

So it is in the rollout, in the reference's and the policy's log-probabilities and in the backward pass; a trainer that
repeats the prompt for every answer encodes the video and the prompt G times in each of them.

Shapes: Q questions of an optimiser step over all processes, G answers each, N = Q x G, M tokens of some answers.

Source: Shao et al., DeepSeekMath (arXiv 2402.03300); VQ-Insight (arXiv 2506.18564), section 3; DESIGN 4, shared prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reward_model.judge.engine.decoding import Completion
from reward_model.judge.model import VideoJudge
from reward_model.records import Answer, Label, RewardValues
from reward_model.rewards.base import Perturbed, Reward
from reward_model.training.fit import rank_and_world
from reward_model.training.methods.policy_loss import group_advantages, policy_loss
from reward_model.training.tasks.rollout_prompts import Question, perturbed


@dataclass(frozen=True, kw_only=True)
class GrpoSettings:
    """How answers are drawn and learned from."""

    group_size: int = 8
    """G, answers per question; raising it steadies the advantages and costs rollout time (VQ-Insight: 8)."""
    kl_coef: float = 0.001
    """Weight of the penalty towards the adapter as it was when the stage began (VQ-Insight: 0.001, VQAThinker: 0.04)."""
    clip_range: float = 0.2
    """The policy's ratio to the one that drew the answers counts within 1 +- this only (VQAThinker: 0.2)."""
    temperature: float = 1.0
    """Of the rollout and of the log-probabilities alike; raising it explores more."""
    max_answer_tokens: int = 160
    """Longer answers are cut, and count as unreadable."""
    num_updates: int = 1
    """Optimiser steps on one set of answers; above 1 the clip range matters (both papers: 1)."""
    normalize_std: bool = True
    """Divide advantages by their group's standard deviation."""
    exclude_unparsed: bool = False
    """Compare rewards among a group's readable answers only, since one unreadable answer outweighs all differences between
    scores, and add what holds the form: 1 for a readable answer, 0 for another, less the group's mean."""
    perturbation: str | None = None
    """Name of the disturbance in time of extra rollouts, which temporal rewards compare with; null draws none."""
    num_perturbed: int = 4
    """Extra answers per reasoned question on the disturbed clip (VQ-Insight: half of G)."""
    questions_per_part: int = 4
    """Questions whose graph is in memory at a time."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("group_size", "num_updates", "max_answer_tokens", "num_perturbed", "questions_per_part"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.group_size < 2:
            raise ValueError(f"group_size must be >= 2, got {self.group_size}: an advantage compares answers")
        if self.temperature <= 0 or self.clip_range <= 0 or self.kl_coef < 0:
            raise ValueError(
                f"temperature and clip_range must be > 0 and kl_coef >= 0, "
                f"got {self.temperature}, {self.clip_range}, {self.kl_coef}"
            )


@dataclass(frozen=True)
class Answered:
    """Answers one after another, each with the kind, label and group of its question."""

    kinds: tuple[str, ...]
    labels: tuple[Label, ...]
    groups: tuple[int, ...]
    answers: tuple[Answer, ...]

    def of_kind(self, kind: str) -> tuple[list[Answer], list[Label], Tensor]:
        """Return answers, labels and groups [n] of one kind of question, as rewards take them."""
        rows = [row for row, other in enumerate(self.kinds) if other == kind]
        groups = torch.tensor([self.groups[row] for row in rows], dtype=torch.long)
        return [self.answers[row] for row in rows], [self.labels[row] for row in rows], groups


@dataclass(frozen=True)
class Rollout:
    """This process's questions, the G `completions` of each, and all of them as `answered`."""

    questions: tuple[Question, ...]
    completions: tuple[tuple[Completion, ...], ...]
    answered: Answered


@dataclass(frozen=True)
class Credit:
    """What this process's answers are worth: `advantages` [n]; `num_answers` and `metrics` of all processes."""

    advantages: Tensor
    num_answers: int
    metrics: Mapping[str, float]


def draw(
    judge: VideoJudge, questions: Sequence[Question], settings: GrpoSettings, *, num_samples: int, seed: int
) -> Rollout:
    """Answer each question several times with the role in use.

    Args:
        judge: with the policy's role active.
        questions: this process's.
        settings: temperature and length.
        num_samples: answers per question.
        seed: with the question's group and the answer's number it keys the draws.

    Returns:
        The rollout.
    """
    found: dict[int, tuple[Completion, ...]] = {}
    for one_token in (False, True):
        rows_alike = [row for row, question in enumerate(questions) if question.one_token == one_token]
        if rows_alike:
            drawn = judge.sample(
                [questions[row].request for row in rows_alike],
                max_new_tokens=1 if one_token else settings.max_answer_tokens,
                temperature=settings.temperature,
                num_samples=num_samples,
                seed=seed,
                names=[str(questions[row].group) for row in rows_alike],
            )
            found |= {row: tuple(branches[0]) for row, branches in zip(rows_alike, drawn, strict=True)}
    completions = tuple(found[row] for row in range(len(questions)))
    rows = [(q, c) for q, row in zip(questions, completions, strict=True) for c in row]
    answers = [q.read(judge.decode(c), num_tokens=len(c.tokens), ended=c.ended) for q, c in rows]
    answered = Answered(
        kinds=tuple(q.kind for q, _ in rows),
        labels=tuple(q.label for q, _ in rows),
        groups=tuple(q.group for q, _ in rows),
        answers=tuple(answers),
    )
    return Rollout(tuple(questions), completions, answered)


def credit(
    rollout: Rollout, rewards: Mapping[str, Reward], settings: GrpoSettings, *, disturbed: Rollout | None = None
) -> Credit:
    """Reward the answers of all processes, and return the advantages of this one's.

    Args:
        rollout: this process's answers.
        rewards: kind of question -> reward.
        settings: how advantages are made.
        disturbed: this process's answers on disturbed clips.

    Returns:
        The credit.
    """
    everything = gather(rollout.answered)
    others = None if disturbed is None else gather(disturbed.answered)
    values, metrics = reward_answers(rewards, everything, others)
    groups = torch.tensor(everything.groups)
    readable = torch.tensor([not answer.fault for answer in everything.answers])
    found = group_advantages(
        values,
        groups,
        normalize_std=settings.normalize_std,
        usable=readable if settings.exclude_unparsed else None,
    )
    metrics |= {
        "reward": float(values.mean()),
        "parse_rate": float(readable.float().mean()),
        "flat_groups": found.num_flat / found.num_groups,
        "answer_tokens": sum(answer.num_tokens for answer in everything.answers) / len(values),
    }
    advantages = found.values
    if settings.exclude_unparsed:
        # centred: a push down alone, where most answers are unreadable, scatters them further
        advantages = advantages + group_advantages(readable.float(), groups, normalize_std=False).values
    own = torch.isin(groups, torch.tensor(rollout.answered.groups))
    return Credit(advantages[own], len(values), metrics)


def reward_answers(
    rewards: Mapping[str, Reward], answered: Answered, disturbed: Answered | None
) -> tuple[Tensor, dict[str, float]]:
    """Return the reward [N] of every answer, and the mean of each part of each kind's reward."""
    values = torch.zeros(len(answered.answers))
    metrics: dict[str, float] = {}
    for kind in sorted(set(answered.kinds)):
        if kind not in rewards:
            raise ValueError(f"questions of kind {kind!r} are asked, but only {', '.join(rewards)} have rewards")
        others = None if disturbed is None else Perturbed(*disturbed.of_kind(kind))
        found: RewardValues = rewards[kind](*answered.of_kind(kind), perturbed=others)
        values[[row for row, other in enumerate(answered.kinds) if other == kind]] = found.values
        metrics |= {f"reward_{kind}_{name}": float(part.mean()) for name, part in found.breakdown.items()}
    return values, metrics


def grpo_parts(
    judge: VideoJudge, rollout: Rollout, credit: Credit, settings: GrpoSettings, *, role: str, reference: str
) -> Iterator[tuple[Tensor, dict[str, float]]]:
    """Yield the loss in parts of a few questions, whose sum over parts and mean over processes is the step's loss.

    Args:
        judge: the judge.
        rollout: this process's answers.
        credit: what they are worth.
        settings: clip range, penalty, part size.
        role: adapter of the policy.
        reference: adapter that the penalty pulls towards.

    Yields:
        A part of the loss, and metrics of this process so far.
    """
    share = credit.num_answers / rank_and_world()[1]
    totals: dict[str, float] = {}
    entropy, num_tokens, start = 0.0, 0, 0
    for first in range(0, len(rollout.questions), settings.questions_per_part):
        rows = slice(first, first + settings.questions_per_part)
        requests = [question.request for question in rollout.questions[rows]]
        drawn = rollout.completions[rows]
        tokens = [[[completion.tokens for completion in row]] for row in drawn]
        before = None
        if settings.kl_coef:
            with torch.no_grad(), judge.use_role(reference):
                before = judge.log_probs(
                    requests, tokens, temperature=settings.temperature, suppressed=judge.suppressed_ids
                ).values
        with judge.use_role(role):
            now = judge.log_probs(requests, tokens, temperature=settings.temperature, suppressed=judge.suppressed_ids)
        old = torch.cat([completion.log_probs for row in drawn for completion in row]).to(now.values.device)
        count = sum(len(row) for row in drawn)
        loss, found = policy_loss(
            now.values,
            old,
            before,
            credit.advantages[start : start + count].to(now.values.device),
            now.owner.to(now.values.device),
            clip_range=settings.clip_range,
            kl_coef=settings.kl_coef,
            num_answers=share,
        )
        start += count
        entropy, num_tokens = entropy + float(now.entropy.sum()), num_tokens + len(now.entropy)
        worst = max(totals.get("ratio_error", 0.0), found.pop("ratio_error"))
        totals = {name: totals.get(name, 0.0) + value for name, value in found.items()} | {"ratio_error": worst}
        yield loss, {**credit.metrics, **totals, "entropy": entropy / num_tokens}


class GrpoSteps:
    """The loss of every optimiser step of a stage; answers are drawn anew every `num_updates` steps."""

    def __init__(
        self, judge: VideoJudge, rewards: Mapping[str, Reward], settings: GrpoSettings, *, role: str, reference: str
    ) -> None:
        """Take what stays the same over a stage.

        Args:
            judge: the judge.
            rewards: kind of question -> reward.
            settings: of the stage.
            role: adapter that is trained.
            reference: adapter that the penalty pulls towards.
        """
        self.judge, self.rewards, self.settings = judge, rewards, settings
        self.role, self.reference = role, reference
        self._drawn: tuple[Rollout, Credit] | None = None

    def parts(
        self, questions: Sequence[Question], step: int, *, seed: int
    ) -> Iterator[tuple[Tensor, dict[str, float]]]:
        """Draw and credit answers where it is time, then yield the loss in parts.

        Args:
            questions: this process's share; looked at only when answers are drawn.
            step: number of the optimiser step.
            seed: of all draws of the stage.

        Yields:
            Parts as `training.fit.Loss` states them.
        """
        with self.judge.remember_clips():  # for rollout, reference and policy
            if self._drawn is None or step % self.settings.num_updates == 0:
                self._drawn = self._draw(questions, seed + step)
            yield from grpo_parts(self.judge, *self._drawn, self.settings, role=self.role, reference=self.reference)

    def _draw(self, questions: Sequence[Question], seed: int) -> tuple[Rollout, Credit]:
        settings, disturbed = self.settings, None
        with self.judge.use_role(self.role):
            rollout = draw(self.judge, questions, settings, num_samples=settings.group_size, seed=seed)
            if settings.perturbation is not None:
                generators = [torch.Generator().manual_seed(seed * 1_000_003 + q.group) for q in questions]
                other = [
                    perturbed(question, settings.perturbation, generator)
                    for question, generator in zip(questions, generators, strict=True)
                    if question.kind == "reason"
                ]
                disturbed = draw(self.judge, other, settings, num_samples=settings.num_perturbed, seed=seed)
        return rollout, credit(rollout, self.rewards, settings, disturbed=disturbed)


def gather(answered: Answered) -> Answered:
    """Return the answers of all processes, in the order of the processes."""
    if rank_and_world()[1] == 1:
        return answered
    found: list[Answered] = [answered] * rank_and_world()[1]
    torch.distributed.all_gather_object(found, answered)
    return Answered(
        kinds=tuple(kind for part in found for kind in part.kinds),
        labels=tuple(label for part in found for label in part.labels),
        groups=tuple(group for part in found for group in part.groups),
        answers=tuple(answer for part in found for answer in part.answers),
    )
