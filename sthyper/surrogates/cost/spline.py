"""Cost model with a spline of one number for the cost per unit of resource."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sthyper.errors import closest
from sthyper.surrogates.cost.nonlinear import Fitter, GrowthData, NonLinearCostModel, Predictor

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.interpolate import BSpline  # type: ignore[import-untyped]

__all__ = ["UnivariateSplineCostModel"]

_MAX_KNOTS = 10


class UnivariateSplineCostModel(NonLinearCostModel):
    """c1 is a spline of one number that is computed from a configuration; see :class:`NonLinearCostModel` for c0.

    The spline minimises the squared error. Its knots are quantiles of the observed numbers; their number (at most 10),
    and a lower degree where that suffices, are chosen by generalised cross-validation. Differences of costs at the
    same number are merged into their mean, which counts as often as there are differences. Beyond the observed numbers
    c1 goes on as a line.

    Args:
        scalar_attribute: Name of a numerical hyperparameter, or a function from a configuration to the number.
        input_range: Least and largest value of the number.
        spline_degree: Degree of the spline, 1 to 5.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the range is empty, the degree not in 1, ..., 5, or an observed number not in the range.
    """

    def __init__(
        self,
        scalar_attribute: str | Callable[[Mapping[str, Any]], float],
        input_range: tuple[float, float],
        spline_degree: int = 3,
    ) -> None:
        super().__init__()
        if not (isinstance(scalar_attribute, str) or callable(scalar_attribute)):
            raise TypeError(f"scalar_attribute must be a name or a function, got {scalar_attribute!r}")
        self.scalar_attribute = scalar_attribute
        lower, upper = (float(bound) for bound in input_range)
        if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
            raise ValueError(f"input_range must be (lower, upper) with lower < upper, got {input_range!r}")
        self.input_range = (lower, upper)
        if isinstance(spline_degree, bool) or not isinstance(spline_degree, int):
            raise TypeError(f"spline_degree must be an int from 1 to 5, got {spline_degree!r}")
        if not 1 <= spline_degree <= 5:
            raise ValueError(f"spline_degree must be an int from 1 to 5, got {spline_degree!r}")
        self.spline_degree = spline_degree

    def prepare(self, data: GrowthData) -> Fitter:
        inputs = self._inputs(data.configs)
        # Both parts of the data have one entry for each input in the end: sums over entries are products with these.
        first = _merging(inputs[: data.num_first])
        later = _merging(inputs[data.num_first :])
        x = np.concatenate([first[0], later[0]])
        counts = np.concatenate([first[2], later[2]])

        def merged(targets: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.concatenate([first[1] @ targets[: data.num_first], later[1] @ targets[data.num_first :]])

        has_c0 = np.arange(len(x)) < len(first[0])
        knots, degree = self._choose(x, merged(data.targets), counts, has_c0)

        def fit(targets: NDArray[np.float64]) -> Predictor:
            spline = _least_squares(x, merged(targets), counts, knots, degree)
            return lambda configs: _evaluate(spline, self._inputs(configs))

        return fit

    def _inputs(self, configs: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
        """Return the numbers of n configurations, mapped to [0, 1], shape (n,)."""
        attribute = self.scalar_attribute
        if isinstance(attribute, str):
            for config in configs:
                if attribute not in config:
                    raise ValueError(
                        f"scalar_attribute: there is no {attribute!r} among {sorted(config)!r}"
                        f"{closest(attribute, config)}"
                    )
            values = [config[attribute] for config in configs]
        else:
            values = [attribute(config) for config in configs]
        lower, upper = self.input_range
        inputs = (np.asarray(values, dtype=np.float64).reshape(-1) - lower) / (upper - lower)
        outside = np.flatnonzero(~((inputs >= -1e-8) & (inputs <= 1 + 1e-8)))
        if len(outside):
            raise ValueError(f"input_range={self.input_range!r} does not hold {values[outside[0]]!r}")
        return inputs

    def _choose(
        self, x: NDArray[np.float64], y: NDArray[np.float64], counts: NDArray[np.float64], has_c0: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], int]:
        """Return knots and degree with the least generalised cross-validation score.

        The start-up cost is one more unknown here, which the entries ``has_c0`` share, so that the choice does not
        depend on b0 and the criterion of b0 stays smooth.
        """
        unique = np.unique(x)
        num_inner = min(_MAX_KNOTS, len(unique) - self.spline_degree - 1)
        options = [(0, degree) for degree in range(min(self.spline_degree, len(unique) - 1) + 1)]
        options += [(inner, self.spline_degree) for inner in range(1, num_inner + 1)]
        root = np.sqrt(counts)
        rounding = 1e-24 * float(np.sum(counts * y**2))
        best, choice = math.inf, (_knots(unique, 0, 0), 0)
        for inner, degree in options:
            knots = _knots(unique, inner, degree)
            design = _design(x, knots, degree)
            if has_c0.any() and not has_c0.all():
                design = np.column_stack([design, has_c0])
            free = len(x) - design.shape[1]
            if free < 1:
                continue
            weights = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0]
            error = float(np.sum(counts * (y - design @ weights) ** 2))
            # Among exact fits the one with the fewest unknowns is taken.
            score = max(error, rounding) / free**2
            if score < best:
                best, choice = score, (knots, degree)
        return choice


def _merging(
    inputs: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the m different inputs, the matrix (m, n) that takes means over equal ones, and their counts (m,)."""
    unique, position, counts = np.unique(inputs, return_inverse=True, return_counts=True)
    matrix = (position.reshape(-1)[None, :] == np.arange(len(unique))[:, None]) / counts[:, None]
    return unique, matrix, counts.astype(np.float64)


def _knots(unique: NDArray[np.float64], num_inner: int, degree: int) -> NDArray[np.float64]:
    """Return knots from the least to the largest input, the inner ones at quantiles."""
    inner = np.quantile(unique, np.arange(1, num_inner + 1) / (num_inner + 1))
    lower, upper = unique[0], unique[-1] if len(unique) > 1 else unique[0] + 1.0
    return np.concatenate([np.full(degree + 1, lower), inner, np.full(degree + 1, upper)])


def _design(x: NDArray[np.float64], knots: NDArray[np.float64], degree: int) -> NDArray[np.float64]:
    from scipy.interpolate import BSpline

    return np.asarray(BSpline.design_matrix(x, knots, degree).toarray(), dtype=np.float64)


def _least_squares(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    counts: NDArray[np.float64],
    knots: NDArray[np.float64],
    degree: int,
) -> BSpline:
    """Return the spline with the least squared error."""
    from scipy.interpolate import BSpline

    root = np.sqrt(counts)
    weights = np.linalg.lstsq(_design(x, knots, degree) * root[:, None], y * root, rcond=None)[0]
    return BSpline(knots, weights, degree)


def _evaluate(spline: BSpline, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values of the spline, which goes on as a line beyond its knots: polynomials leave all bounds there."""
    inside = np.clip(x, spline.t[0], spline.t[-1])
    values = spline(inside)
    if spline.k:
        values = values + spline.derivative()(inside) * (x - inside)
    return np.asarray(values, dtype=np.float64)
