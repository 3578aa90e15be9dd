"""Sums of rewards, and rewards to and from trl.

Shapes: N answers.

trl's contract (GRPOTrainer._calculate_rewards of trl 1.16.0): a function is called with `prompts`, `completions` (texts, or
conversations of one assistant message), `completion_ids` (a list of token ids each), every further column of the data set
as a list, and `trainer_state`, `log_extra` and `log_metric`; it returns one float or None for each completion. A completion
for which all functions return None is not learned from, otherwise None adds nothing.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reward_model.records import Answer, Label, RewardValues
from reward_model.rewards.base import AnswerReward, Perturbed, values_of

TrlReward = Callable[..., list[float | None]]
"""A reward function of trl."""


def weighted(terms: Mapping[str, tuple[AnswerReward, float]]) -> AnswerReward:
    """Return the weighted sum of rewards.

    Args:
        terms: name -> (reward, weight).

    Returns:
        The reward. Its breakdown holds each term's values by name, unweighted, and each term's own breakdown as "name/fact";
        "unparsed" is 1 only for answers that no term can read.

    Raises:
        ValueError: No terms.
    """
    if not terms:
        raise ValueError("a weighted reward needs at least one term")

    def reward(
        answers: Sequence[Answer], labels: Sequence[Label], groups: Tensor, *, perturbed: Perturbed | None = None
    ) -> RewardValues:
        """Return the weighted sum of the terms."""
        earned = {name: one(answers, labels, groups, perturbed=perturbed) for name, (one, _) in terms.items()}
        breakdown = {name: one.values for name, one in earned.items()}
        for name, one in earned.items():
            breakdown |= {f"{name}/{fact}": values for fact, values in one.breakdown.items()}
        total = sum((weight * earned[name].values for name, (_, weight) in terms.items()), torch.zeros(len(answers)))
        return values_of(total, torch.stack([_unparsed(one) for one in earned.values()]).amin(dim=0), **breakdown)

    return reward


@dataclass(frozen=True)
class TokenCount:
    """Placeholder of tokens whose number alone is known: it has a length and nothing else."""

    num_tokens: int

    def __len__(self) -> int:
        """Return the number of tokens."""
        return self.num_tokens


def label_columns(labels: Sequence[Label]) -> dict[str, list[Any]]:
    """Return the columns that `to_trl` reads: `scores` (dimension -> label) and `choice` (None where there is none)."""
    return {"scores": [dict(label.scores) for label in labels], "choice": [label.choice or None for label in labels]}


def from_trl(
    function: TrlReward,
    *,
    conversational: bool = False,
    prompt_of: Callable[[int], Any] | None = None,
    columns_of: Callable[[Sequence[Label]], Mapping[str, list[Any]]] = label_columns,
) -> AnswerReward:
    """Turn a reward function of trl into a reward.

    Args:
        function: synchronous; its logs are dropped.
        conversational: hand each text over as a conversation of one assistant message.
        prompt_of: group id -> prompt; without it each prompt is None, and a function that reads prompts fails.
        columns_of: labels -> the columns that the function reads. The column `group` is always there.

    Returns:
        The reward; None becomes 0 and "unparsed". `completion_ids` have lengths but no ids.

    Raises:
        ValueError: A coroutine function.
    """
    if inspect.iscoroutinefunction(function):
        raise ValueError("from_trl takes synchronous reward functions; wrap the coroutine in asyncio.run")

    def reward(
        answers: Sequence[Answer], labels: Sequence[Label], groups: Tensor, *, perturbed: Perturbed | None = None
    ) -> RewardValues:
        """Return the rewards of the function."""
        ids = [int(group) for group in groups]
        texts = [answer.text for answer in answers]
        paid = function(
            prompts=[prompt_of(group) if prompt_of else None for group in ids],
            completions=[[{"role": "assistant", "content": text}] for text in texts] if conversational else texts,
            completion_ids=[TokenCount(answer.num_tokens) for answer in answers],
            group=ids,
            trainer_state=None,
            log_extra=_ignore,
            log_metric=_ignore,
            **columns_of(labels),
        )
        if len(paid) != len(answers):
            raise ValueError(f"a reward function returned {len(paid)} values for {len(answers)} completions")
        failed = [value is None or not math.isfinite(value) for value in paid]
        values = [0.0 if bad or value is None else float(value) for value, bad in zip(paid, failed, strict=True)]
        return values_of(values, [float(bad) for bad in failed])

    return reward


def to_trl(reward: AnswerReward, *, read: Callable[[str, int, Label], Answer], name: str) -> TrlReward:
    """Turn a reward into a function for trl's `reward_funcs`.

    The function reads the columns `scores` (dimension -> label on the scale 1 to 5; entries that are None, as data sets fill
    them in, do not count), `choice` (the right word) and `group` (id of the prompt); each may be missing. Without `group`,
    equal prompts are one group. trl calls it on each process by itself: a reward that compares groups meets those of one
    process only. trl makes no answers about perturbed clips: temporal rewards refuse to run.

    Args:
        reward: ours.
        read: (text, tokens, label) -> answer, for instance by `reward_model.language.parsing.read_scores`.
        name: under which trl logs it.

    Returns:
        The function; None for unreadable answers. To teach the form of answers as well, hand `format_reward` to
        trl as a function of its own.
    """

    def function(
        *,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[Sequence[int]],
        scores: list[Mapping[str, float | None] | None] | None = None,
        choice: list[str | None] | None = None,
        group: list[int] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return the rewards, as trl calls it; None for unreadable answers."""
        labels = [
            Label({key: value for key, value in (rated or {}).items() if value is not None}, word or "")
            for rated, word in zip(scores or [None] * len(prompts), choice or [None] * len(prompts), strict=True)
        ]
        answers = [
            read(_text(completion), len(ids), label)
            for completion, ids, label in zip(completions, completion_ids, labels, strict=True)
        ]
        groups = torch.tensor(group if group is not None else [prompts.index(prompt) for prompt in prompts])
        earned = reward(answers, labels, groups)
        values, failed = earned.values.tolist(), (_unparsed(earned) >= 1).tolist()
        return [None if bad else value for value, bad in zip(values, failed, strict=True)]

    function.__name__ = name
    return function


def _unparsed(earned: RewardValues) -> Tensor:
    return earned.breakdown.get("unparsed", torch.zeros(len(earned.values)))


def _text(completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"]
    if not isinstance(content, str):
        raise ValueError(f"a completion's content must be text, got {type(content).__name__}")
    return content


def _ignore(*named: Any) -> None:
    """Drop the logs of a function of trl."""
