"""Executes the lines of a model card that score with stock transformers; a program of the parity environment.

    .venv-parity/bin/python tests/parity/card_program.py CLIPS.safetensors QUESTIONS.json OUT.json FOLDER [FOLDER ...]

It imports nothing of the project but the program beside it. CLIPS holds clips by number, uint8 [T, 3, H, W]; QUESTIONS lists
[number, fps, dimension, prompt]; OUT gets, per folder, the score of each.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from safetensors.torch import load_file


def stock_code(card: str) -> str:
    """Return the code block of the section on stock transformers, word for word."""
    section = card.split("## Stock transformers\n", 1)[1].split("\n## ", 1)[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return code


def main(clips: str, questions: str, out: str, *folders: str) -> None:
    """Write the scores of every folder's card."""
    from official_processor import declare_missing_operators

    declare_missing_operators()
    held, asked = load_file(clips), json.loads(Path(questions).read_text())
    scores = {}
    for folder in folders:
        names: dict = {}
        exec(stock_code((Path(folder) / "README.md").read_text()), names)
        scores[folder] = [names["score"](held[number], *rest) for number, *rest in asked]
    Path(out).write_text(json.dumps(scores))


if __name__ == "__main__":
    main(*sys.argv[1:])
