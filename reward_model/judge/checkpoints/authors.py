"""Words of released judges as their authors ask them, read from a copy of the authors' code, of which nothing is executed.

    git clone https://github.com/xuanyuzhang21/VQ-Insight; git clone https://github.com/bytedance/Q-Insight

    judge = VideoJudgeReward.from_pretrained("ByteDance/Q-Insight/vqinsight-naturalvideo")
    judge.judge.configure(**authors_settings("vqinsight-naturalvideo", "VQ-Insight"))
    judge.save_pretrained("natural")  # the command line then takes --judge natural

The layout is theirs, too: no generation prompt is shown, as their demos show none, and Q-Insight's question stands before its
picture. The demos of VQ-Insight and of this project take the likeliest token; Q-Insight's draws (temperature 1, top_k 50, top_p .95).

Source: demo/demo_vqinsight_score.py and demo/demo_vqinsight_comp.py of xuanyuzhang21/VQ-Insight, commit c37b628, and
src/eval/demo_score.py of bytedance/Q-Insight, commit 08308fd.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

VQ_INSIGHT_SCORE = "demo/demo_vqinsight_score.py"
VQ_INSIGHT_COMPARE = "demo/demo_vqinsight_comp.py"
Q_INSIGHT_SCORE = "src/eval/demo_score.py"

QUESTION = "{Question}"
"""Place of the question in the authors' template."""


def authors_settings(name: str, folder: str | Path) -> dict[str, Any]:
    """Return the fields of `JudgeConfig` with which a released judge is asked in its authors' layout and words.

    Args:
        name: folder name of the released judge, a key of `released.RELEASED`.
        folder: a copy of the authors' repository, VQ-Insight's or, for "score_degradation", Q-Insight's.

    Returns:
        Field -> value, for `VideoJudge.configure`.

    Raises:
        ValueError: an unknown judge, or a folder whose demo is missing or does not state its words as plain text.
    """
    if name not in _READERS:
        raise ValueError(f"the authors' words are known of {', '.join(_READERS)}, not of {name!r}")
    demo, read = _READERS[name]
    file = Path(folder) / demo
    if not file.is_file():
        raise ValueError(f"{file} is missing: {folder} is no copy of the repository of {name}'s authors")
    stated = _constants(file)
    try:
        changes = read(stated)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{file} does not state {error} as plain text, as the commit that is named here does"
        ) from error
    texts = {
        "with_prompt": "",
        "source": f"the authors' words and layout ({demo} of their code)",
        **changes.pop("wording"),
    }
    return {"wording": texts, **changes}


def _natural(stated: Mapping[str, Any]) -> dict[str, Any]:
    return {"wording": {"system": stated["SYSTEM_PROMPT"], "question": stated["VIDEO_CONFIG"]["natural"]["prompt"]}}


def _generated(stated: Mapping[str, Any]) -> dict[str, Any]:
    return {"wording": {"system": stated["SYSTEM_PROMPT"], "question": stated["VIDEO_CONFIG"]["aigc"]["prompt"]}}


def _comparator(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return the comparator's settings; it writes its whole answer, a letter or a name."""
    question = stated["QUESTION_TEMPLATE"].replace(QUESTION, stated["PROBLEM"])
    wording = {"system": stated["SYSTEM_PROMPT"], "comparison": question}
    return {"wording": wording, "prompt_style": "vq_insight_reasoned_comparator"}


def _picture(stated: Mapping[str, Any]) -> dict[str, Any]:
    question = stated["SCORE_QUESTION_PROMPT"]
    return {"wording": {"system": stated["SYSTEM_PROMPT"], "question": "", "before_clip": question}}


_READERS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "vqinsight-naturalvideo": (VQ_INSIGHT_SCORE, _natural),
    "vqinsight-aigcvideo": (VQ_INSIGHT_SCORE, _generated),
    "vqinsight-comp": (VQ_INSIGHT_COMPARE, _comparator),
    "score_degradation": (Q_INSIGHT_SCORE, _picture),
}
"""Released judge -> the authors' file, and the function that makes settings of its plain values."""


def _constants(file: Path) -> dict[str, Any]:
    """Return the names that a Python file gives plain values anywhere, and these; the first value of a name counts."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{file} is no Python file: {error}") from error
    stated: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            value = _plain(node.value)
            if value is not None:
                stated.setdefault(node.targets[0].id, value)
    return stated


def _plain(node: ast.expr) -> Any:
    """Return the value of a literal, None for any other expression."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
