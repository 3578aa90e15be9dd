"""Optimisation loop of the judge, for any loss of a step number, on one or several processes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Loss = Callable[[int], Iterable[tuple[Tensor, Mapping[str, float]]]]
"""loss(step) -> micro-batches, each a scalar with gradient and detached metrics; the step keys all randomness.

The sum of the micro-batches is minimised. Each is propagated before the next is asked for, so memory holds one graph at a
time; of metrics with one name, the last micro-batch's counts."""


BUCKET_SIZE = 2**26
"""Elements of gradients that are averaged at a time: a quarter of a GiB."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of the optimisation of parameters."""

    num_steps: int | None = None
    """Optimiser steps; raising it trains longer and stretches the schedule. Null counts `num_epochs`."""
    num_epochs: float | None = None
    """Passes through the listed examples, in place of `num_steps`; of several sections together, so their weights should be in
    proportion to their lengths. Rendered clips have no end and need `num_steps`."""
    learning_rate: float
    """Peak rate of AdamW, reached after the warm-up, held, and lowered to `final_rate` at the end."""
    batch_size: int
    """Clips per optimiser step, over all processes."""
    matrix_learning_rate: float | None = None
    """Peak rate of Muon for the weight matrices of the layers, which learns faster from nothing; null leaves all to AdamW.
    Source: K. Jordan et al., Muon (2024); torch.optim.Muon."""
    decay: Literal["cosine", "linear"] = "cosine"
    """Form of the rate's fall."""
    decay_share: float = 1.0
    """Share of the steps over which the rate falls; it is held before."""
    final_rate: float = 0.1
    """Share of the peak rate that is left at the end, in [0, 1]; 1 holds the rate."""
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    """Decay of AdamW's two moments; a larger second one averages over more steps (torch's default: 0.9 and 0.999)."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """bf16 runs matrix products under autocast: faster where the hardware has it; weights and optimiser stay fp32."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if (self.num_steps is None) == (self.num_epochs is None):
            raise ValueError(
                f"exactly one of num_steps and num_epochs must be given, the other null, got {self.num_steps}, {self.num_epochs}"
            )
        positive = ("num_steps", "num_epochs", "batch_size", "learning_rate", "matrix_learning_rate", "max_grad_norm")
        for name in (*positive, "decay_share"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be > 0, got {value}")
        if self.warmup_steps < 0 or self.weight_decay < 0:
            raise ValueError(
                f"warmup_steps and weight_decay must be >= 0, got {self.warmup_steps}, {self.weight_decay}"
            )
        if not 0 <= self.final_rate <= 1:
            raise ValueError(f"final_rate must be in [0, 1], got {self.final_rate}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas}")


def schedule(step: int, config: FitConfig) -> float:
    """Return the share of the peak rate at step 0, 1, ...: linear warm-up, hold, then the fall to `final_rate`."""
    assert config.num_steps is not None
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    progress = max(0.0, 1 - (1 - step / config.num_steps) / config.decay_share)
    left = 1 - progress if config.decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return warm * (config.final_rate + (1 - config.final_rate) * left)


def resolve_steps(config: FitConfig, clips_per_epoch: int) -> FitConfig:
    """Return the settings with the number of steps that their epochs take; settings in steps come back as they are.

    Args:
        config: settings.
        clips_per_epoch: length of the listed examples; a pair counts as two.

    Returns:
        Settings with `num_steps`.

    Raises:
        ValueError: Epochs of nothing, or of clips that are rendered without end.
    """
    if config.num_epochs is None:
        return config
    if clips_per_epoch < 1:
        raise ValueError(
            "fit.num_epochs needs listed examples; give fit.num_steps for clips that are rendered without end"
        )
    steps = math.ceil(config.num_epochs * clips_per_epoch / config.batch_size)
    return replace(config, num_steps=steps, num_epochs=None)


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
        loss: the loss of a step on this process's share of the batch; with several processes the gradients are averaged.
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
    assert config.num_steps is not None, "epochs are resolved before"
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
        optimizers.append(torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.betas[0], config.betas[1])))
    return optimizers


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def average_gradients(parameters: Sequence[nn.Parameter], *, bucket_size: int = BUCKET_SIZE) -> None:
    """Average the gradients over all processes; a missing gradient counts as zero.

    Args:
        parameters: trained, in the same order in every process.
        bucket_size: most elements of a flattened all-reduce, which needs a copy of them; a larger parameter has one of its own.
    """
    if rank_and_world()[1] == 1:
        return
    for bucket in buckets_of(parameters, bucket_size):
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket])
        torch.distributed.all_reduce(flat)
        flat /= torch.distributed.get_world_size()
        for parameter, gradient in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            parameter.grad = gradient.view_as(parameter).clone()


def buckets_of(parameters: Sequence[nn.Parameter], size: int) -> list[list[nn.Parameter]]:
    """Return the parameters in order, as many neighbours together as have at most `size` elements, and at least one."""
    buckets: list[list[nn.Parameter]] = []
    held = 0
    for parameter in parameters:
        if not buckets or held + parameter.numel() > size:
            buckets.append([])
            held = 0
        buckets[-1].append(parameter)
        held += parameter.numel()
    return buckets


def _means(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = {name for metrics in steps for name in metrics}
    return {n: sum(m[n] for m in steps if n in m) / sum(n in m for m in steps) for n in sorted(names)}
