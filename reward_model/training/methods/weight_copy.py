"""A frozen copy of trained weights that can take their place: the reference policy where all weights are trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


class WeightCopy:
    """Values of some weights as they were; they cost as much memory again."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        """Copy the weights as they are now.

        Args:
            parameters: the weights.
        """
        self._parameters = list(parameters)
        self._other = [parameter.detach().clone() for parameter in parameters]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Put the copied values in place inside this context, for passes without gradient.

        A graph that was built before must have been propagated, as its backward pass would meet other weights than its forward.

        Yields:
            Nothing.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        held = [parameter.data for parameter in self._parameters]
        for parameter, other in zip(self._parameters, self._other, strict=True):
            parameter.data = other
        self._other = held
        torch.clear_autocast_cache()  # autocast keeps casts of weights by identity, not by value
