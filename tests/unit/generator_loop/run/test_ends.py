"""The measurements at a run's ends: refused where the run has not come to its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from generator_loop.run.state import ends
from generator_loop.tracking import checkpoint


def test_a_folder_without_a_finished_run_has_no_ends(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished run"):
        ends(tmp_path)

    def write(folder: Path) -> None:
        (folder / "state").mkdir()
        (folder / "state" / "progress.json").write_text(json.dumps({"before": None, "after": None}))

    checkpoint.save(tmp_path / "checkpoints", "round-000", write, keep=1)
    with pytest.raises(ValueError, match="holds no finished run"):
        ends(tmp_path)
