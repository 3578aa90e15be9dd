"""Attention of token trees without a mask over whole rows: every token sees its prefix, and besides its own text only.

What a token behind the prefix sees falls into two parts: all of the prefix, and its branch and answer up to itself. Each is
attended to by itself, and the two are merged by their softmax sums. So nothing is computed between answers that cannot see
each other, and no mask over rows is held. And a token gets the same value, to the last bit as a rule, whether its answer is
written token by token or read as a whole, alone or among others: the prefix is a call of one shape each time, the own text
is summed in float64, and a matrix product of four rows or more gives each of them what it would give it among others.

The parts need a kernel that returns the softmax sums, which torch offers on CPU; elsewhere rows are masked, but for the
tokens that all rows have in common at their start, which need no mask.

Shapes: R rows, L tokens of the longest row, q new tokens of a row, h heads (g of keys and values), d head size; N texts
(branches and answers), Q tokens of the longest, K keys that it sees behind the prefix; S slots of a row where answers are
written, B tokens of the longest branch.

Sources: Juravsky et al., Hydragen (arXiv 2402.05099), section 3; gradients of parts from merged sums as in Liu et al., Ring
Attention (arXiv 2310.01889).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "shared_prefix_sdpa"
"""Registered name of the attention."""


@dataclass(frozen=True)
class Texts:
    """Where the texts behind prefixes stand.

    `row` [N, 1]; `queries` [N, Q] places of their tokens among the row's new ones, of which some are padding and the others
    `real` [N, Q]; `keys` [N, K] places of what they see behind the prefix; `mask` [N, 1, Q, K] additive, float64.
    """

    row: Tensor
    queries: Tensor
    real: Tensor
    keys: Tensor
    mask: Tensor


NO_MASK = torch.zeros(1, 1, 1, 1)
"""Stands where transformers wants a mask and none is read."""


class Written:
    """Cache of a transformers model while answers are written, one token at a time in each of S slots a row.

    Keys and values of the rows stay as they were encoded; each slot holds those of its branch and of its own tokens, in
    float64.
    """

    def __init__(self, encoded: Any, places: Tensor, known: Tensor, max_new_tokens: int) -> None:
        """Take what was encoded and give each slot its branch.

        Args:
            encoded: cache of the pass over the rows.
            places: [R, S, B] of the branches' tokens among the row's.
            known: [R, S, B] which of these are not padding.
            max_new_tokens: most tokens that a slot is to take.
        """
        row = torch.arange(len(places))[:, None, None]
        self.encoded, self.size = encoded, places.shape[2]
        heads = encoded.layers[0].keys.shape[1]
        allowed = F.pad(known, (0, max_new_tokens), value=True).flatten(0, 1).repeat_interleave(heads, dim=0)
        self.mask = additive(allowed, torch.float64)[:, None]  # [R * S * g, 1, B + n]
        self.own = []  # per layer key and value [R * S * g, B + n, d]
        for layer in encoded.layers:
            both = (t[row, :, places].transpose(2, 3).flatten(0, 2).double() for t in (layer.keys, layer.values))
            self.own.append(tuple(F.pad(t, (0, 0, 0, max_new_tokens)) for t in both))

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """Note the new tokens' [R, g, S, d] and return those of the rows, as transformers calls it."""
        for own, new in zip(self.own[layer], (key, value), strict=True):
            own[:, self.size] = new.transpose(1, 2).flatten(0, 2)
        return self.encoded.layers[layer].keys, self.encoded.layers[layer].values

    def attend(self, query: Tensor, layer: int, scale: float) -> tuple[Tensor, Tensor]:
        """Attend from new tokens [R, h, S, d] to their slot's; return [R, S, h, d] and logarithms of sums [R, S, h]."""
        num_rows, _, num_slots, size = query.shape
        key, value = (own[:, : self.size + 1] for own in self.own[layer])
        slots = query.transpose(1, 2).reshape(len(key), -1, size).double()  # [R * S * g, h / g, d]
        scores = torch.baddbmm(self.mask[..., : self.size + 1], slots, key.transpose(1, 2), alpha=scale)
        sums = scores.logsumexp(dim=-1, keepdim=True)
        out = (scores - sums).exp() @ value
        return out.reshape(num_rows, num_slots, -1, size), sums.reshape(num_rows, num_slots, -1)


