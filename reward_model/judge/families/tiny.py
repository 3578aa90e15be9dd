"""Builds small vision-language judges from nothing: a word-level tokenizer and a model from config objects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import torch

from reward_model.judge.families import FAMILIES
from reward_model.language.requests import (
    PREFERENCES,
    compare_request,
    describe_request,
    reason_answer,
    reason_request,
    score_request,
)
from reward_model.records import DIMENSIONS, LEVELS, Clip, FramePlan

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

_SPECIAL = re.compile("|".join(re.escape(token) for token in SPECIAL_TOKENS))
_SYMBOLS = ", . : ; - ' \" ( ) { } [ ] / < > = + * ? !"


def build_tokenizer(words: Iterable[str] = ()) -> Any:
    """Build a byte-level Qwen2 tokenizer in which each known word is one token, with and without a leading space.

    Known are the words of the judge's prompts and answers, digits, punctuation, and `words`; any other text falls apart
    into pieces but survives a round trip.

    Args:
        words: further words, or texts whose words are taken.

    Returns:
        The tokenizer, the same for the same words in any order.
    """
    from tokenizers import Tokenizer, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    # BPE merges on until each piece of this corpus is one token, as the vocabulary size never stops it
    cut = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    known = sorted({word for text in (*_own_texts(), *words) for word in text.split()})
    corpus = [*_own_texts(), *(form for word in known for form in (word, f" {word}"))]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = cut
    alphabet = sorted(ByteLevel.alphabet())
    trained.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=1_000_000, initial_alphabet=alphabet, show_progress=False)
    )
    return _qwen2_tokenizer(trained)


def _qwen2_tokenizer(trained: Any) -> Any:
    from transformers import Qwen2Tokenizer

    model = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    return tokenizer


def build_tiny(
    family: str,
    *,
    hidden: int = 128,
    layers: int = 4,
    vision_hidden: int = 128,
    vision_layers: int = 4,
    patch_size: int = 14,
    seed: int = 0,
    tokenizer: Any | None = None,
    init_std: float = 0.02,
) -> tuple[Any, Any]:
    """Build a randomly initialised model of the family's real architecture.

    Args:
        family: model type, a key of `FAMILIES`.
        hidden: width of the text model, a multiple of 32 (four heads).
        layers: depth of the text model.
        vision_hidden: width of the vision tower, a multiple of 16.
        vision_layers: depth of the vision tower.
        patch_size: side of a patch in pixels.
        seed: of the weights.
        tokenizer: from `build_tokenizer`, or None for one without further words.
        init_std: of all matrices; models much smaller than the default learn from pixels only at 0.1.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
        ValueError: unknown family.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    tokenizer = build_tokenizer() if tokenizer is None else tokenizer
    config = FAMILIES[family].scratch_config(
        text=_text_config(tokenizer, hidden, layers),
        vision={
            "depth": vision_layers,
            "hidden_size": vision_hidden,
            "intermediate_size": 3 * vision_hidden,
            "num_heads": 4,
            "patch_size": patch_size,
            "out_hidden_size": hidden,
        },
        rope={"rope_type": "default", "rope_theta": 1e4, "mrope_section": _sections(hidden // 8)},
        ids={
            f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
            for name, token in (
                ("image", "image_pad"),
                ("video", "video_pad"),
                ("vision_start", "vision_start"),
                ("vision_end", "vision_end"),
            )
        },
    )
    return _random_model(config, seed, init_std), tokenizer


def _random_model(config: Any, seed: int, init_std: float) -> Any:
    from transformers import AutoModelForImageTextToText

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=init_std)
    return model.eval()


def _text_config(tokenizer: Any, hidden: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "pad_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    }


def _sections(half_head: int) -> list[int]:
    """Share half a head's dimensions among time, height and width; time gets the fewest."""
    side = 3 * half_head // 8
    return [half_head - 2 * side, side, side]


def _own_texts() -> list[str]:
    """Return every text that the judge's prompts and answers are made of, clips left out."""
    clip = Clip(torch.zeros(0), FramePlan((), (), (), 1.0))
    requests = [
        score_request(clip, "a", DIMENSIONS),
        describe_request(clip),
        reason_request(clip, "a", DIMENSIONS),
        *(compare_request(clip, clip, "a", name) for name in DIMENSIONS),
    ]
    texts = [text for r in requests for text in (*r.prefix, *r.branches) if isinstance(text, str)]
    texts += [reason_answer(dict.fromkeys(DIMENSIONS, quality), "") for quality in (0.0, 0.4, 1.0)]
    texts += [*LEVELS, *PREFERENCES, *"0123456789", _SYMBOLS]
    return [piece for text in texts for piece in _SPECIAL.split(text) if piece]
