"""Finds the coloured shape of a moving-shapes clip and measures its place, form, colour, edges, ground and steps.

Everything is in pixels of a 32-pixel frame, whatever the frames' size.

Shapes: T frames, S frame side in pixels, K shapes or colours.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from einops import rearrange, repeat
from numpy.typing import NDArray

from reward_model.media.distortions import gaussian_blur
from reward_model.toy_world import moving_shapes as world
from reward_model.toy_world import shapes

Array = NDArray[np.float64]

PATCH = 29
"""Side of the square that is cut out around the shape, in pixels of a 32-pixel frame."""

CLEAN_EDGE = 2.8
"""Width of a clean clip's edges as `edge_width` measures it, in pixels."""

EDGES = {0.0: CLEAN_EDGE, 0.9: 4.06, 1.4: 5.27, 2.0: 6.65, 2.8: 8.05}
"""Gaussian blur in pixels -> mean width of the edges."""


@dataclass(frozen=True)
class Track:
    """The shape in every frame, in pixels of a 32-pixel frame.

    `soft` [T, S, S] is the cover of each pixel with its edges as blurred as the frames; `mask` [T, S, S] is the same with
    faint colour taken away; `centre` [T, 2] (x, y) and `area` [T] are the mask's; `strength` [T] is the colour contrast.
    """

    frames: Array
    soft: Array
    mask: Array
    centre: Array
    area: Array
    strength: Array

    @property
    def scale(self) -> float:
        """Pixels of these frames per pixel of a 32-pixel frame."""
        return self.frames.shape[-1] / shapes.SIDE


def find_shape(frames: Array) -> Track:
    """Find the coloured shape by its distance from the grey of the ground.

    Args:
        frames: RGB [T, 3, S, S] in [0, 1].

    Returns:
        The shape of every frame.
    """
    num, _, side, _ = frames.shape
    scale = side / shapes.SIDE
    chroma = frames - frames.mean(1, keepdims=True)
    chroma = chroma - np.median(chroma, axis=(2, 3), keepdims=True)
    for _ in range(max(1, round(scale**2))):  # the same width in any size of frame
        chroma = _smooth(chroma)
    strength = np.sqrt((chroma**2).sum(1))  # [T, S, S]
    top = round(25 * scale**2)
    contrast = np.partition(rearrange(strength, "t h w -> t (h w)"), -top, axis=1)[:, -top:].mean(1)
    soft = np.clip(strength / np.maximum(contrast, 0.08)[:, None, None], 0, 1)
    mask = np.clip((soft - 0.3) / 0.4, 0, 1)
    place = (np.arange(side) + 0.5) / scale - 0.5
    area = mask.sum((1, 2))
    weight = np.maximum(area, 1e-6)
    x = (mask * place[None, None, :]).sum((1, 2)) / weight
    y = (mask * place[None, :, None]).sum((1, 2)) / weight
    return Track(frames, soft, mask, np.stack([x, y], 1), area / scale**2, contrast)


def _smooth(planes: Array) -> Array:
    """Return planes [..., S, S] after a 3 x 3 binomial filter, which keeps single noisy pixels out of the mask."""
    for axis in (-1, -2):
        width = [(0, 0)] * planes.ndim
        width[axis] = (1, 1)
        padded = np.moveaxis(np.pad(planes, width, mode="edge"), axis, -1)
        planes = np.moveaxis((padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]) / 4, -1, axis)
    return planes


def cut_out(track: Track) -> Array:
    """Return the mask around its centre, [T, PATCH, PATCH] on a 32-pixel frame's grid."""
    side = track.mask.shape[1]
    offsets = torch.arange(PATCH, dtype=torch.float64) - PATCH // 2
    centre = torch.from_numpy(track.centre)
    x = (centre[:, 0, None] + offsets + 0.5) * 2 / shapes.SIDE - 1  # [T, PATCH]
    y = (centre[:, 1, None] + offsets + 0.5) * 2 / shapes.SIDE - 1
    across, down = repeat(x, "t w -> t h w", h=PATCH), repeat(y, "t h -> t h w", w=PATCH)
    grid = torch.stack([across, down], -1)  # [T, PATCH, PATCH, 2]
    masks = torch.from_numpy(track.mask)[:, None]
    if side != shapes.SIDE:
        masks = torch.nn.functional.interpolate(masks, size=(shapes.SIDE, shapes.SIDE), mode="area")
    return torch.nn.functional.grid_sample(masks, grid, align_corners=False)[:, 0].numpy()


