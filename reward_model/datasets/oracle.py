"""Ground truth for the moving-shapes world: classical image processing measures any clip against its caption.

The judge never trains on it and it is no reward; it says whether a judge's reward was worth following. A clip is
measured in steps that a reader can follow: find the coloured shape in every frame, track it, then ask how sharp, clean,
well lit and whole it is (visual quality), how evenly it moves and stays itself (motion quality), and whether shape,
colour, direction, speed and size are the caption's (text alignment). Scales are fitted to `moving_shapes.TABLE`.

Shapes: T frames, S frame side in pixels, K shapes or colours.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reward_model.datasets import moving_shapes as world
from reward_model.media.distortions import blur

Array = NDArray[np.float64]

PATCH = 29
"""Side of the window around the shape, in pixels of a 32-pixel frame."""

CLEAN_EDGE = 2.8
"""Width of a clean clip's edges as `_edge_width` measures it, in pixels."""

EDGES = {0.0: CLEAN_EDGE, 0.9: 4.06, 1.4: 5.27, 2.0: 6.65, 2.8: 8.05}
"""Gaussian blur in pixels -> mean width of the edges."""

Scale = tuple[tuple[float, ...], tuple[float, ...]]

SCALES: dict[str, dict[str, Scale]] = {
    "visual_quality": {
        "edge": ((3.4, 4.06, 5.27, 6.65, 8.05, 12.0), (1.0, 0.81, 0.59, 0.35, 0.13, 0.0)),
        "grain": ((0.006, 0.034, 0.067, 0.105, 0.15, 0.3), (1.0, 0.8, 0.55, 0.3, 0.12, 0.0)),
        "light": ((0.0, 0.2, 0.4, 0.6, 0.8, 0.9), (0.0, 0.12, 0.3, 0.55, 0.8, 1.0)),
        "saturation": ((0.56, 0.69, 0.78, 0.84, 0.885, 0.925), (0.0, 0.12, 0.3, 0.55, 0.8, 1.0)),
        "form": ((0.6, 0.877, 0.918, 0.956, 0.975, 0.984), (0.05, 0.52, 0.7, 0.87, 0.97, 1.0)),
    },
    "motion_quality": {
        "flicker": ((0.025, 0.045, 0.08, 0.123, 0.208, 0.4), (1.0, 0.8, 0.55, 0.3, 0.12, 0.0)),
        "unevenness": ((0.2, 0.75, 1.39, 2.22, 3.63, 6.0), (1.0, 0.8, 0.55, 0.3, 0.12, 0.0)),
        "stillness": ((0.12, 0.25, 0.5, 0.75, 1.0), (1.0, 0.87, 0.6, 0.31, 0.1)),
        "hue_change": ((0.03, 0.114, 0.241, 0.377, 0.502, 0.8), (1.0, 0.8, 0.55, 0.3, 0.12, 0.0)),
        "form_change": ((0.05, 0.114, 0.226, 0.368, 0.531, 1.0), (1.0, 0.88, 0.7, 0.5, 0.32, 0.0)),
    },
}
"""Dimension -> measure -> knots of measure and of the quality left there; a dimension is the product of its measures.

The knots are the means that `scripts/oracle_report.py` finds at severities 0 to 4 of the matching defect."""

MARGINS = {
    "colour": (0.0, 0.6),
    "shape": (0.0, 0.25),
    "direction": (0.72, 0.92),
    "speed": (0.36, 0.18),
    "size": (0.26, 0.14),
    "background": (0.5, 0.25),
}
"""Attribute -> (certainly wrong, certainly right): lead in shares of pixels, relative lead in distance, cosine, and distances
from what was asked (logarithms of the ratio for speed and size, contrast as a share of the renderer's)."""


