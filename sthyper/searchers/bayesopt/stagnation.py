"""What improvement a search that is stuck has to ask for."""

from __future__ import annotations

from torch import Tensor

__all__ = ["needed_improvement"]

_NEGLIGIBLE = 0.01
"""Improvements below so many standard deviations of all targets count as none."""
_PATIENCE = 3
_FIRST, _MOST = 0.04, 1.0


def needed_improvement(Z: Tensor) -> float:
    """Return the improvement that the next suggestion is to be expected to exceed, in the units of the targets.

    While results improve it is 0. Where the expected improvement polishes a local optimum, trial after trial gains next
    to nothing: near the incumbent the model is certain of that little, while it knows nothing of places where more is
    to be had. From the third trial without an improvement worth the name on, every second suggestion asks for more: .04
    standard deviations, and twice as much each time, up to 1. The others go on polishing.

    Args:
        Z: Targets of the model, in the order of the trials, shape (n,).
    """
    n = len(Z)
    if n < 2:
        return 0.0
    unit = float(Z.std(correction=0))
    best = Z.cummin(0).values
    # Trials since the incumbent was last improved by more than next to nothing.
    stuck = int((best <= best[-1] + _NEGLIGIBLE * unit).sum()) - 1
    if stuck < _PATIENCE or (stuck - _PATIENCE) % 2:
        return 0.0
    return min(_FIRST * 2.0 ** ((stuck - _PATIENCE) // 2), _MOST) * unit
