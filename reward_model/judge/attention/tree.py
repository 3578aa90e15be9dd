"""Attention of packed token trees, split in two: every token attends to its prefix, and to its own suffix up to itself.

A suffix is a branch, or an answer together with the branch before it. Both attentions are computed apart and merged by
their softmax sums, so no score is computed between suffixes that cannot see each other, and no [L, L] mask is held.

    token      P  P  P | b  b | a  a | c      prefix P, branch b, its answer a, branch c: one packed sequence
    position   0  1  2 | 3  4 | 5  6 | 3
    attends to P up to itself; b, a and c to all of P, and further b to b, a to b b and a, c to c

Bitwise reproducibility: the prefix attention always runs with one shape, the suffix is accumulated in float64, and a matmul
with >= 4 rows gives each row the same result whatever else is in the batch. As a rule a token therefore has the same bits
whether its answer is decoded token by token or read in one pass, alone or beside others.

The split needs a kernel that returns the softmax sums, which torch offers on CPU. Elsewhere, and where only the next token is
read without gradient, sequences are masked, except for the tokens at their start that all sequences count as prefix, which
attend causally without a mask: values agree to rounding, and short prompts are read a fifth faster.

Shapes: R packed sequences, L tokens of the longest, q new tokens of a sequence, h heads (g of keys and values), d head size;
N suffixes, Q own tokens of the longest, K keys that it sees behind the prefix; S slots of a sequence where answers are
decoded, B tokens of the longest branch.

Sources: Juravsky et al., Hydragen (arXiv 2402.05099), section 3; gradients of parts from merged sums as in Liu et al., Ring
Attention (arXiv 2310.01889).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from reward_model.judge.attention.switch import AttentionSwitch, switch_attention

NAME = "shared_prefix_sdpa"
"""Registered name of the attention."""


@dataclass(frozen=True)
class SuffixSpans:
    """Places of the suffixes behind their prefixes, padded to one length.

    `sequence` [N, 1] names the packed sequence; `queries` [N, Q] are the suffix's own tokens in it, of which those in `real`
    [N, Q] are no padding; `keys` [N, K] are the tokens that it sees behind the prefix, with the additive float64 `mask`
    [N, 1, Q, K].
    """

    sequence: Tensor
    queries: Tensor
    real: Tensor
    keys: Tensor
    mask: Tensor


NO_MASK = torch.zeros(1, 1, 1, 1)
"""Stands where transformers wants a mask and none is read."""


class SuffixCache:
    """Key-value cache of a transformers model during decoding, with one new token at a time in each of S slots a sequence.

    Keys and values of the packed sequences stay as they were encoded; each slot adds those of its branch and of its own new
    tokens, in float64.
    """

    def __init__(self, encoded: Any, places: Tensor, known: Tensor, max_new_tokens: int) -> None:
        """Copy each slot's branch from the encoded sequences.

        Args:
            encoded: cache of the pass over the sequences.
            places: [R, S, B] of the branches' tokens in their sequence.
            known: [R, S, B] which of these are not padding.
            max_new_tokens: most tokens that a slot is to take.
        """
        sequence = rearrange(torch.arange(len(places)), "r -> r 1 1")
        self.encoded, self.size = encoded, places.shape[2]
        heads = encoded.layers[0].keys.shape[1]
        allowed = F.pad(known, (0, max_new_tokens), value=True)
        self.mask = additive(repeat(allowed, "r s k -> (r s g) 1 k", g=heads), torch.float64)
        self.own = []  # per layer key and value [R * S * g, B + n, d]
        for layer in encoded.layers:
            both = (t[sequence, :, places].double() for t in (layer.keys, layer.values))
            own = (rearrange(t, "r s b g d -> (r s g) b d") for t in both)
            self.own.append(tuple(F.pad(t, (0, 0, 0, max_new_tokens)) for t in own))

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """Store the new tokens' [R, g, S, d] and return those of the sequences, as transformers calls it."""
        for own, new in zip(self.own[layer], (key, value), strict=True):
            own[:, self.size] = new.transpose(1, 2).flatten(0, 2)  # [R * S * g, d]
        return self.encoded.layers[layer].keys, self.encoded.layers[layer].values

    def attend(self, query: Tensor, layer: int, scale: float) -> tuple[Tensor, Tensor]:
        """Attend from new tokens [R, h, S, d] to their slot's; return [R, S, h, d] and logarithms of sums [R, S, h]."""
        num_sequences, _, num_slots, size = query.shape
        key, value = (own[:, : self.size + 1] for own in self.own[layer])
        slots = query.transpose(1, 2).reshape(len(key), -1, size).double()  # [R * S * g, h / g, d]
        scores = torch.baddbmm(self.mask[..., : self.size + 1], slots, key.transpose(1, 2), alpha=scale)
        sums = scores.logsumexp(dim=-1, keepdim=True)
        out = (scores - sums).exp() @ value
        return out.reshape(num_sequences, num_slots, -1, size), sums.reshape(num_sequences, num_slots, -1)


