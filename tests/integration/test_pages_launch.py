"""Launch lines of the pages, run word for word; only the size of the work, its place and its example files are the test's."""

import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reward_model.media.video_io import write_video

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
SMALL = (
    "stages.start.fit.batch_size=2 stages.natural.fit.batch_size=2 stages.natural.fit.num_steps=1 num_sanity=2 "
    "stages.natural.grpo.group_size=2 stages.natural.grpo.max_answer_tokens=8 stages.natural.grpo.num_perturbed=1 "
    "stages.natural.num_held_out=0 max_answer_tokens=8"
)

pytestmark = pytest.mark.slow


def lines_of(page):
    """Return the commands of a page's shell blocks, in order, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def place(tmp_path):
    """Make a working folder in which `accelerate` and `video-judge` do little."""
    work, programs = tmp_path / "work", tmp_path / "programs"
    work.mkdir()
    programs.mkdir()
    for name in ("configs", "scripts", "reward_model", "generator_loop", "joint_train.py"):
        (work / name).symlink_to(ROOT / name)
    (work / "FOLDER").symlink_to(work / "out-1" / "judge")
    for number in range(3):
        write_video(work / f"{number}.mp4", torch.rand(9, 3, 32, 32), 8.0)
    clips = "".join(f"{number}.mp4,a red circle,0.{number + 2}\n" for number in range(3))
    (work / "rated.csv").write_text(f"video,prompt,overall\n{clips}")
    count = f'echo x >> {work}/launched; output="output={work}/out-$(wc -l < {work}/launched)"'
    steps = 'case "$*" in *start.fit.num_steps*) ;; *) steps=stages.start.fit.num_steps=1;; esac'
    script(programs / "accelerate", f'{count}; {steps}; exec {PROGRAMS}/accelerate "$@" "$output" $steps {SMALL}')
    evaluate = f"{shlex.quote(sys.executable)} -m reward_model.cli"
    script(programs / "video-judge", f'case "$*" in *--world*) num="--num 6";; esac; exec {evaluate} "$@" $num')
    return work


def run(place, lines):
    path = f"{place.parent / 'programs'}:{PROGRAMS}:{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.run(["bash", "-ec", "\n".join(lines)], cwd=place, env=environment, capture_output=True, text=True)


def test_the_lines_of_the_page_on_judges_run_word_for_word_and_say_nothing_beside(place):
    lines = lines_of("docs/judge_recipes.md")
    assert (
        sum("train_judge.py" in line for line in lines) == 2 and sum("video-judge eval" in line for line in lines) == 2
    )
    done = run(place, lines)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("judge: ") == 2 and done.stdout.count("srcc") >= 2
    assert "Traceback" not in done.stderr and "were not passed" not in done.stderr


def test_accelerate_is_silent_on_the_lines_of_the_readme(tmp_path):
    lines = [line for line in lines_of("README.md") if line.startswith("launch()") or "--dry-run" in line]
    assert len(lines) == 2
    programs = tmp_path / "programs"
    programs.mkdir()
    script(programs / "accelerate", f'exec {PROGRAMS}/accelerate "$@"')
    small = "sampling.num_prompts=1 sampling.group_size=2 evaluation.num_seeds=1"
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"PATH": f"{programs}:{PROGRAMS}:{os.environ['PATH']}"}
    program = "\n".join([lines[0], f"{lines[1]} {small} run.output={tmp_path}/run"])
    done = subprocess.run(["bash", "-ec", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    beside = [line for line in done.stderr.splitlines() if line.strip() and "it/s" not in line and "s/it" not in line]
    assert not any("accelerate" in line or "default" in line or "Warning" in line for line in beside), beside
