"""Ground truth for the moving-shapes world: classical image processing measures any clip against its caption.

The judge never trains on it and it is no reward; it tells whether a judge's reward was worth following. A clip is
measured in steps: find the coloured shape in every frame, track it, then measure how sharp, clean, well lit and whole it
is (visual quality), how evenly it moves and keeps its form and hue (motion quality), and whether shape, colour,
direction, speed and size are the caption's (text alignment). Scales are fitted to `labels.TABLE`.

Shapes: T frames, S frame side in pixels, K shapes or colours.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from reward_model.toy_world import labels, shapes
from reward_model.toy_world import moving_shapes as world
from reward_model.toy_world import tracker as tracking
from reward_model.toy_world.tracker import Track

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

The knots are the means that `scripts/experiments/oracle_report.py` finds at severities 0 to 4 of the matching defect."""

MARGINS = {
    "colour": (0.0, 0.6),
    "shape": (0.0, 0.25),
    "direction": (0.72, 0.92),
    "speed": (0.36, 0.18),
    "size": (0.26, 0.14),
    "background": (0.5, 0.25),
}
"""Attribute -> (certainly wrong, certainly right): lead in shares of pixels, relative lead in distance, cosine, and distances
from the caption's value (logarithms of the ratio for speed and size, contrast as a share of the renderer's)."""


