"""Cost models that are linear in features of the configuration."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sthyper._space.domains import Domain
from sthyper.errors import closest
from sthyper.surrogates.cost.base import CostModel, CostObservation, CostValue, positive_int, require_observations

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BiasOnlyLinearCostModel", "FixedLayersMLPCostModel", "LinearCostModel", "MLPLinearCostModel"]

Config = Mapping[str, Any]

DEFAULT_ALPHAS = tuple(math.exp(e) for e in range(-4, 5))


class LinearCostModel(CostModel):
    """c0(x) = f0(x) w0 and c1(x) = f1(x) w1 with weights from a ridge regression.

    The rows of the regression are [f0(x), r f1(x)], there is no intercept, and the strength of the regularisation is
    the one with the least squared error when each observation in turn is left out.

    Subclasses supply :meth:`feature_matrices`.

    Args:
        alphas: Strengths of the regularisation to choose from; exp(-4), exp(-3), ..., exp(4) if ``None``.

    Raises:
        ValueError: If ``alphas`` is empty or holds a number that is not positive.
    """

    def __init__(self, alphas: Sequence[float] | None = None) -> None:
        self.alphas = DEFAULT_ALPHAS if alphas is None else tuple(float(a) for a in alphas)
        if not self.alphas or not all(math.isfinite(a) and a > 0 for a in self.alphas):
            raise ValueError(f"alphas must be positive numbers, at least one, got {alphas!r}")
        self.alpha: float | None = None
        self.weights0: NDArray[np.float64] | None = None
        self.weights1: NDArray[np.float64] | None = None

    @abstractmethod
    def feature_matrices(self, configs: Sequence[Config]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the features f0, shape (n, d0), and f1, shape (n, d1), of n configurations."""

    def update(self, observations: Sequence[CostObservation]) -> None:
        from sklearn.linear_model import RidgeCV  # type: ignore[import-untyped]

        data = require_observations(observations)
        features0, features1 = self.feature_matrices([o.config for o in data])
        resources = np.array([o.resource for o in data], dtype=np.float64)[:, None]  # (n, 1)
        costs = np.array([o.cost for o in data])
        regression = RidgeCV(alphas=list(self.alphas), fit_intercept=False)
        regression.fit(np.hstack([features0, resources * features1]), costs)
        self.alpha = float(regression.alpha_)
        weights = np.asarray(regression.coef_, dtype=np.float64).reshape(-1)
        self.weights0, self.weights1 = weights[: features0.shape[1]], weights[features0.shape[1] :]

    def sample_joint(self, configs: Sequence[Config]) -> list[CostValue]:
        if self.weights0 is None or self.weights1 is None:
            raise RuntimeError(f"{type(self).__name__} has not been fitted: call update first")
        if not len(configs):
            return []
        features0, features1 = self.feature_matrices(configs)
        c0s, c1s = (features0 @ self.weights0).tolist(), (features1 @ self.weights1).tolist()
        return [CostValue(c0, c1) for c0, c1 in zip(c0s, c1s, strict=True)]


