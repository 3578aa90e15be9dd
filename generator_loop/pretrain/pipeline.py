"""The toy generator as a stock diffusers pipeline: how it is built, how clips go through it, and how it is kept.

It has a word-level tokenizer, a random and frozen UMT5 (which separates the captions well enough), the trained
autoencoder, a small Wan transformer, and a plain flow-matching schedule.

Shape legend: B batch, C = 3, T pixel frames, H, W pixels; c, F, h, w latent channels, frames, height, width; L tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from generator_loop.adapters.folders import save_pipeline
from generator_loop.pretrain.vae import to_wan
from reward_model import moving_shapes

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan, WanPipeline

MAX_TOKENS = 16
"""Text tokens L; cross attention sees the padding, so sampling must use the same number."""

LATENT_GRID = (3, 8, 8)
"""Latent frames, height and width of 9 frames of 32 x 32."""


def build_toy_wan(vae: AutoencoderKLWan, *, seed: int = 0) -> WanPipeline:
    """Return a `WanPipeline` around `vae` whose transformer (1.4 M parameters) and text encoder are random.

    Args:
        vae: trained or untrained autoencoder.
        seed: of all weights.

    Returns:
        The pipeline, in float32.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=vae.config.z_dim,
        out_channels=vae.config.z_dim,
        text_dim=64,
        freq_dim=64,
        ffn_dim=384,
        num_layers=5,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=_text_encoder(len(tokenizer)),
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
    )


def build_tokenizer() -> Any:
    """Return a tokenizer with one token for each word of the whole grammar, and T5's end and padding tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for scene in moving_shapes.FULL.scenes() for word in moving_shapes.caption(scene).split()})
    vocabulary = {word: place for place, word in enumerate(("<pad>", "</s>", "<unk>", *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=MAX_TOKENS
    )


def _text_encoder(vocab_size: int) -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=vocab_size,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=1,
        dropout_rate=0.0,
    )
    return UMT5EncoderModel(config).eval().requires_grad_(False)


@torch.no_grad()
def encode_captions(pipeline: WanPipeline, captions: Sequence[str]) -> Tensor:
    """Return text embeddings [B, L, d] as the pipeline makes them: zero beyond each caption's end."""
    return pipeline.encode_prompt(
        list(captions), do_classifier_free_guidance=False, max_sequence_length=MAX_TOKENS, device=torch.device("cpu")
    )[0]


@torch.no_grad()
def encode_clips(vae: AutoencoderKLWan, frames: Tensor, *, batch_size: int = 16) -> Tensor:
    """Return normalised latents [B, c, F, h, w] of frames [B, T, C, H, W] in [0, 1]."""
    mean, std = _latent_scale(vae)
    latents = [vae.encode(clips).latent_dist.mode() for clips in to_wan(frames).split(batch_size)]
    return (torch.cat(latents) - mean) / std


@torch.no_grad()
def decode_clips(vae: AutoencoderKLWan, latents: Tensor, *, batch_size: int = 16) -> Tensor:
    """Return frames [B, T, C, H, W] in [0, 1] of normalised latents [B, c, F, h, w]."""
    mean, std = _latent_scale(vae)
    pixels = [vae.decode(clips * std + mean).sample for clips in latents.split(batch_size)]
    return torch.cat(pixels).transpose(1, 2).clamp(-1, 1) / 2 + 0.5


def _latent_scale(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    return mean, std


@torch.no_grad()
def sample_latents(transformer: nn.Module, text: Tensor, noise: Tensor, *, num_steps: int = 12) -> Tensor:
    """Return latents [B, c, F, h, w] drawn from noise of the same shape by Euler steps without guidance."""
    latents, sigmas = noise, torch.linspace(1, 0, num_steps + 1)
    for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
        velocity = transformer(latents, now.expand(len(latents)) * 1000, text, return_dict=False)[0]
        latents = latents + (then - now) * velocity
    return latents


def sample_clips(pipeline: WanPipeline, captions: Sequence[str], *, seed: int) -> Tensor:
    """Return one clip for each caption, [B, T, C, H, W] in [0, 1]."""
    shape = (len(captions), pipeline.vae.config.z_dim, *LATENT_GRID)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    latents = sample_latents(pipeline.transformer, encode_captions(pipeline, captions), noise)
    return decode_clips(pipeline.vae, latents)


def save_toy_wan(pipeline: WanPipeline, out: str | Path, *, provenance: Mapping[str, object]) -> None:
    """Write the pipeline in half precision (safetensors) with its provenance beside it.

    Args:
        pipeline: trained pipeline, which is turned to half precision in place.
        out: folder to write.
        provenance: how the weights were made; the hashes of `fingerprints` are added.
    """
    pipeline.to(torch.float16)
    Path(out).mkdir(parents=True, exist_ok=True)
    record = {**provenance, "fingerprints": fingerprints()}
    (Path(out) / "provenance.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    save_pipeline(pipeline, out)


def fingerprints() -> dict[str, str]:
    """Return hashes of all that the weights depend on: the world's clips, the captions by use, and the tokenizer."""
    core = moving_shapes.CORE
    uses = {
        "pretraining": moving_shapes.pretraining_scenes(core),
        "finetuning": moving_shapes.finetuning_scenes(core),
        "held_out": moving_shapes.split(core)[1],
    }
    captions = {use: [moving_shapes.caption(scene) for scene in scenes] for use, scenes in uses.items()}
    texts = {"prompts": json.dumps(captions), "tokenizer": build_tokenizer().backend_tokenizer.to_str()}
    hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    return {"world": moving_shapes.world_hash(), **hashes}