@dataclass(frozen=True)
class Seen:
    """What the tokens of a pass see.

    Without `prefixes`, what `mask` [R, 1, q, keys] allows, which is causal in the first `num_common` rows and columns. With
    them, of each so many neighbouring rows the first so many keys; and `texts`, or what is `written`, where the new tokens
    are one of each slot.
    """

    mask: Tensor
    num_common: int = 0
    prefixes: tuple[tuple[int, int], ...] = ()
    texts: tuple[Texts, ...] = ()
    written: Written | None = None


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where `allowed`, the dtype's minimum elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def attend_in_trees(model: nn.Module) -> None:
    """Make every text model in `model` that uses torch's attention attend in parts."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(module, "embed_tokens") and getattr(config, "_attn_implementation", "") == "sdpa":
            config._attn_implementation = NAME


def attends_in_parts(model: Any) -> bool:
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
    seen: Seen | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attend as `transformers.AttentionInterface` calls it.

    Args:
        module: the attention layer.
        query: [R, h, q, d].
        key: [R, g, keys, d]; value alike.
        value: see `key`.
        attention_mask: additive; not read where there are texts.
        seen: what the tokens see; None attends as torch's attention does.
        **settings: further arguments of torch's attention in transformers.

    Returns:
        [R, q, h, d], and None in place of weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if seen is not None and seen.prefixes:
        if torch.is_autocast_enabled("cpu"):  # the kernel, called by its own name, is passed over
            query, key, value = (t.to(torch.get_autocast_dtype("cpu")) for t in (query, key, value))
        if seen.written is None:
            return _InParts.apply(query, key, value, seen, settings["scaling"]), None
        out, sums = _attend_prefixes(query, key, value, seen, settings["scaling"])
        return _merge(out, sums, *seen.written.attend(query, module.layer_idx, settings["scaling"]))[0], None
    if seen is None or not seen.num_common or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    start, rest = slice(seen.num_common), slice(seen.num_common, None)
    first, _ = sdpa_attention_forward(
        module, query[:, :, start], key[:, :, start], value[:, :, start], None, **{**settings, "is_causal": True}
    )
    second, _ = sdpa_attention_forward(module, query[:, :, rest], key, value, attention_mask[:, :, rest], **settings)
    return torch.cat([first, second], dim=1), None


class _InParts(torch.autograd.Function):
    """Attention to prefixes and to texts, merged; each part's gradient follows from the merged values and sums."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, seen: Seen, scale: float) -> Tensor:
        """Return [R, q, h, d]."""
        out, sums = _attend_prefixes(query, key, value, seen, scale)
        for texts in seen.texts:
            q, k, v = (part.double() for part in _of_texts(texts, query, key, value))
            own, own_sums = (part.transpose(1, 2)[texts.real] for part in _attend(q, k, v, scale, mask=texts.mask))
            at = texts.row.expand_as(texts.queries)[texts.real], texts.queries[texts.real]
            out[at], sums[at] = _merge(out[at], sums[at], own, own_sums)
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.seen, ctx.scale = seen, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Return the gradients of query, key and value."""
        *before, out, sums = ctx.saved_tensors
        seen, scale, after = ctx.seen, ctx.scale, (*grads, out, sums)
        totals = [t.new_zeros(t.transpose(1, 2).shape) for t in before]
        for rows, new, old, causal in _prefix_calls(seen):
            places = (new, old, old)
            inputs = [t[rows, :, at] for t, at in zip(before, places, strict=True)]
            results = [t[rows, new].transpose(1, 2) for t in after]
            found = _attend_backward(inputs, results, scale, causal=causal)
            for total, part, at in zip(totals, found, places, strict=True):
                total[rows, at] += part.transpose(1, 2)
        for texts in seen.texts:
            grad, *results = (t[texts.row, texts.queries].transpose(1, 2) for t in after)
            grad = grad * texts.real[:, None, :, None]
            found = _attend_backward(_of_texts(texts, *before), [grad, *results], scale, mask=texts.mask.to(out.dtype))
            for total, part, at in zip(totals, found, (texts.queries, texts.keys, texts.keys), strict=True):
                total.index_put_((texts.row, at), part.transpose(1, 2), accumulate=True)
        dq, dk, dv = (total.transpose(1, 2) for total in totals)
        return dq, dk, dv, None, None


def _prefix_calls(seen: Seen) -> Iterator[tuple[slice, slice, slice, bool]]:
    """Yield rows, their new tokens, the keys that these see, and whether causally."""
    first = 0
    for num_rows, length in seen.prefixes:
        rows, prefix = slice(first, first + num_rows), slice(length)
        if seen.written is None:
            yield rows, prefix, prefix, True
        yield rows, slice(length if seen.written is None else 0, None), prefix, False
        first += num_rows


def _attend_prefixes(query: Tensor, key: Tensor, value: Tensor, seen: Seen, scale: float) -> tuple[Tensor, Tensor]:
    """Return [R, q, h, d] and the logarithms of the softmax sums [R, q, h]."""
    out = query.new_empty(query.transpose(1, 2).shape)
    sums = out.new_empty(out.shape[:3], dtype=torch.promote_types(out.dtype, torch.float32))
    for rows, new, old, causal in _prefix_calls(seen):
        found = _attend(query[rows, :, new], key[rows, :, old], value[rows, :, old], scale, causal=causal)
        out[rows, new], sums[rows, new] = (part.transpose(1, 2) for part in found)
    return out, sums


def _merge(out: Tensor, sums: Tensor, own: Tensor, own_sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return values [..., d] and logarithms of sums [...] over two sets of keys, in the first's dtypes."""
    merged = torch.logaddexp(sums.double(), own_sums)
    weight, own_weight = ((part - merged).exp()[..., None] for part in (sums, own_sums))
    return (weight * out + own_weight * own).to(out.dtype), merged.to(sums.dtype)


