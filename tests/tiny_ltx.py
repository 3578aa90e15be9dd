"""A tiny random `LTXPipeline` of the real architecture, built on the spot."""

import torch

from tests.tiny_wan import build_tokenizer, generator_on


def build_ltx(*, timestep_conditioning=False, seed=0):
    """Return a random pipeline that shrinks time and space by 4; clips of 5 frames of 32 x 32 pass in milliseconds."""
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )
    from transformers import T5Config, T5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        text = T5Config(
            vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0
        )
        text_encoder = T5EncoderModel(text).eval()
        vae = AutoencoderKLLTXVideo(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            decoder_inject_noise=(False,) * 5,
            upsample_residual=(False,) * 4,
            upsample_factor=(1,) * 4,
            timestep_conditioning=timestep_conditioning,
            patch_size=1,
            patch_size_t=1,
        )
        vae.latents_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
        vae.latents_std.copy_(torch.tensor([1.5, 0.7, 1.0, 2.0]))
        transformer = LTXVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            cross_attention_dim=24,
            num_layers=2,
            caption_channels=16,
        )
    pipeline = LTXPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        transformer=transformer.eval(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_ltx_generator(*, pipeline=None, **settings):
    """Return an `LTXGenerator` on a tiny pipeline: 5 frames of 32 x 32, LoRA rank 4 and alpha 8."""
    from generator_loop.adapters.ltx import LTXGenerator

    defaults = dict(num_frames=5, height=32, width=32, fps=8.0, lora_rank=4, lora_alpha=8, max_sequence_length=8)
    return generator_on(LTXGenerator, pipeline or build_ltx(), **{**defaults, **settings})
