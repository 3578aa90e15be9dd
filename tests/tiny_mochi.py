"""A tiny random `MochiPipeline` of the real architecture, built on the spot."""

import torch

from tests.tiny_wan import build_tokenizer, generator_on


def build_mochi(*, seed=0):
    """Return a random pipeline that shrinks time by 6 and space by 8; clips of 7 frames of 32 x 32 pass in milliseconds."""
    from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiPipeline, MochiTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        text = T5Config(
            vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0
        )
        text_encoder = T5EncoderModel(text).eval()
        vae = AutoencoderKLMochi(
            latent_channels=12,
            encoder_block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1),
            scaling_factor=0.8,
        )
        transformer = MochiTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            pooled_projection_dim=16,
            in_channels=12,
            text_embed_dim=16,
            time_embed_dim=4,
            max_sequence_length=8,
        )
    pipeline = MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=vae.eval(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_mochi_generator(*, pipeline=None, **settings):
    """Return a `MochiGenerator` on a tiny pipeline: 7 frames of 32 x 32, LoRA rank 4 and alpha 8."""
    from generator_loop.adapters.mochi import MochiGenerator

    defaults = dict(num_frames=7, height=32, width=32, fps=8.0, lora_rank=4, lora_alpha=8, max_sequence_length=8)
    return generator_on(MochiGenerator, pipeline or build_mochi(), **{**defaults, **settings})
