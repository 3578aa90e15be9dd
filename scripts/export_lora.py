"""Writes a trained Wan LoRA in the key layout of the original Wan code, which other front ends read.

python scripts/export_lora.py RUN/checkpoints/round-002/generator lora.safetensors

Keys become `diffusion_model.blocks.N.self_attn.q.lora_down.weight`, with an `alpha` beside each pair. The LoRA of a second
transformer (Wan 2.2 A14B) stands in a folder of its own and is exported by itself. Stock diffusers reads the result, too.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from generator_loop.adapters.lora import LORA_FILE

LAYERS = {
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
"""Layer of a block in diffusers -> in the original code."""

SIDES = {"lora_A": "lora_down", "lora_B": "lora_up"}

KEY = re.compile(r"transformer\.(blocks\.\d+)\.(.+)\.(lora_A|lora_B)\.weight")


def to_original(tensors: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return the tensors of a diffusers LoRA file by the original code's names, with an alpha beside each pair.

    Args:
        tensors: content of the file.
        alpha: its scale; the update is multiplied by alpha / rank.

    Returns:
        New name -> tensor.

    Raises:
        ValueError: a tensor is not of a layer of Wan's blocks.
    """
    renamed = {}
    for name, tensor in tensors.items():
        match = KEY.fullmatch(name)
        if match is None or match[2] not in LAYERS:
            raise ValueError(f"{name} belongs to no layer of Wan's blocks")
        layer = f"diffusion_model.{match[1]}.{LAYERS[match[2]]}"
        renamed[f"{layer}.{SIDES[match[3]]}.weight"] = tensor
        renamed[f"{layer}.alpha"] = torch.tensor(float(alpha))
    return renamed


def main(argv: Sequence[str]) -> int:
    """Convert one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help=f"folder with {LORA_FILE}")
    parser.add_argument("output", type=Path, help="file to write")
    arguments = parser.parse_args(argv)
    if not (arguments.folder / LORA_FILE).is_file():
        parser.error(
            f"{arguments.folder} has no {LORA_FILE}: it is no folder of a run's generator, or one of generator.train=full, "
            "whose transformer other front ends read as it is"
        )
    with safe_open(arguments.folder / LORA_FILE, framework="pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    save_file(to_original(tensors, settings["transformer.lora_alpha"]), arguments.output)
    sys.stdout.write(f"{arguments.output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
