"""The judge's prompts, and the answers that it is trained to give.

A request is one prefix (system, clip, rubric) shared by branches (a question, the start of the assistant's turn). Branches
and answers are tokenised apart, so a prefix ends in a line break, a branch in a line break or a whole word, and an answer
that follows a word begins with a space. Every request about one clip has the same prefix, so that rating, describing and
reasoning share one encoding of the video.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from reward_model.dimensions import BY_NAME, OVERALL, dimension_of, in_order, needs_prompt, shows_prompt
from reward_model.records import LEVELS, Clip, JudgeRequest

PROMPTS_VERSION = "2"
"""Changes with any text below and with the prefix entries of `BY_NAME`; a saved judge names the version of its training."""

END = "<|im_end|>"
"""Ends a turn; free-text answers are taught with it so that generation stops."""

PREFERENCES = ("A", "B", "neither")
"""Answers of a comparison: the first clip, the second, a tie."""

SCORE_RANGE = (1.0, 5.0)
"""Scale of the reasoned answer's numbers; 1 is quality 0, 5 is quality 1."""

_SYSTEM = f"<|im_start|>system\nYou judge videos.{END}\n<|im_start|>user\n"
_ASSISTANT = f"{END}\n<|im_start|>assistant\n"


def score_request(clip: Clip, prompt: str | None, dimensions: Sequence[str]) -> JudgeRequest:
    """Ask one question per dimension, whose next token is a level word.

    Args:
        clip: rated clip.
        prompt: the text that the clip was generated from; None if there is none. `overall` is then asked without it.
        dimensions: names of dimensions, one branch each in this order.

    Returns:
        The request.

    Raises:
        ValueError: an unknown dimension, or one that needs a prompt (text alignment) without one.
    """
    return _one_clip(clip, [_level_branch(name, prompt) for name in dimensions])


def describe_request(clip: Clip) -> JudgeRequest:
    """Return the question for the clip's caption; see `describe_answer`."""
    return _one_clip(clip, [f"Describe the video.{_ASSISTANT}Caption:"])


def askable(dimensions: Sequence[str], prompt: str | None) -> tuple[str, ...]:
    """Return those of `dimensions` that can be asked for: without a prompt, those that do not need one."""
    return tuple(name for name in dimensions if prompt is not None or not needs_prompt(name))


def reason_request(clip: Clip, prompt: str | None, dimensions: Sequence[str]) -> JudgeRequest:
    """Ask for a reasoned answer with one score per dimension.

    Args:
        clip: rated clip.
        prompt: the text that the clip was generated from; None if there is none. `overall` is then asked without it.
        dimensions: names of dimensions that the answer must rate.

    Returns:
        The request.

    Raises:
        ValueError: no or an unknown dimension, or one that needs a prompt (text alignment) without one.
    """
    if not dimensions:
        raise ValueError("a reasoned answer must rate at least one dimension")
    for name in dimensions:
        _check_askable(name, prompt)
    names = in_order(dimensions)
    ask = f"Reason in <think>, then give JSON scores 1-5 in <answer>: {', '.join(names)}."
    return _one_clip(clip, [f"{_questions(prompt, names)}{ask}{_ASSISTANT}"])


def compare_request(first: Clip, second: Clip, prompt: str | None, dimension: str = OVERALL) -> JudgeRequest:
    """Return the question which of two clips is better, whose next token is one of `PREFERENCES`.

    The rating prompt is repeated after each clip, so the model summarises each clip before comparing.
    """
    compared = dimension_of(dimension)
    rated = [entry.name for entry in BY_NAME.values() if entry.in_prefix or entry == compared]
    asked, rubric = _questions(prompt, askable(rated, prompt)), _rubric()
    prefix = (f"{_SYSTEM}A:", 0, f"{rubric}A:\n{asked}B:", 1, f"{rubric}B:\n{asked}")
    return JudgeRequest(
        (first, second), prefix, (f"Better {dimension.replace('_', ' ')}, A, B or neither?{_ASSISTANT}Better:",)
    )


