"""Which observations a model is fitted to when there are too many."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cap_size"]


def cap_size(Y: Tensor, max_size: int | None, top_fraction: float, generator: torch.Generator) -> Tensor:
    """Choose the observations to keep: the best ones, and a random part of the others.

    Args:
        Y: Targets, shape (n,), low is good.
        max_size: Largest number of observations; ``None`` keeps all.
        top_fraction: Share of ``max_size``, in [0, 1], that the best observations get (the number is rounded); ties
            go to the earlier one. The rest is drawn uniformly without replacement.
        generator: Source of the draw; it is not touched if all are kept.

    Returns:
        Indices of the kept observations in ascending order, int64, shape (min(n, max_size),), on the device of ``Y``.

    Raises:
        TypeError: If ``max_size`` is no int.
        ValueError: If ``Y`` is not one-dimensional, ``max_size`` is not positive or ``top_fraction`` not in [0, 1].
    """
    if Y.ndim != 1:
        raise ValueError(f"Y must have the shape (n,), got {tuple(Y.shape)}")
    if max_size is not None:
        if isinstance(max_size, bool) or not isinstance(max_size, int):
            raise TypeError(f"max_size must be a positive int or None, got {max_size!r}")
        if max_size < 1:
            raise ValueError(f"max_size must be a positive int or None, got {max_size!r}")
    if not 0 <= top_fraction <= 1:
        raise ValueError(f"top_fraction must be in [0, 1], got {top_fraction!r}")
    if max_size is None or len(Y) <= max_size:
        return torch.arange(len(Y), device=Y.device)
    num_best = round(max_size * top_fraction)
    order = torch.argsort(Y, stable=True)
    best, others = order[:num_best], order[num_best:]
    drawn = torch.randperm(len(others), generator=generator, device=generator.device)[: max_size - num_best]
    return torch.cat([best, others[drawn.to(Y.device)]]).sort().values
