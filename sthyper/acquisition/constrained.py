"""Acquisition functions under constraints that are modelled themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.acquisition.monte_carlo import qExpectedImprovement
from botorch.models.model import Model
from botorch.utils.transforms import t_batch_mode_transform
from torch import Tensor

from sthyper.acquisition.base import log_normal_cdf
from sthyper.acquisition.cost import ExpectedImprovementPerCost
from sthyper.acquisition.ei import ExpectedImprovement, ProbabilityOfImprovement
from sthyper.acquisition.monte_carlo import (
    JointExpectedImprovement,
    NoisyExpectedImprovement,
    SampledNoisyExpectedImprovement,
)
from sthyper.surrogates.marginals import marginals

__all__ = ["ConstrainedAcquisition", "ModelledConstraint", "log_feasibility"]

_LEAST_VARIANCE = 1e-20
_TINY = 1e-300
_NON_NEGATIVE = (
    ExpectedImprovement,
    ProbabilityOfImprovement,
    ExpectedImprovementPerCost,
    JointExpectedImprovement,
    NoisyExpectedImprovement,
    SampledNoisyExpectedImprovement,
    qExpectedImprovement,
)


@dataclass(frozen=True)
class ModelledConstraint:
    """A model and the bounds that its output has to keep.

    Args:
        model: BoTorch model with one output.
        lower: Lower bound in the model's units, ``None`` for none.
        upper: Upper bound in the model's units, ``None`` for none.
        noise: Variance that is added to the posterior's: 1 for the latent function of a probit classifier, with the
            lower bound 0.
        caution: By how much the logarithm of a probability below 1/2 counts more than once, in an acquisition function.
            For constraints of which a broken one costs a trial and tells nothing else: where the best configurations
            lie at the edge of what is feasible, the promise beyond it would else outweigh small probabilities.

    Raises:
        ValueError: If there is no bound, or the lower one is above the upper one.
    """

    model: Model
    lower: float | None = None
    upper: float | None = None
    noise: float = 0.0
    caution: float = 0.0

    def __post_init__(self) -> None:
        if self.lower is None and self.upper is None:
            raise ValueError("a constraint must have a lower or an upper bound, both are None")
        if self.lower is not None and self.upper is not None and self.lower > self.upper:
            raise ValueError(f"lower must not be above upper, got lower={self.lower!r} and upper={self.upper!r}")

    def log_probability(self, X: Tensor) -> Tensor:
        """Return the log probability that the bounds are kept.

        Args:
            X: Points, shape ``batch x 1 x d``.

        Returns:
            Shape ``batch``, or ``b x batch`` where the posterior has a leading batch (fantasies of pending trials).
        """
        mean, variance = marginals(self.model, X.squeeze(-2))
        std = (variance + self.noise).clamp_min(_LEAST_VARIANCE).sqrt()
        return _log_interval(
            None if self.lower is None else (self.lower - mean) / std,
            None if self.upper is None else (self.upper - mean) / std,
        )

    def holds(self, values: Tensor) -> Tensor:
        """Return which outputs of the model keep the bounds, bool, of the shape of the outputs."""
        result = torch.ones_like(values, dtype=torch.bool)
        if self.lower is not None:
            result &= values >= self.lower
        return result if self.upper is None else result & (values <= self.upper)


def log_feasibility(constraints: Sequence[ModelledConstraint], X: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the log probability that all constraints hold.

    It is averaged over the leading batches that posteriors have. Entries of several models belong together if there
    are as many of them; otherwise each model's probability is averaged by itself.

    Args:
        constraints: The constraints, at least one.
        X: Points, shape ``batch x 1 x d``.
        weights: Weight of each entry of the leading batch, shape (b,), not all 0; equal ones by default.

    Returns:
        Shape ``batch``.
    """
    batch_dims = X.dim() - 2
    logs = [constraint.log_probability(X) for constraint in constraints]
    single = [value for value in logs if value.dim() <= batch_dims]
    batched = [value.flatten(0, value.dim() - batch_dims - 1) for value in logs if value.dim() > batch_dims]
    if len({len(value) for value in batched}) == 1:
        batched = [torch.stack(batched).sum(0)]
    for value in batched:
        if weights is None or len(weights) != len(value):
            single.append(value.logsumexp(0) - math.log(len(value)))
        else:
            share = (weights / weights.sum()).to(value).log().reshape(-1, *[1] * batch_dims)
            single.append((value + share).logsumexp(0))
    return torch.stack(single).sum(0)


def _log_interval(a: Tensor | None, b: Tensor | None) -> Tensor:
    """Return log P(a <= u <= b) of a standard normal u, accurate in the tails."""
    if a is None:
        assert b is not None
        return log_normal_cdf(b)
    if b is None:
        return log_normal_cdf(-a)
    # In the upper tail the differences are those of the mirrored interval.
    mirrored = a + b > 0
    low, high = torch.where(mirrored, -b, a), torch.where(mirrored, -a, b)
    log_high = log_normal_cdf(high)
    difference = (log_normal_cdf(low) - log_high).clamp_max(-1e-12)
    return log_high + torch.log(-torch.expm1(difference))


