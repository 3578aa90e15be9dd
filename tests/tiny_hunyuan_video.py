"""A tiny random `HunyuanVideoPipeline` of the real architecture, built on the spot."""

import torch

from tests.tiny_wan import build_tokenizer, generator_on


def build_hunyuan_video(*, seed=0):
    """Return a random pipeline that shrinks time by 4 and space by 8; clips of 5 frames of 32 x 32 pass in milliseconds."""
    from diffusers import (
        AutoencoderKLHunyuanVideo,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoPipeline,
        HunyuanVideoTransformer3DModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        words = {"vocab_size": len(tokenizer), **size, **ids}
        llama = LlamaModel(LlamaConfig(**words, max_position_embeddings=256)).eval()
        clip = CLIPTextModel(CLIPTextConfig(**words, projection_dim=16, max_position_embeddings=77)).eval()
        vae = AutoencoderKLHunyuanVideo(
            latent_channels=4,
            down_block_types=("HunyuanVideoDownBlock3D",) * 4,
            up_block_types=("HunyuanVideoUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=0.5,
        )
        transformer = HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=1,
            patch_size_t=1,
            text_embed_dim=16,
            pooled_projection_dim=16,
            rope_axes_dim=(2, 4, 4),
        )
    pipeline = HunyuanVideoPipeline(
        text_encoder=llama,
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=clip,
        tokenizer_2=tokenizer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_hunyuan_video_generator(*, pipeline=None, **settings):
    """Return a `HunyuanVideoGenerator` on a tiny pipeline: 5 frames of 32 x 32, LoRA rank 4 and alpha 8."""
    from generator_loop.adapters.hunyuan_video import HunyuanVideoGenerator

    defaults = dict(num_frames=5, height=32, width=32, fps=8.0, lora_rank=4, lora_alpha=8, max_sequence_length=16)
    return generator_on(HunyuanVideoGenerator, pipeline or build_hunyuan_video(), **{**defaults, **settings})
