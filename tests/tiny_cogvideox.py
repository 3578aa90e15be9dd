"""A tiny random `CogVideoXPipeline` of the real architecture, built on the spot."""

import torch

from tests.tiny_wan import build_tokenizer, generator_on


def build_cogvideox(*, rotary=False, seed=0):
    """Return a random pipeline that shrinks time by 4 and space by 8; clips of 5 frames of 32 x 32 pass in milliseconds."""
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )
    from transformers import T5Config, T5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        text = T5Config(
            vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0
        )
        text_encoder = T5EncoderModel(text).eval()
        vae = AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=4,
            scaling_factor=0.7,
        )
        transformer = CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=16,
            num_layers=2,
            sample_width=4,
            sample_height=4,
            sample_frames=5,
            max_text_seq_length=8,
            use_rotary_positional_embeddings=rotary,
        )
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        snr_shift_scale=3.0,
    )
    pipeline = CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        transformer=transformer.eval(),
        vae=vae.eval(),
        scheduler=scheduler,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_cogvideox_generator(*, pipeline=None, **settings):
    """Return a `CogVideoXGenerator` on a tiny pipeline: 5 frames of 32 x 32, LoRA rank 4 and alpha 8."""
    from generator_loop.adapters.cogvideox import CogVideoXGenerator

    defaults = dict(num_frames=5, height=32, width=32, fps=8.0, lora_rank=4, lora_alpha=8, max_sequence_length=8)
    return generator_on(CogVideoXGenerator, pipeline or build_cogvideox(), **{**defaults, **settings})
