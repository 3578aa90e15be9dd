"""Messages between the processes of a run, which stay in step while a model is sharded over them.

A model whose weights are spread over the processes can be called only by all of them together, since each call collects the
weights. Processes differ in how often they call it, though: one has fewer prompts, another clips without a score. So a
process that waits for the others takes part in their calls without computing anything (`Lockstep`), and in an optimiser
step, where gradients have to be collected as well, one that has no batch left computes another's and counts it as nothing
(`in_step`). Without a sharded model nothing of this happens.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Item = TypeVar("Item")
_NONE: Any = object()


def is_distributed() -> bool:
    """Return whether several processes run together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class Lockstep:
    """The sharded models of this process, and the order in which all processes call them."""

    def __init__(self) -> None:
        """Start without a sharded model."""
        self._joins: list[Callable[[], None]] = []
        self._is_joining = False
        self._is_together = False

    @property
    def is_needed(self) -> bool:
        """Whether a model is sharded over the processes."""
        return bool(self._joins)

    def add(self, model: nn.Module, join: Callable[[], None]) -> None:
        """Have all processes enter each call of a sharded model together; they add their models in the same order.

        Args:
            model: called by each process as often as it likes.
            join: takes part in a call of the others without gradient.
        """
        number = len(self._joins)
        self._joins.append(join)
        model.register_forward_pre_hook(lambda *_: self._enter(number), prepend=True)

    def clear(self) -> None:
        """Forget all models."""
        self._joins.clear()

    def drain(self) -> None:
        """Take part in the others' calls until every process has come here; any other message has to wait for that."""
        if self.is_needed:
            while self._meet(0):
                pass

    @contextmanager
    def together(self) -> Iterator[None]:
        """Mark what is done inside the context as done by all processes alike, call by call, as before a backward pass."""
        self._is_together = True
        try:
            yield
        finally:
            self._is_together = False

    def any(self, flag: bool) -> bool:
        """Return whether any process has to make a call that it makes in some cases only; outside `together`, whether this one has."""
        return any_process(flag) if self.is_needed and self._is_together else flag

    def _enter(self, number: int) -> None:
        """Return when the call of model `number` is due on all processes."""
        if self._is_joining:
            return
        call = 1 + 2 * number + int(torch.is_grad_enabled())
        while self._meet(call) != call:
            pass

    def _meet(self, call: int) -> int:
        """Say which call this process wants (0: none), and return the one that comes first; where that is another, join it."""
        highest, lowest = (int(value) for value in _reduced(torch.tensor([call, -call]), "MAX"))
        if highest and highest % 2 == 0 and highest != -lowest:
            raise RuntimeError(
                "the processes are out of step: some call a sharded model with gradient and others do not; the run stops, "
                "resume it without sharding (configs/accelerate/ddp.yaml) and report the recipe"
            )
        if highest and highest != call:
            self._is_joining = True
            self._joins[(highest - 1) // 2]()
            self._is_joining = False
        return highest


LOCKSTEP = Lockstep()
"""The sharded models of this process."""


def all_sum(values: Tensor) -> Tensor:
    """Sum a tensor over processes.

    Args:
        values: any tensor, of the same shape on every process.

    Returns:
        The sum; the tensor itself where torch.distributed is not initialised.
    """
    if not is_distributed():
        return values
    LOCKSTEP.drain()
    return _reduced(values, "SUM")


def any_process(flag: bool) -> bool:
    """Return whether the flag of any process is set; all processes call it together."""
    if not is_distributed():
        return flag
    LOCKSTEP.drain()
    return bool(_reduced(torch.tensor(float(flag)), "MAX"))


def gather(items: list[Item]) -> list[Item]:
    """Return the items of all processes, which are pickled on the way.

    Args:
        items: this process's.

    Returns:
        The first of each process, then the second of each, and so on: the order of a single process, since prompts are dealt
        out in turn.
    """
    dealt = zip_longest(*gather_objects(items), fillvalue=_NONE)
    return [item for turn in dealt for item in turn if item is not _NONE]


def gather_objects(item: Item) -> list[Item]:
    """Return one object of each process, in the order of their ranks; they are pickled on the way."""
    if not is_distributed():
        return [item]
    LOCKSTEP.drain()
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, item)
    return shares


def wait() -> None:
    """Return once every process has come here."""
    if is_distributed():
        LOCKSTEP.drain()
        torch.distributed.barrier()


def in_step(batches: Iterable[Item], *, device: torch.device) -> Iterator[tuple[Item, bool]]:
    """Yield this process's batches, and where a model is sharded as many on each process.

    Args:
        batches: this process's own, possibly none.
        device: where a borrowed batch goes.

    Yields:
        A batch, and whether it is this process's own; one that has none left borrows the first process's that has.
    """
    own = iter(batches)
    if not LOCKSTEP.is_needed:
        yield from ((batch, True) for batch in own)
        return
    while True:
        batch = next(own, None)
        have = gather_objects(batch is not None)
        if not any(have):
            return
        lent = None if all(have) else _broadcast(batch, source=have.index(True), device=device)
        chosen = lent if batch is None else batch
        assert chosen is not None
        with LOCKSTEP.together():
            yield chosen, batch is not None


def _broadcast(item: Item | None, *, source: int, device: torch.device) -> Item | None:
    """Return the item of process `source`, its tensors on this process's device."""
    content = [_moved(item, torch.device("cpu")) if torch.distributed.get_rank() == source else None]
    torch.distributed.broadcast_object_list(content, src=source)
    return _moved(content[0], device)


def _moved(item: Any, device: torch.device) -> Any:
    """Return a value with all tensors in it on the device; dataclasses, mappings and sequences are gone through."""
    if isinstance(item, Tensor):
        return item.detach().to(device)
    if dataclasses.is_dataclass(item):
        moved = copy.copy(item)
        for field in dataclasses.fields(item):
            object.__setattr__(moved, field.name, _moved(getattr(item, field.name), device))
        return moved
    if isinstance(item, Mapping):
        return {key: _moved(value, device) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        return type(item)(_moved(value, device) for value in item)
    return item


def _reduced(values: Tensor, how: str) -> Tensor:
    # NCCL carries tensors of the GPU alone
    carried = values.cuda() if torch.distributed.get_backend() == "nccl" else values.clone()
    torch.distributed.all_reduce(carried, op=getattr(torch.distributed.ReduceOp, how))
    return carried.to(values.device)