@dataclass(frozen=True)
class Track:
    """The shape found in every frame, in pixels of a 32-pixel frame.

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
        return self.frames.shape[-1] / world.SIDE


PARTS = {
    **{dimension: tuple(scales) for dimension, scales in SCALES.items()},
    "text_alignment": world.ATTRIBUTES,
}
"""Dimension -> the sub-scores whose product it is."""


def score(frames: Tensor, prompt: str) -> dict[str, float]:
    """Return every dimension -> quality in [0, 1] of a clip for a caption.

    Args:
        frames: RGB [T, 3, S, S] in [0, 1], T >= 3.
        prompt: a caption of `moving_shapes`.

    Returns:
        Dimension -> quality in [0, 1], "overall" among them.

    Raises:
        ValueError: `prompt` is no caption of the world, or the clip is too short or not square.
    """
    found = measure(frames, prompt)
    quality = {name: found["presence"] * math.prod(found[part] for part in parts) for name, parts in PARTS.items()}
    return quality | {"overall": world.overall(quality)}


def measure(frames: Tensor, prompt: str) -> dict[str, float]:
    """Return the sub-scores of `PARTS` in [0, 1], and presence: whether one whole shape is there in every frame.

    Args:
        frames: RGB [T, 3, S, S] in [0, 1], T >= 3.
        prompt: a caption of `moving_shapes`.

    Returns:
        Sub-score -> [0, 1].

    Raises:
        ValueError: `prompt` is no caption of the world, or the clip is too short or not square.
    """
    asked, track = _asked(prompt), _track(frames)
    raw = raw_measures(track)
    left = {name: float(np.interp(raw[name], *knots)) for scales in SCALES.values() for name, knots in scales.items()}
    rights = attribute_scores(track, asked)
    matched = {name: world.WRONG[name] + (1 - world.WRONG[name]) * right for name, right in rights.items()}
    return {"presence": raw["presence"], **left, **matched}


def read_attributes(frames: Tensor, grammar: world.Grammar) -> world.Scene:
    """Return the scene of `grammar` that a clip shows, attribute by attribute."""
    track = _track(frames)
    shares, similar = colour_shares(track), match_shapes(cut_out(track).mean(0), _edge_width(track))
    speed, direction = _velocity(track)
    radius, (_, _, contrasts) = _radius(track), _ground(track)
    return world.Scene(
        shape=max(grammar.shapes, key=lambda v: similar[v]),
        colour=max(grammar.colours, key=lambda v: shares[v]),
        direction=max(grammar.directions, key=lambda v: float(np.dot(direction, world.DIRECTIONS[v]))),
        speed=min(grammar.speeds, key=lambda v: _log_ratio(speed, world.SPEEDS[v])),
        size=min(grammar.sizes, key=lambda v: _log_ratio(radius, world.SIZES[v])),
        background=min(grammar.backgrounds, key=lambda v: _background_distance(contrasts, v)),
    )


def open_features(frames: Tensor, prompt: str) -> dict[str, float]:
    """Measure what a caption leaves open: the ground's shade, the place across the path, the shape's tint.

    Args:
        frames: RGB [T, 3, S, S] in [0, 1], T >= 3.
        prompt: a caption of `moving_shapes`.

    Returns:
        shade in grey levels, place in pixels of a 32-pixel frame from the middle, tint as the light of the shape; a clip
        without a shape gives NaN for the last two.

    Raises:
        ValueError: `prompt` is no caption of the world, or the clip is too short or not square.
    """
    asked, track = _asked(prompt), _track(frames)
    _, levels, _ = _ground(track)
    pixels = _inside(track)
    x, y = world.DIRECTIONS[asked.direction]
    offset = track.centre.mean(0) - (world.SIDE - 1) / 2
    found = len(pixels) > 0
    return {
        "shade": float(np.mean(levels)),
        "place": float(np.dot(offset, (-y, x))) if found else math.nan,
        "tint": float(np.median(pixels.mean(1))) if found else math.nan,
    }


def _asked(prompt: str) -> world.Scene:
    scene = world.parse_caption(prompt)
    if scene is None:
        raise ValueError(f"the oracle knows captions of moving shapes only, got {prompt!r}")
    return scene


def _track(frames: Tensor) -> Track:
    if frames.ndim != 4 or len(frames) < 3 or frames.shape[1] != 3 or frames.shape[2] != frames.shape[3]:
        raise ValueError(f"frames must be square RGB [T >= 3, 3, S, S], got shape {tuple(frames.shape)}")
    return find_shape(np.asarray(frames.detach().cpu(), dtype=np.float64))


def find_shape(frames: Array) -> Track:
    """Find the coloured shape by its distance from the grey of the ground.

    Args:
        frames: RGB [T, 3, S, S] in [0, 1].

    Returns:
        The shape of every frame.
    """
    num, _, side, _ = frames.shape
    scale = side / world.SIDE
    chroma = frames - frames.mean(1, keepdims=True)
    chroma = chroma - np.median(chroma, axis=(2, 3), keepdims=True)
    for _ in range(max(1, round(scale**2))):  # the same width in any size of frame
        chroma = _smooth(chroma)
    strength = np.sqrt((chroma**2).sum(1))  # [T, S, S]
    top = round(25 * scale**2)
    contrast = np.partition(strength.reshape(num, -1), -top, axis=1)[:, -top:].mean(1)
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
    num, side = track.mask.shape[:2]
    offsets = torch.arange(PATCH, dtype=torch.float64) - PATCH // 2
    centre = torch.from_numpy(track.centre)
    x = (centre[:, 0, None] + offsets + 0.5) * 2 / world.SIDE - 1  # [T, PATCH]
    y = (centre[:, 1, None] + offsets + 0.5) * 2 / world.SIDE - 1
    grid = torch.stack([x[:, None, :].expand(num, PATCH, PATCH), y[:, :, None].expand(num, PATCH, PATCH)], -1)
    masks = torch.from_numpy(track.mask)[:, None]
    if side != world.SIDE:
        masks = torch.nn.functional.interpolate(masks, size=(world.SIDE, world.SIDE), mode="area")
    return torch.nn.functional.grid_sample(masks, grid, align_corners=False)[:, 0].numpy()


@cache
def _templates(sigma: float) -> tuple[tuple[str, ...], Array]:
    """Return the shape of each template, and the templates as unit vectors [N, PATCH * PATCH].

    Templates come in several sizes, blurred by `sigma` pixels, and go through the steps of `find_shape`.
    """
    offsets = torch.arange(PATCH, dtype=torch.float64) - PATCH // 2
    names, rows = [], []
    for shape, radius in itertools.product(world.SHAPES, np.geomspace(4.0, 9.5, 19)):
        centre = (0.0, 0.0)
        for _ in range(2):  # the second time around the centre of the mask
            dx, dy = offsets[None, :] + centre[0], offsets[:, None] + centre[1]
            cover = world.shape_mask(shape, dx, dy, float(radius), edge=1.2)
            if sigma:
                cover = blur(cover.expand(1, 1, PATCH, PATCH), sigma, torch.Generator())[0, 0]
            soft = _smooth(cover.numpy())
            mask = np.clip((soft / np.sort(soft.ravel())[-25:].mean() - 0.3) / 0.4, 0, 1)
            x, y = ((mask * o.numpy()).sum() / mask.sum() for o in (offsets[None, :], offsets[:, None]))
            centre = (centre[0] + float(x), centre[1] + float(y))
        names.append(shape)
        rows.append((mask / np.linalg.norm(mask)).ravel())
    return tuple(names), np.stack(rows)


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
    pixels = _inside(track)
    if not len(pixels):
        return dict.fromkeys(world.COLOURS, 0.0)
    distance = ((_hue(pixels)[:, None] - _hue(np.array(list(world.COLOURS.values())))[None]) ** 2).sum(-1)
    counts = np.bincount(distance.argmin(1), minlength=len(world.COLOURS)) / len(pixels)
    return dict(zip(world.COLOURS, counts.tolist(), strict=True))


def attribute_scores(track: Track, asked: world.Scene) -> dict[str, float]:
    """Return attribute -> in [0, 1] how surely the clip shows what was asked, by `MARGINS`."""
    speed, direction = _velocity(track)
    _, _, contrasts = _ground(track)
    found = {
        "colour": _lead(colour_shares(track), asked.colour),
        "shape": _relative_lead(match_shapes(cut_out(track).mean(0), _edge_width(track)), asked.shape),
        "direction": float(np.dot(direction, world.DIRECTIONS[asked.direction])),
        "speed": _log_ratio(speed, world.SPEEDS[asked.speed]),
        "size": _log_ratio(_radius(track), world.SIZES[asked.size]),
        "background": _background_distance(contrasts, asked.background),
    }
    return {
        name: float(np.clip((value - MARGINS[name][0]) / (MARGINS[name][1] - MARGINS[name][0]), 0, 1))
        for name, value in found.items()
    }


def _lead(values: dict[str, float], name: str) -> float:
    return values[name] - max(value for other, value in values.items() if other != name)


def _relative_lead(similar: dict[str, float], name: str) -> float:
    """Return by which share of its distance the runner-up is farther away than `name`; negative if it is nearer.

    A share holds for blurred shapes too, which are all alike in absolute terms.
    """
    distance = 1 - similar[name]
    other = 1 - max(value for shape, value in similar.items() if shape != name)
    return (other - distance) / max(other, distance, 1e-6)


def _log_ratio(value: float, wanted: float) -> float:
    return abs(math.log(max(value, 1e-3) / wanted))


def _velocity(track: Track) -> tuple[float, Array]:
    """Return speed in pixels a frame and direction (a unit vector, shorter for next to no motion), by a line fit."""
    time = np.arange(len(track.centre)) - (len(track.centre) - 1) / 2
    velocity = time @ track.centre / (time**2).sum()
    speed = float(np.hypot(*velocity))
    return speed, velocity / max(speed, 0.3)


def _radius(track: Track) -> float:
    """Return the radius of the circle of the shape's area in a typical frame."""
    return math.sqrt(float(np.median(track.area)) / math.pi)


