"""Optimisation loop of the judge, for any loss of a step number, on one or several processes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Loss = Callable[[int], Iterable[tuple[Tensor, Mapping[str, float]]]]
"""loss(step) -> micro-batches, each a scalar with gradient and detached metrics; the step keys all randomness.

The sum of the micro-batches is minimised. Each is propagated before the next is asked for, so memory holds one graph at a
time; of metrics with one name, the last micro-batch's counts."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of the optimisation of parameters."""

    num_steps: int
    """Optimiser steps; raising it trains longer and stretches the schedule."""
    learning_rate: float
    """Peak rate of AdamW, reached after the warm-up, held, and lowered along a cosine to a tenth at the end."""
    batch_size: int
    """Clips per optimiser step, over all processes."""
    matrix_learning_rate: float | None = None
    """Peak rate of Muon for the weight matrices of the layers, which learns faster from nothing; null leaves all to AdamW.
    Source: K. Jordan et al., Muon (2024); torch.optim.Muon."""
    decay_share: float = 1.0
    """Share of the steps over which the cosine falls; the rate is held before."""
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """bf16 runs matrix products under autocast: faster where the hardware has it; weights and optimiser stay fp32."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("num_steps", "batch_size", "learning_rate", "matrix_learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be > 0, got {value}")
        if self.warmup_steps < 0 or self.weight_decay < 0:
            raise ValueError(
                f"warmup_steps and weight_decay must be >= 0, got {self.warmup_steps}, {self.weight_decay}"
            )


def schedule(step: int, config: FitConfig) -> float:
    """Return the share of the peak rate at step 0, 1, ...: linear warm-up, hold, then a cosine down to a tenth."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    progress = max(0.0, 1 - (1 - step / config.num_steps) / config.decay_share)
    return warm * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def fit(
    parameters: Iterable[nn.Parameter],
    loss: Loss,
    config: FitConfig,
    *,
    matrices: Sequence[nn.Parameter] = (),
    log: Callable[[dict[str, float]], None] | None = None,
    log_every: int = 50,
    after_step: Callable[[int], bool] | None = None,
) -> dict[str, float]:
    """Minimise `loss` over `parameters`; return the means of the metrics over the last logged stretch.

    Args:
        parameters: trained; gradients of nothing else are used.
        loss: the loss of a step on this process's share of the batch; with several processes the gradients are averaged
            in one flattened all-reduce.
        config: steps, rates, clipping.
        matrices: the weight matrices of layers among `parameters`, for `matrix_learning_rate`.
        log: receives {"step", "loss", "learning_rate", "seconds", metrics...} every `log_every` steps.
        log_every: steps between two logs.
        after_step: called with the number of steps taken; True ends training. Every process must answer alike.

    Returns:
        The last log entry.

    Raises:
        RuntimeError: the loss or the gradient of any process is not finite.
    """
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        raise ValueError("fit needs at least one parameter that requires a gradient")
    optimizers = _optimizers(trained, matrices, config)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    unlogged: list[dict[str, float]] = []
    last: dict[str, float] = {}
    start, device = time.monotonic(), trained[0].device.type
    for step in range(config.num_steps):
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = peak * schedule(step, config)
            optimizer.zero_grad(set_to_none=True)
        value, metrics = _propagate(loss, step, device, config.mixed_precision)
        average_gradients(trained)
        norm = nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        if not math.isfinite(float(norm)) or not math.isfinite(value):
            raise RuntimeError(f"step {step}: loss {value} with gradient norm {float(norm)} is not finite")
        for optimizer in optimizers:
            optimizer.step()
        unlogged.append({"loss": value, "grad_norm": float(norm), **metrics})
        enough = after_step is not None and after_step(step + 1)
        done = enough or step + 1 == config.num_steps
        if (step + 1) % log_every == 0 or done:
            last = {
                "step": step + 1,
                **_means(unlogged),
                "learning_rate": config.learning_rate * schedule(step, config),
            }
            last["seconds"] = time.monotonic() - start
            unlogged.clear()
            if log is not None:
                log(last)
        if done:
            break
    return last


def _propagate(loss: Loss, step: int, device: str, precision: str) -> tuple[float, dict[str, float]]:
    """Propagate each micro-batch and return the loss and the metrics of all; forward passes run under `precision`."""
    total = 0.0
    metrics: dict[str, float] = {}
    with _precision(device, precision):
        iterator = iter(loss(step))
    while True:
        with _precision(device, precision):
            micro_batch = next(iterator, None)
        if micro_batch is None:
            return total, metrics
        micro_batch[0].backward()
        total += float(micro_batch[0].detach())
        metrics |= micro_batch[1]


@contextmanager
def _precision(device: str, name: str) -> Iterator[None]:
    """Run matrix products in bf16 if `name` says so; on a CPU the fused attention's bf16 backward is the slower one."""
    if name == "no":
        yield
        return
    with torch.autocast(device, torch.bfloat16), sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext():
        yield


def _optimizers(
    trained: Sequence[nn.Parameter], matrices: Sequence[nn.Parameter], config: FitConfig
) -> list[torch.optim.Optimizer]:
    optimizers: list[torch.optim.Optimizer] = []
    rate = config.matrix_learning_rate
    apart = {id(p) for p in matrices} if rate is not None else set()
    if apart and rate is not None:
        optimizers.append(torch.optim.Muon(list(matrices), lr=rate, momentum=0.95, weight_decay=config.weight_decay))
    rest = [p for p in trained if id(p) not in apart]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if groups:
        optimizers.append(torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98)))
    return optimizers


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Average the gradients over all processes in one flattened all-reduce; a missing gradient counts as zero."""
    if rank_and_world()[1] == 1:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = gradient.view_as(parameter).clone()


def _means(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = {name for metrics in steps for name in metrics}
    return {n: sum(m[n] for m in steps if n in m) / sum(n in m for m in steps) for n in sorted(names)}
