"""First steps of a newcomer: the README's length and links, the slim import, the set-up's refusal of CUDA builds."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import reward_model

ROOT = Path(__file__).resolve().parents[3]
LISTED_FOLDERS = ("reward_model", "generator_loop", "configs", "scripts")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
HEAVY = ("torch", "transformers", "diffusers", "peft", "trl", "accelerate", "av", "omegaconf")


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_path_of_a_page_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [page.parent / link for link in re.findall(r"\]\(([^):#]+)\)", text)]
    named = [
        ROOT / path
        for path in re.findall(
            r"(?<![\w/.])(?:reward_model|generator_loop|scripts|configs|tests)/[\w./-]+\.(?:py|yaml)\b", text
        )
    ]
    assert [str(path) for path in (*links, *named) if not path.exists() and "NAME" not in path.name] == []


def test_importing_the_judge_package_loads_nothing_heavy() -> None:
    program = f"import sys, reward_model; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_reached() -> None:
    assert [name for name in reward_model.__all__ if getattr(reward_model, name, None) is None] == []


def test_an_unknown_public_name_lists_the_known_ones() -> None:
    with pytest.raises(
        AttributeError, match="public names: __version__, VideoJudgeClient, VideoJudgeReward, .*write_video"
    ):
        _ = reward_model.VideoJudge


def test_python_files_are_ascii() -> None:
    folders = (*LISTED_FOLDERS, "tests")
    paths = [ROOT / "joint_train.py", *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    assert [path.relative_to(ROOT).as_posix() for path in paths if not path.read_bytes().isascii()] == []


@pytest.mark.parametrize(
    ("requirement", "machine", "refused"),
    [
        ("nvidia-cudnn-cu13==9.1; platform_system == 'Linux'", "x86_64", True),
        ("cuda-toolkit[cublas]==13.2; platform_system == 'Linux'", "x86_64", True),
        ("triton==3.7; platform_system == 'Linux' and platform_machine == 'x86_64'", "x86_64", True),
        ("nvidia-cublas==13.1; platform_machine == 'x86_64'", "aarch64", False),
        ("filelock", "x86_64", False),
        ("nvidia-modelopt; extra == 'quantize'", "x86_64", False),
    ],
)
def test_set_up_refuses_builds_that_bring_cuda_packages(requirement: str, machine: str, refused: bool) -> None:
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "scripts" / "setup_env.py")
    setup_env = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup_env)
    report = {"install": [{"metadata": {"name": "torch", "requires_dist": ["sympy>=1.13", requirement]}}]}
    assert bool(setup_env.cuda_requirements(report, machine)) is refused


@pytest.mark.parametrize(("environment", "outcome"), [({"CI": "true"}, "1 failed"), ({}, "1 skipped")])
def test_a_skipped_parity_test_fails_in_ci_only(tmp_path: Path, environment: dict[str, str], outcome: str) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    lines = ("import pytest", "@pytest.mark.parity", "def test_parity() -> None:", "    pytest.skip('no reference')")
    (tmp_path / "test_skipped.py").write_text("\n".join(lines), encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if name != "CI"} | environment
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_skipped.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert outcome in done.stdout.splitlines()[-1]
