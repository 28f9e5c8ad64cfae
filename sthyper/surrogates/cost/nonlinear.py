"""Cost models with a constant start-up cost and any regression model for the cost per unit of resource."""

from __future__ import annotations

import itertools
import json
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from sthyper.errors import closest
from sthyper.surrogates.cost.base import CostModel, CostObservation, CostValue, require_observations

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sthyper.encoding import SpaceEncoder

__all__ = ["GrowthData", "NonLinearCostModel", "ScikitLearnCostModel"]

Config = Mapping[str, Any]
Predictor: TypeAlias = "Callable[[Sequence[Config]], NDArray[np.float64]]"
"""Maps n configurations to values of c1, shape (n,)."""
Fitter: TypeAlias = "Callable[[NDArray[np.float64]], Predictor]"
"""Fits c1 to targets, one for each configuration of a :class:`GrowthData`."""

_XTOL = 1e-5
_FTOL = 1e-8


@dataclass(frozen=True)
class GrowthData:
    """What costs say about c1, the cost per unit of resource.

    Args:
        configs: n configurations; one may come several times.
        targets: Shape (n,). The first ``num_first`` are costs at the least resource level over that level, which
            contain the start-up cost; the others are differences of successive costs of a configuration over the
            difference of their levels, which do not.
        num_first: See ``targets``; at least 1.
        least_resource: The least level of all.
    """

    configs: list[Config]
    targets: NDArray[np.float64]
    num_first: int
    least_resource: int

    @classmethod
    def of(cls, observations: Sequence[CostObservation]) -> GrowthData:
        """Collect the data. Costs of one configuration at one level are averaged."""
        configs: dict[str, Config] = {}
        costs: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for o in observations:
            key = json.dumps(dict(o.config), sort_keys=True, default=repr)
            configs.setdefault(key, o.config)
            costs[key][o.resource].append(o.cost)
        least = min(o.resource for o in observations)
        first: list[tuple[Config, float]] = []
        later: list[tuple[Config, float]] = []
        for key, by_level in costs.items():
            curve = sorted((level, float(np.mean(values))) for level, values in by_level.items())
            if curve[0][0] == least:
                first.append((configs[key], curve[0][1] / least))
            for (level, cost), (next_level, next_cost) in itertools.pairwise(curve):
                later.append((configs[key], (next_cost - cost) / (next_level - level)))
        data = first + later
        return cls([c for c, _ in data], np.array([y for _, y in data]), len(first), least)


class NonLinearCostModel(CostModel):
    """c0(x) = b0, a constant, and c1(x) from a regression model.

    The squared error of (b0, c1) on a :class:`GrowthData` has the derivative

        f(b0) = (sum over the first targets y of c1(x) - y + b0 / r_min) / r_min

    along b0 (up to a factor), with c1 fitted for that b0. Its root between 0 and the least cost at r_min is found by
    Brent's method; if there is none, b0 is the end of the interval at which f is smaller. Tolerances are 1e-5 for b0
    and 1e-8 for f, relative to the costs where those are below 1. Costs at one level only say nothing of b0, it is
    0 then.

    Subclasses supply :meth:`prepare`.
    """

    def __init__(self) -> None:
        self.b0: float | None = None
        self._predict: Predictor | None = None

    @abstractmethod
    def prepare(self, data: GrowthData) -> Fitter:
        """Return the function that fits c1 to targets for the configurations of the data.

        It is called with ``data.targets`` less the share of some b0, for several b0, and returns a function that
        predicts c1.
        """

    def update(self, observations: Sequence[CostObservation]) -> None:
        from scipy.optimize import brentq  # type: ignore[import-untyped]

        data = GrowthData.of(require_observations(observations))
        fit = self.prepare(data)
        first = slice(data.num_first)
        level = data.least_resource
        fits: dict[float, tuple[float, Predictor]] = {}

        def derivative(b0: float) -> float:
            if b0 not in fits:
                targets = data.targets.copy()
                targets[first] -= b0 / level
                predict = fit(targets)
                residuals = predict(data.configs[first]) - targets[first]
                fits[b0] = float(residuals.sum()) / level, predict
            return fits[b0][0]

        most = float(data.targets[first].min()) * level
        scale = min(float(data.targets[first].sum()) / level, 1.0)
        tolerance = _FTOL * scale
        if derivative(0.0) < -tolerance and data.num_first < len(data.targets) and derivative(most) > tolerance:
            brentq(derivative, 0.0, most, xtol=_XTOL * min(most, 1.0))
        self.b0 = min(fits, key=lambda b0: (abs(fits[b0][0]), b0))
        self._predict = fits[self.b0][1]

    def predict_c1_values(self, configs: Sequence[Config]) -> NDArray[np.float64]:
        """Return c1 of n configurations, shape (n,).

        Raises:
            RuntimeError: If the model has not been fitted.
        """
        if self._predict is None:
            raise RuntimeError(f"{type(self).__name__} has not been fitted: call update first")
        return self._predict(configs) if len(configs) else np.zeros(0)

    def sample_joint(self, configs: Sequence[Config]) -> list[CostValue]:
        c1s = self.predict_c1_values(configs).tolist()
        assert self.b0 is not None
        return [CostValue(self.b0, c1) for c1 in c1s]


