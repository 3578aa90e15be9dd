"""Prompt styles: forms of the questions for reasoned answers and comparisons, and parsers of the answers.

A judge that was trained elsewhere answers best when it is asked in the form of its training: its system turn, the place of
the question, its answer's keys and scale. A style keeps that form. The sentences are this project's own; the authors' exact
ones go into `wording` of judge_config.json, see `authors_settings`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Protocol

from reward_model.dimensions import OVERALL
from reward_model.language import parsing
from reward_model.language.requests import END, askable, compare_request, quote, reason_request
from reward_model.records import Clip, JudgeRequest, ParsedAnswer, ParseFailure

OWN = "own"
"""Name of this project's style."""

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_NUMBER = r"[-+]?\d+(?:\.\d+)?"
_PAIR = re.compile(rf"""\s*["']?(\w+)["']?\s*:\s*["']?({_NUMBER})["']?\s*""")


class Style(Protocol):
    """One way of asking and reading."""

    def reason_request(self, clip: Clip, prompt: str | None, dimensions: Sequence[str]) -> JudgeRequest:
        """Return the question for a reasoned answer that rates these dimensions."""

    def parse_reason(self, text: str, dimensions: Sequence[str]) -> ParsedAnswer | ParseFailure:
        """Read a reasoned answer that must have these dimensions."""

    def compare_request(self, first: Clip, second: Clip, prompt: str | None) -> JudgeRequest:
        """Return the question which clip is better, whose next token is one of `PREFERENCES`."""


class OwnStyle:
    """The prompts and answers of `language.requests` and `language.parsing`."""

    def reason_request(self, clip: Clip, prompt: str | None, dimensions: Sequence[str]) -> JudgeRequest:
        """Return the question for a reasoned answer that rates these dimensions (text alignment only with a prompt)."""
        return reason_request(clip, prompt, askable(dimensions, prompt))

    def parse_reason(self, text: str, dimensions: Sequence[str]) -> ParsedAnswer | ParseFailure:
        """Read a reasoned answer that must have these dimensions."""
        return parsing.parse_reason(text, dimensions)

    def compare_request(self, first: Clip, second: Clip, prompt: str | None) -> JudgeRequest:
        """Return the question which clip is better overall."""
        return compare_request(first, second, prompt)


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

    def reason_request(self, clip: Clip, prompt: str | None, dimensions: Sequence[str]) -> JudgeRequest:
        """Return the style's only question, whatever the dimensions; a judge that only compares has none (ValueError)."""
        first, then = self.wording.before_clip, self.wording.question
        if not first and not then:
            raise ValueError("this judge was trained to compare, not to score; use compare or rank")
        return JudgeRequest((clip,), (f"{self._system()}{first}", 0), (f"{self._ask(then, prompt)}{_ASSISTANT}",))

    def parse_reason(self, text: str, dimensions: Sequence[str]) -> ParsedAnswer | ParseFailure:
        """Read the answer block: a bare number or `key: number` pairs, with or without braces and in any order."""
        blocks = _ANSWER.findall(text)
        if len(blocks) != 1:
            return ParseFailure(f"{len(blocks)} answer blocks, expected one", text)
        scores = self._scores(blocks[0])
        if isinstance(scores, str):
            return ParseFailure(scores, text)
        low, high = self.scale
        outside = [score for score in scores.values() if not low <= score <= high]
        if outside:
            return ParseFailure(f"a score is outside [{low}, {high}]: {outside[0]}", text)
        quality = {self.keys[key]: (score - low) / (high - low) for key, score in scores.items()}
        quality[OVERALL] = fmean(quality.values())
        missing = [name for name in dimensions if name not in quality]
        if missing:
            return ParseFailure(f"no score for {missing[0]}", text)
        reasoning = re.sub(r"</?think>", "", text.partition("<answer>")[0])
        return ParsedAnswer(quality, reasoning.strip())

    def compare_request(self, first: Clip, second: Clip, prompt: str | None) -> JudgeRequest:
        """Return the question with the answer begun, so that a letter comes next; scorers have none (ValueError)."""
        if not self.wording.comparison:
            raise ValueError("this judge was trained to score, not to compare; compare its scores")
        prefix = (f"{self._system()}Video A:", 0, "Video B:", 1)
        begun = f"{self._ask(self.wording.comparison, prompt)}{_ASSISTANT}<answer>Video"
        return JudgeRequest((first, second), prefix, (begun,))

    def _system(self) -> str:
        return f"<|im_start|>system\n{self.wording.system}{END}\n<|im_start|>user\n"

    def _ask(self, question: str, prompt: str | None) -> str:
        given = "" if prompt is None else self.wording.with_prompt.replace("{prompt}", quote(prompt))
        return f"{given}{question}"

    def _scores(self, block: str) -> dict[str, float] | str:
        """Return key -> score as the block states it, or the fault of the block."""
        content = block.strip().removeprefix("{").removesuffix("}").strip()
        if tuple(self.keys) == ("",):
            return {"": float(content)} if re.fullmatch(_NUMBER, content) else "answer is not a number"
        pairs = [_PAIR.fullmatch(part) for part in content.split(",")]
        scores = [(pair[1], float(pair[2])) for pair in pairs if pair]
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
github.com/bytedance/Q-Insight, src/eval/demo_score.py.
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
