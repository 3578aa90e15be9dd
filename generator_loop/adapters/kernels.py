"""How a transformer computes: its attention kernel and the compilation of its blocks, by diffusers' own switches."""

from __future__ import annotations

from typing import Any, Literal

Attention = Literal["native", "cudnn", "flash", "flash_3", "xformers"]
"""Attention kernels with a gradient; all but the first two need a package."""

_BACKENDS = {"cudnn": "_native_cudnn", "flash": "flash", "flash_3": "_flash_3", "xformers": "xformers"}


def use_attention(transformer: Any, name: Attention) -> None:
    """Set the attention kernel of one transformer.

    Args:
        transformer: diffusers transformer.
        name: kernel.

    Raises:
        ValueError: if the kernel is not installed.
    """
    from diffusers import attention_backend

    if name == "native":
        return
    try:
        with attention_backend("native"):  # the switch would otherwise hold for every model of the process
            transformer.set_attention_backend(_BACKENDS[name])
    except (RuntimeError, ImportError) as error:
        raise ValueError(f"generator.attention={name} is unavailable here: {error}") from error


def compile_blocks(transformer: Any) -> None:
    """Have the transformer's repeated blocks compiled when they are first called.

    Args:
        transformer: diffusers transformer, with LoRA in place.

    Raises:
        ValueError: if diffusers does not say which blocks of this transformer repeat.
    """
    try:
        transformer.compile_repeated_blocks()
    except ValueError as error:
        raise ValueError(
            f"generator.compile=true is unavailable for {type(transformer).__name__}: diffusers does not name its repeated "
            "blocks; set generator.compile=false"
        ) from error