def _of_texts(texts: Texts, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """Return query [N, h, Q, d], key and value [N, g, K, d] of the texts."""
    pairs = (query, texts.queries), (key, texts.keys), (value, texts.keys)
    return tuple(tensor[texts.row, :, places].transpose(1, 2) for tensor, places in pairs)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attend [B, h, q, d] to [B, g, keys, d]; return [B, h, q, d] and the logarithm of the softmax sums [B, h, q].

    Values do not depend on the number of queries: the kernel takes 32 or more at a time and multiplies fewer than four in
    another way, so these are made four.
    """
    length, repeats = query.shape[2], query.shape[1] // key.shape[1]
    if mask is None and length % 4:
        query = F.pad(query, (0, 0, 0, -length % 4))
    found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        _heads_out(query, repeats),
        _repeat(key, repeats),
        _repeat(value, repeats),
        is_causal=causal,
        attn_mask=None if mask is None else mask.repeat_interleave(repeats, dim=0),
        scale=scale,
    )
    out, sums = (_heads_back(part, repeats)[:, :, :length] for part in found)
    return out, sums


def _attend_backward(
    inputs: Sequence[Tensor],
    results: Sequence[Tensor],
    scale: float,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return what some keys add to the gradients of the inputs: query, key and value.

    The results are the gradient [B, h, q, d] of the values over all keys, these values, and the logarithm of their sums.
    """
    query, *others = inputs
    repeats = query.shape[1] // others[0].shape[1]
    grad, out, sums = (_heads_out(t, repeats) for t in results)
    dq, *found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad,
        _heads_out(query, repeats),
        *(_repeat(t, repeats) for t in others),
        out,
        sums,
        0.0,
        causal,
        attn_mask=None if mask is None else mask.repeat_interleave(repeats, dim=0),
        scale=scale,
    )
    return _heads_back(dq, repeats), *(t.unflatten(0, (-1, repeats)).sum(dim=1) for t in found)


def _heads_out(tensor: Tensor, repeats: int) -> Tensor:
    """[B, h, ...] -> [B * repeats, g, ...], so that each head stands opposite its keys."""
    return tensor.unflatten(1, (-1, repeats)).transpose(1, 2).flatten(0, 1)


def _heads_back(tensor: Tensor, repeats: int) -> Tensor:
    """[B * repeats, g, ...] -> [B, h, ...]."""
    return tensor.unflatten(0, (-1, repeats)).transpose(1, 2).flatten(1, 2)


def _repeat(tensor: Tensor, repeats: int) -> Tensor:
    """[B, g, ...] -> [B * repeats, g, ...]; a view where B is 1."""
    return tensor[:, None].expand(-1, repeats, -1, -1, -1).flatten(0, 1)
