"""Whether two models give the same outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["close"]


def close(a: Any, b: Any) -> bool:
    """Return whether two outputs are equal but for rounding errors."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if not a.is_floating_point() and not a.is_complex():
            return not a.numel() or bool((a == b).float().mean() > 0.99)
        scale = float(b.abs().nan_to_num(0.0, 0.0, 0.0).max()) if b.numel() else 1.0
        return torch.allclose(a, b, rtol=0, atol=scale * torch.finfo(a.dtype).eps ** 0.6 + 1e-12, equal_nan=True)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(close(x, y) for x, y in zip(a, b, strict=True))
    return True
