"""Creates a virtual environment once, by pip, without CUDA packages where there is no NVIDIA device.

    python3.11 scripts/setup_env.py .venv --editable ".[dev]"
    python3.11 scripts/setup_env.py --above .venv .venv-parity --requirement tests/parity/requirements.txt

Everything after the folder goes to `pip install`, under constraints.txt. A second call with the same inputs returns at
once. It runs before anything is installed, so it uses the standard library alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
STAMP = "installed.sha256"
CUDA_PACKAGES = ("nvidia-", "cuda-", "triton")


def fingerprint(folder: Path, above: Path | None, pip_args: Sequence[str]) -> str:
    """Return a digest of all inputs that decide the content of the environment."""
    digest = hashlib.sha256(repr((str(folder.resolve()), str(above), sys.version, list(pip_args))).encode())
    requirement_files = [ROOT / name for name in pip_args if (ROOT / name).is_file()]
    for path in (ROOT / "pyproject.toml", CONSTRAINTS, Path(__file__), *requirement_files):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def has_nvidia_device() -> bool:
    """Tell whether this machine shows an NVIDIA driver."""
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


def cuda_requirements(report: dict, machine: str) -> list[str]:
    """Name the CUDA packages that the builds in pip's installation report ask for on this kind of machine."""
    lines = [line for item in report["install"] for line in item["metadata"].get("requires_dist", [])]
    wanted = [line for line in lines if line.lower().startswith(CUDA_PACKAGES) and "extra ==" not in line]
    return [line for line in wanted if "platform_machine" not in line or machine in line]


def refuse_cuda_build(python: Path, env: dict[str, str]) -> None:
    """Exit with one sentence where the package index would bring CUDA packages to a machine without a device.

    The check looks at the chosen build of torch alone (no dependencies), so it downloads no CUDA package itself.
    """
    report_path = python.parent.parent / "torch_report.json"
    command = [str(python), "-m", "pip", "install", "-qq", "--dry-run", "--no-deps", "--ignore-installed"]
    subprocess.run([*command, "--report", str(report_path), "-c", str(CONSTRAINTS), "torch"], env=env, check=True)
    if cuda_requirements(json.loads(report_path.read_text(encoding="utf-8")), platform.machine()):
        sys.exit(
            "setup: this machine has no NVIDIA device and the package index offers only CUDA builds of torch; "
            "set PIP_EXTRA_INDEX_URL to PyTorch's CPU index (its address is in README.md, Installation) and run the "
            "same command again."
        )


def site_packages(folder: Path) -> Path:
    """Return where an environment keeps its packages."""
    base = {"base": str(folder), "platbase": str(folder)}
    return Path(sysconfig.get_path("purelib", "venv", vars=base))


def install(folder: Path, pip_args: Sequence[str], *, above: Path | None = None) -> None:
    """Make `folder` a virtual environment with the packages of `pip_args`; do nothing where it already is one.

    Args:
        folder: the environment.
        pip_args: arguments of `pip install`.
        above: an environment whose packages are seen too, so that they need not be installed twice.
    """
    stamp = folder / STAMP
    expected = fingerprint(folder, above, pip_args)
    if stamp.exists() and stamp.read_text(encoding="utf-8") == expected:
        return
    print(f"setup: installing into {folder} (a minute or two; later calls skip this)", flush=True)
    # pip and the interpreter must leave byte code behind: imports take twice as long without it.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    python = folder / "bin" / "python"
    if not stamp.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], env=env, check=True)
    stamp.unlink(missing_ok=True)
    if above is not None:
        (site_packages(folder) / "above.pth").write_text(f"{site_packages(above.resolve())}\n", encoding="utf-8")
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    # Older versions download whole wheels where their metadata would do.
    subprocess.run([*pip, "--upgrade", "pip>=24.1"], env=env, check=True)
    if platform.system() == "Linux" and not has_nvidia_device():
        refuse_cuda_build(python, env)
    subprocess.run([*pip, "-c", str(CONSTRAINTS), *pip_args], env=env, cwd=ROOT, check=True)
    stamp.write_text(expected, encoding="utf-8")


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Create a virtual environment once, by pip.")
    parser.add_argument("folder", type=Path, help="the environment")
    parser.add_argument("--above", type=Path, help="an environment whose packages are seen too")
    parser.add_argument("pip_args", nargs=argparse.REMAINDER, help="arguments of pip install")
    options = parser.parse_args()
    try:
        install(options.folder, options.pip_args, above=options.above)
    except subprocess.CalledProcessError as error:
        sys.exit(f"setup: this command failed: {' '.join(error.cmd)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