SUB_SCORES = {
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
    measured = measure(frames, prompt)
    quality = {
        name: measured["presence"] * math.prod(measured[one] for one in sub_scores)
        for name, sub_scores in SUB_SCORES.items()
    }
    return quality | {"overall": labels.overall(quality)}


def measure(frames: Tensor, prompt: str) -> dict[str, float]:
    """Return the sub-scores of `SUB_SCORES` in [0, 1], and presence: whether one whole shape is there in every frame.

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
    matched = {name: labels.WRONG[name] + (1 - labels.WRONG[name]) * right for name, right in rights.items()}
    return {"presence": raw["presence"], **left, **matched}


def read_attributes(frames: Tensor, grammar: world.Grammar) -> world.Scene:
    """Return the scene of `grammar` that a clip shows, attribute by attribute."""
    track = _track(frames)
    shares, similar = (
        tracking.colour_shares(track),
        tracking.match_shapes(tracking.cut_out(track).mean(0), tracking.edge_width(track)),
    )
    speed, direction = tracking.velocity(track)
    radius, (_, _, contrasts) = tracking.radius(track), tracking.read_ground(track)
    return world.Scene(
        shape=max(grammar.shapes, key=lambda v: similar[v]),
        colour=max(grammar.colours, key=lambda v: shares[v]),
        direction=max(grammar.directions, key=lambda v: float(np.dot(direction, world.DIRECTIONS[v]))),
        speed=min(grammar.speeds, key=lambda v: _log_ratio(speed, world.SPEEDS[v])),
        size=min(grammar.sizes, key=lambda v: _log_ratio(radius, world.SIZES[v])),
        background=min(grammar.backgrounds, key=lambda v: _background_distance(contrasts, v)),
    )


def open_features(frames: Tensor, prompt: str) -> dict[str, float]:
    """Measure the properties that a caption leaves open: the ground's shade, the place across the path, the shape's tint.

    Args:
        frames: RGB [T, 3, S, S] in [0, 1], T >= 3.
        prompt: a caption of `moving_shapes`.

    Returns:
        shade in [0, 1], place in pixels of a 32-pixel frame from the middle, tint as the light of the shape; a clip
        without a shape gives NaN for the last two.

    Raises:
        ValueError: `prompt` is no caption of the world, or the clip is too short or not square.
    """
    asked, track = _asked(prompt), _track(frames)
    _, shades, _ = tracking.read_ground(track)
    pixels = tracking.inside(track)
    x, y = world.DIRECTIONS[asked.direction]
    offset = track.centre.mean(0) - (shapes.SIDE - 1) / 2
    has_shape = len(pixels) > 0
    return {
        "shade": float(np.mean(shades)),
        "place": float(np.dot(offset, (-y, x))) if has_shape else math.nan,
        "tint": float(np.median(pixels.mean(1))) if has_shape else math.nan,
    }


def _asked(prompt: str) -> world.Scene:
    scene = world.parse_caption(prompt)
    if scene is None:
        raise ValueError(f"the oracle knows captions of moving shapes only, got {prompt!r}")
    return scene


def _track(frames: Tensor) -> Track:
    if frames.ndim != 4 or len(frames) < 3 or frames.shape[1] != 3 or frames.shape[2] != frames.shape[3]:
        raise ValueError(f"frames must be square RGB [T >= 3, 3, S, S], got shape {tuple(frames.shape)}")
    return tracking.find_shape(np.asarray(frames.detach().cpu(), dtype=np.float64))


def attribute_scores(track: Track, asked: world.Scene) -> dict[str, float]:
    """Return attribute -> certainty in [0, 1] that the clip shows the asked value, by `MARGINS`."""
    speed, direction = tracking.velocity(track)
    _, _, contrasts = tracking.read_ground(track)
    raw = {
        "colour": _lead(tracking.colour_shares(track), asked.colour),
        "shape": _relative_lead(
            tracking.match_shapes(tracking.cut_out(track).mean(0), tracking.edge_width(track)), asked.shape
        ),
        "direction": float(np.dot(direction, world.DIRECTIONS[asked.direction])),
        "speed": _log_ratio(speed, world.SPEEDS[asked.speed]),
        "size": _log_ratio(tracking.radius(track), world.SIZES[asked.size]),
        "background": _background_distance(contrasts, asked.background),
    }
    return {
        name: float(np.clip((value - MARGINS[name][0]) / (MARGINS[name][1] - MARGINS[name][0]), 0, 1))
        for name, value in raw.items()
    }


def _lead(values: dict[str, float], name: str) -> float:
    return values[name] - max(value for other, value in values.items() if other != name)


def _relative_lead(similar: dict[str, float], name: str) -> float:
    """Return the share of its distance by which the runner-up is farther away than `name`; negative if it is nearer.

    A share holds for blurred shapes too, which are all alike in absolute terms.
    """
    distance = 1 - similar[name]
    other = 1 - max(value for shape, value in similar.items() if shape != name)
    return (other - distance) / max(other, distance, 1e-6)


def _log_ratio(value: float, wanted: float) -> float:
    return abs(math.log(max(value, 1e-3) / wanted))


def _background_distance(contrasts: dict[str, float], background: str) -> float:
    """Return how far the patterns' contrasts are from the renderer's, as a share of it."""
    wanted = {name: world.PATTERN_CONTRAST * (name == background) for name in contrasts}
    return math.dist(contrasts.values(), wanted.values()) / world.PATTERN_CONTRAST


def raw_measures(track: Track) -> dict[str, float]:
    """Measure the properties that need no caption, in plain units; `SCALES` maps each to the quality that it leaves.

    Args:
        track: the shape of every frame.

    Returns:
        edge (width in pixels), grain (deviation of the ground), light and saturation (of the shape), form (similarity to
        the nearest shape), flicker (change of light from frame to frame), unevenness and stillness (of the steps),
        hue_change, form_change, and presence (the worst frame's area and contrast, 1 is enough).
    """
    patches = tracking.cut_out(track)
    mean_patch = patches.mean(0)
    edge = tracking.edge_width(track)
    light, saturation = tracking.read_light(track)
    # blur mixes in the ground's grey, which is no fault of the light
    greyed = 0.045 * max(edge - tracking.CLEAN_EDGE, 0.0)
    grain, shades, _ = tracking.read_ground(track)
    return {
        "edge": edge,
        "grain": grain,
        "light": light + greyed,
        "saturation": saturation + greyed,
        "form": float(np.mean([max(tracking.match_shapes(patch, edge).values()) for patch in patches])),
        "flicker": float(np.abs(np.diff(shades)).mean()),
        **tracking.read_steps(track),
        "hue_change": tracking.hue_change(track),
        "form_change": float(np.abs(patches - mean_patch).sum((1, 2)).mean() / max(mean_patch.sum(), 1.0)),
        "presence": float(
            min((track.area / 40).min(), (track.strength / 0.08).min(), 300 / max(track.area.max(), 1.0), 1.0)
        ),
    }
