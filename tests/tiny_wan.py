"""A tiny random `WanPipeline` of the real architecture, built on the spot.

The VAE's width is 8: at 3, which is common in test suites, an up block has one channel, whose RMS norm is a sign
function, and the decoder's gradient means nothing.
"""

import torch

WORDS = ("a", "red", "blue", "ball", "square", "moves", "left", "right", "slowly", "worst", "quality")


def build_tokenizer():
    """Return a word-level tokenizer with T5's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )


KINDS = ("2.1", "2.2 A14B", "2.2 TI2V")


def build_wan(*, kind="2.1", scheduler=None, shift=3.0, seed=0):
    """Return a random pipeline that shrinks time and space by 4; clips of 5 frames of 16 x 16 pass in milliseconds.

    "2.2 A14B" has two transformers that change over at sigma 0.8, "2.2 TI2V" is told the time of every token.
    """
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        text_encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(tokenizer),
                d_model=16,
                d_kv=8,
                d_ff=16,
                num_layers=1,
                num_heads=2,
                pad_token_id=0,
                eos_token_id=1,
            )
        )
        vae = AutoencoderKLWan(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[True, True],
            scale_factor_temporal=4,
            scale_factor_spatial=4,
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 0.7, 1.0, 2.0],
        )
        transformers = [
            WanTransformer3DModel(
                patch_size=(1, 2, 2),
                num_attention_heads=2,
                attention_head_dim=12,
                in_channels=4,
                out_channels=4,
                text_dim=16,
                freq_dim=32,
                ffn_dim=32,
                num_layers=2,
                cross_attn_norm=True,
                qk_norm="rms_norm_across_heads",
                rope_max_seq_len=32,
            ).eval()
            for _ in range(1 + (kind == "2.2 A14B"))
        ]
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval(),
        transformer=transformers[0],
        transformer_2=transformers[1] if len(transformers) > 1 else None,
        boundary_ratio=0.8 if len(transformers) > 1 else None,
        expand_timesteps=kind == "2.2 TI2V",
        vae=vae.eval(),
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=shift),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generator_on(family_class, pipeline, *, lora_seed=0, lora_targets=None, **settings):
    """Return a generator on a loaded pipeline; `settings` are those of `generator` in a recipe."""
    from generator_loop.config import GeneratorConfig

    config = GeneratorConfig(path="", **settings)
    return family_class(pipeline, config, lora_seed=lora_seed, lora_targets=lora_targets)


def build_generator(*, pipeline=None, **settings):
    """Return a `WanGenerator` on a tiny pipeline: 5 frames of 16 x 16, LoRA rank 4 and alpha 8."""
    from generator_loop.adapters.wan import WanGenerator

    defaults = dict(num_frames=5, height=16, width=16, fps=8.0, lora_rank=4, lora_alpha=8, max_sequence_length=8)
    return generator_on(WanGenerator, pipeline or build_wan(), **{**defaults, **settings})


def randomise_lora(generator, *, std=0.3, seed=1):
    """Give the trained weights, among them LoRA's B, which starts at zero, values that change the output."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in generator.trainable_parameters().values():
            parameter.add_((std * torch.randn(parameter.shape, generator=noise)).to(parameter.device))