class BiasOnlyLinearCostModel(LinearCostModel):
    """The same c0 and c1 for all configurations: f0(x) = f1(x) = [1]; see :class:`LinearCostModel`."""

    def feature_matrices(self, configs: Sequence[Config]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        ones = np.ones((len(configs), 1))
        return ones, ones


class MLPLinearCostModel(LinearCostModel):
    """Cost of training a multi-layer perceptron, from the widths of its layers.

    f1(x) is 1, the number of weights m(x) (products of adjacent widths, summed over the layers) times
    b(x)^(``bs_exponent`` - 1), and with ``extra_mlp`` the sum of the hidden widths times the same factor. If a batch
    of b examples costs b^e, an epoch costs b^(e - 1). f0(x) is 1, and with ``c0_mlp_feature`` m(x).

    With ``expected_hidden_layer_width`` m(x) and the sum of widths are divided by their expected values under random
    sampling, so that all features are about 1 and the regularisation treats them alike: the widths of the layers are
    taken to be independent, and the number of layers is averaged over the configurations of the last fit.

    Args:
        num_inputs: Width of the input.
        num_outputs: Width of the output.
        num_hidden_layers: Maps a configuration to the number of its hidden layers, possibly 0.
        hidden_layer_width: Maps a configuration and a hidden layer, counted from 0, to the layer's width.
        batch_size: Maps a configuration to its batch size; only called if ``bs_exponent`` is not 1.
        bs_exponent: See above; 1 if ``None``.
        extra_mlp: Whether c1 has the sum of the hidden widths as a feature.
        c0_mlp_feature: Whether c0 has the number of weights as a feature.
        expected_hidden_layer_width: Maps a hidden layer, counted from 0, to its expected width. ``None`` leaves the
            features as they are.
        alphas: See :class:`LinearCostModel`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a width is not positive or ``bs_exponent`` not finite.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        num_hidden_layers: Callable[[Config], int],
        hidden_layer_width: Callable[[Config, int], float],
        batch_size: Callable[[Config], float],
        bs_exponent: float | None = None,
        extra_mlp: bool = False,
        c0_mlp_feature: bool = False,
        expected_hidden_layer_width: Callable[[int], float] | None = None,
        alphas: Sequence[float] | None = None,
    ) -> None:
        super().__init__(alphas)
        self.num_inputs = positive_int("num_inputs", num_inputs)
        self.num_outputs = positive_int("num_outputs", num_outputs)
        for name, function in (
            ("num_hidden_layers", num_hidden_layers),
            ("hidden_layer_width", hidden_layer_width),
            ("batch_size", batch_size),
            ("expected_hidden_layer_width", expected_hidden_layer_width),
        ):
            if not callable(function) and not (name.startswith("expected") and function is None):
                raise TypeError(f"{name} must be callable, got {function!r}")
        self.num_hidden_layers = num_hidden_layers
        self.hidden_layer_width = hidden_layer_width
        self.batch_size = batch_size
        self.bs_exponent = 1.0 if bs_exponent is None else float(bs_exponent)
        if not math.isfinite(self.bs_exponent):
            raise ValueError(f"bs_exponent must be finite, got {bs_exponent!r}")
        self.extra_mlp = bool(extra_mlp)
        self.c0_mlp_feature = bool(c0_mlp_feature)
        self.expected_hidden_layer_width = expected_hidden_layer_width
        self._scale: NDArray[np.float64] | None = None

    def update(self, observations: Sequence[CostObservation]) -> None:
        observations = require_observations(observations)
        # Fixed until the next fit: predictions must have the features of the data.
        self._scale = self._expected_sizes([o.config for o in observations])
        super().update(observations)

    def feature_matrices(self, configs: Sequence[Config]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        sizes = np.array([self._sizes(self._widths(c)) for c in configs], dtype=np.float64).reshape(-1, 2)
        sizes = sizes / (self._expected_sizes(configs) if self._scale is None else self._scale)
        scaled = sizes * self._batch_factors(configs) if self.bs_exponent != 1 else sizes
        ones = np.ones((len(configs), 1))
        features0 = np.hstack([ones, sizes[:, :1]]) if self.c0_mlp_feature else ones
        return features0, np.hstack([ones, scaled if self.extra_mlp else scaled[:, :1]])

    def _widths(self, config: Config) -> list[float]:
        widths = [self.hidden_layer_width(config, layer) for layer in range(self.num_hidden_layers(config))]
        for layer, width in enumerate(widths):
            if not width > 0:
                raise ValueError(f"hidden_layer_width must be positive, got {width!r} for layer {layer} of {config!r}")
        return widths

    def _sizes(self, hidden: Sequence[float]) -> tuple[float, float]:
        """Return the sum of products of adjacent widths and the sum of the hidden ones."""
        widths = [self.num_inputs, *hidden, self.num_outputs]
        return sum(a * b for a, b in itertools.pairwise(widths)), sum(hidden)

    def _expected_sizes(self, configs: Sequence[Config]) -> NDArray[np.float64]:
        """Return the expected values of both sizes, shape (2,); ones without ``expected_hidden_layer_width``."""
        expected = self.expected_hidden_layer_width
        if expected is None or not configs:
            return np.ones(2)
        depths = [self.num_hidden_layers(c) for c in configs]
        mean = np.mean([self._sizes([expected(layer) for layer in range(depth)]) for depth in depths], axis=0)
        return np.where(mean > 0, mean, 1.0)  # no hidden layer anywhere: the second size is 0

    def _batch_factors(self, configs: Sequence[Config]) -> NDArray[np.float64]:
        sizes = [self.batch_size(c) for c in configs]
        for size, config in zip(sizes, configs, strict=True):
            if not size > 0:
                raise ValueError(f"batch_size must be positive, got {size!r} for {config!r}")
        return np.asarray(sizes, dtype=np.float64)[:, None] ** (self.bs_exponent - 1)


class FixedLayersMLPCostModel(MLPLinearCostModel):
    """:class:`MLPLinearCostModel` for a fixed number of hidden layers, whose widths are hyperparameters.

    The batch size is the hyperparameter ``"batch_size"``; it is only needed if ``bs_exponent`` is not 1.

    Args:
        num_inputs: Width of the input.
        num_outputs: Width of the output.
        num_units_keys: Names of the hyperparameters that hold the widths, from the first hidden layer on;
            ``["n_units_1", "n_units_2"]`` if ``None``.
        bs_exponent: See :class:`MLPLinearCostModel`.
        extra_mlp: See :class:`MLPLinearCostModel`.
        c0_mlp_feature: See :class:`MLPLinearCostModel`.
        expected_hidden_layer_width: See :class:`MLPLinearCostModel`; :meth:`get_expected_hidden_layer_width` makes it.
        alphas: See :class:`LinearCostModel`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a width is not positive, ``num_units_keys`` is empty, or a configuration lacks a name.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        num_units_keys: Sequence[str] | None = None,
        bs_exponent: float | None = None,
        extra_mlp: bool = False,
        c0_mlp_feature: bool = False,
        expected_hidden_layer_width: Callable[[int], float] | None = None,
        alphas: Sequence[float] | None = None,
    ) -> None:
        keys = _checked_keys(["n_units_1", "n_units_2"] if num_units_keys is None else num_units_keys)
        super().__init__(
            num_inputs,
            num_outputs,
            num_hidden_layers=lambda config: len(keys),
            hidden_layer_width=lambda config, layer: _lookup(config, keys[layer], "num_units_keys"),
            batch_size=lambda config: _lookup(config, "batch_size", "bs_exponent"),
            bs_exponent=bs_exponent,
            extra_mlp=extra_mlp,
            c0_mlp_feature=c0_mlp_feature,
            expected_hidden_layer_width=expected_hidden_layer_width,
            alphas=alphas,
        )
        self.num_units_keys = keys

    @staticmethod
    def get_expected_hidden_layer_width(
        config_space: Mapping[str, Any], num_units_keys: Sequence[str]
    ) -> tuple[Callable[[int], float], list[float]]:
        """Return the expected widths of the hidden layers under random sampling.

        The expected value is the mid-point of the domain on its scale, the default of ``points_to_evaluate``.

        Args:
            config_space: The configuration space; widths may be constants of it.
            num_units_keys: Names of the widths in it.

        Returns:
            The function for ``expected_hidden_layer_width``, and its values in a list.

        Raises:
            ValueError: If a name is not in the space.
        """
        values = []
        for key in _checked_keys(num_units_keys):
            domain = _lookup(config_space, key, "num_units_keys")
            values.append(float(domain.midpoint() if isinstance(domain, Domain) else domain))
        return values.__getitem__, values


def _checked_keys(keys: Sequence[str]) -> list[str]:
    if isinstance(keys, str) or not all(isinstance(key, str) for key in keys):
        raise TypeError(f"num_units_keys must be a list of names, got {keys!r}")
    if not keys:
        raise ValueError("num_units_keys must not be empty")
    return list(keys)


def _lookup(config: Config, key: str, argument: str) -> Any:
    if key not in config:
        raise ValueError(f"{argument}: there is no {key!r} among {sorted(config)!r}{closest(key, config)}")
    return config[key]
