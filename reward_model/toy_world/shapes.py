"""Outlines and grounds of the moving-shapes world, drawn from distances.

Lengths are in pixels of a 32-pixel frame. Shapes: S frame side in pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SIDE = 32
"""Side of the frame that lengths refer to, in pixels."""

SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")
BACKGROUNDS = ("plain", "striped", "checkered", "dotted")


def shape_mask(shape: str, dx: Tensor, dy: Tensor, radius: float, *, edge: float) -> Tensor:
    """Return the share of each pixel that a shape covers.

    Args:
        shape: one of `SHAPES`.
        dx: pixels' horizontal offsets from the shape's centre of mass.
        dy: vertical offsets, downwards, broadcast with `dx`.
        radius: of the circle of the same area.
        edge: width of the soft edge, in the unit of the offsets.

    Returns:
        Cover in [0, 1], of the offsets' broadcast shape.
    """
    return (0.5 - _DISTANCE[shape](dx, dy, radius) / edge).clamp(0, 1)


def background_pattern(background: str, size: int) -> Tensor:
    """Return the pattern of a ground, [S, S] with contrast 1, before shade and slope."""
    place = (torch.arange(size) + 0.5) * SIDE / size
    y, x = place[:, None], place[None, :]
    if background == "plain":
        return torch.zeros(size, size)
    if background == "striped":
        return ((y // 4) % 2 - 0.5).expand(size, size)
    if background == "checkered":
        return (x // 4 + y // 4) % 2 - 0.5
    return (((x % 8 - 4) ** 2 + (y % 8 - 4) ** 2) < 4).float() - 0.2


def _box(dx: Tensor, dy: Tensor, half_width: float, half_height: float) -> Tensor:
    return torch.maximum(dx.abs() - half_width, dy.abs() - half_height)


def _square(dx: Tensor, dy: Tensor, radius: float) -> Tensor:
    half = radius * math.sqrt(math.pi) / 2
    return _box(dx, dy, half, half)


def _circle(dx: Tensor, dy: Tensor, radius: float) -> Tensor:
    return (dx**2 + dy**2).sqrt() - radius


def _triangle(dx: Tensor, dy: Tensor, radius: float) -> Tensor:
    inner = radius * math.sqrt(math.pi / (3 * math.sqrt(3)))  # inradius of the equilateral triangle of equal area
    slant = math.sqrt(3) / 2 * dx.abs() - 0.5 * dy
    return torch.maximum(slant, dy) - inner


def _cross(dx: Tensor, dy: Tensor, radius: float) -> Tensor:
    arm = radius * math.sqrt(math.pi / 20)  # five squares of side 2 arm
    return torch.minimum(_box(dx, dy, 3 * arm, arm), _box(dx, dy, arm, 3 * arm))


def _ring(dx: Tensor, dy: Tensor, radius: float) -> Tensor:
    outer = radius * 1.15
    inner = outer * math.sqrt(1 - 1 / 1.15**2)
    distance = (dx**2 + dy**2).sqrt()
    return torch.maximum(distance - outer, inner - distance)


def _bar(dx: Tensor, dy: Tensor, radius: float) -> Tensor:
    half = radius * math.sqrt(math.pi / 12)  # three squares side by side
    return _box(dx, dy, 3 * half, half)


_DISTANCE = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "ring": _ring,
    "bar": _bar,
}
"""Shape -> signed distance to its edge, negative inside."""