def _background_distance(contrasts: dict[str, float], background: str) -> float:
    """Return how far the patterns' contrasts are from the renderer's, as a share of it."""
    wanted = {name: world.PATTERN_CONTRAST * (name == background) for name in contrasts}
    return math.dist(contrasts.values(), wanted.values()) / world.PATTERN_CONTRAST


def raw_measures(track: Track) -> dict[str, float]:
    """Measure what needs no caption, in plain units; `SCALES` turns each into the quality that it leaves.

    Args:
        track: the shape of every frame.

    Returns:
        edge (width in pixels), grain (deviation of the ground), light and saturation (of the shape), form (similarity to
        the nearest shape), flicker (change of light from frame to frame), unevenness and stillness (of the steps),
        hue_change, form_change, and presence (the worst frame's area and contrast, 1 is enough).
    """
    patches = cut_out(track)
    mean_patch = patches.mean(0)
    edge = _edge_width(track)
    light, saturation = _light(track)
    greyed = 0.045 * max(edge - CLEAN_EDGE, 0.0)  # blur mixes in the ground's grey, which is no fault of the light
    grain, levels, _ = _ground(track)
    return {
        "edge": edge,
        "grain": grain,
        "light": light + greyed,
        "saturation": saturation + greyed,
        "form": float(np.mean([max(match_shapes(patch, edge).values()) for patch in patches])),
        "flicker": float(np.abs(np.diff(levels)).mean()),
        **_steps(track),
        "hue_change": _hue_change(track),
        "form_change": float(np.abs(patches - mean_patch).sum((1, 2)).mean() / max(mean_patch.sum(), 1.0)),
        "presence": float(
            min((track.area / 40).min(), (track.strength / 0.08).min(), 300 / max(track.area.max(), 1.0), 1.0)
        ),
    }


