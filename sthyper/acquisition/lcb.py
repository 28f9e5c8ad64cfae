"""The lower confidence bound."""

from __future__ import annotations

from botorch.models.model import Model
from torch import Tensor

from sthyper.acquisition.base import MeanStdAcquisition

__all__ = ["LowerConfidenceBound"]


class LowerConfidenceBound(MeanStdAcquisition):
    """Minus the lower confidence bound of targets of which low ones are good: kappa * std - mean.

    Args:
        model: The model.
        kappa: Positive weight of the deviation.

    Raises:
        ValueError: If ``kappa`` is not positive.

    References:
        Srinivas et al., "Gaussian Process Optimization in the Bandit Setting", ICML 2010
    """

    def __init__(self, model: Model, kappa: float = 1.0) -> None:
        if not kappa > 0:
            raise ValueError(f"kappa must be positive, got {kappa!r}")
        super().__init__(model)
        self.kappa = float(kappa)

    def head(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return minus the bound."""
        return self.kappa * std - mean
