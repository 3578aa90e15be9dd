"""Temporal damage to planned frames, for rewards that test whether order matters: six perturbations as index maps.

A map names the frame at each position, or `BLANK`. Their effect on T frames, with a strength that is fixed by the recipe:

| name | frames moved | strength |
|---|---|---|
| shuffle | anywhere | strong: T / 3 places on average; no order is left |
| local_shuffle | within blocks of 4 | mild: 1.3 places on average in a full block, never more than 3 |
| reverse | to the mirrored place | T / 2 places on average, but neighbours stay neighbours: often invisible |
| jitter | by -1, 0 or 1 | mild: a third of the frames stay, frames repeat and are missed |
| duplicate | 1 to 3 copies of one, as many others missing | mild: one stutter and some jumps |
| blank | none; 1 to 3 are lost | strong but brief: flashes |

None is the identity for T >= 2. One frame has no order: it comes back as it is.

Source: VQAThinker (arXiv 2508.06051), `apply_temporal_perturbation` in train/src/open-r1-multimodal/src/open_r1/
vlm_modules/internvl_module.py of clh124/VQAThinker at ee47a40, whose maps may be the identity.

Shapes: T frames, C = 3 (RGB), H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

IndexMap = Callable[[int, torch.Generator], Tensor]
"""index_map(T, generator) -> int64 [T]: the frame at each position, or `BLANK`."""

ANY = "any"
"""Stands for one of all perturbations, each with equal chance."""

BLANK = -1
"""Stands in a map for a frame that is lost."""

BLOCK = 4
"""Frames that `local_shuffle` mixes with one another."""

MOST = 3
"""Most frames that `duplicate` copies and `blank` loses."""

BLACK = (0.0, 0.0, 0.0)
MEAN_GREY = (0.485, 0.456, 0.406)
"""ImageNet's mean colour, which VQAThinker's code shows, because it blanks after normalisation."""


def perturb(
    frames: Tensor, name: str, generator: torch.Generator, *, blank_colour: tuple[float, float, float] = BLACK
) -> Tensor:
    """Damage the order of planned frames; gradients pass to the frames that remain.

    Args:
        frames: float RGB [T, C, H, W] in [0, 1].
        name: a key of `PERTURBATIONS`, or `ANY`.
        generator: source of all randomness, on the CPU.
        blank_colour: RGB in [0, 1] of lost frames; the released code shows `MEAN_GREY`.

    Returns:
        Frames of the same shape; a new tensor.

    Raises:
        ValueError: unknown name, or frames that are not [T, 3, H, W].
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or len(frames) == 0:
        raise ValueError(f"frames must be non-empty RGB [T, 3, H, W], got shape {tuple(frames.shape)}")
    return reorder(frames, draw_order(len(frames), name, generator), blank_colour=blank_colour)


def draw_order(num_frames: int, name: str, generator: torch.Generator) -> Tensor:
    """Return the int64 map [T] of a perturbation, drawn anew; `ANY` draws which; an unknown name raises ValueError."""
    if name == ANY:
        name = [*PERTURBATIONS][_random_below(len(PERTURBATIONS), generator)]
    if name not in PERTURBATIONS:
        raise ValueError(f"perturbation must be one of {', '.join([*PERTURBATIONS, ANY])}, got {name!r}")
    return PERTURBATIONS[name](num_frames, generator)


def reorder(frames: Tensor, order: Tensor, *, blank_colour: tuple[float, float, float] = BLACK) -> Tensor:
    """Return frames [T, 3, H, W] in the order of a map [T], lost ones in one colour."""
    index = order.to(frames.device)
    colour = frames.new_tensor(blank_colour)[None, :, None, None]
    return torch.where((index == BLANK)[:, None, None, None], colour, frames[index.clamp_min(0)])


def spread_order(order: Tensor, places: Sequence[int], num_frames: int) -> Tensor:
    """Return the map of all frames of a source whose planned frames are disturbed: each moves with the planned one next to it.

    Args:
        order: int64 [T], map of the planned frames.
        places: T places of the planned frames in the source.
        num_frames: frames of the source.

    Returns:
        Int64 [num_frames]; at `places` it shows what `order` shows there.
    """
    # frames 0-8 with 0, 4 and 8 planned, order 0 2 1:  0 1 2 | 7 8 8 8 | 3 4
    everyone, at = torch.arange(num_frames), torch.tensor(places)
    nearest = (everyone[:, None] - at).abs().argmin(dim=1)
    shown = order[nearest]
    moved = (at[shown.clamp_min(0)] + everyone - at[nearest]).clamp(0, num_frames - 1)
    return torch.where(shown == BLANK, BLANK, moved)


def shuffle(num_frames: int, generator: torch.Generator) -> Tensor:
    """Return any order but the true one, each with equal chance."""
    identity = torch.arange(num_frames)
    order = identity
    while num_frames > 1 and torch.equal(order, identity):
        order = torch.randperm(num_frames, generator=generator)
    return order


def local_shuffle(num_frames: int, generator: torch.Generator) -> Tensor:
    """Return an order that is shuffled inside blocks of `BLOCK` frames, the last one shorter."""
    starts = range(0, num_frames, BLOCK)
    return torch.cat([start + shuffle(min(BLOCK, num_frames - start), generator) for start in starts])


def reverse(num_frames: int, generator: torch.Generator) -> Tensor:
    """Return the order from last to first; nothing is drawn."""
    return torch.arange(num_frames).flip(0)


def jitter(num_frames: int, generator: torch.Generator) -> Tensor:
    """Return each frame's own place moved by -1, 0 or 1 with equal chance, clamped to the clip."""
    identity = torch.arange(num_frames)
    order = identity
    while num_frames > 1 and torch.equal(order, identity):
        order = (identity + torch.randint(-1, 2, (num_frames,), generator=generator)).clamp(0, num_frames - 1)
    return order


def duplicate(num_frames: int, generator: torch.Generator) -> Tensor:
    """Return an order where one frame's copies, 1 to `MOST`, stand together at a random place and others are missing."""
    count = _count(num_frames, generator)
    chosen = _random_below(num_frames, generator)
    place = _random_below(num_frames + 1, generator)
    others = torch.tensor([index for index in range(num_frames) if index != chosen], dtype=torch.int64)
    missing = set(others[torch.randperm(len(others), generator=generator)[:count]].tolist())
    order = [*range(place), *[chosen] * count, *range(place, num_frames)]
    return torch.tensor([index for index in order if index not in missing], dtype=torch.int64)


def blank(num_frames: int, generator: torch.Generator) -> Tensor:
    """Return the true order with 1 to `MOST` frames lost, never all of them."""
    order = torch.arange(num_frames)
    order[torch.randperm(num_frames, generator=generator)[: _count(num_frames, generator)]] = BLANK
    return order


def _count(num_frames: int, generator: torch.Generator) -> int:
    """Return a random number of frames to change, all with equal chance; at least one frame remains."""
    most = min(MOST, num_frames - 1)
    return 1 + _random_below(most, generator) if most else 0


def _random_below(high: int, generator: torch.Generator) -> int:
    return int(torch.randint(high, (), generator=generator))


PERTURBATIONS: dict[str, IndexMap] = {
    "shuffle": shuffle,
    "local_shuffle": local_shuffle,
    "reverse": reverse,
    "jitter": jitter,
    "duplicate": duplicate,
    "blank": blank,
}
"""Name -> index map; VQAThinker draws one of the six anew for every rollout."""