class ScikitLearnCostModel(NonLinearCostModel):
    """c1 from trees of scikit-learn on encoded configurations; see :class:`NonLinearCostModel` for c0.

    Args:
        model_type: ``"random_forest"`` (50 trees; the default, ``None``) or ``"gradient_boosting"``.
        encoder: Encoder of the configurations. If ``None``, the first one that :meth:`use_encoder` brings.
        random_seed: Non-negative seed of the trees.

    Raises:
        TypeError: If ``random_seed`` is no int.
        ValueError: If ``model_type`` is unknown or ``random_seed`` negative.
    """

    MODEL_TYPES = ("random_forest", "gradient_boosting")

    def __init__(
        self, model_type: str | None = None, encoder: SpaceEncoder | None = None, random_seed: int = 0
    ) -> None:
        super().__init__()
        self.model_type = self.MODEL_TYPES[0] if model_type is None else model_type
        if self.model_type not in self.MODEL_TYPES:
            raise ValueError(
                f"model_type must be one of {self.MODEL_TYPES}, got {model_type!r}"
                f"{closest(model_type, self.MODEL_TYPES)}"
            )
        if isinstance(random_seed, bool) or not isinstance(random_seed, int):
            raise TypeError(f"random_seed must be a non-negative int, got {random_seed!r}")
        if random_seed < 0:
            raise ValueError(f"random_seed must be a non-negative int, got {random_seed!r}")
        self.encoder = encoder
        self.random_seed = random_seed

    def use_encoder(self, encoder: SpaceEncoder) -> None:
        if self.encoder is None:
            self.encoder = encoder

    def prepare(self, data: GrowthData) -> Fitter:
        if self.encoder is None:
            raise ValueError("ScikitLearnCostModel needs an encoder: pass encoder=SpaceEncoder(config_space)")
        encode = self.encoder.to_ndarray_matrix
        points = encode(data.configs)

        def fit(targets: NDArray[np.float64]) -> Predictor:
            regression = self._regression().fit(points, targets)
            return lambda configs: np.asarray(regression.predict(encode(configs)), dtype=np.float64)

        return fit

    def _regression(self) -> Any:
        from sklearn.ensemble import (  # type: ignore[import-untyped]
            GradientBoostingRegressor,
            RandomForestRegressor,
        )

        # The same seed for every b0, so that the criterion depends on b0 alone.
        if self.model_type == "random_forest":
            return RandomForestRegressor(n_estimators=50, random_state=self.random_seed)
        return GradientBoostingRegressor(random_state=self.random_seed)
