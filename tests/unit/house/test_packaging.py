"""What a newcomer is told and gets: the README's tree, the slim import, the set-up's refusal of CUDA builds."""

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
HEAVY = ("torch", "transformers", "diffusers", "peft", "trl", "accelerate", "av", "omegaconf")


def readme_tree() -> dict[str, str]:
    """Return path -> phrase of the README's tree; a folder's path ends in a slash."""
    block = re.search(r"<!-- tree -->\n```text\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block, "README.md has no tree block"
    entries: dict[str, str] = {}
    folders: list[str] = []
    for line in block.group(1).splitlines():
        match = re.fullmatch(r"( *)(\S+)(?: {2,}(\S.*))?", line)
        assert match and len(match.group(1)) % 2 == 0, f"cannot read the tree's line {line!r}"
        depth = len(match.group(1)) // 2
        path = "".join(folders[:depth]) + match.group(2)
        entries[path] = match.group(3) or ""
        if path.endswith("/"):
            folders[depth:] = [match.group(2)]
    return entries


def shipped_files() -> set[str]:
    """Return the files that the tree owes a phrase: all of the listed folders but `__init__.py` and stored weights."""
    paths = [path for folder in LISTED_FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    names = {path.relative_to(ROOT).as_posix() for path in paths if path.suffix in (".py", ".yaml")}
    return {name for name in names if not name.endswith("__init__.py") and "/assets/" not in name}


def test_every_file_has_its_phrase_in_the_readme_tree() -> None:
    missing = shipped_files() - set(readme_tree())
    assert not missing, f"add to the tree in README.md: {sorted(missing)}"


def test_every_path_of_the_readme_tree_exists() -> None:
    gone = [path for path in readme_tree() if not (ROOT / path).exists()]
    assert not gone, f"remove from the tree in README.md: {gone}"


def test_every_entry_of_the_readme_tree_says_what_it_is() -> None:
    assert [path for path, phrase in readme_tree().items() if not phrase] == []


def test_importing_the_judge_package_loads_nothing_heavy() -> None:
    program = f"import sys, reward_model; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_reached() -> None:
    assert [name for name in reward_model.__all__ if getattr(reward_model, name, None) is None] == []


def test_an_unknown_public_name_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="public names: VideoJudgeClient, VideoJudgeReward, .*write_video"):
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
