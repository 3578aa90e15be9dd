"""Train a judge from a recipe: accelerate launch scripts/train_judge.py CONFIG.yaml [key=value ...] [--dry-run]."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reward_model.terminal import VisibleParser, log_visibly, visible, warnings_of

if TYPE_CHECKING:
    from reward_model.training.recipe import RecipeConfig

DETAILS = """\
examples:
  python scripts/train_judge.py configs/judge/toy_vqathinker.yaml --dry-run
  python scripts/train_judge.py configs/judge/toy_vq_insight.yaml output=runs/judge/try stages.generated.fit.num_steps=20
  torchrun --standalone --nproc_per_node 2 scripts/train_judge.py configs/judge/toy.yaml
  python scripts/train_judge.py configs/judge/vq_insight_ours.yaml --dry-run estimate.processes=8 estimate.tokens_per_second=2500

A recipe names a base ("toy" is the embedded judge), an output folder and stages; reward_model/training/recipe.py describes
every setting, configs/judge/ holds recipes. In the output: config.yaml, metrics.jsonl, quarantine.jsonl (examples that cannot
be used, with file and line), stages/ (a judge each) and judge/. The same command goes on after a stop: finished stages are
kept, and the one that was stopped begins again. SIGTERM and Ctrl-C stop at the next step.

exit status: 0 finished or stopped cleanly, 2 refused."""


def main(argv: Sequence[str]) -> int:
    """Load the recipe, train its stages and print the place of the judge.

    Args:
        argv: the command line without the program's name.

    Returns:
        The exit status: 0 for a finished or cleanly stopped training, 2 for a refused one.
    """
    parser = VisibleParser(
        prog="train_judge.py",
        description="Train a judge from a recipe.",
        epilog=DETAILS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="YAML recipe, for instance configs/judge/toy_vqathinker.yaml")
    parser.add_argument("overrides", nargs="*", help="settings in place of the recipe's, section.key=value")
    parser.add_argument("--dry-run", action="store_true", help="name files, steps, memory and time, and start nothing")
    options = parser.parse_intermixed_args(list(argv))
    log_visibly("%(asctime)s %(message)s", stream=sys.stdout)
    try:
        with warnings_of("train_judge.py"):
            return _launch(options.config, options.overrides, dry_run=options.dry_run)
    except (ValueError, OSError) as error:
        if _is_main():
            first = str(error).strip() or type(error).__name__
            sys.stderr.write(f"train_judge.py: {visible(first)}\n")
        return 2


def _launch(path: str, overrides: Sequence[str], *, dry_run: bool) -> int:
    import torch

    from reward_model.config import load_config
    from reward_model.training.processes import claimed
    from reward_model.training.recipe import RecipeConfig
    from reward_model.training.stages import check_data, check_finished

    config = load_config(RecipeConfig, path, overrides)
    if dry_run:
        check_finished(config)
        _show_plan(config)
        check_data(config)
        return 0
    _start_processes()
    torch.set_num_threads(1)
    with claimed(Path(config.output)):
        status = _train(config)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return status


def _train(config: RecipeConfig) -> int:
    """Train in an output that is this training's own, and print where its judge is."""
    from reward_model.config import save_config
    from reward_model.training.processes import TrainingStopped, TrainingStopRequest
    from reward_model.training.stages import check_alike, check_data, check_finished, other_judges, run_recipe

    stop = TrainingStopRequest()
    check_alike(config)
    check_finished(config)
    check_data(config)
    stop.listen()
    if _is_main():
        os.makedirs(config.output, exist_ok=True)
        save_config(config, os.path.join(config.output, "config.yaml"))
    try:
        folder = run_recipe(config, stop=stop, show=_show if _is_main() else _hide)
    except TrainingStopped:
        told = f"stopped; finished stages are in {config.output}/stages, the same command goes on"
    else:
        told = "\n".join(f"judge: {place}" for place in (folder, *other_judges(config)))
    if _is_main():
        sys.stdout.write("".join(f"{visible(line)}\n" for line in told.splitlines()))
    return 0


def _is_main() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _start_processes() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def _show(unit: str) -> Callable[[int, int], None]:
    """Return a line on stderr with the number done, the rate and the remaining time."""
    from reward_model.commands.progress import ProgressLine

    return ProgressLine(unit=unit)


def _hide(unit: str) -> Callable[[int, int], None]:
    return lambda done, total: None


def _show_plan(config: RecipeConfig) -> None:
    """Print files, steps, memory and time of a recipe, and refuse one whose files are missing (ValueError)."""
    from reward_model.training.dry_run import plan_recipe

    text, missing = plan_recipe(config)
    sys.stdout.write("".join(f"{visible(line)}\n" for line in text.splitlines()))
    if missing:
        raise ValueError("; ".join(f"{path}: no such file or folder" for path in missing))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
