"""The texts that the judge is asked and the answers that it is taught.

A request is one prefix (system, clip, rubric) shared by branches (a question, the start of the assistant's turn). Branches
and answers are tokenised apart, so a prefix ends in a line break, a branch in a line break or a whole word, and an answer
that follows a word begins with a space. Every request about one clip has the same prefix, so that rating, describing and
reasoning share one encoding of the video.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from reward_model.records import DIMENSIONS, LEVELS, Clip, JudgeRequest

PROMPTS_VERSION = "2"
"""Changes with any text below; a saved judge names the version that it was trained on."""

END = "<|im_end|>"
"""Ends a turn; free-text answers are taught with it so that generation stops."""

PREFERENCES = ("A", "B", "neither")
"""Answers of a comparison: the first clip, the second, a tie."""

SCORE_RANGE = (1.0, 5.0)
"""Scale of the reasoned answer's numbers; 1 is quality 0, 5 is quality 1."""

_SYSTEM = f"<|im_start|>system\nYou judge videos.{END}\n<|im_start|>user\n"
_ASSISTANT = f"{END}\n<|im_start|>assistant\n"
_RUBRIC = (
    "\nVisual quality: sharp, clean frames. Motion quality: smooth, plausible motion. Text alignment: shows the prompt. "
    "Overall quality: all of it. Levels: bad, poor, fair, good, excellent.\n"
)
_QUESTION = {
    "visual_quality": "Visual quality?",
    "motion_quality": "Motion quality?",
    "text_alignment": "Text alignment?",
    "overall": "Overall quality?",
}
_NEEDS_PROMPT = ("text_alignment", "overall")


def score_request(clip: Clip, prompt: str | None, dimensions: Sequence[str]) -> JudgeRequest:
    """Ask one question per dimension, whose next token is a level word.

    Args:
        clip: what is rated.
        prompt: the text that the clip was generated from; None if there is none. `overall` is then asked without it.
        dimensions: of `DIMENSIONS`, one branch each in this order.

    Returns:
        The request.

    Raises:
        ValueError: an unknown dimension, or text alignment without a prompt.
    """
    return _one_clip(clip, [_level_branch(name, prompt) for name in dimensions])


def describe_request(clip: Clip) -> JudgeRequest:
    """Return the question for the clip's caption; see `describe_answer`."""
    return _one_clip(clip, [f"Describe the video.{_ASSISTANT}Caption:"])


def askable(dimensions: Sequence[str], prompt: str | None) -> tuple[str, ...]:
    """Return those of `dimensions` that can be asked for: text alignment only with a prompt."""
    return tuple(name for name in dimensions if prompt is not None or name != "text_alignment")


def reason_request(clip: Clip, prompt: str | None, dimensions: Sequence[str]) -> JudgeRequest:
    """Ask for a reasoned answer with one score per dimension.

    Args:
        clip: what is rated.
        prompt: the text that the clip was generated from; None if there is none. `overall` is then asked without it.
        dimensions: of `DIMENSIONS`, what the answer must rate.

    Returns:
        The request.

    Raises:
        ValueError: no or an unknown dimension, or text alignment without a prompt.
    """
    if not dimensions:
        raise ValueError("a reasoned answer must rate at least one dimension")
    for name in dimensions:
        _check_askable(name, prompt)
    names = [name for name in DIMENSIONS if name in dimensions]
    ask = f"Reason in <think>, then give JSON scores 1-5 in <answer>: {', '.join(names)}."
    return _one_clip(clip, [f"{_questions(prompt, names)}{ask}{_ASSISTANT}"])


def compare_request(first: Clip, second: Clip, prompt: str | None, dimension: str = "overall") -> JudgeRequest:
    """Return the question which of two clips is better, whose next token is one of `PREFERENCES`.

    Each clip is followed by all that a rating of it alone would be asked, so that what is seen of it is gathered there.
    """
    _check(dimension)
    asked = _questions(prompt, askable(DIMENSIONS, prompt))
    prefix = (f"{_SYSTEM}A:", 0, f"{_RUBRIC}A:\n{asked}B:", 1, f"{_RUBRIC}B:\n{asked}")
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
    scores = {}
    for name in sorted(quality, key=lambda n: (_check(n), DIMENSIONS.index(n))):
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
    return JudgeRequest((clip,), (_SYSTEM, 0, _RUBRIC), tuple(branches))


def _level_branch(name: str, prompt: str | None) -> str:
    _check_askable(name, prompt)
    return f"{_prompt_line(prompt if name in _NEEDS_PROMPT else None)}{_QUESTION[name]}{_ASSISTANT}Rating:"


def _questions(prompt: str | None, dimensions: Sequence[str]) -> str:
    """Return the prompt and the questions of the dimensions, a line each."""
    asked = "\n".join(_QUESTION[name] for name in dimensions)
    return f"{_prompt_line(prompt)}{asked}\n"


def _prompt_line(prompt: str | None) -> str:
    return "" if prompt is None else f"Prompt: {quote(prompt)}\n"


def _check_askable(dimension: str, prompt: str | None) -> None:
    _check(dimension)
    if not askable([dimension], prompt):
        raise ValueError("text_alignment needs a prompt, got None; leave the dimension out")


def _check(dimension: str) -> bool:
    if dimension not in DIMENSIONS:
        raise ValueError(f"unknown dimension {dimension!r}, expected one of {', '.join(DIMENSIONS)}")
    return True
