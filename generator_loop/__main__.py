"""The command line of a joint run; `joint_train.py` and `python -m generator_loop` are the same."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reward_model.terminal import VisibleParser, log_visibly, visible, warnings_of

# Threads that wait for each other by sleeping, not spinning: set before torch starts them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

RESUME = "resume="


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, resume or only estimate a joint run.

    Args:
        arguments: the command line; None takes the process's own.

    Returns:
        The exit status: 0 for a finished or cleanly stopped run, 1 for one that too few samples have scores in, 2 for a refused
        one.
    """
    parser = VisibleParser(prog="joint_train.py", description="Train a generator and its judge by turns.")
    parser.add_argument("config", help="YAML recipe, for instance configs/toy.yaml")
    parser.add_argument("overrides", nargs="*", help="section.key=value, or resume=OUTPUT to continue a run")
    parser.add_argument("--dry-run", action="store_true", help="print memory, clips and hours, and start nothing")
    options = parser.parse_intermixed_args(arguments)
    log_visibly("%(message)s", stream=sys.stderr)
    try:
        with warnings_of("joint_train.py"):
            return _launch(options.config, options.overrides, dry_run=options.dry_run)
    except (ValueError, OSError) as error:
        print(f"joint_train.py: {visible(str(error))}", file=sys.stderr)
        return 2


def _launch(path: str, overrides: Sequence[str], *, dry_run: bool) -> int:
    from generator_loop.run.launch import (
        Stopped,
        StopRequest,
        claim_output,
        refuse_lost_processes,
        set_threads,
        start_processes,
    )

    refuse_lost_processes(os.environ)
    _quieten_libraries()
    from generator_loop.run.build import open_session, read_config
    from generator_loop.run.state import begin, restore

    resumed = [item.removeprefix(RESUME) for item in overrides if item.startswith(RESUME)]
    settings = [item for item in overrides if not item.startswith(RESUME)]
    for folder in resumed:
        if not (Path(folder) / "config.yaml").is_file():
            raise ValueError(f"resume={folder}: the folder holds no run")
    # a run goes on with the settings that it began with; only new ones need be given again
    config = (
        read_config(Path(resumed[-1]) / "config.yaml", [*settings, f"run.output={resumed[-1]}"]) if resumed else None
    )
    config = config or read_config(path, settings)
    set_threads(config.run.num_threads)
    processes = start_processes(config.run.device, os.environ)
    if config.sampling.num_prompts % processes.count:
        raise ValueError(
            f"sampling.num_prompts={config.sampling.num_prompts} must be a multiple of the {processes.count} processes"
        )
    if dry_run:
        from generator_loop.run.estimate import estimate

        text = estimate(open_session(config, processes))
        if processes.is_main:
            print(text)
        return 0

    from generator_loop.guards.monitors import TooFewScoresError
    from generator_loop.loop import run

    output, lock = claim_output(config.run.output, is_main=processes.is_main, resume=bool(resumed))
    config = replace(config, run=replace(config.run, output=output))
    stop = StopRequest(max_hours=config.run.max_hours)

    def leave() -> None:
        """Stop a run that waits for a served judge, if this process was told to."""
        if stop.is_signalled:
            raise Stopped

    try:
        session = open_session(config, processes, before_pause=leave)
        if resumed:
            restore(session)
        else:
            begin(session)
        summary = run(session, stop)
    except TooFewScoresError as error:
        session.bar.close()
        if processes.is_main:
            print(f"joint_train.py: {visible(str(error))}", file=sys.stderr)
        return 1
    finally:
        if lock is not None:
            lock.release()
    if processes.is_main:
        print(_farewell(path, Path(config.run.output), finished=summary is not None))
    return 0


def _quieten_libraries() -> None:
    """Leave the terminal to the run's own bar."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _farewell(path: str, output: Path, *, finished: bool) -> str:
    if not finished:
        return visible(f"stopped and saved; continue with: joint_train.py {path} resume={output}")
    return "\n".join(visible(f"{name.stem}: {name}") for name in (output / "report.html", output / "summary.json"))


if __name__ == "__main__":
    sys.exit(main())
