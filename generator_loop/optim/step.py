"""The optimiser step: accumulate, sum over processes once, check, clip, step.

Every objective's gradient is a sum over samples here; one all-reduce carries gradients, sample count and metrics
together, so that N processes step exactly like one with the same samples. There is no DDP wrapper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from generator_loop.adapters.base import OLD, POLICY, REFERENCE, VideoGenerator, predict_with
from generator_loop.objectives.base import Batch, Objective, PixelReward, Policies, Regulariser
from generator_loop.optim.moments import Moments, Rates, WholeMoments
from generator_loop.processes import all_sum, in_step
from generator_loop.records import Draw


def _add(sums: dict[str, float], metrics: Mapping[str, float], weight: float) -> None:
    """Add metrics to their sums, each times the number of samples that it speaks for; a borrowed batch speaks for none."""
    for name, value in metrics.items() if weight else ():
        sums[name] += value * weight


class NonFiniteError(RuntimeError):
    """A loss or gradient is NaN or infinite; raised on all processes at once, before any weight has changed."""


def policies_of(generator: VideoGenerator, reward: PixelReward) -> Policies:
    """Return the calls that an objective may make.

    Args:
        generator: the generator, with its `old` and `reference` weights set.
        reward: differentiable reward.

    Returns:
        The policies.
    """
    return Policies(
        policy=predict_with(generator, POLICY),
        old=predict_with(generator, OLD),
        reference=predict_with(generator, REFERENCE),
        decode=generator.decode,
        reward=reward,
    )


class Updater:
    """AdamW on a generator's trained parameters, exact under accumulation, several processes and resume."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        moments: type[Moments] = WholeMoments,
    ) -> None:
        """Start with empty moments.

        Args:
            parameters: trained parameters by name.
            lr: learning rate.
            betas: AdamW's decay rates.
            weight_decay: decoupled weight decay.
            max_grad_norm: gradients with a larger norm are scaled down to it.
            moments: where AdamW keeps its moments.
        """
        self._parameters = dict(parameters)
        self._max_grad_norm = max_grad_norm
        self._device = next(iter(self._parameters.values())).device
        self._moments = moments(self._parameters, Rates(lr=lr, betas=betas, weight_decay=weight_decay))

    def step(
        self,
        objective: Objective,
        batches: Iterable[Batch],
        policies: Policies,
        *,
        regularisers: Sequence[Regulariser] = (),
        draw: Draw | None = None,
    ) -> dict[str, float]:
        """Take one optimiser step on the mean loss over the samples of all processes.

        Args:
            objective: the objective that planned the batches.
            batches: this process's micro-batches, possibly none.
            policies: the calls that an objective may make.
            regularisers: losses beside the objective's; each process's share counts by its number of samples.
            draw: random streams of the step, which regularisers need.

        Returns:
            The objective's metrics and the regularisers' as means over all samples, `grad_norm` before clipping and `num_samples`. Without
            any sample on any process nothing is changed and only `num_samples` = 0 is returned.

        Raises:
            NonFiniteError: on all processes, if any loss or gradient is not finite; no weight has changed then.
        """
        self._drop_gradients()
        names = [*objective.metrics, *(name for one in regularisers for name in one.metrics)]
        num_samples, sums = 0, dict.fromkeys(names, 0.0)
        for batch, is_own in in_step(batches, device=self._device):
            weight = len(batch) if is_own else 0
            metrics = objective.backward(batch, policies, scale=float(weight))
            num_samples += weight
            _add(sums, metrics, weight)
        for regulariser in regularisers:
            assert draw is not None, "regularisers draw"
            for noisy, is_own in in_step(regulariser.batches(draw), device=self._device):
                weight = num_samples if is_own else 0
                _add(sums, regulariser.backward(noisy, policies, scale=float(weight)), weight)
        total, sums = self._sum_over_processes(float(num_samples), sums)
        if total == 0:
            return {"num_samples": 0.0}
        metrics = {name: value / total for name, value in sums.items()}
        norm = float(nn.utils.clip_grad_norm_(self._parameters.values(), self._max_grad_norm))
        self._check_finite({**metrics, "grad_norm": norm})
        self._moments.step()
        return {**metrics, "grad_norm": norm, "num_samples": total}

    def _sum_over_processes(self, num_samples: float, sums: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        """Turn summed gradients into means over the samples of all processes; a NaN anywhere reaches everyone."""
        parameters = list(self._parameters.values())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        numbers = torch.tensor([num_samples, *sums.values()], device=gradients[0].device)
        flat = all_sum(torch.cat([numbers, *[gradient.flatten().float() for gradient in gradients]]))
        total, *totals = flat[: len(numbers)].tolist()
        mean = flat[len(numbers) :] / max(total, 1.0)
        for parameter, part in zip(parameters, mean.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)
        return total, dict(zip(sums, totals, strict=True))

    def _drop_gradients(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None

    def _check_finite(self, metrics: Mapping[str, float]) -> None:
        bad = {name: value for name, value in metrics.items() if not torch.tensor(value).isfinite()}
        if bad:
            self._drop_gradients()
            raise NonFiniteError(f"not finite: {bad}; no weight was changed. Lower the learning rate or resume earlier")

    def state(self) -> dict[str, Tensor]:
        """Return the moments and step counts as plain tensors, for a safetensors file; all processes call it together.

        Returns:
            `<parameter>.<entry>` to tensor; empty before the first step.
        """
        return self._moments.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state, exactly.

        Args:
            state: tensors that `state` returned.

        Raises:
            ValueError: if it belongs to other parameters.
        """
        self._moments.load_state(state)
