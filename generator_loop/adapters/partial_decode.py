"""Decoding an excerpt of latent frames: later ones are left out, earlier ones carry no gradient.

Shape legend: B batch, F latent frames, c latent channels, h, w latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def check_excerpt(excerpt: range, num_latent_frames: int) -> None:
    """Refuse (ValueError) an excerpt that is empty, has gaps or leaves the clip."""
    if not (0 <= excerpt.start < excerpt.stop <= num_latent_frames and excerpt.step == 1):
        raise ValueError(
            f"an excerpt must be consecutive latent frames within range({num_latent_frames}), got {excerpt}"
        )


def held_outside(latents: Tensor, excerpt: range) -> Tensor:
    """Return the same latents [B, c, F, h, w], with gradient to those of an excerpt alone."""
    before, inside, after = latents.split((excerpt.start, len(excerpt), latents.shape[2] - excerpt.stop), dim=2)
    return torch.cat([before.detach(), inside, after.detach()], dim=2)


@contextmanager
def constant_calls(
    decoder: nn.Module, num_calls: int, *, begins: Callable[[Mapping[str, Any]], bool]
) -> Iterator[None]:
    """Make the first calls of a decoder on each clip or tile without gradient inside the context.

    Args:
        decoder: video decoder that is called for some latent frames at a time and hands a cache from call to call.
        num_calls: calls that fill the cache only.
        begins: tells from a call's keyword arguments whether a new clip or tile begins with it.

    Yields:
        Nothing.
    """
    forward, place = decoder.forward, 0

    def counted(*args: Any, **how: Any) -> Any:
        """Run one call of the decoder, with gradient only behind the first `num_calls` of its clip or tile."""
        nonlocal place
        place = 0 if begins(how) else place + 1
        with torch.set_grad_enabled(torch.is_grad_enabled() and place >= num_calls):
            return forward(*args, **how)

    decoder.forward = counted
    try:
        yield
    finally:
        decoder.forward = forward
