"""A checkpoint as VideoAlign writes them, and what transformers 4.45, with which it was trained, makes of it.

    PYTHONPATH=FOLDER_WITH_TRANSFORMERS_4_45_2 python tests/parity/videoalign_layout.py OUT.safetensors

It imports nothing of the project. The output holds `input_ids` and `states` [3, D], the last hidden states at the three reward
tokens; `tests/golden/videoalign_layout.safetensors` is such an output. Weights and patches are drawn by their names.
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

HIDDEN, VISION, LAYERS, HEADS, KEYS, VOCAB, PATCH, RANK, ALPHA = 32, 16, 2, 4, 2, 700, 8, 4, 8
VISION_START, VIDEO_PAD, VISION_END = 690, 691, 692
REWARDS = (697, 698, 699)
GRID = (4, 4, 6)
CONSTANTS = {"VQ_mean": 3.0, "VQ_std": 2.0, "MQ_mean": 1.0, "MQ_std": 0.5, "TA_mean": 2.5, "TA_std": 4.0}

CONFIG = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "image_token_id": 693,
    "initializer_range": 0.02,
    "intermediate_size": 3 * HIDDEN,
    "max_position_embeddings": 4096,
    "max_window_layers": 28,
    "model_type": "qwen2_vl",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KEYS,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"mrope_section": [1, 1, 2], "type": "mrope"},
    "rope_theta": 10000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "video_token_id": VIDEO_PAD,
    "vision_config": {
        "depth": LAYERS,
        "embed_dim": VISION,
        "hidden_size": HIDDEN,
        "in_channels": 3,
        "in_chans": 3,
        "mlp_ratio": 4,
        "model_type": "qwen2_vl",
        "num_heads": 2,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "spatial_patch_size": PATCH,
        "temporal_patch_size": 2,
    },
    "vision_end_token_id": VISION_END,
    "vision_start_token_id": VISION_START,
    "vision_token_id": 694,
    "vocab_size": VOCAB + 20,
}
"""Of the base, which has more rows than its tokenizer has tokens, as Qwen's checkpoints do."""

SETTINGS = {
    "data_config": {
        "max_frame_pixels": 200704,
        "num_frames": None,
        "fps": 2.0,
        "eval_dim": ["VQ", "MQ", "TA"],
        "prompt_template_type": "detailed_special",
        "sample_type": "uniform",
    },
    "model_config": {
        "model_name_or_path": "Qwen/Qwen2-VL-2B-Instruct",
        "model_revision": "main",
        "output_dim": 1,
        "use_special_tokens": True,
        "reward_token": "special",
        "loss_type": "btt",
    },
    "peft_lora_config": {
        "lora_enable": True,
        "vision_lora": False,
        "lora_r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.05,
        "use_rslora": False,
    },
    "inference_config": CONSTANTS,
}


