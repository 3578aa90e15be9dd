"""Runs the stock AutoProcessor of merged judges on one clip; a program of the parity environment, which has torchvision.

    .venv-parity/bin/python tests/parity/merged_processor.py CLIP.safetensors FOLDER [FOLDER ...]

It imports nothing of the project but the program beside it. CLIP holds `frames` (uint8 [T, 3, H, W]) and `fps`; what a folder's
processor makes of it goes to FOLDER.safetensors.
"""

from __future__ import annotations

import sys

from safetensors.torch import load_file, save_file
from torch import Tensor

QUESTION = "How good is it?"


def run(folder: str, frames: Tensor, fps: float) -> dict[str, Tensor]:
    """Return patches, grid and token ids of a turn with the clip and the question."""
    from transformers import AutoProcessor

    processor, num = AutoProcessor.from_pretrained(folder), len(frames)
    turns = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}]
    metadata = {"fps": fps, "total_num_frames": num, "frames_indices": list(range(num)), "duration": num / fps}
    found = processor(
        text=[processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)],
        videos=[frames],
        video_metadata=[metadata],
        return_tensors="pt",
    )
    names = {"patches": "pixel_values_videos", "grid": "video_grid_thw", "input_ids": "input_ids"}
    return {ours: found[theirs].contiguous() for ours, theirs in names.items()}


def main(clip: str, *folders: str) -> None:
    """Write what each folder's processor makes of the clip."""
    from official_processor import declare_missing_operators

    declare_missing_operators()
    held = load_file(clip)
    for folder in folders:
        save_file(run(folder, held["frames"], float(held["fps"])), f"{folder}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
