"""Says where a training round's time goes, and how much of it is the loop's own.

python scripts/bench/loop.py [--sizes toy 30m] [--iterations N] [section.key=value ...]

One round of configs/toy.yaml, refresh included, evaluation and report left out, on the embedded generator and on a random
Wan of 30 M parameters around the same autoencoder. Time inside the text encoder, transformer, VAE, judge and optimiser is
theirs, backward passes count as the transformer's, and the rest is the loop's. Prints a table and, last, one JSON
line; 1 where the loop's own share of the larger generator's round is not below 5 %.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from generator_loop.loop import iterate, refresh_judge
from generator_loop.run.build import embedded, open_session, read_config
from generator_loop.run.launch import Processes
from generator_loop.run.session import Session
from generator_loop.run.state import begin

LIMIT = 0.05
"""Largest share of a round that may be the loop's own."""

RECIPE = Path(__file__).parents[2] / "configs" / "toy.yaml"

OWN = "loop"


class Clock:
    """Charges time to the innermost part that runs."""

    def __init__(self) -> None:
        """Start with all time the loop's own."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open, self._since = [OWN], time.perf_counter()

    def charge(self) -> None:
        """Charge the time since the last call to the part that runs."""
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` with its time charged to `name`, but for parts inside it that have their own."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            """Call the function on its own clock."""
            self.charge()
            self._open.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.charge()
                self._open.pop()

        return call


def watch(session: Session, clock: Clock) -> None:
    """Time the parts of a session."""
    pipeline = session.generator.pipeline  # type: ignore[attr-defined]
    for name, module in (("text encoder", pipeline.text_encoder), ("transformer", pipeline.transformer)):
        module.forward = clock.timed(name, module.forward)
    pipeline.vae.decode = clock.timed("vae", pipeline.vae.decode)
    judge = session.judge.judge
    judge.next_token_logits = clock.timed("judge", judge.next_token_logits)  # type: ignore[method-assign]
    judge.answer_logits = clock.timed("judge", judge.answer_logits)  # type: ignore[method-assign]
    optimizer = session.learner.updater._optimizer
    optimizer.step = clock.timed("optimiser", optimizer.step)  # type: ignore[method-assign]


def larger_wan(folder: Path) -> Path:
    """Write the embedded generator with a random transformer of 30 M parameters, and return its folder."""
    from diffusers import WanPipeline, WanTransformer3DModel

    pipeline = WanPipeline.from_pretrained(embedded("generator_loop", "toy_wan"), trust_remote_code=False)
    torch.manual_seed(0)
    shape = {"num_layers": 13, "num_attention_heads": 12, "attention_head_dim": 32, "ffn_dim": 1536}
    pipeline.transformer = WanTransformer3DModel.from_config({**pipeline.transformer.config, **shape})
    pipeline.save_pretrained(folder)
    return folder


def measure(path: str, overrides: Sequence[str], num_iterations: int) -> dict[str, float]:
    """Return part -> seconds of one round, with the number of parameters."""
    with tempfile.TemporaryDirectory() as output:
        options = [f"generator.path={path}", "judge.audit_path=null", f"run.output={output}/run", *overrides]
        session = open_session(read_config(RECIPE, options), Processes(device=torch.device("cpu")))
        begin(session)
        clock = Clock()
        watch(session, clock)
        backward = torch.Tensor.backward
        torch.Tensor.backward = clock.timed("transformer", backward)  # type: ignore[method-assign, assignment]
        try:
            clock.charge()
            clock.seconds.clear()
            for _ in range(num_iterations):
                iterate(session)
                session.progress.iteration += 1
            clock.timed("judge", refresh_judge)(session, lambda: None)
            clock.charge()
        finally:
            torch.Tensor.backward = backward  # type: ignore[method-assign]
        count = sum(p.numel() for p in session.generator.pipeline.transformer.parameters())  # type: ignore[attr-defined]
    return {"parameters": count, **clock.seconds}


def main(argv: Sequence[str]) -> int:
    """Measure both sizes and print where their time went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=("toy", "30m"), default=["toy", "30m"], help="generators")
    parser.add_argument("--iterations", type=int, default=1, help="iterations of the round")
    arguments, overrides = parser.parse_known_args(argv)
    torch.set_num_threads(1)
    results, over = {}, False
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = "toy" if size == "toy" else str(larger_wan(Path(folder) / "wan"))
            spent = measure(path, overrides, arguments.iterations)
        count = spent.pop("parameters")
        total = sum(spent.values())
        results[size] = {"parameters": count, "seconds": spent, "own_share": spent[OWN] / total}
        sys.stdout.write(f"\n{size}: {count / 1e6:.1f} M parameters, {total:.1f} s\n")
        for name, value in sorted(spent.items(), key=lambda item: -item[1]):
            sys.stdout.write(f"{name:>14} {value:8.2f} s {value / total:7.1%}\n")
        over |= size != "toy" and not spent[OWN] < LIMIT * total
    sys.stdout.write(json.dumps(results) + "\n")
    return int(over)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
