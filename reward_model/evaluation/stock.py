"""Lines that get a merged judge's level scores from stock transformers alone, for its model card.

They choose the frames, ask the question in the judge's words, and read the level words as the judge does; a test executes them as
they stand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from reward_model.judge.checkpoints.format import SAME_FOLDER, JudgeConfig
from reward_model.judge.engine.readouts import MIN_LEVEL_MASS
from reward_model.judge.families import FAMILIES
from reward_model.judge.families.qwen2_5_vl import SPACING_RULE
from reward_model.language.requests import level_texts, score_request
from reward_model.language.styles import OWN
from reward_model.media.frame_sampling import FramePolicy
from reward_model.records import Clip, FramePlan

TESTED = (5, 23)
"""Version of transformers with whose positions and processors the lines were tested."""

PROMPT = "{prompt}"
"""Stands for the generation prompt in a question."""

VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
"""Stands for the clip; the processor puts the video tokens in its place."""

COUNTS = {
    "all": "min(total, {max_frames})",
    "uniform": "min(total, {num_frames})",
    "fps": (
        "max(int((min(max(total / fps * {fps}, {min_frames}), {max_frames}, total) + 1e-6) / {multiple_of}) * {multiple_of}, 1)"
    ),
}
"""Mode of the frame policy -> number of frames shown, as an expression."""

_LINES = """\
from fractions import Fraction

import torch
import transformers
from transformers import AutoModelForImageTextToText, AutoProcessor

if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < {tested}:
    raise RuntimeError("these lines need the positions of transformers {version}, got " + transformers.__version__)

model = AutoModelForImageTextToText.from_pretrained({name}, dtype=torch.float32).eval()
processor = AutoProcessor.from_pretrained({name})
levels = {levels}
questions = {{
{questions}}}


def score(frames, fps, dimension, prompt=None):
    # frames: all those of the clip, uint8 RGB [T, 3, H, W]; fps: their rate in Hz; returns quality in [0, 1], NaN for no answer
    text, total = questions[dimension], len(frames)
    if {prompt} in text:
        if prompt is None:
            raise ValueError(dimension + " needs the prompt of the clip")
        text = text.replace({prompt}, " ".join(prompt.replace("<|", "< |").split()))
    count = {count}
    shown = [round(Fraction(step * (total - 1), count - 1)) for step in range(count)] if count > 1 else [(total - 1) // 2]
{single}    metadata = {{"fps": fps, "total_num_frames": total, "frames_indices": shown, "duration": total / fps}}
    inputs = processor(text=[text], videos=[frames[shown]], video_metadata=[metadata], return_tensors="pt")
{spacing}    with torch.no_grad():
        logits = model(**inputs).logits[0, -1].float()
    words = logits[[processor.tokenizer.encode(word)[0] for word in levels]]
    if (words.logsumexp(0) - logits.logsumexp(0)).exp() < {mass}:
        return float("nan")  # most of the probability lies on other words
    return float(words.softmax(0) @ torch.tensor(list(levels.values())))
"""


def why_not_stock(config: JudgeConfig) -> str:
    """Return the reason why stock transformers cannot give the judge's level scores; empty where it can."""
    stock_rules = (FAMILIES[config.family].position_rules[0], SPACING_RULE)
    if config.base != SAME_FOLDER:
        return "it is no merged checkpoint"
    if config.prompt_style != OWN:
        return f"it is asked in the style `{config.prompt_style}`, which has no level words"
    if config.position_rule not in stock_rules:
        return f"it was trained with the positions `{config.position_rule}`, which stock transformers does not have"
    if config.motion:
        return "it is shown features of a motion encoder besides the frames"
    if config.frame_policy.get("mode", FramePolicy().mode) not in COUNTS:
        return "it is shown slow and fast frames at two sizes"
    return ""


def stock_lines(config: JudgeConfig, name: str) -> list[str]:
    """Return the Python lines that define `score(frames, fps, dimension, prompt)` with stock transformers.

    Args:
        config: of a judge for which `why_not_stock` is empty.
        name: hub id or folder of the checkpoint.

    Returns:
        The lines.
    """
    questions = {dimension: _question(dimension) for dimension in config.dimensions}
    return _LINES.format(
        tested=repr(TESTED),
        version=".".join(str(part) for part in TESTED),
        name=json.dumps(name),
        levels=json.dumps(dict(zip(level_texts(), _level_values(), strict=True))),
        questions="".join(
            f"    {json.dumps(dimension)}: {json.dumps(text)},\n" for dimension, text in questions.items()
        ),
        prompt=json.dumps(PROMPT),
        count=_count(config.frame_policy),
        single="    shown *= 2 if count == 1 else 1  # the processor takes pairs of frames\n"
        if _takes_pairs(config)
        else "",
        spacing="".join(f"    {line}\n" for line in _spacing(config)),
        mass=MIN_LEVEL_MASS,
    ).splitlines()


def _question(dimension: str) -> str:
    """Return the whole turn up to the cue behind which the level word comes."""
    clip = Clip(torch.zeros(0), FramePlan((), (), (), 1.0))
    request = score_request(clip, PROMPT, [dimension])
    before, _, after = request.prefix
    return f"{before}{VIDEO}{after}{request.branches[0]}"


def _takes_pairs(config: JudgeConfig) -> bool:
    """Return whether the family's processor refuses a single frame."""
    return FAMILIES[config.family].counted_frames(1) == 2


def _level_values() -> list[float]:
    num = len(level_texts())
    return [number / (num - 1) for number in range(num)]


def _count(policy: Mapping[str, Any]) -> str:
    settings = FramePolicy.from_dict(policy).to_dict()
    return COUNTS[str(settings["mode"])].format(**settings)


def _spacing(config: JudgeConfig) -> list[str]:
    """Return the lines that count seconds between shown frames, for judges that were trained so."""
    if config.position_rule != SPACING_RULE:
        return []
    return [
        "span = (shown[-1] - shown[0]) / fps  # it was trained with the seconds between two shown frames",
        "rate = (count - 1) / span if span else fps",
        'inputs["second_per_grid_ts"] = torch.tensor([processor.video_processor.temporal_patch_size / rate])',
    ]
