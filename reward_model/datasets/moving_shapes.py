"""A small world of its own: captioned clips of one moving shape, damaged and mismatched to known degrees.

A caption fixes shape, colour, direction, speed, size and background. It leaves open where the shape starts across its
path, its tint, and the shade of the ground. Lengths are in pixels of a 32-pixel frame and scale with the frame.

Shapes: T frames, S frame side in pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from reward_model.media.distortions import DEFECTS, distort
from reward_model.records import RatedClip, Video

FPS, NUM_FRAMES, SIDE = 8.0, 9, 32

COLOURS = {
    "red": (0.90, 0.10, 0.10),
    "orange": (0.95, 0.50, 0.05),
    "yellow": (0.92, 0.88, 0.10),
    "green": (0.10, 0.75, 0.12),
    "cyan": (0.10, 0.85, 0.90),
    "blue": (0.12, 0.25, 0.95),
    "purple": (0.55, 0.10, 0.90),
    "pink": (0.95, 0.10, 0.65),
}
"""RGB in [0, 1]: one bright and one dark channel each, so that light and saturation do not depend on the colour."""

_D = math.sqrt(0.5)
DIRECTIONS = {
    "right": (1.0, 0.0),
    "down": (0.0, 1.0),
    "left": (-1.0, 0.0),
    "up": (0.0, -1.0),
    "down-right": (_D, _D),
    "down-left": (-_D, _D),
    "up-left": (-_D, -_D),
    "up-right": (_D, -_D),
}
"""Unit vectors; x grows to the right, y downwards."""

SPEEDS = {"slowly": 0.7, "steadily": 1.15, "quickly": 1.8}
"""Pixels a frame."""

SIZES = {"small": 5.2, "medium": 6.2, "large": 7.4}
"""Radius of the circle of the same area as the shape."""

SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")
BACKGROUNDS = ("plain", "striped", "checkered", "dotted")

OPEN_RANGES = {"shade": (0.3, 0.55), "slope": (-0.06, 0.06), "tint": (-0.05, 0.05), "place": (-6.0, 6.0)}
"""What a caption leaves open, each drawn evenly: grey level of the ground and its rise to the bottom, colour offset of
each channel, start across the path in pixels (less where the shape would leave the frame)."""

PATTERN_CONTRAST = 0.12
"""Grey levels between the light and the dark of a patterned ground."""


@dataclass(frozen=True)
class Scene:
    """What a caption says."""

    shape: str
    colour: str
    direction: str
    speed: str
    size: str
    background: str


ATTRIBUTES = tuple(field.name for field in dataclasses.fields(Scene))


@dataclass(frozen=True)
class Grammar:
    """The values that each attribute may take."""

    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    directions: tuple[str, ...]
    speeds: tuple[str, ...]
    sizes: tuple[str, ...]
    backgrounds: tuple[str, ...]

    def values(self, attribute: str) -> tuple[str, ...]:
        """Return the values of one attribute."""
        return dict(zip(ATTRIBUTES, self._all(), strict=True))[attribute]

    def scenes(self) -> tuple[Scene, ...]:
        """Return every combination, in a fixed order."""
        return tuple(Scene(*values) for values in itertools.product(*self._all()))

    def _all(self) -> tuple[tuple[str, ...], ...]:
        return self.shapes, self.colours, self.directions, self.speeds, self.sizes, self.backgrounds


FULL = Grammar(SHAPES, tuple(COLOURS), tuple(DIRECTIONS), tuple(SPEEDS), tuple(SIZES), BACKGROUNDS)

CORE = Grammar(
    shapes=("square", "triangle", "cross", "ring"),
    colours=("red", "yellow", "green", "cyan", "blue", "purple"),
    directions=("right", "down", "left", "up"),
    speeds=("slowly", "quickly"),
    sizes=("small", "large"),
    backgrounds=("plain",),
)
"""What the toy models speak: 384 captions."""

CORE_DEFECTS = ("blur", "grain", "darken", "flicker", "jitter", "freeze", "identity_drift", "warp")
"""Defects in the toy models' training clips."""

FALL = (1.0, 0.8, 0.55, 0.3, 0.12)
"""Quality left at severities 0 to 4 in a dimension that a defect strikes."""

