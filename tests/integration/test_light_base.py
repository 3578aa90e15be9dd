"""Scoring with the base requirements alone: an environment of its own, another folder, the embedded judge as data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from reward_model import moving_shapes, write_video

ROOT = Path(__file__).resolve().parents[2]
JUDGE = ROOT / "reward_model" / "assets" / "toy_judge" / "judge_config.json"
SHIPPED = ("reward_model", "generator_loop", "scripts", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
EXTRAS = ("datasets", "decord", "diffusers", "ftfy", "scipy", "torchvision", "trl")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An environment that holds what `pip install .` brings, built from a copy of the sources; deleted afterwards."""
    if not JUDGE.exists():
        missing = f"{JUDGE.relative_to(ROOT)} is missing; scripts/build_toy_models.py writes it"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    folder = tmp_path_factory.mktemp("light_base")
    source = folder / "source"
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, str(source / "scripts" / "setup_env.py"), str(folder / "venv"), str(source)]
    subprocess.run(command, check=True, cwd=folder)
    shutil.rmtree(source)
    yield folder / "venv"
    shutil.rmtree(folder / "venv")


def run_in(environment: Path, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment without anything of this process's Python."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    program = [str(environment / "bin" / command[0]), *command[1:]]
    return subprocess.run(program, capture_output=True, text=True, cwd=cwd, env=env, timeout=300)


def test_the_base_scores_a_clip_with_the_embedded_judge(base_environment: Path, tmp_path: Path) -> None:
    scene = moving_shapes.split(moving_shapes.CORE)[0][0]
    frames = moving_shapes.render(scene, generator=torch.Generator().manual_seed(0))
    write_video(tmp_path / "clip.mp4", frames, fps=8)
    prompt = moving_shapes.caption(scene)

    done = run_in(base_environment, "video-judge", "score", "clip.mp4", "--prompt", prompt, "--json", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    scores = json.loads(line)["scores"]
    assert set(scores) == {"visual_quality", "motion_quality", "text_alignment", "overall"}
    assert all(0 <= value <= 1 for value in scores.values())


def test_the_base_brings_no_library_of_the_extras(base_environment: Path, tmp_path: Path) -> None:
    program = "import importlib.util, sys; print([n for n in sys.argv[1:] if importlib.util.find_spec(n)])"
    done = run_in(base_environment, "python", "-c", program, *EXTRAS, cwd=tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_installed_package_serves_the_former_path_of_the_hosts(base_environment: Path, tmp_path: Path) -> None:
    program = (
        "import reward_model.hosts.flow_grpo as new; import reward_model.serving.hosts.flow_grpo as former; "
        "print(former is new)"
    )
    done = run_in(base_environment, "python", "-W", "always", "-c", program, cwd=tmp_path)
    assert done.stdout.strip() == "True", done.stderr
    assert done.stderr.count("reward_model.serving.hosts has moved to reward_model.hosts") == 1
