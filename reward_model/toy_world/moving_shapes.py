"""Synthetic world of captioned clips of one moving shape, damaged and mismatched to known degrees.

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
from reward_model.toy_world.labels import TABLE, WRONG, quality_left
from reward_model.toy_world.shapes import BACKGROUNDS, SHAPES, SIDE, background_pattern, shape_mask

FPS, NUM_FRAMES = 8.0, 9

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
"""RGB in [0, 1]: one bright and one dark channel each; light and saturation then do not depend on the colour."""

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

OPEN_RANGES = {"shade": (0.3, 0.55), "slope": (-0.06, 0.06), "tint": (-0.05, 0.05), "place": (-6.0, 6.0)}
"""Range of each property that a caption leaves open, drawn evenly: shade of the ground and its rise to the bottom, colour offset of
each channel, start across the path in pixels (less where the shape would leave the frame)."""

PATTERN_CONTRAST = 0.12
"""Difference in grey, in [0, 1], between the light and the dark of a patterned ground."""


@dataclass(frozen=True)
class Scene:
    """Content of a caption."""

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
"""Grammar of the toy models: 384 captions."""

CORE_DEFECTS = ("blur", "grain", "darken", "flicker", "jitter", "freeze", "identity_drift", "warp")
"""Defects in the toy models' training clips."""

SPLIT_SIZES = (64, 64)
"""Captions held out from everything, and captions for fine-tuning that pre-training leaves out as well."""


def caption(scene: Scene) -> str:
    """Return the sentence that describes a scene."""
    s = scene
    return f"a {s.size} {s.colour} {s.shape} moving {s.direction} {s.speed} over a {s.background} floor"


PHRASES = {
    "shape": "a {}",
    "colour": "a {} shape",
    "direction": "a shape moving {}",
    "speed": "a shape moving {}",
    "size": "a {} shape",
}
"""Attribute -> prompt that names it alone."""


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
    """Draw a clean clip of a scene; properties that the caption leaves open are drawn from `generator`.

    Args:
        scene: to show.
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


def label(defects: Mapping[str, float], asked: Scene, shown: Scene) -> dict[str, float]:
    """Return the quality of a clip of known making, by the one table.

    Args:
        defects: name -> severity in [0, 4].
        asked: the scene of the prompt.
        shown: the scene that was drawn before the defects.

    Returns:
        Every dimension -> quality in [0, 1].
    """
    return quality_left(defects, wrong_attributes(asked, shown))


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
        scenes: asked for by prompts and shown by clips; None takes the training scenes of `grammar`.
        grammar: whose training scenes.
        defects: kinds of damage to draw from.
        clean_share: chance of a clip without defects.
        match_share: chance of a clip that shows the scene of its prompt.
        group_size: neighbours that share a prompt.
        num_frames: T.
        size: frame side in pixels.

    Returns:
        Clips with `facts`: scene asked and shown, defects with severities, the caption of the shown scene, the faults by
        dimension, and `matches`, the text alignment under other prompts.
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
        rated = rate(clean, asked, shown, damage, generator, f"moving_shapes/{seed}/{i}")
        # a stream of its own: whatever is drawn here, the clips stay the same
        matches = draw_matches(shown, damage, pool, random.Random(rated.source_id))
        clips.append(dataclasses.replace(rated, facts={**rated.facts, "matches": matches}))
    return clips


def draw_matches(
    shown: Scene, defects: Mapping[str, float], pool: Sequence[Scene], rng: random.Random
) -> dict[str, float]:
    """Return prompts -> text alignment of a clip: whole captions, and single attributes, each right and wrong.

    Single attributes teach each word by itself, which a whole caption does only as a sum. Shape and direction, which
    take fine detail and several frames to see, always come; one of the others comes with them.
    """
    near = mismatch(shown, pool, rng, num=1)
    matches = {caption(asked): label(defects, asked, shown)["text_alignment"] for asked in (shown, near)}
    for name in ("shape", "direction", rng.choice(("colour", "speed", "size"))):
        right = getattr(shown, name)
        others = sorted({getattr(scene, name) for scene in pool} - {right})
        for value in (right, rng.choice(others)) if others else (right,):
            wrong = () if value == right else (name,)
            matches[PHRASES[name].format(value)] = quality_left(defects, wrong)["text_alignment"]
    return matches


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
        The damaged clip with its labels and the facts of its making.
    """
    frames = clean
    for name, severity in defects.items():
        frames = distort(frames, name, severity, generator=generator, fps=FPS)
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

    The attributes that differ are drawn first, so attributes with many values are not preferred.
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
    """Return a hash of everything behind the toy models' captions, clips and labels; their provenance keeps it."""
    rules = {name: (_world_amounts(name), TABLE[name]) for name in CORE_DEFECTS}
    tables = (COLOURS, DIRECTIONS, SPEEDS, SIZES, OPEN_RANGES, CORE, rules, WRONG, SPLIT_SIZES)
    probe = [clip.video.frames for clip in sample_rated(8, seed=0) if isinstance(clip.video, Video)]
    light = torch.stack(probe).mean((1, 2, 3, 4)).mul(100).round().tolist()  # coarse: CPUs differ in the last bits
    return hashlib.sha256(repr((tables, light, [caption(scene) for scene in _shuffled(CORE)])).encode()).hexdigest()


def _world_amounts(name: str) -> tuple[float, ...]:
    """Return a defect's amounts on this world's clips: blur in pixels, as when the committed models were trained."""
    amounts = DEFECTS[name].amounts
    return tuple(amount * SIDE for amount in amounts) if name == "blur" else amounts


def _faults(defects: Mapping[str, float], asked: Scene, shown: Scene) -> dict[str, list[str]]:
    faults: dict[str, list[str]] = {"visual_quality": [], "motion_quality": [], "text_alignment": []}
    for name, severity in defects.items():
        if severity > 0:
            for dimension in TABLE[name]:
                faults[dimension].append(name)
    faults["text_alignment"] += wrong_attributes(asked, shown)
    return faults


def _between(name: str, share: float) -> float:
    low, high = OPEN_RANGES[name]
    return low + share * (high - low)


def _ground(background: str, size: int, shade: float, slope: float) -> Tensor:
    rise = (torch.arange(size)[:, None] + 0.5) / size - 0.5
    return (shade + slope * rise + PATTERN_CONTRAST * background_pattern(background, size)).expand(3, size, size)
