"""Runs the official Qwen processors on fixed cases; a program of the parity environment, which has torchvision.

    .venv-parity/bin/python tests/parity/official_processor.py TOKENIZER_FOLDER OUT.safetensors [CASE ...]

It imports nothing of the project. Per case the output holds `frames` (uint8 [T, 3, H, W]), `patches`, `grid` and `input_ids`.
`tests/golden/official_processor.safetensors` is such an output for the cases in `GOLDEN`.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TEXT = ("user\nA clip: ", " how good is it?")


@dataclass(frozen=True)
class Case:
    """A clip's size and a processor's settings; `seed` also decides between noise (even) and smooth content (odd).

    `fps` and `source_frames` (0: all are shown) are of the source, of which `num_frames` are shown.
    """

    name: str
    family: str
    patch_size: int
    min_pixels: int
    max_pixels: int
    num_frames: int
    height: int
    width: int
    fps: float
    seed: int
    source_frames: int = 0

    @property
    def indices(self) -> list[int]:
        """Return the frames shown of the source, evenly from the first to the last."""
        last = (self.source_frames or self.num_frames) - 1
        return [round(i * last / (self.num_frames - 1)) for i in range(self.num_frames)]


CASES = (
    Case("q2.small", "qwen2_5_vl", 14, 28 * 28, 4 * 28 * 28, 2, 20, 30, 8.0, 0),
    Case("q2.third", "qwen2_5_vl", 14, 28 * 28, 16 * 28 * 28, 3, 30, 45, 3.0, 13),
    Case("q2.odd", "qwen2_5_vl", 14, 28 * 28, 16 * 28 * 28, 5, 61, 83, 3.0, 1),
    Case("q2.toy", "qwen2_5_vl", 8, 32 * 32, 64 * 64, 9, 32, 32, 8.0, 2),
    Case("q2.grow", "qwen2_5_vl", 14, 16 * 28 * 28, 32 * 28 * 28, 4, 45, 70, 29.97, 3),
    Case("q2.shrink", "qwen2_5_vl", 14, 28 * 28, 9 * 28 * 28, 4, 240, 426, 24.0, 4),
    Case("q2.default", "qwen2_5_vl", 14, 128 * 28 * 28, 768 * 28 * 28, 3, 270, 480, 24.0, 5),
    Case("q3.small", "qwen3_vl", 16, 32 * 32, 8 * 32 * 32, 2, 20, 50, 8.0, 6),
    Case("q3.third", "qwen3_vl", 16, 32 * 32, 64 * 32 * 32, 3, 40, 50, 3.0, 15),
    Case("q3.odd", "qwen3_vl", 16, 32 * 32, 64 * 32 * 32, 5, 71, 93, 3.0, 7),
    Case("q3.toy", "qwen3_vl", 8, 32 * 32, 9 * 64 * 64, 9, 32, 32, 8.0, 8),
    Case("q3.grow", "qwen3_vl", 16, 64 * 32 * 32, 128 * 32 * 32, 4, 45, 70, 29.97, 9),
    Case("q3.shrink", "qwen3_vl", 16, 32 * 32, 36 * 32 * 32, 7, 240, 426, 24.0, 10),
    Case("q3.default", "qwen3_vl", 16, 128 * 32 * 32, 768 * 32 * 32, 3, 270, 480, 24.0, 11),
)
SAMPLED = tuple(
    Case(f"{short}.{source}at{fps:g}", family, patch, 32 * 32, 16 * 32 * 32, shown, 32, 48, fps, 2, source)
    for short, family, patch in (("q2", "qwen2_5_vl", 14), ("q3", "qwen3_vl", 16))
    for source, shown, fps in (
        (81, 16, 16.0),
        (48, 8, 24.0),
        (300, 16, 29.97),
        (33, 4, 8.0),
        (121, 9, 60.0),
        (9, 9, 8.0),
    )
)
"""Clips of which some frames are shown, by source frames and rate."""

GOLDEN = ("q2.small", "q2.third", "q3.small", "q3.third")


def frames_of(case: Case) -> Tensor:
    """Return the case's clip, uint8 [T, 3, H, W]."""
    generator = torch.Generator().manual_seed(case.seed)
    if case.seed % 2 == 0:
        size = (case.num_frames, 3, case.height, case.width)
        return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    coarse = torch.rand(case.num_frames, 3, 4, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (case.height, case.width), mode="bicubic")
    return (smooth.clamp(0, 1) * 255).to(torch.uint8)


def declare_missing_operators() -> None:
    """Let a torchvision whose compiled operators cannot load beside a CPU torch be imported; its transforms need none."""
    spec = importlib.util.find_spec("torchvision")
    try:
        torch.ops.load_library(str(Path(spec.submodule_search_locations[0]) / "_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        # a library that is collected takes its operators with it
        sys.modules[__name__].operators = library


def processor_of(case: Case, tokenizer: Any) -> Any:
    """Return the family's official processor with the case's settings."""
    import transformers

    settings = {
        "patch_size": case.patch_size,
        "size": {"shortest_edge": case.min_pixels, "longest_edge": case.max_pixels},
        "cap_pixels_per_frame": False,
        "do_sample_frames": False,
    }
    images = transformers.Qwen2VLImageProcessor(patch_size=case.patch_size)
    if case.family == "qwen2_5_vl":
        videos = transformers.Qwen2VLVideoProcessor(**settings)
        return transformers.Qwen2_5_VLProcessor(images, tokenizer, videos)
    return transformers.Qwen3VLProcessor(images, tokenizer, transformers.Qwen3VLVideoProcessor(**settings))


def run(case: Case, tokenizer: Any) -> dict[str, Tensor]:
    """Return what the official processor makes of the case."""
    frames = frames_of(case)
    before, after = TEXT
    metadata = {
        "fps": case.fps,
        "total_num_frames": case.source_frames or case.num_frames,
        "frames_indices": case.indices,
        "duration": (case.source_frames or case.num_frames) / case.fps,
    }
    found = processor_of(case, tokenizer)(
        text=[f"{before}<|vision_start|><|video_pad|><|vision_end|>{after}"],
        videos=[frames],
        video_metadata=[metadata],
        return_tensors="pt",
    )
    return {
        "frames": frames,
        "patches": found["pixel_values_videos"],
        "grid": found["video_grid_thw"],
        "input_ids": found["input_ids"],
    } | ({"seconds": found["second_per_grid_ts"]} if case.source_frames and "second_per_grid_ts" in found else {})


def main(tokenizer_folder: str, out: str, *names: str) -> None:
    """Run the named cases (none: all) and write their tensors."""
    declare_missing_operators()
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    found = {}
    for case in (*CASES, *SAMPLED):
        if not names or case.name in names:
            found |= {f"{case.name}.{key}": value.contiguous() for key, value in run(case, tokenizer).items()}
    save_file(found, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
