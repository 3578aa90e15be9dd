"""AdamW's step and its moments: whole on every process, or spread over the processes by DeepSpeed's ZeRO-2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Settings of AdamW."""

    lr: float
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the moments."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""


class Moments(Protocol):
    """An optimiser over named parameters, whose gradients are the same on all processes."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], rates: Rates) -> None:
        """Start with empty moments."""

    def step(self) -> None:
        """Change the parameters by their gradients; all processes call it together."""

    def state(self) -> dict[str, Tensor]:
        """Return `<parameter>.<entry>` to tensor, empty before the first step; all processes call it together."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the tensors of `state`; ValueError if they belong to other parameters."""


class WholeMoments:
    """AdamW with all moments on this process."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], rates: Rates) -> None:
        """Start with empty moments; see `Moments`."""
        self._parameters, self._optimizer = parameters, _adamw(parameters, rates)

    def step(self) -> None:
        """Change the parameters by their gradients."""
        self._optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """Return the moments and step counts as plain tensors; see `Moments.state`."""
        states = self._optimizer.state
        return {
            f"{name}.{entry}": value.detach().clone()
            for name, parameter in self._parameters.items()
            for entry, value in states.get(parameter, {}).items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state, exactly; see `Moments.load_state`."""
        self._optimizer.state.clear()
        for name, parts in _by_parameter(state, self._parameters).items():
            parameter = self._parameters[name]
            # AdamW keeps its step count on the CPU, as a scalar
            self._optimizer.state[parameter] = {
                entry: value.detach().clone().to("cpu" if entry == "step" else parameter.device)
                for entry, value in parts.items()
            }


class ZeroMoments:
    """AdamW with a share of the moments on this process, by DeepSpeed's ZeRO-2.

    DeepSpeed collects gradients when they arrive in parameters of its own. Those share the storage of the trained ones and
    receive the finished gradient of a step at once, so that objectives may run backwards as often as they like.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], rates: Rates) -> None:
        """Start with empty moments; see `Moments`."""
        import deepspeed  # type: ignore[import-not-found]

        self._parameters = parameters
        self._shares = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in parameters.items()}
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": 2},
            "zero_allow_untested_optimizer": True,  # which torch's AdamW is to DeepSpeed
        }
        optimizer = _adamw(self._shares, rates)
        self._engine, *_ = deepspeed.initialize(model=_Pairing(self._shares), optimizer=optimizer, config=config)
        self._inner: Any = self._engine.optimizer.optimizer
        for name, parameter in parameters.items():
            parameter.data = self._shares[name].data

    def step(self) -> None:
        """Change the parameters by their gradients."""
        apart = [name for name, own in self._shares.items() if own.data_ptr() != self._parameters[name].data_ptr()]
        if apart:
            raise RuntimeError(
                f"DeepSpeed's step would miss {len(apart)} of {len(self._shares)} trained tensors: {apart[:3]}"
            )
        self._take([_gradient(parameter) for parameter in self._parameters.values()])

    def _take(self, gradients: list[Tensor]) -> None:
        self._engine.optimizer.refresh_fp32_params()  # weights that were set since the last step
        self._engine.backward(self._engine(gradients))
        self._engine.step()

    def _make_room(self) -> None:
        """Have DeepSpeed make the moments, by a step at rate 0 and without gradient that leaves the weights as they are."""
        for group in self._inner.param_groups:
            group["lr"], rate = 0.0, group["lr"]
        self._take([torch.zeros_like(own) for own in self._shares.values()])
        for group in self._inner.param_groups:
            group["lr"] = rate

    def state(self) -> dict[str, Tensor]:
        """Return the moments, collected from all processes; see `Moments.state`."""
        from deepspeed.utils import safe_get_full_optimizer_state  # type: ignore[import-not-found]

        steps = [entry["step"] for entry in self._inner.state.values() if "step" in entry]
        if not steps:
            return {}
        state = {}
        for name, own in self._shares.items():
            for entry in ("exp_avg", "exp_avg_sq"):
                state[f"{name}.{entry}"] = safe_get_full_optimizer_state(own, entry).view_as(own).detach().clone()
            state[f"{name}.step"] = steps[0].detach().clone().cpu()
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state, exactly; see `Moments.load_state`."""
        from deepspeed.utils import safe_set_full_optimizer_state

        parts = _by_parameter(state, self._parameters)
        if not parts:
            return
        self._make_room()
        for entries in self._inner.state.values():
            entries["step"].copy_(next(iter(parts.values()))["step"])
        for name, own in self._shares.items():
            for entry in ("exp_avg", "exp_avg_sq"):
                safe_set_full_optimizer_state(own, parts[name][entry].to(own.device), entry)


class _Pairing(nn.Module):
    """The sum of parameters times given numbers, whose gradient is those numbers."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self._own = nn.ParameterList(parameters.values())

    def forward(self, gradients: list[Tensor]) -> Tensor:
        """Return the sum as a scalar."""
        return torch.stack([(own * gradient).sum() for own, gradient in zip(self._own, gradients, strict=True)]).sum()


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "the updater gives every parameter a gradient"
    return parameter.grad


def _adamw(parameters: Mapping[str, nn.Parameter], rates: Rates) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters.values(), lr=rates.lr, betas=rates.betas, weight_decay=rates.weight_decay)


def _by_parameter(state: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Tensor]]:
    """Return parameter -> entry -> tensor of a state; ValueError if it belongs to other parameters."""
    entries: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, entry = key.rsplit(".", 1)
        entries.setdefault(name, {})[entry] = value
    if state and entries.keys() != parameters.keys():
        unknown = sorted(entries.keys() ^ parameters.keys())[:3]
        raise ValueError(f"the optimiser state belongs to other parameters: {unknown}")
    return entries