class ConstrainedAcquisition(AcquisitionFunction):
    """An acquisition function times the probability that all constraints hold. High values are good.

    The models of target and constraints are independent, so the average over fantasies of the product is the product of
    the averages: those of the acquisition function and of the constraints may differ in number.

    The acquisition function may have values of three forms, which are told from the object:

    - logarithms, such as log EI: the logarithms of the probabilities are added;
    - non-negative values, EI and PI: they are multiplied by the probabilities;
    - values of any sign, such as minus a confidence bound or a draw from the posterior: a product would favour points
      that are *un*likely to be feasible where they are negative. What counts instead is by how much a value exceeds
      ``reference``, softened to t log(1 + exp((value - reference) / t)): an improvement on the incumbent that the
      bound, or the draw, promises. It increases with the value, so without constraints the maximum stays where it is.

    Args:
        acquisition: Acquisition function of the target. ``None`` where nothing feasible is known: the probability
            alone is maximised until something is.
        constraints: The constraints, at least one.
        log: Whether the logarithm of the product is returned.
        reference: For values of any sign: the value that the incumbent has, 0-d, or one a fantasy (then their mean).
        temperature: For values of any sign: t, positive, in units of the values.
        weights: Weight of each fantasy of the constraints, shape (b,); see :func:`log_feasibility`.

    Raises:
        ValueError: If there are no constraints, ``temperature`` is not positive, or ``reference`` is missing.

    References:
        Gardner et al., "Bayesian Optimization with Inequality Constraints", ICML 2014;
        Schonlau, Welch and Jones, "Global versus Local Search in Constrained Optimization of Computer Models", 1998
    """

    def __init__(
        self,
        acquisition: AcquisitionFunction | None,
        constraints: Sequence[ModelledConstraint],
        log: bool = True,
        reference: Tensor | float | None = None,
        temperature: float = 0.1,
        weights: Tensor | None = None,
    ) -> None:
        constraints = tuple(constraints)
        if not constraints:
            raise ValueError("constraints must not be empty")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}")
        super().__init__(model=constraints[0].model if acquisition is None else acquisition.model)
        self.acquisition = acquisition
        self.constraints = constraints
        self.log = bool(log)
        self.temperature = float(temperature)
        self.weights = weights
        self.form = None if acquisition is None else value_form(acquisition)
        self.reference: float | None = None
        if self.form == "any":
            if reference is None:
                raise ValueError(
                    f"reference must be given: the values of {type(acquisition).__name__} may have any sign, and only "
                    "improvements on that of the incumbent can be weighted with probabilities"
                )
            self.reference = float(torch.as_tensor(reference, dtype=torch.float64).mean())

    def log_feasibility(self, X: Tensor) -> Tensor:
        """Return the log probability that all constraints hold, shape ``batch``, at points ``batch x 1 x d``."""
        return log_feasibility(self.constraints, X, self.weights)

    @t_batch_mode_transform(expected_q=1)  # type: ignore[arg-type]
    def forward(self, X: Tensor) -> Tensor:
        """Return the acquisition function at points.

        Args:
            X: Shape ``batch x 1 x d``.

        Returns:
            Shape ``batch``.
        """
        feasibility = self.log_feasibility(X)
        for constraint in self.constraints:
            if constraint.caution:
                below = log_feasibility([constraint], X, self.weights) + math.log(2.0)
                feasibility = feasibility + constraint.caution * below.clamp_max(0.0)
        if self.acquisition is None:
            return feasibility if self.log else feasibility.exp()
        values: Tensor = self.acquisition(X)
        if self.form == "non-negative" and not self.log:
            return values * feasibility.exp()
        if self.form == "non-negative":
            logs = values.clamp_min(_TINY).log()
        elif self.form == "any":
            assert self.reference is not None
            logs = _log_softplus((values - self.reference) / self.temperature) + math.log(self.temperature)
        else:
            logs = values
        return logs + feasibility if self.log else (logs + feasibility).exp()


def value_form(acquisition: AcquisitionFunction) -> str:
    """Return ``"log"``, ``"non-negative"`` or ``"any"``: what the values of an acquisition function are."""
    if getattr(acquisition, "averages_logs", False) or getattr(acquisition, "_log", False):
        return "log"
    return "non-negative" if isinstance(acquisition, _NON_NEGATIVE) else "any"


def _log_softplus(u: Tensor) -> Tensor:
    """Return log log(1 + exp(u)), which is u far below 0."""
    inner = torch.nn.functional.softplus(u.clamp_min(-30.0)).log()
    return torch.where(u < -30.0, u, inner)