def closed_request(clip: Clip, question: str, options: Sequence[str]) -> JudgeRequest:
    """Return a question with listed answers, of which the reply is one."""
    asked = f"{quote(question)}\nAnswer: {' / '.join(quote(option) for option in options)}"
    return _one_clip(clip, [f"{asked}{_ASSISTANT}"])


def level_answer(quality: float) -> str:
    """Return the level word nearest to `quality` in [0, 1], as it follows the branch."""
    return f" {LEVELS[min(len(LEVELS) - 1, max(0, int(quality * (len(LEVELS) - 1) + 0.5)))]}"


def preference_answer(margin: float) -> str:
    """Return the comparison's answer, as it follows the branch: first if `margin` > 0, second if < 0, else a tie."""
    return f" {PREFERENCES[0 if margin > 0 else 1 if margin < 0 else 2]}"


def describe_answer(caption: str) -> str:
    """Return a caption as the whole answer to `describe_request`."""
    return f" {quote(caption)}{END}"


def reason_answer(quality: Mapping[str, float], reasoning: str) -> str:
    """Compose a whole reasoned answer: the reasoning, then canonical JSON of dimension -> score 1.0 to 5.0.

    Args:
        quality: dimension -> [0, 1].
        reasoning: one line of text.

    Returns:
        The answer with its end-of-turn token.

    Raises:
        ValueError: unknown dimension, or quality outside [0, 1].
    """
    low, high = SCORE_RANGE
    for name in quality:
        dimension_of(name)
    scores = {}
    for name in in_order(quality):
        if not 0.0 <= quality[name] <= 1.0:
            raise ValueError(f"quality[{name!r}] must be in [0, 1], got {quality[name]}")
        scores[name] = round(low + (high - low) * quality[name], 1)
    answer = json.dumps(scores, separators=(",", ":"))
    return f"<think>{quote(reasoning)}</think>\n<answer>{answer}</answer>{END}"


def level_texts() -> tuple[str, ...]:
    """Return the five level words as they follow a branch, worst first; each must be one token."""
    return tuple(f" {word}" for word in LEVELS)


def preference_texts() -> tuple[str, ...]:
    """Return the answers of a comparison as they follow the branch; each must be one token."""
    return tuple(f" {word}" for word in PREFERENCES)


def quote(text: str) -> str:
    """Return foreign text on one line and without special-token syntax, so that it cannot end the user's turn."""
    return " ".join(text.replace("<|", "< |").split())


def _one_clip(clip: Clip, branches: Sequence[str]) -> JudgeRequest:
    return JudgeRequest((clip,), (_SYSTEM, 0, _rubric()), tuple(branches))


def _rubric() -> str:
    """Return the part of the shared prefix that follows a clip."""
    sentences = " ".join(entry.rubric for entry in BY_NAME.values() if entry.in_prefix)
    return f"\n{sentences} Levels: {', '.join(LEVELS)}.\n"


def _level_branch(name: str, prompt: str | None) -> str:
    _check_askable(name, prompt)
    return f"{_prompt_line(prompt if shows_prompt(name) else None)}{_question(name)}{_ASSISTANT}Rating:"


def _questions(prompt: str | None, dimensions: Sequence[str]) -> str:
    """Return the prompt and the questions of the dimensions, a line each."""
    asked = "\n".join(_question(name) for name in dimensions)
    return f"{_prompt_line(prompt)}{asked}\n"


def _question(name: str) -> str:
    """Return a dimension's question, after its rubric unless the prefix holds that."""
    entry = dimension_of(name)
    return entry.question if entry.in_prefix else f"{entry.rubric} {entry.question}"


def _prompt_line(prompt: str | None) -> str:
    return "" if prompt is None else f"Prompt: {quote(prompt)}\n"


def _check_askable(dimension: str, prompt: str | None) -> None:
    if needs_prompt(dimension) and prompt is None:
        raise ValueError(f"{dimension} needs a prompt, got None; leave the dimension out")