TABLE: dict[str, dict[str, tuple[float, ...]]] = {
    "downscale": {"visual_quality": FALL, "text_alignment": (1.0, 1.0, 0.97, 0.9, 0.78)},
    "blur": {"visual_quality": FALL, "text_alignment": (1.0, 1.0, 0.98, 0.87, 0.68)},
    "noise": {"visual_quality": (1.0, 0.86, 0.67, 0.43, 0.13), "motion_quality": (1.0, 1.0, 1.0, 0.98, 0.8)},
    "grain": {"visual_quality": FALL, "motion_quality": (1.0, 1.0, 1.0, 0.99, 0.9)},
    "darken": {"visual_quality": FALL},
    "brighten": {"visual_quality": FALL, "text_alignment": (1.0, 1.0, 1.0, 0.98, 0.84)},
    "h264": {
        "visual_quality": (1.0, 0.71, 0.55, 0.37, 0.22),
        "motion_quality": (1.0, 1.0, 0.99, 0.85, 0.6),
        "text_alignment": (1.0, 1.0, 1.0, 0.9, 0.7),
    },
    "h265": {
        "visual_quality": (1.0, 0.73, 0.63, 0.48, 0.3),
        "motion_quality": (1.0, 1.0, 0.96, 0.83, 0.53),
        "text_alignment": (1.0, 1.0, 1.0, 0.94, 0.7),
    },
    "flicker": {"motion_quality": FALL, "visual_quality": (1.0, 1.0, 1.0, 0.97, 0.9)},
    "jitter": {"motion_quality": FALL, "text_alignment": (1.0, 1.0, 0.99, 0.9, 0.82)},
    "stutter": {"motion_quality": FALL, "text_alignment": (1.0, 0.98, 0.98, 0.87, 0.65)},
    "freeze": {"motion_quality": FALL, "text_alignment": (1.0, 0.93, 0.6, 0.31, 0.18)},
    "shuffle": {"motion_quality": FALL, "text_alignment": (1.0, 1.0, 0.97, 0.9, 0.55)},
    "identity_drift": {
        "motion_quality": FALL,
        "visual_quality": (1.0, 0.97, 0.88, 0.92, 0.92),
        "text_alignment": (1.0, 0.71, 0.32, 0.3, 0.3),
    },
    "warp": {
        "motion_quality": FALL,
        "visual_quality": (1.0, 0.97, 0.87, 0.7, 0.52),
        "text_alignment": (1.0, 1.0, 0.99, 0.94, 0.68),
    },
}
"""Defect -> dimension -> quality left at severities 0 to 4; where a defect is not named it leaves all.

A defect strikes alignment where it hides what was asked for: a frozen shape shows no direction, a drifting one has no
one colour."""

WRONG = {"shape": 0.4, "colour": 0.3, "direction": 0.3, "speed": 0.6, "size": 0.65, "background": 0.75}
"""Attribute -> text alignment left where the clip shows another value than the caption asks for."""

SPLIT_SIZES = (64, 64)
"""Captions held out from everything, and captions for fine-tuning that pre-training leaves out as well."""


def caption(scene: Scene) -> str:
    """Return the sentence that describes a scene."""
    s = scene
    return f"a {s.size} {s.colour} {s.shape} moving {s.direction} {s.speed} over a {s.background} floor"


def parse_caption(text: str) -> Scene | None:
    """Return the scene that `caption` would describe by this text, or None for any other text."""
    words = text.split()
    if len(words) != 11:
        return None
    scene = Scene(words[3], words[2], words[5], words[6], words[1], words[9])
    known = all(getattr(scene, name) in FULL.values(name) for name in ATTRIBUTES)
    return scene if known and caption(scene) == text else None


def split(grammar: Grammar) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """Return training and held-out scenes: unseen combinations of seen values, the same on every machine."""
    scenes = _shuffled(grammar)
    return scenes[SPLIT_SIZES[0] :], scenes[: SPLIT_SIZES[0]]


def pretraining_scenes(grammar: Grammar) -> tuple[Scene, ...]:
    """Return the training scenes that generators are pre-trained on; the rest of them is new to them in fine-tuning."""
    return _shuffled(grammar)[sum(SPLIT_SIZES) :]


def finetuning_scenes(grammar: Grammar) -> tuple[Scene, ...]:
    """Return the training scenes that pre-training leaves out."""
    return _shuffled(grammar)[SPLIT_SIZES[0] : sum(SPLIT_SIZES)]


def _shuffled(grammar: Grammar) -> tuple[Scene, ...]:
    return tuple(sorted(grammar.scenes(), key=lambda scene: hashlib.sha256(caption(scene).encode()).digest()))