def draw(name: str, *shape: int) -> Tensor:
    """Return normal numbers that depend on the name alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def base_shapes(vocab: int, start: str = "") -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the base by its name; names begin with `start`."""
    head = HIDDEN // HEADS
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        text, vision = f"model.layers.{i}", f"visual.blocks.{i}"
        found |= {f"{text}.{name}.weight": shape for name, shape in linear_shapes().items()}
        for name, size in (("q", HIDDEN), ("k", KEYS * head), ("v", KEYS * head)):
            found[f"{text}.self_attn.{name}_proj.bias"] = (size,)
        found |= {f"{text}.{name}.weight": (HIDDEN,) for name in ("input_layernorm", "post_attention_layernorm")}
        layers = {"attn.qkv": (3 * VISION, VISION), "attn.proj": (VISION, VISION)}
        layers |= {"mlp.fc1": (4 * VISION, VISION), "mlp.fc2": (VISION, 4 * VISION)}
        for name, shape in layers.items():
            found |= {f"{vision}.{name}.weight": shape, f"{vision}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            found |= {f"{vision}.{name}.{part}": (VISION,) for part in ("weight", "bias")}
    found |= {f"visual.merger.ln_q.{part}": (VISION,) for part in ("weight", "bias")}
    for name, size in (("mlp.0", 4 * VISION), ("mlp.2", HIDDEN)):
        found |= {f"visual.merger.{name}.weight": (size, 4 * VISION), f"visual.merger.{name}.bias": (size,)}
    found["visual.patch_embed.proj.weight"] = (VISION, 3, 2, PATCH, PATCH)
    return {f"{start}{name}": shape for name, shape in found.items()}


def linear_shapes() -> dict[str, tuple[int, int]]:
    """Return the shapes of a text layer's linear parts, which have LoRA."""
    head = HIDDEN // HEADS
    found = {
        f"self_attn.{name}_proj": (size, HIDDEN)
        for name, size in (("q", HIDDEN), ("k", KEYS * head), ("v", KEYS * head))
    }
    found["self_attn.o_proj"] = (HIDDEN, HIDDEN)
    found |= {f"mlp.{name}_proj": (3 * HIDDEN, HIDDEN) for name in ("gate", "up")}
    return {**found, "mlp.down_proj": (HIDDEN, 3 * HIDDEN)}


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return weights of these shapes; norms lie around 1."""
    scales = {name: 1.0 if "norm" in name or "ln_q" in name else 0.0 for name in shapes}
    return {name: draw(name, *shape) * 0.2 + scales[name] * name.endswith("weight") for name, shape in shapes.items()}


def trained(num_rows: int = 1, vocab: int = VOCAB) -> dict[str, Tensor]:
    """Return a whole trained state by the names of the wrapped model, as `model.pth` has it."""
    start, found = "base_model.model.", {}
    for name, tensor in drawn(base_shapes(vocab, "trained.")).items():
        plain = name.removeprefix("trained.")
        layer, _, part = plain.rpartition(".")
        wrapped = f"{layer}.base_layer.{part}" if layer.rpartition("layers.")[2][2:] in linear_shapes() else plain
        found[f"{start}{wrapped}"] = tensor
    for i in range(LAYERS):
        for name, (rows, columns) in linear_shapes().items():
            layer = f"{start}model.layers.{i}.{name}"
            found[f"{layer}.lora_A.default.weight"] = draw(f"A{i}{name}", RANK, columns) * 0.2
            found[f"{layer}.lora_B.default.weight"] = draw(f"B{i}{name}", rows, RANK) * 0.2
    found[f"{start}lm_head.weight"] = found[f"{start}model.embed_tokens.weight"].clone()
    found[f"{start}rm_head.weight"] = draw("rm_head", num_rows, HIDDEN)
    return found


def write_base(folder: Path) -> None:
    """Write the base: configuration and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    save_file(drawn(base_shapes(VOCAB + 20)), folder / "model.safetensors", metadata={"format": "pt"})


def write(folder: Path, *, step: int = 5, num_rows: int = 1, vocab: int = VOCAB) -> None:
    """Write a whole checkpoint, its pickle already converted."""
    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True, exist_ok=True)
    (folder / "model_config.json").write_text(json.dumps(SETTINGS, indent=4))
    save_file(trained(num_rows, vocab), place / "model.safetensors")


def patches() -> Tensor:
    """Return the clip's patches [P, 3 * 2 * PATCH * PATCH]."""
    return draw("patches", GRID[0] * GRID[1] * GRID[2], 3 * 2 * PATCH * PATCH)


def question() -> Tensor:
    """Return token ids [L] of a turn with the clip and the three reward tokens."""
    num = GRID[0] * GRID[1] * GRID[2] // 4
    clip = [VISION_START, *[VIDEO_PAD] * num, VISION_END]
    return torch.tensor([5, 6, *clip, 10, REWARDS[0], 11, 12, REWARDS[1], 13, 14, 15, REWARDS[2], 16])


def main(out: str) -> None:
    """Write what transformers 4.45 makes of the checkpoint, with the text model left to count positions itself."""
    from transformers import Qwen2VLForConditionalGeneration

    ids, grid = question()[None], torch.tensor([GRID])
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        write_base(Path(folder))
        model = Qwen2VLForConditionalGeneration.from_pretrained(folder).eval()
        model.resize_token_embeddings(VOCAB)
        state = {}
        for name, tensor in trained().items():
            plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            if ".lora_A." in plain:
                layer = name.removesuffix(".lora_A.default.weight")
                key = plain.replace(".lora_A.default.", ".")
                up = trained()[f"{layer}.lora_B.default.weight"]
                state[key] = trained()[f"{layer}.base_layer.weight"] + up @ tensor * (ALPHA / RANK)
            elif ".lora_B." not in plain and "rm_head" not in plain and plain not in state:
                state[plain] = tensor
        model.load_state_dict(state)
        embeddings = model.model.embed_tokens(ids)
        features = model.visual(patches(), grid_thw=grid)
        embeddings = embeddings.masked_scatter((ids == VIDEO_PAD)[..., None], features)
        hidden = model.model(inputs_embeds=embeddings, attention_mask=torch.ones_like(ids))[0][0]
        states = torch.stack([hidden[ids[0] == token][0] for token in REWARDS])
    save_file({"input_ids": ids[0], "states": states}, out)


if __name__ == "__main__":
    main(sys.argv[1])
