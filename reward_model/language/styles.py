"""Prompt styles: forms of the questions for reasoned answers and comparisons, and parsers of the answers.

A judge that was trained elsewhere answers best when it is asked in the form of its training: its system turn, the place of
the question, its answer's keys and scale. A style keeps that form. The sentences are this project's own; the authors' exact
ones go into `wording` of judge_config.json, see `authors_settings`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from statistics import fmean
from typing import Protocol

from reward_model.dimensions import OVERALL
from reward_model.language import parsing
from reward_model.language.requests import (
    END,
    PREFERENCES,
    SCORE_RANGE,
    askable,
    closed_request,
    compare_request,
    quote,
    reason_request,
)
from reward_model.records import Answer, Clip, JudgeRequest, ParsedAnswer, ParseFailure

OWN = "own"
"""Name of this project's style."""

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_NUMBER = r"[-+]?\d+(?:\.\d+)?"
_PAIR = re.compile(rf"""\s*["']?(\w+)["']?\s*:\s*["']?({_NUMBER})["']?\s*""")


class Style(Protocol):
    """One way of asking and reading."""

    @property
    def preferences(self) -> tuple[str, ...]:
        """Answers of a comparison: the first clip, the second and, where the style has it, a tie."""

    @property
    def reasons_to_compare(self) -> bool:
        """Whether a comparison is answered by a text that reasons first, not by the next token."""

    def reason_request(self, clip: Clip, prompt: str | None, dimensions: Sequence[str]) -> JudgeRequest:
        """Return the question for a reasoned answer that rates these dimensions."""

    def parse_reason(self, text: str, dimensions: Sequence[str]) -> ParsedAnswer | ParseFailure:
        """Read a reasoned answer that must have these dimensions."""

    def read_scores(self, text: str, num_tokens: int, dimensions: Sequence[str]) -> Answer:
        """Read a reasoned answer of so many tokens for the rewards, its scores on the scale 1 to 5."""

    def compare_request(self, first: Clip, second: Clip, prompt: str | None) -> JudgeRequest:
        """Return the question which clip is better, answered by a text or by one of `PREFERENCES` as the next token."""

    def ask_request(self, clip: Clip, question: str, options: Sequence[str]) -> JudgeRequest:
        """Return a question with listed answers."""

    def read_choice(self, text: str, num_tokens: int, choices: Sequence[str]) -> Answer:
        """Read the answer to a comparison or to a question with listed answers."""


class OwnStyle:
    """The prompts and answers of `language.requests` and `language.parsing`."""

    preferences = PREFERENCES
    reasons_to_compare = False

    def reason_request(self, clip: Clip, prompt: str | None, dimensions: Sequence[str]) -> JudgeRequest:
        """Return the question for a reasoned answer that rates these dimensions (text alignment only with a prompt)."""
        return reason_request(clip, prompt, askable(dimensions, prompt))

    def parse_reason(self, text: str, dimensions: Sequence[str]) -> ParsedAnswer | ParseFailure:
        """Read a reasoned answer that must have these dimensions."""
        return parsing.parse_reason(text, dimensions)

    def read_scores(self, text: str, num_tokens: int, dimensions: Sequence[str]) -> Answer:
        """Read a reasoned answer for the rewards, its scores as written."""
        return parsing.read_scores(text, num_tokens, dimensions)

    def compare_request(self, first: Clip, second: Clip, prompt: str | None) -> JudgeRequest:
        """Return the question which clip is better overall."""
        return compare_request(first, second, prompt)

    def ask_request(self, clip: Clip, question: str, options: Sequence[str]) -> JudgeRequest:
        """Return a question with listed answers, of which the reply is one."""
        return closed_request(clip, question, options)

    def read_choice(self, text: str, num_tokens: int, choices: Sequence[str]) -> Answer:
        """Read one of the choices, by itself or inside the answer block."""
        return parsing.read_choice(text, num_tokens, choices)


@dataclass(frozen=True, kw_only=True)
class Wording:
    """The sentences of a style; `{prompt}` in `with_prompt` stands for the generation prompt."""

    system: str
    """The system turn."""
    with_prompt: str = ""
    """Stands before the question where there is a generation prompt."""
    question: str = ""
    """Asks for the scores; empty for a judge that only compares."""
    comparison: str = ""
    """Asks which video is better; empty for a judge that only scores."""
    before_clip: str = ""
    """Asks for the scores before the clip is shown, in place of `question`."""
    source: str = ""
    """Where the sentences are from, as results and model cards state it; empty where that needs no mention."""


