"""What improvement a search that is stuck asks for."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from botorch.models.model import Model
from torch import Tensor

from sthyper.acquisition.ei import LogExpectedImprovement
from sthyper.surrogates.marginals import marginals

__all__ = ["demands", "plausible_demand"]

_NEGLIGIBLE = 0.01
"""Improvements below so many standard deviations of all targets count as none."""
_PATIENCE = 3
_LADDER = (0.04, 0.08, 0.16, 0.32, 0.64, 1.0)
_HOPELESS = -60.0
"""Logarithm of the expected improvement, in standard deviations, below which a demand is given up: about ten deviations
of the model away. A model that is stuck is too sure of itself, so that this must not be less."""


def demands(Z: Tensor) -> list[float]:
    """Return improvements that the next suggestion may be asked to exceed, the largest first, in the targets' units.

    While results improve there are none. Where the expected improvement polishes a local optimum, trial after trial
    gains next to nothing: near the incumbent the model is certain of that little, while it knows nothing of places
    where more is to be had. From the third trial without an improvement worth the name on, every second suggestion asks
    for more: .04 standard deviations of the targets, twice as much each time, up to 1. The others go on polishing.

    Args:
        Z: Targets of the model, in the order of the trials, shape (n,).
    """
    if len(Z) < 2:
        return []
    unit = float(Z.std(correction=0))
    best = Z.cummin(0).values
    # Trials since the incumbent was last improved by more than next to nothing.
    stuck = int((best <= best[-1] + _NEGLIGIBLE * unit).sum()) - 1
    if not unit > 0 or stuck < _PATIENCE or (stuck - _PATIENCE) % 2:
        return []
    reached = min((stuck - _PATIENCE) // 2 + 1, len(_LADDER))
    return [unit * step for step in reversed(_LADDER[:reached])]


def plausible_demand(
    model: Model, best_f: Tensor, jitter: float, Z: Tensor, probe: Callable[[], Tensor] | None
) -> float:
    """Return the largest of the :func:`demands` that the model does not think hopeless everywhere, 0 if there is none.

    Args:
        model: Model of targets of which low ones are good.
        best_f: What is to be improved on, 0-d or one a fantasy.
        jitter: Improvement that is asked for anyway.
        Z: Targets, in the order of the trials, shape (n,).
        probe: Returns points all over the space, shape (m, d); ``None``: no demand is thought hopeless.
    """
    steps = demands(Z)
    if not steps or probe is None:
        return steps[0] if steps else 0.0
    unit = float(Z.std(correction=0))
    with torch.no_grad():
        mean, variance = marginals(model, probe())
        std = variance.clamp_min(1e-20).sqrt()
        for step in steps:
            acquisition = LogExpectedImprovement(model, best_f, jitter + step)
            value = float(acquisition.average(acquisition.head(mean, std), 1).max())
            if value >= _HOPELESS + math.log(unit):
                return step
    return 0.0