def render(scene: Scene, *, generator: torch.Generator, num_frames: int = NUM_FRAMES, size: int = SIDE) -> Tensor:
    """Draw a clean clip of a scene; what the caption leaves open is drawn from `generator`.

    Args:
        scene: what to show.
        generator: CPU source of start place, tint and shade.
        num_frames: T.
        size: S, in pixels.

    Returns:
        Float32 RGB [T, 3, S, S] in [0, 1].
    """
    draw = torch.rand(7, generator=generator).tolist()
    scale, radius, speed = size / SIDE, SIZES[scene.size], SPEEDS[scene.speed]
    velocity = DIRECTIONS[scene.direction]
    along = speed * (torch.arange(num_frames) - (num_frames - 1) / 2)
    room = min(OPEN_RANGES["place"][1], SIDE / 2 - 1.2 * radius)
    place, start = (2 * draw[0] - 1) * room, (2 * draw[1] - 1) * 0.5
    centre = (SIDE - 1) / 2
    x = centre + (along + start) * velocity[0] - place * velocity[1]
    y = centre + (along + start) * velocity[1] + place * velocity[0]
    pixels = (torch.arange(size) + 0.5) / scale - 0.5
    dx, dy = pixels[None, None, :] - x[:, None, None], pixels[None, :, None] - y[:, None, None]
    mask = shape_mask(scene.shape, dx, dy, radius, edge=1.2 / scale)  # [T, S, S]
    ground = _ground(scene.background, size, _between("shade", draw[2]), _between("slope", draw[3]))
    tint = torch.tensor([_between("tint", u) for u in draw[4:]])
    colour = (torch.tensor(COLOURS[scene.colour]) + tint).clamp(0, 1)[:, None, None]
    return torch.lerp(ground, colour, mask[:, None])


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


def label(defects: Mapping[str, float], asked: Scene, shown: Scene) -> dict[str, float]:
    """Return the quality of a clip whose making is known, by the one table.

    Args:
        defects: name -> severity in [0, 4].
        asked: the scene of the prompt.
        shown: the scene that was drawn before the defects.

    Returns:
        Every dimension -> quality in [0, 1].
    """
    quality = dict.fromkeys(("visual_quality", "motion_quality", "text_alignment"), 1.0)
    for name, severity in defects.items():
        for dimension, factors in TABLE[name].items():
            quality[dimension] *= _at(factors, severity)
    for name in wrong_attributes(asked, shown):
        quality["text_alignment"] *= WRONG[name]
    return quality | {"overall": overall(quality)}


def overall(quality: Mapping[str, float]) -> float:
    """Return the geometric mean of the three dimensions, pulled towards the worst of them.

    It is the root of worst times geometric mean, so that no dimension can make up for another that fails.
    """
    parts = [quality[name] for name in ("visual_quality", "motion_quality", "text_alignment")]
    return math.sqrt(min(parts) * math.prod(parts) ** (1 / 3))


def wrong_attributes(asked: Scene, shown: Scene) -> tuple[str, ...]:
    """Return the attributes in which two scenes differ."""
    return tuple(name for name in ATTRIBUTES if getattr(asked, name) != getattr(shown, name))


def sample_rated(
    num: int,
    *,
    seed: int,
    scenes: Sequence[Scene] | None = None,
    grammar: Grammar = CORE,
    defects: Sequence[str] = CORE_DEFECTS,
    clean_share: float = 0.25,
    match_share: float = 0.5,
    group_size: int = 1,
    num_frames: int = NUM_FRAMES,
    size: int = SIDE,
) -> list[RatedClip]:
    """Draw clips with labels: some clean, most with one to three defects, many unlike their prompt.

    Args:
        num: number of clips.
        seed: equal seeds give equal clips.
        scenes: what prompts ask for and clips show; None takes the training scenes of `grammar`.
        grammar: whose training scenes.
        defects: kinds of damage to draw from.
        clean_share: chance of a clip without defects.
        match_share: chance of a clip that shows what its prompt asks for.
        group_size: neighbours that share a prompt.
        num_frames: T.
        size: frame side in pixels.

    Returns:
        Clips with `facts`: scene asked and shown, defects with severities, the caption of what is shown, and the
        faults by dimension.
    """
    pool = split(grammar)[0] if scenes is None else tuple(scenes)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    clips: list[RatedClip] = []
    asked = pool[0]
    for i in range(num):
        asked = rng.choice(pool) if i % group_size == 0 else asked
        shown = asked if rng.random() < match_share else mismatch(asked, pool, rng, num=rng.choice((1, 1, 2, 3)))
        damage = draw_defects(rng, defects, clean_share=clean_share)
        clean = render(shown, generator=generator, num_frames=num_frames, size=size)
        clips.append(rate(clean, asked, shown, damage, generator, f"moving_shapes/{seed}/{i}"))
    return clips