def _edge_width(track: Track) -> float:
    """Return the mean width in pixels over which the cover goes from 0 to 1: 6 sum c(1 - c) / length of the edge."""
    near = _grow(track.mask > 0.02, round(3 * track.scale))
    cover = np.where(near, track.soft, 0)
    gy, gx = np.gradient(cover, axis=(1, 2))
    length = np.sqrt(gx**2 + gy**2).sum((1, 2))
    return float(np.median(6 * (cover * (1 - cover)).sum((1, 2)) / np.maximum(length, 1e-6)) / track.scale)


def _grow(mask: NDArray[np.bool_], steps: int) -> NDArray[np.bool_]:
    field = torch.from_numpy(mask).float()[:, None]
    return torch.nn.functional.max_pool2d(field, 2 * steps + 1, 1, steps)[:, 0].numpy() > 0


def _ground(track: Track) -> tuple[float, Array, dict[str, float]]:
    """Read the ground: what is left of it after plane and pattern, its level [T], and each pattern's contrast."""
    light = track.frames.mean(1)
    outside = ~_grow(track.mask > 0.05, round(2 * track.scale))
    design = _design(light.shape[-1])  # [S * S, 3 + patterns]
    rest, levels, contrasts = [], [], []
    for frame, ground in zip(light, outside, strict=True):
        if ground.mean() < 0.05:
            rest.append(0.3)  # no ground left: as bad as the worst grain
            levels.append(0.0)
            continue
        rows, values = design[ground.ravel()], frame[ground]
        weights = np.linalg.lstsq(rows.T @ rows, rows.T @ values, rcond=None)[0]
        rest.append(float((values - rows @ weights).std()))
        levels.append(float(np.median(values)))
        contrasts.append(weights[3:])
    mean = np.mean(contrasts, axis=0) if contrasts else np.zeros(len(world.BACKGROUNDS) - 1)
    return float(np.mean(rest)), np.array(levels), dict(zip(world.BACKGROUNDS[1:], mean.tolist(), strict=True))


@cache
def _design(side: int) -> Array:
    y, x = np.mgrid[:side, :side] / side - 0.5
    patterns = [world.background_pattern(name, side).double().numpy() for name in world.BACKGROUNDS[1:]]
    return np.stack([np.ones_like(x), x, y, *patterns], -1).reshape(side * side, -1)


def _light(track: Track) -> tuple[float, float]:
    """Return the shape's brightest channel and its saturation over all frames, as shares of its pure colour's."""
    pixels = _inside(track)
    if not len(pixels):
        return 0.0, 0.0
    shares = colour_shares(track)
    pure = world.COLOURS[max(shares, key=lambda name: shares[name])]
    high, low = float(np.median(pixels.max(1))), float(np.median(pixels.min(1)))
    return high / max(pure), (1 - low / max(high, 1e-6)) / (1 - min(pure) / max(pure))


def _inside(track: Track) -> Array:
    return track.frames.transpose(0, 2, 3, 1)[track.mask > 0.9]  # [N, 3]


def _steps(track: Track) -> dict[str, float]:
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


def _hue_change(track: Track) -> float:
    inside = track.mask > 0.8
    mean = (track.frames * inside[:, None]).sum((2, 3)) / np.maximum(inside.sum((1, 2)), 1)[:, None]  # [T, 3]
    hue = _hue(mean)
    return float(np.sqrt(((hue - hue.mean(0)) ** 2).sum(1)).mean())