@cache
def _templates(sigma: float) -> tuple[tuple[str, ...], Array]:
    """Return the shape of each template, and the templates as unit vectors [N, PATCH * PATCH].

    Templates come in several sizes, blurred by `sigma` pixels, and go through the steps of `find_shape`.
    """
    offsets = torch.arange(PATCH, dtype=torch.float64) - PATCH // 2
    names, vectors = [], []
    for shape, radius in itertools.product(shapes.SHAPES, np.geomspace(4.0, 9.5, 19)):
        centre = (0.0, 0.0)
        for _ in range(2):  # the second time around the centre of the mask
            dx, dy = offsets[None, :] + centre[0], offsets[:, None] + centre[1]
            cover = shapes.shape_mask(shape, dx, dy, float(radius), edge=1.2)
            if sigma:
                cover = gaussian_blur(cover.expand(1, 1, PATCH, PATCH), sigma)[0, 0]
            soft = _smooth(cover.numpy())
            mask = np.clip((soft / np.sort(soft.ravel())[-25:].mean() - 0.3) / 0.4, 0, 1)
            x, y = ((mask * o.numpy()).sum() / mask.sum() for o in (offsets[None, :], offsets[:, None]))
            centre = (centre[0] + float(x), centre[1] + float(y))
        names.append(shape)
        vectors.append((mask / np.linalg.norm(mask)).ravel())
    return tuple(names), np.stack(vectors)


def match_shapes(picture: Array, edge: float) -> dict[str, float]:
    """Return shape -> best cosine similarity of a picture with its templates of all sizes.

    Args:
        picture: mask around the shape [PATCH, PATCH].
        edge: width of the clip's edges in pixels; templates are as blurred, or a blurred square would pass for a circle.

    Returns:
        Shape -> similarity in [0, 1].
    """
    sigma = min(EDGES, key=lambda sigma: abs(EDGES[sigma] - edge))
    names, templates = _templates(sigma)
    vector = picture.flatten()
    scores = templates @ (vector / max(float(np.linalg.norm(vector)), 1e-9))
    best: dict[str, float] = {}
    for shape, value in zip(names, scores, strict=True):
        best[shape] = max(best.get(shape, -1.0), float(value))
    return best


def colour_shares(track: Track) -> dict[str, float]:
    """Return colour -> share of the shape's pixels, over all frames, whose hue is nearest to it."""
    pixels = inside(track)
    if not len(pixels):
        return dict.fromkeys(world.COLOURS, 0.0)
    distance = ((_hue(pixels)[:, None] - _hue(np.array(list(world.COLOURS.values())))[None]) ** 2).sum(-1)
    counts = np.bincount(distance.argmin(1), minlength=len(world.COLOURS)) / len(pixels)
    return dict(zip(world.COLOURS, counts.tolist(), strict=True))


def edge_width(track: Track) -> float:
    """Return the mean width in pixels over which the cover goes from 0 to 1: 6 sum c(1 - c) / length of the edge."""
    near = _grow(track.mask > 0.02, round(3 * track.scale))
    cover = np.where(near, track.soft, 0)
    gy, gx = np.gradient(cover, axis=(1, 2))
    length = np.sqrt(gx**2 + gy**2).sum((1, 2))
    return float(np.median(6 * (cover * (1 - cover)).sum((1, 2)) / np.maximum(length, 1e-6)) / track.scale)


def _grow(mask: NDArray[np.bool_], steps: int) -> NDArray[np.bool_]:
    field = torch.from_numpy(mask).float()[:, None]
    return torch.nn.functional.max_pool2d(field, 2 * steps + 1, 1, steps)[:, 0].numpy() > 0