@dataclass(frozen=True, kw_only=True)
class OtherStyle:
    """A style of judges that were trained elsewhere: the clip first, the question behind it, the answer in answer tags.

    `keys` maps the answer's keys to dimensions ("" is a bare number) and `scale` is the lowest and highest score. The mean of
    an answer's scores counts as `overall`.
    """

    wording: Wording
    keys: Mapping[str, str]
    scale: tuple[float, float]
    reasons_to_compare: bool = False
    preferences: tuple[str, ...] = PREFERENCES[:2]

    def reason_request(self, clip: Clip, prompt: str | None, dimensions: Sequence[str]) -> JudgeRequest:
        """Return the style's only question, whatever the dimensions; a judge that only compares has none (ValueError)."""
        first, then = self.wording.before_clip, self.wording.question
        if not first and not then:
            raise ValueError("this judge was trained to compare, not to score; use compare or rank")
        return JudgeRequest((clip,), (f"{self._system()}{first}", 0), (f"{self._ask(then, prompt)}{_ASSISTANT}",))

    def parse_reason(self, text: str, dimensions: Sequence[str]) -> ParsedAnswer | ParseFailure:
        """Read the answer block: a bare number or `key: number` pairs, with or without braces and in any order."""
        scores = self._read(text, dimensions)
        if isinstance(scores, str):
            return ParseFailure(scores, text)
        low, high = self.scale
        quality = {name: (float(score) - low) / (high - low) for name, score in scores.items()}
        reasoning = re.sub(r"</?think>", "", text.partition("<answer>")[0])
        return ParsedAnswer(quality, reasoning.strip())

    def read_scores(self, text: str, num_tokens: int, dimensions: Sequence[str]) -> Answer:
        """Read a reasoned answer for the rewards.

        Args:
            text: the answer.
            num_tokens: its length.
            dimensions: required dimensions.

        Returns:
            The answer, or its fault. Scores of a style from 1 to 5 stand as they were written, those of another scale as the exact
            decimal on 1 to 5.
        """
        scores = self._read(text, dimensions)
        if isinstance(scores, str):
            return Answer(text, num_tokens, fault=scores)
        return Answer(text, num_tokens, scores={name: self._on_own_scale(score) for name, score in scores.items()})

    def compare_request(self, first: Clip, second: Clip, prompt: str | None) -> JudgeRequest:
        """Return the question which clip is better; scorers have none (ValueError).

        Where the style does not reason to compare, the answer is begun, so that a letter comes next.
        """
        if not self.wording.comparison:
            raise ValueError("this judge was trained to score, not to compare; compare its scores")
        prefix = (f"{self._system()}Video A:", 0, "Video B:", 1)
        begun = "" if self.reasons_to_compare else "<answer>Video"
        return JudgeRequest(
            (first, second), prefix, (f"{self._ask(self.wording.comparison, prompt)}{_ASSISTANT}{begun}",)
        )

    def ask_request(self, clip: Clip, question: str, options: Sequence[str]) -> JudgeRequest:
        """Return a question with listed answers, one of which the answer block must hold."""
        asked = f"{quote(question)} Answer with one of: {', '.join(quote(option) for option in options)}."
        return JudgeRequest((clip,), (self._system(), 0), (f"{asked}{_ASSISTANT}",))

    def read_choice(self, text: str, num_tokens: int, choices: Sequence[str]) -> Answer:
        """Read the answer block: one of the choices, whatever its case, "Video A" for A, with or without a full stop."""
        blocks = _ANSWER.findall(text)
        if len(blocks) != 1:
            return Answer(text, num_tokens, fault=f"{len(blocks)} answer blocks, expected one")
        word = blocks[0].strip().removesuffix(".").casefold()
        word = word.removeprefix("video ") if tuple(choices) == self.preferences else word
        chosen = [choice for choice in choices if choice.removesuffix(".").casefold() == word]
        if len(chosen) != 1:
            return Answer(text, num_tokens, fault=f"not one of {', '.join(choices)}")
        return Answer(text, num_tokens, choice=chosen[0])

    def _read(self, text: str, dimensions: Sequence[str]) -> dict[str, str] | str:
        """Return dimension -> score as written, `overall` among them, or the fault of the answer."""
        blocks = _ANSWER.findall(text)
        if len(blocks) != 1:
            return f"{len(blocks)} answer blocks, expected one"
        written = self._scores(blocks[0])
        if isinstance(written, str):
            return written
        low, high = self.scale
        outside = [score for score in written.values() if not low <= float(score) <= high]
        if outside:
            return f"a score is outside [{low}, {high}]: {float(outside[0])}"
        scores = {self.keys[key]: score for key, score in written.items()}
        if OVERALL not in scores:
            numbers = [Decimal(score) for score in scores.values()]
            scores[OVERALL] = str(fmean(numbers)) if len(numbers) > 1 else next(iter(scores.values()))
        missing = [name for name in dimensions if name not in scores]
        return f"no score for {missing[0]}" if missing else scores

    def _on_own_scale(self, score: str) -> str:
        """Return a score on the scale 1 to 5."""
        if self.scale == SCORE_RANGE:
            return score
        (low, high), (least, most) = (map(Decimal, map(str, scale)) for scale in (self.scale, SCORE_RANGE))
        return format(least + (most - least) * (Decimal(score) - low) / (high - low), "f")

    def _system(self) -> str:
        return f"<|im_start|>system\n{self.wording.system}{END}\n<|im_start|>user\n"

    def _ask(self, question: str, prompt: str | None) -> str:
        given = "" if prompt is None else self.wording.with_prompt.replace("{prompt}", quote(prompt))
        return f"{given}{question}"

    def _scores(self, block: str) -> dict[str, str] | str:
        """Return key -> score as the block states it, or the fault of the block."""
        content = block.strip().removeprefix("{").removesuffix("}").strip()
        if tuple(self.keys) == ("",):
            return {"": content} if re.fullmatch(_NUMBER, content) else "answer is not a number"
        pairs = [_PAIR.fullmatch(part) for part in content.split(",")]
        scores = [(pair[1], pair[2]) for pair in pairs if pair]
        if len(scores) < len(pairs) or sorted(key for key, _ in scores) != sorted(self.keys):
            return f"answer is not a number for each of {', '.join(self.keys)}"
        return dict(scores)


