"""Best-response version of multi-head attention, and guards of the transformer layers that hold it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sthyper.selftuning._layers_base import BestResponse, Examples, prepare
from sthyper.selftuning._response import Site
from sthyper.selftuning.perturbation import Perturbation

__all__ = [
    "BestResponseMultiheadAttention",
    "BestResponseTransformerEncoder",
    "BestResponseTransformerEncoderLayer",
]


class BestResponseMultiheadAttention(BestResponse, nn.MultiheadAttention):
    """See :class:`torch.nn.MultiheadAttention`; its four projections respond to hyperparameters."""

    plain_class = nn.MultiheadAttention

    @classmethod
    def sites(cls, layer: Any) -> list[Site]:
        """Return the projections of queries, keys, values and outputs."""
        size = layer.embed_dim
        bias = None if layer.in_proj_bias is None else "in_proj_bias"
        result = []
        for i, name in enumerate(("q", "k", "v")):
            if layer._qkv_same_embed_dim:
                result.append(Site(f"{name}_proj", "in_proj_weight", bias, part=(i * size, size)))
            else:
                result.append(_SeparateSite(f"{name}_proj", f"{name}_proj_weight", bias, part=(i * size, size)))
        return [*result, _OutSite("out_proj", "out_proj.weight", None if bias is None else "out_proj.bias")]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return outputs and attention weights as the plain layer does."""
        perturbation = self.perturbation()
        if perturbation is None:
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        if is_causal and attn_mask is None:
            raise RuntimeError(f"layer {self.link.name!r}: is_causal needs attn_mask")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        examples = Examples(self.link.name, 0, query.shape[0] if perturbation.n_groups > 1 else 1)
        q, k, v = (
            self._project(name, x, perturbation, examples)
            for name, x in (("q_proj", query), ("k_proj", key), ("v_proj", value))
        )
        k, v = self._more_keys(k, v)
        mask = self._mask(attn_mask, key_padding_mask, q, k)
        heads, weights = self._attend(q, k, v, mask, need_weights or perturbation.linearised)
        output = self._project("out_proj", heads, perturbation, examples)
        if not batched:
            output = output.squeeze(0)
        elif not self.batch_first:
            output = output.transpose(0, 1)
        if not need_weights or weights is None:
            return output, None
        weights = weights.mean(dim=1) if average_attn_weights else weights
        return output, weights if batched else weights.squeeze(0)

    def _project(self, name: str, x: Tensor, perturbation: Perturbation, examples: Examples) -> Tensor:
        site = next(site for site in self.sites(self) if site.name == name)
        weight, bias = site.general(self)
        rows = x.numel() // x.shape[-1]
        return prepare(F.linear, weight, bias, self.response(name), perturbation, examples, rows=rows)(x)

    def _more_keys(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the learned key and value, and the zero ones, if the layer has them."""
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.to(k.dtype).expand(k.shape[0], 1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.to(v.dtype).expand(v.shape[0], 1, -1)], dim=1)
        if self.add_zero_attn:
            k = torch.cat([k, k.new_zeros(k.shape[0], 1, k.shape[2])], dim=1)
            v = torch.cat([v, v.new_zeros(v.shape[0], 1, v.shape[2])], dim=1)
        return k, v

    def _mask(self, mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
        """Return what is added to the scores (broadcast to ``B x heads x L x S``), from both masks."""
        result = None
        if mask is not None:
            mask = _additive(mask, q.dtype)
            result = torch.unflatten(mask, 0, (-1, self.num_heads)) if mask.dim() == 3 else mask
            result = F.pad(result, (0, k.shape[1] - result.shape[-1]))
        if padding is not None:
            padding = _additive(padding, q.dtype)
            padding = F.pad(padding, (0, k.shape[1] - padding.shape[-1]))[:, None, None]
            result = padding if result is None else result + padding
        return result

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, explicit: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return values by head, joined, and the weights if they are computed explicitly.

        Fused kernels have no forward-mode derivative everywhere.
        """
        q, k, v = (torch.unflatten(x, -1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        rate = self.dropout if self.training else 0.0
        if not explicit:
            return F.scaled_dot_product_attention(q, k, v, mask, rate).transpose(1, 2).flatten(2), None
        scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.mT
        weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
        weights = F.dropout(weights, rate) if rate else weights
        return (weights @ v).transpose(1, 2).flatten(2), weights


class _OutSite(Site):
    """The output projection, which is a layer of its own within attention."""

    def general(self, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of the inner layer."""
        inner = cast(Any, layer).out_proj
        return inner.weight, None if self.bias is None else inner.bias


class _SeparateSite(Site):
    """A projection with a weight of its own and a part of the common bias."""

    def general(self, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Return the weight, and the part of the bias."""
        assert self.part is not None
        bias = None if self.bias is None else getattr(layer, self.bias).narrow(0, *self.part)
        return getattr(layer, self.weight), bias


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)


@contextmanager
def _slow_path() -> Iterator[None]:
    """Have transformer layers call their parts, not a fused kernel on the general weights."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Guard(BestResponse):
    """A transformer layer without weights of its own, whose inference kernel would pass over the responses."""

    @classmethod
    def sites(cls, layer: Any) -> list[Site]:
        """Return nothing: the parts have the weights."""
        return []

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return what the plain layer returns, by its parts where a response counts."""
        owner = self.link.owner
        current = owner.hyperparameters.current
        plain = current is None or (owner.kind == "delta" and current.kind == "centred" and not current.tracks)
        if plain or cast(Any, self).training:
            return cast(Tensor, super().forward(*args, **kwargs))  # type: ignore[misc]
        with _slow_path():
            return cast(Tensor, super().forward(*args, **kwargs))  # type: ignore[misc]


class BestResponseTransformerEncoderLayer(_Guard, nn.TransformerEncoderLayer):
    """See :class:`torch.nn.TransformerEncoderLayer`; its parts respond to hyperparameters."""

    plain_class = nn.TransformerEncoderLayer


class BestResponseTransformerEncoder(_Guard, nn.TransformerEncoder):
    """See :class:`torch.nn.TransformerEncoder`; its layers respond to hyperparameters."""

    plain_class = nn.TransformerEncoder