@dataclass(frozen=True)
class AttentionSpans:
    """Keys that the tokens of one pass attend to.

    Without `prefixes`, the first `num_common` queries attend causally, and the q others to what the additive `mask` [R, 1, q,
    keys] allows. With `prefixes`, each (num_sequences, length) pair lets that many consecutive sequences attend to the
    first `length` keys, plus either `suffixes` (full pass) or `cache` (decoding, one new token per slot).
    """

    mask: Tensor
    num_common: int = 0
    prefixes: tuple[tuple[int, int], ...] = ()
    suffixes: tuple[SuffixSpans, ...] = ()
    cache: SuffixCache | None = None


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where `allowed`, the dtype's minimum elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def attend_in_trees(model: nn.Module) -> AttentionSwitch:
    """Make every text model in `model` that uses torch's attention take `AttentionSpans`; without them its values are equal.

    Args:
        model: changed in place: `_attn_implementation` of its text configs.

    Returns:
        The change, for its `undo`.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return switch_attention(model, having="embed_tokens", to=NAME)


def splits_attention(model: Any) -> bool:
    """Return whether the text model's kernel gives softmax sums: torch's attention on CPU, without dropout."""
    config, on_cpu = model.model.language_model.config, model.lm_head.weight.device.type == "cpu"
    return on_cpu and config._attn_implementation == NAME and not (model.training and config.attention_dropout)


def tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    spans: AttentionSpans | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attend as `transformers.AttentionInterface` calls it.

    Args:
        module: the attention layer.
        query: [R, h, q, d].
        key: [R, g, keys, d]; value alike.
        value: see `key`.
        attention_mask: additive; not read where the spans have prefixes.
        spans: keys that the tokens attend to; None attends as torch's attention does.
        **settings: further arguments of torch's attention in transformers.

    Returns:
        [R, q, h, d], and None in place of weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if spans is not None and spans.prefixes:
        if torch.is_autocast_enabled("cpu"):  # the kernel, called by its own name, is passed over
            query, key, value = (t.to(torch.get_autocast_dtype("cpu")) for t in (query, key, value))
        if spans.cache is None:
            return _SplitAttention.apply(query, key, value, spans, settings["scaling"]), None
        out, sums = _attend_prefixes(query, key, value, spans, settings["scaling"])
        return _merge(out, sums, *spans.cache.attend(query, module.layer_idx, settings["scaling"]))[0], None
    if spans is None or not spans.num_common or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    start, rest = slice(spans.num_common), slice(spans.num_common, None)
    first, _ = sdpa_attention_forward(
        module, query[:, :, start], key[:, :, start], value[:, :, start], None, **{**settings, "is_causal": True}
    )
    second, _ = sdpa_attention_forward(module, query[:, :, rest], key, value, attention_mask, **settings)
    return torch.cat([first, second], dim=1), None


class _SplitAttention(torch.autograd.Function):
    """Attention to prefixes and to suffixes, merged; the gradient of either follows from the merged values and sums."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: AttentionSpans, scale: float) -> Tensor:
        """Return [R, q, h, d]."""
        out, sums = _attend_prefixes(query, key, value, spans, scale)
        for suffixes in spans.suffixes:
            q, k, v = (tensor.double() for tensor in _of_suffixes(suffixes, query, key, value))
            own, own_sums = (
                tensor.transpose(1, 2)[suffixes.real] for tensor in _attend(q, k, v, scale, mask=suffixes.mask)
            )
            at = suffixes.sequence.expand_as(suffixes.queries)[suffixes.real], suffixes.queries[suffixes.real]
            out[at], sums[at] = _merge(out[at], sums[at], own, own_sums)
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.spans, ctx.scale = spans, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Return the gradients of query, key and value."""
        *before, out, sums = ctx.saved_tensors
        spans, scale, after = ctx.spans, ctx.scale, (*grads, out, sums)
        totals = [t.new_zeros(t.transpose(1, 2).shape) for t in before]
        for sequences, new, old, causal in _prefix_calls(spans):
            places = (new, old, old)
            inputs = [t[sequences, :, at] for t, at in zip(before, places, strict=True)]
            results = [t[sequences, new].transpose(1, 2) for t in after]
            shares = _attend_backward(inputs, results, scale, causal=causal)
            for total, share, at in zip(totals, shares, places, strict=True):
                total[sequences, at] += share.transpose(1, 2)
        for suffixes in spans.suffixes:
            grad, values, logs = (t[suffixes.sequence, suffixes.queries].transpose(1, 2) for t in after)
            padding = ~rearrange(suffixes.real, "n q -> n 1 q")
            # padding stands for token 0, whose sum is far below some of these scores: the weights would overflow
            own_results = grad.masked_fill(padding[..., None], 0.0), values, logs.masked_fill(padding, torch.inf)
            mask = suffixes.mask.to(out.dtype)
            shares = _attend_backward(_of_suffixes(suffixes, *before), own_results, scale, mask=mask)
            for total, share, at in zip(totals, shares, (suffixes.queries, suffixes.keys, suffixes.keys), strict=True):
                total.index_put_((suffixes.sequence, at), share.transpose(1, 2), accumulate=True)
        dq, dk, dv = (total.transpose(1, 2) for total in totals)
        return dq, dk, dv, None, None


def _prefix_calls(spans: AttentionSpans) -> Iterator[tuple[slice, slice, slice, bool]]:
    """Yield sequences, their new tokens, the keys that these attend to, and whether causally."""
    # prefixes ((2, 3), (1, 5)): sequences 0-1, tokens 0-2 to keys 0-2 causally, tokens 3- to keys 0-2; sequence 2 with 5
    first = 0
    for num_sequences, length in spans.prefixes:
        sequences, prefix = slice(first, first + num_sequences), slice(length)
        if spans.cache is None:
            yield sequences, prefix, prefix, True
        yield sequences, slice(length if spans.cache is None else 0, None), prefix, False
        first += num_sequences


def _attend_prefixes(
    query: Tensor, key: Tensor, value: Tensor, spans: AttentionSpans, scale: float
) -> tuple[Tensor, Tensor]:
    """Return [R, q, h, d] and the logarithms of the softmax sums [R, q, h]."""
    out = query.new_empty(query.transpose(1, 2).shape)
    sums = out.new_empty(out.shape[:3], dtype=torch.promote_types(out.dtype, torch.float32))
    for sequences, new, old, causal in _prefix_calls(spans):
        inputs = query[sequences, :, new], key[sequences, :, old], value[sequences, :, old]
        values, logs = _attend(*inputs, scale, causal=causal)
        out[sequences, new], sums[sequences, new] = values.transpose(1, 2), logs.transpose(1, 2)
    return out, sums


def _merge(out: Tensor, sums: Tensor, own: Tensor, own_sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return values [..., d] and logarithms of sums [...] over two sets of keys, in the first's dtypes."""
    merged = torch.logaddexp(sums.double(), own_sums)
    weight, own_weight = ((logs - merged).exp()[..., None] for logs in (sums, own_sums))
    return (weight * out + own_weight * own).to(out.dtype), merged.to(sums.dtype)


