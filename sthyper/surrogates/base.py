"""The contract of surrogates: they make a BoTorch model of what was observed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sthyper.surrogates.transforms import Standardize, TargetTransform

if TYPE_CHECKING:
    from botorch.models.model import Model

__all__ = ["Surrogate"]


class Surrogate(ABC):
    """Makes a model of the targets, and keeps what the next fit starts from.

    Only :meth:`build` is abstract. A surrogate of one's own is that one method around any BoTorch model::

        class MySurrogate(Surrogate):
            def build(self, X, Z, refit):
                model = SingleTaskGP(X, Z.unsqueeze(-1))
                if refit:
                    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
                return model

    Args:
        transform: What is modelled in place of raw targets; standardised ones by default.
    """

    _has_parameters = False

    def __init__(self, transform: TargetTransform | None = None) -> None:
        self.transform: TargetTransform = Standardize() if transform is None else transform

    def fit(self, X: Tensor, Y: Tensor, refit: bool = True) -> Model:
        """Return a model of the data.

        Args:
            X: Points of the unit cube, float64, shape (n, d), n at least 1.
            Y: Raw targets, low is good, finite, shape (n,).
            refit: Whether to learn the parameters of the model anew; if not, those of the last fit are kept and the
                model is only conditioned on the data.
        """
        self.transform.fit(Y)
        refit, self._has_parameters = refit or not self._has_parameters, True
        return self.build(X, self.transform.forward(Y), refit)

    @abstractmethod
    def build(self, X: Tensor, Z: Tensor, refit: bool) -> Model:
        """Return a model whose ``posterior(X)`` is in units of the transformed targets.

        Args:
            X: Points of the unit cube, float64, shape (n, d).
            Z: Transformed targets, shape (n,).
            refit: See :meth:`fit`; true at the first call, also at that after loading a state if the class does not
                extend :meth:`state_dict`.
        """

    def parameters(self) -> dict[str, float]:
        """Return the parameters of the last fit, by name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what the next fit starts from, as plain containers and tensors."""
        return {"transform": self.transform.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.transform.load_state_dict(state["transform"])
        # Without a state of its own a subclass has lost its parameters.
        self._has_parameters = type(self).state_dict is not Surrogate.state_dict
