"""Writes docs/memory.md and comments of recipes: memory per GPU of weights and moments, by generator, layout and number of GPUs.

    python scripts/memory_table.py

Models are built in the shapes of the released ones and without any weight, so that this takes seconds on any machine. It is the
table of `joint_train.py --dry-run`, which measures the peak of a step beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from generator_loop.adapters import generator_class  # noqa: E402
from generator_loop.run.build import read_config  # noqa: E402
from generator_loop.run.estimate import NUM_COPIES  # noqa: E402
from generator_loop.run.memory import PROCESSES, Footprint, footprint_of  # noqa: E402
from generator_loop.run.sharding import Layout  # noqa: E402

PAGE = ROOT / "docs" / "memory.md"
GENERATORS = {
    "Wan 2.1 1.3B": ("nft_wan", lambda: wan(num_attention_heads=12, ffn_dim=8960, num_layers=30)),
    "Wan 2.1 14B": ("nft_wan", lambda: wan(num_attention_heads=40, ffn_dim=13824, num_layers=40)),
    "HunyuanVideo": ("nft_hunyuan_video", lambda: hunyuan_video()),
}
"""Name -> recipe in configs/joint, and the models."""

Models = dict[str, nn.Module]


def wan(**shape: int) -> Models:
    """Return Wan 2.1's models in the shapes of its config.json files."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    text = UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
    return {
        "transformer": half(
            WanTransformer3DModel(attention_head_dim=128, text_dim=4096, freq_dim=256, cross_attn_norm=True, **shape)
        ),
        "text_encoder": half(UMT5EncoderModel(text)),
        "vae": AutoencoderKLWan(),
    }


def hunyuan_video() -> Models:
    """Return HunyuanVideo's models in the shapes of its config.json files."""
    from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
    from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

    llama = LlamaConfig(
        vocab_size=128320, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_key_value_heads=8
    )
    clip = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    return {
        "transformer": half(HunyuanVideoTransformer3DModel(guidance_embeds=True)),
        "text_encoder": half(LlamaModel(llama)),
        "text_encoder_2": half(CLIPTextModel(clip)),
        "vae": AutoencoderKLHunyuanVideo(),
    }


def judge() -> nn.Module:
    """Return a judge in the shape of Qwen2.5-VL 3B."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    }
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    return half(Qwen2_5_VLForConditionalGeneration(config))


def half(model: Any) -> nn.Module:
    """Return a model in bfloat16, but for the parts that diffusers' `from_pretrained` keeps in 32 bits."""
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, parameter in model.named_parameters():
        if not set(name.split(".")) & kept:
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def adapter_bytes(transformer: nn.Module, targets: Sequence[str], *, rank: int) -> int:
    """Return the bytes of 32-bit LoRA on all linear layers that the targets name."""
    return sum(
        4 * rank * (layer.in_features + layer.out_features)
        for name, layer in transformer.named_modules()
        if isinstance(layer, nn.Linear) and any(name == end or name.endswith(f".{end}") for end in targets)
    )


def footprint(recipe: str, build: Callable[[], Models]) -> Footprint:
    """Return the footprint of a generator by its recipe, beside a judge of Qwen2.5-VL 3B's shape."""
    config = read_config(recipe_path(recipe), []).generator
    with torch.device("meta"):
        models, watching = build(), judge()
    targets = generator_class(config.family).lora_targets
    adapter = adapter_bytes(models["transformer"], targets, rank=config.lora_rank)
    return footprint_of(models, [watching], adapter=adapter, num_copies=NUM_COPIES)


def footprints() -> dict[str, Footprint]:
    """Return the footprint of each generator by name."""
    return {name: footprint(*how) for name, how in GENERATORS.items()}


def recipe_text(recipe: str, found: Mapping[str, Footprint]) -> str:
    """Return a recipe's text with the memory of its generators in comments at its head."""
    lines = recipe_path(recipe).read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(_COMMENT)]
    place = next(number for number, line in enumerate(kept) if not line.startswith("#"))
    comments = []
    for name, (file, _) in GENERATORS.items():
        table = dict(found[name].table())
        whole, spread = (", ".join(f"{size:.0f}" for size in table[layout]) for layout in ("ddp", "fsdp2, judge.shard"))
        if file == recipe:
            comments.append(f"{_COMMENT} {name}: {whole} by ddp.yaml; {spread} by fsdp2.yaml with judge.shard=true.\n")
    return "".join([*kept[:place], *comments, *kept[place:]])


def recipe_path(recipe: str) -> Path:
    """Return the file of a recipe."""
    return ROOT / "configs" / "joint" / f"{recipe}.yaml"


_COMMENT = "# GB of weights and moments per GPU at 1, 8 and 64 GPUs (docs/memory.md),"


def page(found: Mapping[str, Footprint]) -> str:
    """Return docs/memory.md."""
    rows = [
        f"| {name} | {layout} | " + " | ".join(f"{size:.1f}" for size in sizes) + " |"
        for name, one in found.items()
        for layout, sizes in one.table()
    ]
    whole = {name: one.per_process(Layout(), 1, shard_judges=False) for name, one in found.items()}
    parts = [
        f"| {name} | " + " | ".join(f"{size:.1f}" for size in sizes.values()) + " |" for name, sizes in whole.items()
    ]
    part_names = list(next(iter(whole.values())))
    return _PAGE.format(
        counts=" | ".join(f"{num} GPU{'s' * (num > 1)}" for num in PROCESSES),
        rule="---|" * (2 + len(PROCESSES)),
        rows="\n".join(rows),
        parts=" | ".join(part_names),
        part_rule="---|" * (1 + len(part_names)),
        part_rows="\n".join(parts),
    )


_PAGE = """# Memory per GPU

Written by `python scripts/memory_table.py`; a test fails while this page is out of date.

Gigabytes (10^9 bytes) of weights and moments on each GPU, with LoRA of rank 32 and one judge of Qwen2.5-VL 3B's shape, in the
layouts of `configs/accelerate/`. Activations come on top: `joint_train.py CONFIG --dry-run` measures the peak of a step and
prints this table for its own models. No figure here was measured on a GPU: they are sizes of tensors.

| generator | layout | {counts} |
|{rule}
{rows}

- ddp.yaml and nodes.yaml keep everything on each GPU.
- fsdp2.yaml spreads the transformer's frozen weights; the number holds this GPU's part and two whole blocks, the one that
  computes and the one that is collected next. `judge.shard=true` does the same to the judge's layers.
- zero2.yaml spreads the moments of AdamW, zero3.yaml these and the transformer.
- What stays, whatever the number of GPUs, are text encoders and VAE. `generator.offload=model` keeps them in the computer's
  memory while they are not in use. A judge behind `judge.path=http://...` takes none of this memory.

All on one GPU, by part; the adapter is counted with its gradients, their message, and the copies of it that a run keeps:

| generator | {parts} |
|{part_rule}
{part_rows}
"""


def main(argv: Sequence[str]) -> int:
    """Write the page and the comments of the recipes."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    found = footprints()
    PAGE.write_text(page(found), encoding="utf-8")
    for recipe in {recipe for recipe, _ in GENERATORS.values()}:
        recipe_path(recipe).write_text(recipe_text(recipe, found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
