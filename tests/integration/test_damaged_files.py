"""Damaged files in many kinds: nothing crashes or hangs, and what is refused has a reason."""

import importlib.util
import json
from pathlib import Path

import pytest

from reward_model.media.video_io import write_video
from reward_model.toy_world import moving_shapes

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "experiments" / "check_damage.py"


@pytest.fixture
def check():
    spec = importlib.util.spec_from_file_location("check_damage", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_kind_of_damage_is_survived_and_what_changed_is_refused(check, tmp_path, capsys):
    for number, rated in enumerate(moving_shapes.sample_rated(2, seed=3, size=96, num_frames=24)):
        write_video(tmp_path / f"{number}.mp4", rated.video.frames, fps=8)
    assert check.main([str(tmp_path), "--num", str(2 * len(check.DAMAGES))]) in (0, 1)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["files"] == 2 * len(check.DAMAGES)
    assert found.get("crashed", 0) == found.get("slow", 0) == found.get("silent", 0) == 0
    assert found["refused_rate"] >= 0.8  # the whole corpus is held to .95; these files are small and few


def test_a_crash_and_a_hang_are_seen(check, monkeypatch):
    def crash(data, clean, answer):
        raise SystemExit

    monkeypatch.setattr(check, "look", crash)
    assert check.read_apart(b"", None) == ["files", "crashed"]
    monkeypatch.setattr(check, "MAX_SECONDS", 0.05)
    monkeypatch.setattr(check, "look", lambda data, clean, answer: check.time.sleep(5))
    assert check.read_apart(b"", None) == ["files", "slow"]
