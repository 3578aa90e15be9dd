"""Known damage to any clip, at named severities, as streaming, cameras and video generators cause it.

Each defect runs from severity 0, which returns the clip untouched, to 4; fractions lie between the named ones. Lengths
are fractions of the frame's shorter side unless a defect says pixels.

Shapes: T frames, C = 3 (RGB), H, W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from reward_model.media.video_io import encode_video, read_video

SEVERITIES = ("none", "slight", "moderate", "strong", "severe")
"""Names of severities 0 to 4."""

Damage = Callable[[Tensor, float, torch.Generator], Tensor]
"""damage(frames [T, C, H, W], amount in the defect's unit, generator) -> frames of the same shape, unclamped."""


@dataclass(frozen=True)
class Defect:
    """One kind of damage, by a function or a `codec`: `amounts` at severities 0 to 4, in `unit`; the first leaves a clip as it
    is."""

    damage: Damage | None
    amounts: tuple[float, float, float, float, float]
    unit: str
    codec: str = ""


def distort(
    frames: Tensor, name: str, severity: float | str, *, generator: torch.Generator, fps: float | None = None
) -> Tensor:
    """Damage a clip.

    Args:
        frames: float32 RGB [T, C, H, W] in [0, 1].
        name: a key of `DEFECTS`.
        severity: in [0, 4], or one of `SEVERITIES`.
        generator: source of all randomness, on the CPU.
        fps: the clip's rate in Hz, on which an encoder's constant rate factor depends; only codecs need it.

    Returns:
        Frames of the same shape in [0, 1]; `frames` itself at severity 0.

    Raises:
        ValueError: unknown defect or severity, or a codec without the clip's rate.
    """
    if name not in DEFECTS:
        raise ValueError(f"defect must be one of {', '.join(DEFECTS)}, got {name!r}")
    degree = severity_number(severity)
    defect = DEFECTS[name]
    if defect.codec and fps is None:
        raise ValueError(f"fps is required for {name}: give the clip's own rate in Hz")
    if degree == 0:
        return frames
    amount = amount_at(name, degree)
    if defect.damage is not None:
        return defect.damage(frames, amount, generator).clamp(0, 1)
    assert fps is not None
    return recode(frames, defect.codec, amount, fps)


def severity_number(severity: float | str) -> float:
    """Return a severity as a number.

    Args:
        severity: a number in [0, 4] or a name of `SEVERITIES`.

    Returns:
        The number in [0, 4].

    Raises:
        ValueError: out of range, or not a name of `SEVERITIES`.
    """
    if isinstance(severity, str):
        if severity not in SEVERITIES:
            raise ValueError(f"severity must be one of {', '.join(SEVERITIES)}, got {severity!r}")
        return float(SEVERITIES.index(severity))
    if not 0 <= severity <= len(SEVERITIES) - 1:
        raise ValueError(f"severity must be in [0, {len(SEVERITIES) - 1}], got {severity!r}")
    return float(severity)


def amount_at(name: str, severity: float) -> float:
    """Return the amount of a defect at a severity in [0, 4], linear between the named ones."""
    amounts = DEFECTS[name].amounts
    low = min(int(severity), len(amounts) - 2)
    return amounts[low] + (severity - low) * (amounts[low + 1] - amounts[low])


def downscale(frames: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    """Shrink by `factor` and enlarge again."""
    size = frames.shape[-2:]
    small = [max(1, round(side / factor)) for side in size]
    shrunk = F.interpolate(frames, size=small, mode="area")
    return F.interpolate(shrunk, size=size, mode="bilinear", align_corners=False)


def blur(frames: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Gaussian blur; its deviation is a `share` of the shorter side."""
    return gaussian_blur(frames, share * min(frames.shape[-2:]))


def gaussian_blur(frames: Tensor, sigma: float) -> Tensor:
    """Gaussian blur; `sigma` in pixels."""
    radius = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=frames.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    planes = rearrange(frames, "t c h w -> (t c) 1 h w")
    planes = F.conv2d(F.pad(planes, (radius, radius, 0, 0), mode="replicate"), kernel)
    planes = F.conv2d(F.pad(planes, (0, 0, radius, radius), mode="replicate"), kernel.transpose(2, 3))
    return rearrange(planes, "(t c) 1 h w -> t c h w", c=frames.shape[1])


def noise(frames: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Independent Gaussian noise in each pixel and channel."""
    return frames + sigma * torch.randn(frames.shape, generator=generator)


def grain(frames: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Grey blotches, an eighth of the side each, new in every frame: the residue of unfinished denoising."""
    cells = torch.randn(len(frames), 1, 8, 8, generator=generator)
    return frames + sigma * F.interpolate(cells, size=frames.shape[-2:], mode="nearest")


def darken(frames: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Take away a share of the light."""
    return frames * (1 - share)


def brighten(frames: Tensor, power: float, generator: torch.Generator) -> Tensor:
    """Lift tones non-linearly, dark ones most."""
    return 1 - (1 - frames) ** (1 + power)


def jitter(frames: Tensor, shift: float, generator: torch.Generator) -> Tensor:
    """Move every frame by its own offset of deviation `shift`; the border is cropped and the rest enlarged."""
    num, side = len(frames), min(frames.shape[-2:])
    offsets = torch.randn(num, 2, generator=generator).clamp(-2, 2) * shift * 2
    theta = torch.eye(2, 3).repeat(num, 1, 1) * (1 - min(shift, 1 / side))
    theta[:, :, 2] = offsets
    grid = F.affine_grid(theta, list(frames.shape), align_corners=False)
    return F.grid_sample(frames, grid, padding_mode="border", align_corners=False)


def warp(frames: Tensor, shift: float, generator: torch.Generator) -> Tensor:
    """Bend every frame by its own smooth field of displacements of deviation `shift`."""
    num, _, height, width = frames.shape
    knots = torch.randn(num, 2, 5, 5, generator=generator) * shift * 2
    field = F.interpolate(knots, size=(height, width), mode="bicubic", align_corners=True)
    grid = F.affine_grid(torch.eye(2, 3).repeat(num, 1, 1), list(frames.shape), align_corners=False)
    return F.grid_sample(
        frames, grid + rearrange(field, "t xy h w -> t h w xy"), padding_mode="border", align_corners=False
    )


def stutter(frames: Tensor, chance: float, generator: torch.Generator) -> Tensor:
    """Replace frames by the one before, each with probability `chance`."""
    held = torch.rand(len(frames), generator=generator) < chance
    index = torch.where(held, 0, torch.arange(len(frames)))
    return frames[index.cummax(0).values]


def freeze(frames: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Hold one frame for the last `share` of the clip's steps."""
    last = round((len(frames) - 1) * (1 - share))
    return frames[torch.arange(len(frames)).clamp_max(last)]


def shuffle(frames: Tensor, reach: float, generator: torch.Generator) -> Tensor:
    """Let frames trade places with others up to about `reach` of the clip away."""
    num = len(frames)
    order = torch.arange(num) + reach * num * torch.rand(num, generator=generator)
    return frames[order.argsort()]


def flicker(frames: Tensor, amplitude: float, generator: torch.Generator) -> Tensor:
    """Scale the light of every frame by its own factor, up to 1 +- `amplitude`."""
    signs = 1 - 2 * ((torch.arange(len(frames)) + torch.randint(2, (1,), generator=generator)) % 2)
    size = 0.5 + 0.5 * torch.rand(len(frames), generator=generator)
    return frames * (1 + amplitude * signs * size)[:, None, None, None]


def identity_drift(frames: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Turn all hues steadily, by `degrees` at the last frame."""
    sign = 1 - 2 * int(torch.randint(2, (1,), generator=generator))
    angle = torch.linspace(0, sign * math.radians(degrees), len(frames))[:, None, None]
    # rotation about the grey axis (Rodrigues with axis (1, 1, 1) / sqrt(3))
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turn = torch.eye(3) * angle.cos() + cross * angle.sin() + (1 - angle.cos()) / 3  # [T, 3, 3]
    return torch.einsum("tij,tjhw->tihw", turn, frames)


def recode(frames: Tensor, codec: str, crf: float, fps: float) -> Tensor:
    """Encode and decode at a constant rate factor and the clip's rate in Hz."""
    decoded = read_video(encode_video(frames, fps, codec=codec, crf=round(crf)))[0].frames
    return decoded[..., : frames.shape[-2], : frames.shape[-1]]  # odd sides come back one larger


DEFECTS: dict[str, Defect] = {
    "downscale": Defect(downscale, (1, 1.5, 2.5, 3.5, 4.8), "factor"),
    "blur": Defect(blur, (0, 0.028125, 0.04375, 0.0625, 0.0875), "of the side"),
    "noise": Defect(noise, (0, 0.03, 0.06, 0.1, 0.16), "of full scale"),
    "grain": Defect(grain, (0, 0.035, 0.07, 0.11, 0.16), "of full scale"),
    "darken": Defect(darken, (0, 0.2, 0.4, 0.6, 0.8), "share of light"),
    "brighten": Defect(brighten, (0, 1.4, 2.3, 3.3, 4.8), "exponent above 1"),
    "h264": Defect(None, (12, 24, 34, 43, 51), "CRF", codec="h264"),
    "h265": Defect(None, (12, 26, 37, 45, 51), "CRF", codec="hevc"),
    "flicker": Defect(flicker, (0, 0.06, 0.12, 0.2, 0.32), "of full scale"),
    "jitter": Defect(jitter, (0, 0.015, 0.03, 0.05, 0.075), "of the side"),
    "stutter": Defect(stutter, (0, 0.2, 0.4, 0.6, 0.8), "chance"),
    "freeze": Defect(freeze, (0, 0.25, 0.5, 0.75, 1), "share of steps"),
    "shuffle": Defect(shuffle, (0, 0.24, 0.45, 0.68, 2), "of the clip"),
    "identity_drift": Defect(identity_drift, (0, 35, 70, 115, 170), "degrees of hue"),
    "warp": Defect(warp, (0, 0.015, 0.03, 0.05, 0.075), "of the side"),
}
"""Name -> defect: spatial, then compression, then temporal and generative ones."""