def read_ground(track: Track) -> tuple[float, Array, dict[str, float]]:
    """Return the ground's deviation from plane and pattern, its shade [T], and each pattern's contrast."""
    light = track.frames.mean(1)
    outside = ~_grow(track.mask > 0.05, round(2 * track.scale))
    design = _design(light.shape[-1])  # [S * S, 3 + patterns]
    rest, shades, contrasts = [], [], []
    for frame, ground in zip(light, outside, strict=True):
        if ground.mean() < 0.05:
            rest.append(0.3)  # no ground left: as bad as the worst grain
            shades.append(0.0)
            continue
        terms, values = design[ground.ravel()], frame[ground]
        weights = np.linalg.lstsq(terms.T @ terms, terms.T @ values, rcond=None)[0]
        rest.append(float((values - terms @ weights).std()))
        shades.append(float(np.median(values)))
        contrasts.append(weights[3:])
    mean = np.mean(contrasts, axis=0) if contrasts else np.zeros(len(shapes.BACKGROUNDS) - 1)
    return float(np.mean(rest)), np.array(shades), dict(zip(shapes.BACKGROUNDS[1:], mean.tolist(), strict=True))


@cache
def _design(side: int) -> Array:
    y, x = np.mgrid[:side, :side] / side - 0.5
    patterns = [shapes.background_pattern(name, side).double().numpy() for name in shapes.BACKGROUNDS[1:]]
    return rearrange(np.stack([np.ones_like(x), x, y, *patterns], -1), "h w k -> (h w) k")


def read_light(track: Track) -> tuple[float, float]:
    """Return the shape's brightest channel and its saturation over all frames, as shares of its pure colour's."""
    pixels = inside(track)
    if not len(pixels):
        return 0.0, 0.0
    shares = colour_shares(track)
    pure = world.COLOURS[max(shares, key=lambda name: shares[name])]
    high, low = float(np.median(pixels.max(1))), float(np.median(pixels.min(1)))
    return high / max(pure), (1 - low / max(high, 1e-6)) / (1 - min(pure) / max(pure))


def inside(track: Track) -> Array:
    """Return the colours [N, 3] of the pixels that lie wholly inside the shape."""
    return rearrange(track.frames, "t c h w -> t h w c")[track.mask > 0.9]  # [N, 3]


def read_steps(track: Track) -> dict[str, float]:
    """Return the unevenness of the steps from frame to frame, and the share of frames that stand still."""
    steps = np.diff(track.centre, axis=0)
    mean = steps.mean(0)
    spread = np.sqrt(((steps - mean) ** 2).sum(1).mean())
    speed = float(np.hypot(*mean))
    lengths = np.hypot(*steps.T)
    return {
        "unevenness": float(spread / math.hypot(speed, 0.7)),
        "stillness": float((lengths < 0.2 * max(float(np.max(lengths)), 0.7)).mean()),
    }


def _hue(colours: Array) -> Array:
    offset = colours - colours.min(-1, keepdims=True)
    return offset / np.maximum(np.linalg.norm(offset, axis=-1, keepdims=True), 1e-6)


def hue_change(track: Track) -> float:
    """Return the spread over the frames of the shape's mean hue."""
    inside = track.mask > 0.8
    mean = (track.frames * inside[:, None]).sum((2, 3)) / np.maximum(inside.sum((1, 2)), 1)[:, None]  # [T, 3]
    hue = _hue(mean)
    return float(np.sqrt(((hue - hue.mean(0)) ** 2).sum(1)).mean())


def velocity(track: Track) -> tuple[float, Array]:
    """Return speed in pixels a frame and direction (a unit vector, shorter for next to no motion), by a line fit."""
    time = np.arange(len(track.centre)) - (len(track.centre) - 1) / 2
    velocity = time @ track.centre / (time**2).sum()
    speed = float(np.hypot(*velocity))
    return speed, velocity / max(speed, 0.3)


def radius(track: Track) -> float:
    """Return the radius of the circle of the shape's area in a typical frame."""
    return math.sqrt(float(np.median(track.area)) / math.pi)