def _of_suffixes(suffixes: SuffixSpans, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """Return query [N, h, Q, d], key and value [N, g, K, d] of the suffixes."""
    pairs = (query, suffixes.queries), (key, suffixes.keys), (value, suffixes.keys)
    return tuple(tensor[suffixes.sequence, :, places].transpose(1, 2) for tensor, places in pairs)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attend [B, h, q, d] to [B, g, keys, d]; return [B, h, q, d] and the logarithm of the softmax sums [B, h, q].

    Values do not depend on the number of queries: the kernel takes 32 or more at a time and multiplies fewer than four in
    another way, so these are padded to four.
    """
    length, repeats = query.shape[2], query.shape[1] // key.shape[1]
    if mask is None and length % 4:
        query = F.pad(query, (0, 0, 0, -length % 4))
    results = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        _heads_out(query, repeats),
        _per_head(key, repeats),
        _per_head(value, repeats),
        is_causal=causal,
        attn_mask=None if mask is None else _per_head(mask, repeats),
        scale=scale,
    )
    out, sums = (_heads_back(tensor, repeats)[:, :, :length] for tensor in results)
    return out, sums


def _attend_backward(
    inputs: Sequence[Tensor],
    results: Sequence[Tensor],
    scale: float,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return one set of keys' share of the gradients of the inputs: query, key and value.

    The results are the gradient [B, h, q, d] of the values over all keys, these values, and the logarithm of their sums.
    """
    query, *others = inputs
    repeats = query.shape[1] // others[0].shape[1]
    grad, out, sums = (_heads_out(t, repeats) for t in results)
    dq, *per_head = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad,
        _heads_out(query, repeats),
        *(_per_head(t, repeats) for t in others),
        out,
        sums,
        0.0,
        causal,
        attn_mask=None if mask is None else _per_head(mask, repeats),
        scale=scale,
    )
    return _heads_back(dq, repeats), *(reduce(t, "(b m) ... -> b ...", "sum", m=repeats) for t in per_head)


# h = 4 heads share g = 2 keys, so repeats m = 2: heads 0 1 | 2 3 become two batch entries of heads 0 2 and 1 3, and each
# entry stands opposite its own copy of keys 0 1.
#
# These three and the cache above run in every layer of every decoded token: plain views, because einops' own time per call
# makes decoding of small models about a tenth slower.


def _heads_out(tensor: Tensor, repeats: int) -> Tensor:
    return tensor.unflatten(1, (-1, repeats)).transpose(1, 2).flatten(0, 1)  # [B * m, g, ...]


def _heads_back(tensor: Tensor, repeats: int) -> Tensor:
    return tensor.unflatten(0, (-1, repeats)).transpose(1, 2).flatten(1, 2)  # [B, g * m, ...]


def _per_head(tensor: Tensor, repeats: int) -> Tensor:
    return tensor[:, None].expand(-1, repeats, -1, -1, -1).flatten(0, 1)  # [B * m, ...], a view where B is 1