def draw_defects(rng: random.Random, defects: Sequence[str], *, clean_share: float) -> dict[str, float]:
    """Draw one to three kinds of damage with severities, or none with chance `clean_share`."""
    if rng.random() < clean_share:
        return {}
    return {name: round(rng.uniform(0.5, 4), 2) for name in rng.sample(defects, rng.choice((1, 2, 2, 3)))}


def rate(
    clean: Tensor, asked: Scene, shown: Scene, defects: Mapping[str, float], generator: torch.Generator, source_id: str
) -> RatedClip:
    """Damage a clean clip and label it.

    Args:
        clean: float32 RGB [T, C, H, W] in [0, 1].
        asked: the scene of the prompt.
        shown: the scene of the clip.
        defects: name -> severity, applied in this order.
        generator: source of the damage.
        source_id: name of the clip.

    Returns:
        The damaged clip, its labels and what is known of its making.
    """
    frames = clean
    for name, severity in defects.items():
        frames = distort(frames, name, severity, generator=generator)
    return RatedClip(
        video=Video(frames=frames, fps=FPS, source=source_id),
        prompt=caption(asked),
        quality=label(defects, asked, shown),
        source_id=source_id,
        facts={
            "scene": asdict(asked),
            "shown": asdict(shown),
            "defects": dict(defects),
            "caption": caption(shown),
            "faults": _faults(defects, asked, shown),
        },
    )


def mismatch(asked: Scene, pool: Sequence[Scene], rng: random.Random, *, num: int) -> Scene:
    """Return a scene of `pool` that differs from `asked` in `num` attributes, or in another number if there is none.

    Which attributes differ is drawn first, so that those with many values are not preferred.
    """
    varied = [name for name in ATTRIBUTES if len({getattr(scene, name) for scene in pool}) > 1]
    names = set(rng.sample(varied, min(num, len(varied))))
    wrong = [(scene, wrong_attributes(asked, scene)) for scene in pool if scene != asked]
    for fits in (lambda w: set(w) == names, lambda w: len(w) == num, bool):
        candidates = [scene for scene, differs in wrong if fits(differs)]
        if candidates:
            return rng.choice(candidates)
    return asked


def world_hash() -> str:
    """Return a hash of all that shapes the toy models' captions, clips and labels; they keep it in their provenance."""
    rules = {name: (DEFECTS[name].amounts, TABLE[name]) for name in CORE_DEFECTS}
    tables = (COLOURS, DIRECTIONS, SPEEDS, SIZES, OPEN_RANGES, CORE, rules, WRONG, SPLIT_SIZES)
    probe = [clip.video.frames for clip in sample_rated(8, seed=0) if isinstance(clip.video, Video)]
    light = torch.stack(probe).mean((1, 2, 3, 4)).mul(100).round().tolist()  # coarse: CPUs differ in the last bits
    return hashlib.sha256(repr((tables, light, [caption(scene) for scene in _shuffled(CORE)])).encode()).hexdigest()


def _faults(defects: Mapping[str, float], asked: Scene, shown: Scene) -> dict[str, list[str]]:
    faults: dict[str, list[str]] = {"visual_quality": [], "motion_quality": [], "text_alignment": []}
    for name, severity in defects.items():
        if severity > 0:
            for dimension in TABLE[name]:
                faults[dimension].append(name)
    faults["text_alignment"] += wrong_attributes(asked, shown)
    return faults


def _at(factors: Sequence[float], severity: float) -> float:
    low = min(int(severity), len(factors) - 2)
    return factors[low] + (severity - low) * (factors[low + 1] - factors[low])


def _between(name: str, share: float) -> float:
    low, high = OPEN_RANGES[name]
    return low + share * (high - low)


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


def _ground(background: str, size: int, shade: float, slope: float) -> Tensor:
    rise = (torch.arange(size)[:, None] + 0.5) / size - 0.5
    return (shade + slope * rise + PATTERN_CONTRAST * background_pattern(background, size)).expand(3, size, size)


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
