"""Judges that others have released: frames, pixel bounds and prompt style of each, by the name of its folder.

VQ-Insight and Q-Insight stand in sub-folders of one repository (ByteDance/Q-Insight), each a whole Qwen2.5-VL checkpoint.
They have no roles, and know nothing of the level words: they are read by `readout="reason"`, the comparator by `compare`. They
are asked in a paraphrase, which results name; `authors_settings` puts the authors' layout and words in its place.

Source: frames, sizes and chat layout from github.com/xuanyuzhang21/VQ-Insight (demo/, src/qwen-vl-utils) and
github.com/bytedance/Q-Insight (src/eval); positions from transformers 4.51, with which they were trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reward_model.judge.families.qwen2_5_vl import RELEASED_RULE

_PATCH = 28 * 28
PARAPHRASE = "this project's paraphrase of its authors' question, so scores are not those of their code"
"""Source of the sentences, until the authors' own are given."""

_VIDEO = {
    "wording": {"source": PARAPHRASE},
    "position_rule": RELEASED_RULE,
    "frame_policy": {"mode": "fps", "fps": 2.0, "min_frames": 4, "max_frames": 16},
    "min_pixels": 128 * _PATCH,
    "max_pixels": int(1.05 * 128 * _PATCH),
    "max_answer_tokens": 1024,
}
_IMAGE = {
    "wording": {"source": PARAPHRASE},
    "position_rule": RELEASED_RULE,
    "frame_policy": {"mode": "uniform", "num_frames": 1},
    "min_pixels": 4 * _PATCH,
    "max_pixels": 16384 * _PATCH,
    "max_answer_tokens": 1024,
}

RELEASED: Mapping[str, Mapping[str, Any]] = {
    "vqinsight-naturalvideo": {
        **_VIDEO,
        "prompt_style": "vq_insight_natural",
        "dimensions": ("visual_quality", "overall"),
        "trained_on": "natural video (LSVQ), by VQ-Insight",
    },
    "vqinsight-aigcvideo": {
        **_VIDEO,
        "prompt_style": "vq_insight_generated",
        "trained_on": "generated video (LGVQ), by VQ-Insight",
    },
    "vqinsight-comp": {
        **_VIDEO,
        "prompt_style": "vq_insight_comparator",
        "dimensions": ("overall",),
        "trained_on": "pairs of generated videos (VisionReward), by VQ-Insight",
    },
    "score_degradation": {
        **_IMAGE,
        "prompt_style": "q_insight",
        "dimensions": ("visual_quality", "overall"),
        "trained_on": "images (KonIQ-10k, KADIS), by Q-Insight; it sees the middle frame",
    },
}
"""Folder name -> fields of `JudgeConfig`."""


def released_settings(name: str, model_type: str) -> dict[str, Any]:
    """Return the fields of `JudgeConfig` of a released judge, none for a folder of another name or model."""
    return dict(RELEASED.get(name, {})) if model_type == "qwen2_5_vl" else {}
