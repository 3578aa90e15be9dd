"""A checkpoint as transformers 4.51 wrote them, as VQ-Insight and Q-Insight were released; and what 4.51 makes of it.

    PYTHONPATH=FOLDER_WITH_TRANSFORMERS_4_51_3 python tests/parity/released_layout.py OUT.safetensors

It imports nothing of the project. The output holds `input_ids`, `positions` [3, L] by 4.51 and `logits` [2, V] of the last two
tokens; `tests/golden/released_layout.safetensors` is such an output. Weights and patches are drawn by their names.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, VISION, LAYERS, HEADS, KEYS, VOCAB, PATCH = 32, 16, 2, 4, 2, 640, 8
VISION_START, VIDEO_PAD, VISION_END = 630, 631, 632
GRID = (4, 4, 6)
"""Frame groups, rows and columns of patches: 8 frames of 32x48."""

CONFIG = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "image_token_id": 633,
    "initializer_range": 0.02,
    "intermediate_size": 3 * HIDDEN,
    "max_position_embeddings": 4096,
    "max_window_layers": 28,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KEYS,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
    "rope_theta": 10000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.51.3",
    "use_cache": True,
    "use_sliding_window": False,
    "video_token_id": VIDEO_PAD,
    "vision_config": {
        "depth": LAYERS,
        "fullatt_block_indexes": [1],
        "hidden_act": "silu",
        "hidden_size": VISION,
        "in_channels": 3,
        "in_chans": 3,
        "intermediate_size": 3 * VISION,
        "model_type": "qwen2_5_vl",
        "num_heads": 2,
        "out_hidden_size": HIDDEN,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "spatial_patch_size": PATCH,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 4 * PATCH,
    },
    "vision_end_token_id": VISION_END,
    "vision_start_token_id": VISION_START,
    "vision_token_id": 634,
    "vocab_size": VOCAB,
}


def draw(name: str, *shape: int) -> Tensor:
    """Return normal numbers that depend on the name alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the checkpoint by its name."""
    head = HIDDEN // HEADS
    found: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (VOCAB, HIDDEN),
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
    }
    for i in range(LAYERS):
        text, vision = f"model.layers.{i}", f"visual.blocks.{i}"
        for name, size in (("q", HIDDEN), ("k", KEYS * head), ("v", KEYS * head)):
            found[f"{text}.self_attn.{name}_proj.weight"] = (size, HIDDEN)
            found[f"{text}.self_attn.{name}_proj.bias"] = (size,)
        found[f"{text}.self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        for name in ("gate", "up"):
            found[f"{text}.mlp.{name}_proj.weight"] = (3 * HIDDEN, HIDDEN)
            found[f"{vision}.mlp.{name}_proj.weight"] = (3 * VISION, VISION)
            found[f"{vision}.mlp.{name}_proj.bias"] = (3 * VISION,)
        found[f"{text}.mlp.down_proj.weight"] = (HIDDEN, 3 * HIDDEN)
        found[f"{vision}.mlp.down_proj.weight"] = (VISION, 3 * VISION)
        found[f"{vision}.mlp.down_proj.bias"] = (VISION,)
        found |= {f"{text}.{name}.weight": (HIDDEN,) for name in ("input_layernorm", "post_attention_layernorm")}
        found |= {f"{vision}.{name}.weight": (VISION,) for name in ("norm1", "norm2")}
        for name, size in (("qkv", 3 * VISION), ("proj", VISION)):
            found[f"{vision}.attn.{name}.weight"] = (size, VISION)
            found[f"{vision}.attn.{name}.bias"] = (size,)
    found |= {"model.norm.weight": (HIDDEN,), "visual.merger.ln_q.weight": (VISION,)}
    for name, size in (("mlp.0", 4 * VISION), ("mlp.2", HIDDEN)):
        found[f"visual.merger.{name}.weight"] = (size, 4 * VISION)
        found[f"visual.merger.{name}.bias"] = (size,)
    found["visual.patch_embed.proj.weight"] = (VISION, 3, 2, PATCH, PATCH)
    return found


def write(folder: Path) -> None:
    """Write configuration and weights, in two shards with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    names = sorted(shapes())
    files = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    for file, held in files.items():
        tensors = {
            name: draw(name, *shapes()[name]) * 0.2 + (1.0 if "norm" in name or "ln_q" in name else 0.0)
            for name in held
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
    where = {name: file for file, held in files.items() for name in held}
    size = sum(4 * torch.Size(shape).numel() for shape in shapes().values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def patches() -> Tensor:
    """Return the clip's patches [P, 3 * 2 * PATCH * PATCH]."""
    return draw("patches", GRID[0] * GRID[1] * GRID[2], 3 * 2 * PATCH * PATCH)


def main(out: str) -> None:
    """Write what transformers 4.51 makes of the checkpoint."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    num = GRID[0] * GRID[1] * GRID[2] // 4
    ids = torch.tensor([[5, 6, VISION_START, *[VIDEO_PAD] * num, VISION_END, 7, 8, 9]])
    grid, seconds, seen = torch.tensor([GRID]), torch.tensor([1.0]), torch.ones_like(ids)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        write(Path(folder))
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval()
        positions, _ = model.get_rope_index(ids, None, grid, seconds, seen)
        inputs = {"pixel_values_videos": patches(), "video_grid_thw": grid, "second_per_grid_ts": seconds}
        logits = model(input_ids=ids, attention_mask=seen, **inputs).logits[0, -2:]
    save_file({"input_ids": ids[0], "positions": positions[:, 0].contiguous(), "logits": logits.contiguous()}, out)


if __name__ == "__main__":
    main(sys.argv[1])