_ASSISTANT = f"{END}\n<|im_start|>assistant\n"
_THINK = (
    "A user asks, an assistant answers. The assistant reasons inside <think></think> first and then states the answer inside "
    "<answer></answer>."
)
_GIVEN = "The video was generated from this text: {prompt}\n"

STYLES: Mapping[str, Style] = {
    OWN: OwnStyle(),
    "vq_insight_natural": OtherStyle(
        wording=Wording(system=_THINK, question="How good is the quality of this video? Give a score from 0 to 100."),
        keys={"": "visual_quality"},
        scale=(0.0, 100.0),
    ),
    "vq_insight_generated": OtherStyle(
        wording=Wording(
            system=_THINK,
            with_prompt=_GIVEN,
            question=(
                "This video was generated by AI. Score its spatial quality, its temporal quality and how well it agrees with "
                'its text. Answer with JSON that has the keys "spatial", "temporal" and "consistency", each a number from 0 '
                "to 100 with two decimals."
            ),
        ),
        keys={"spatial": "visual_quality", "temporal": "motion_quality", "consistency": "text_alignment"},
        scale=(0.0, 100.0),
    ),
    "vq_insight_comparator": OtherStyle(
        wording=Wording(
            system="A user asks, an assistant answers. The assistant states the answer inside <answer></answer>.",
            with_prompt=_GIVEN,
            comparison=(
                "Two AI models made Video A and Video B. Which one is better in visual quality, consistency over time, amount "
                "of motion and authenticity? Answer 'Video A' or 'Video B'."
            ),
        ),
        keys={},
        scale=(0.0, 1.0),
    ),
    "vq_insight_reasoned_comparator": OtherStyle(
        wording=Wording(
            system=_THINK,
            with_prompt=_GIVEN,
            comparison=(
                "Two AI models made Video A and Video B. Which one is better in visual quality, consistency over time, amount "
                "of motion and authenticity? Answer with one letter, A or B."
            ),
        ),
        keys={},
        scale=(0.0, 1.0),
        reasons_to_compare=True,
    ),
    "vqathinker": OtherStyle(
        wording=Wording(
            system=_THINK,
            question=(
                "How good is the quality of this video overall? Give a number from 1 (very poor) to 5 (excellent) with two "
                "decimals."
            ),
        ),
        keys={"": "overall"},
        scale=(1.0, 5.0),
    ),
    "q_insight": OtherStyle(
        wording=Wording(
            system=_THINK,
            question=(
                "How good is the quality of this picture overall? Give a number from 1 (very poor) to 5 (excellent) with two "
                'decimals. Answer with JSON that has the key "rating".'
            ),
        ),
        keys={"rating": "visual_quality"},
        scale=(1.0, 5.0),
    ),
}
"""Name in judge_config.json -> style.

Source: answer keys, scales and order of the turns from github.com/xuanyuzhang21/VQ-Insight, demo/, and
github.com/bytedance/Q-Insight, src/eval/demo_score.py; the comparator that reasons from the training template of src/r1-v/src/
open_r1/grpo_comp_md.py of the former; vqathinker from the question in the training records of clh124/VQAThinker.
"""


def style_of(name: str, wording: Mapping[str, str]) -> Style:
    """Return a style with some of its sentences replaced.

    Args:
        name: key of `STYLES`.
        wording: field of `Wording` -> text.

    Returns:
        The style.

    Raises:
        ValueError: an unknown style or field, or wording for this project's own style.
    """
    if name not in STYLES:
        raise ValueError(f"prompt_style must be one of {', '.join(STYLES)}, got {name!r}")
    style = STYLES[name]
    known = [field.name for field in fields(Wording)]
    if unknown := sorted(set(wording) - set(known)):
        raise ValueError(f"wording has no text {unknown[0]!r}, expected some of {', '.join(known)}")
    if not wording:
        return style
    if not isinstance(style, OtherStyle):
        raise ValueError(
            f"wording replaces texts of other styles than {name!r}, whose texts are fixed by prompts_version"
        )
    return replace(style, wording=replace(style.wording, **wording))
