"""Cost models as BoTorch models: the cost of a point of the unit cube at a fixed resource level."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from botorch.models.ensemble import EnsembleModel
from torch import Tensor

from sthyper._space.domains import Domain
from sthyper.encoding import SpaceEncoder
from sthyper.surrogates.cost.base import CostModel, CostObservation, positive_int

__all__ = ["CostSurrogate", "FixedResourceCost"]

_COST_FLOOR = 1e-12


class CostSurrogate:
    """Fits a cost model, and makes a BoTorch model of the cost c(x, r) at a fixed resource level r.

    Args:
        cost_model: The cost model. It gets the encoder (:meth:`CostModel.use_encoder`).
        encoder: Encoder of the configurations. Constants of its space are added to configurations that lack them.
        fixed_resource: The level r, at least 1; often the maximum.
        num_samples: Number of draws over which a random cost model is averaged; deterministic ones need no more than
            the default, 1.
        random_seed: Non-negative seed of these draws. They are the same at every call of ``posterior``, so that
            acquisition functions do not change while they are optimised.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an int is too small.
    """

    def __init__(
        self,
        cost_model: CostModel,
        encoder: SpaceEncoder,
        fixed_resource: int,
        num_samples: int = 1,
        random_seed: int = 0,
    ) -> None:
        if not isinstance(cost_model, CostModel):
            raise TypeError(f"cost_model must be a CostModel, got {cost_model!r}")
        if not isinstance(encoder, SpaceEncoder):
            raise TypeError(f"encoder must be a SpaceEncoder, got {encoder!r}")
        if isinstance(random_seed, bool) or not isinstance(random_seed, int):
            raise TypeError(f"random_seed must be a non-negative int, got {random_seed!r}")
        if random_seed < 0:
            raise ValueError(f"random_seed must be a non-negative int, got {random_seed!r}")
        self.cost_model = cost_model
        self.encoder = encoder
        self.fixed_resource = positive_int("fixed_resource", fixed_resource)
        self.num_samples = positive_int("num_samples", num_samples)
        self.random_seed = random_seed
        self._constants = {k: v for k, v in encoder.config_space.items() if not isinstance(v, Domain)}
        self._warned = False
        cost_model.use_encoder(encoder)

    def set_fixed_resource(self, resource: int) -> None:
        """Choose the level of models that are made from now on; no new fit is needed.

        Raises:
            TypeError: If it is no int.
            ValueError: If it is not positive.
        """
        self.fixed_resource = positive_int("resource", resource)

    def fit(self, observations: Sequence[CostObservation]) -> FixedResourceCost:
        """Fit the cost model and return :meth:`model`.

        Args:
            observations: Costs at any resource levels, at least one.
        """
        self.cost_model.update(
            [CostObservation({**self._constants, **o.config}, o.resource, o.cost) for o in observations]
        )
        return self.model()

    def model(self) -> FixedResourceCost:
        """Return the model of the cost at ``fixed_resource``, of the last fit of the cost model."""
        return FixedResourceCost(self, self.fixed_resource)

    def predict(self, points: Tensor, resource: int) -> Tensor:
        """Return costs of n points.

        Args:
            points: Shape (n, d), in the unit cube.
            resource: The resource level.

        Returns:
            float64, shape (num_samples, n), at least 1e-12; if a cost was negative a warning is given, once.
        """
        configs = [{**self._constants, **config} for config in self.encoder.decode(points)]
        generator = np.random.Generator(np.random.PCG64(self.random_seed))
        draws = []
        for _ in range(self.num_samples):
            self.cost_model.resample(generator)
            draws.append([value.at(resource) for value in self.cost_model.sample_joint(configs)])
        costs = torch.tensor(draws, dtype=torch.float64)
        if not self._warned and bool((costs < 0).any()):
            self._warned = True
            warnings.warn(
                f"{type(self.cost_model).__name__} predicts negative costs for some configurations; they are set to "
                f"{_COST_FLOOR:g}",
                stacklevel=2,
            )
        return costs.clamp_min(_COST_FLOOR)

    def state_dict(self) -> dict[str, Any]:
        """Return what a fit to the same data cannot restore."""
        return {"fixed_resource": self.fixed_resource, "cost_model": self.cost_model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.set_fixed_resource(state["fixed_resource"])
        self.cost_model.load_state_dict(state["cost_model"])


class FixedResourceCost(EnsembleModel):
    """The cost at a fixed resource level as a BoTorch model with one output; :meth:`CostSurrogate.model` makes it.

    Points X, shape (batch, q, d), are decoded to configurations. The posterior's mean, shape (batch, q, 1), is the
    predicted cost, at least 1e-12; its variance is that over the draws of a random cost model, otherwise 0. As costs
    are piecewise constant in X, the gradient is 0. After a new fit of the cost model it predicts by that.

    Args:
        surrogate: What predicts the costs.
        fixed_resource: The resource level.
    """

    _num_outputs = 1

    def __init__(self, surrogate: CostSurrogate, fixed_resource: int) -> None:
        super().__init__()
        self.surrogate = surrogate
        self.fixed_resource = fixed_resource

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the batch of models: a single one."""
        return torch.Size()

    def forward(self, X: Tensor) -> Tensor:
        """Return the costs of points, shape (batch, num_samples, q, 1); see the class."""
        costs = self.surrogate.predict(X.reshape(-1, X.shape[-1]), self.fixed_resource).to(X)
        costs = costs.reshape(-1, *X.shape[:-1]).movedim(0, -2).unsqueeze(-1)  # (batch, num_samples, q, 1)
        # Keeps X in the graph, for callers that ask for the gradient.
        return costs + 0.0 * X.sum(dim=-1, keepdim=True).unsqueeze(-3)
