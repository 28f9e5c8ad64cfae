"""Estimators in the style of scikit-learn as models of the targets: the contract, and any scikit-learn regressor."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone, is_regressor  # type: ignore[import-untyped]
from sklearn.ensemble import BaggingRegressor, ExtraTreesRegressor, RandomForestRegressor  # type: ignore[import-untyped]
from sklearn.gaussian_process import GaussianProcessRegressor  # type: ignore[import-untyped]
from sklearn.pipeline import Pipeline  # type: ignore[import-untyped]

from sthyper.surrogates.fit import single_threaded_blas

__all__ = ["RegressorEstimator", "SKLearnEstimator", "SKLearnPredictor"]

_Array = NDArray[np.float64]
_NUM_BOOTSTRAP = 10
_MAX_SEED = 2**31 - 1


class SKLearnPredictor(ABC):
    """Predicts means and standard deviations of the targets; what :meth:`SKLearnEstimator.fit` returns."""

    @abstractmethod
    def predict(self, X: _Array) -> tuple[_Array, _Array]:
        """Return means and standard deviations, each of shape (n,).

        Args:
            X: Points of the unit cube, shape (n, d).
        """

    def backward_gradient(self, input: _Array, head_gradients: dict[str, _Array]) -> _Array:
        """Return the gradient of f(mean(x), std(x)) with respect to x, shape (d,).

        A subclass defines it if its predictions are differentiable; this one returns 0, which is right for
        predictions that are constant almost everywhere, as those of trees are.

        Args:
            input: The point x, shape (d,).
            head_gradients: Derivatives of f with respect to ``"mean"`` and ``"std"``, each of shape (1,).
        """
        return np.zeros_like(input)


class SKLearnEstimator(ABC):
    """Fits a predictor to data; only :meth:`fit` is abstract."""

    @abstractmethod
    def fit(self, X: _Array, y: _Array, update_params: bool) -> SKLearnPredictor:
        """Return a predictor for the data; later fits must not change it.

        Args:
            X: Points of the unit cube, shape (n, d).
            y: Targets, low is good, shape (n,).
            update_params: Whether to learn parameters anew (true at the first call); if not, those of the last fit are
                to be kept, if the estimator has such.
        """

    def get_params(self) -> dict[str, Any]:
        """Return the parameters of the last fit by name; numbers, texts and lists of them are saved with the state."""
        return {}

    def set_params(self, param_dict: dict[str, Any]) -> None:
        """Set parameters that :meth:`get_params` returned.

        Raises:
            ValueError: From this default, if there are any.
        """
        if param_dict:
            raise ValueError(f"{type(self).__name__} has no parameters, got param_dict with {sorted(param_dict)}")

    @property
    def normalize_targets(self) -> bool:
        """Whether targets are to be standardised before :meth:`fit`; predictions are then in these units."""
        return False


class RegressorEstimator(SKLearnEstimator):
    """Any scikit-learn regressor; it is cloned for every fit.

    The deviation is that of ``predict(X, return_std=True)`` where the regressor has it, the one over the members of a
    random forest, of extra trees or of a bagging regressor, else the one over ``num_bootstrap`` regressors fitted to
    data drawn with replacement, whose mean is then the prediction. A pipeline is treated as its last step is. A
    Gaussian process keeps the kernel of the last fit unless parameters are to be updated; other regressors are always
    fitted in full.

    Args:
        regressor: The regressor.
        random_seed: Non-negative seed for bootstrap draws and for each ``random_state`` that is ``None``; all fits
            use the same.
        num_bootstrap: Number of regressors, at least 2, of which there are 10 if ``None``; only for those that give no
            deviation themselves.

    Raises:
        TypeError: If ``regressor`` is no regressor.
        ValueError: If ``random_seed`` is negative, or ``num_bootstrap`` is too small or has no meaning here.
    """

    def __init__(self, regressor: BaseEstimator, random_seed: int = 0, num_bootstrap: int | None = None) -> None:
        if isinstance(regressor, type) or not isinstance(regressor, BaseEstimator) or not is_regressor(regressor):
            hint = f"; make an object of it: {regressor.__name__}()" if isinstance(regressor, type) else ""
            raise TypeError(
                f"estimator must be a SKLearnEstimator or a scikit-learn regressor, got {regressor!r}{hint}"
            )
        if isinstance(random_seed, bool) or not isinstance(random_seed, int):
            raise TypeError(f"random_seed must be a non-negative int, got {random_seed!r}")
        if random_seed < 0:
            raise ValueError(f"random_seed must be a non-negative int, got {random_seed!r}")
        self.regressor = regressor
        self.random_seed = random_seed
        final = _final_step(regressor)
        self._bootstraps = not (_returns_std(final) or _has_members(final))
        if num_bootstrap is not None:
            if isinstance(num_bootstrap, bool) or not isinstance(num_bootstrap, int):
                raise TypeError(f"num_bootstrap must be an int, at least 2, or None, got {num_bootstrap!r}")
            if num_bootstrap < 2:
                raise ValueError(f"num_bootstrap must be an int, at least 2, or None, got {num_bootstrap!r}")
            if not self._bootstraps:
                raise ValueError(
                    f"num_bootstrap={num_bootstrap!r} has no effect: {type(final).__name__} gives deviations itself"
                )
        self.num_bootstrap = _NUM_BOOTSTRAP if num_bootstrap is None else num_bootstrap
        self._kernel: Any = None  # of the last fit of a Gaussian process

    def fit(self, X: _Array, y: _Array, update_params: bool) -> SKLearnPredictor:
        generator = np.random.Generator(np.random.PCG64(self.random_seed))
        if self._bootstraps:
            rows = generator.integers(len(y), size=(self.num_bootstrap, len(y)))
            return _EnsemblePredictor([self._new(generator).fit(X[r], y[r]) for r in rows])
        regressor = self._new(generator)
        final = _final_step(regressor)
        if isinstance(final, GaussianProcessRegressor):
            if not update_params and self._kernel is not None:
                final.set_params(kernel=clone(self._kernel), optimizer=None)
            with single_threaded_blas():
                regressor.fit(X, y)
            self._kernel = clone(final.kernel_)
        else:
            regressor.fit(X, y)
        return _StdPredictor(regressor) if _returns_std(final) else _MembersPredictor(regressor)

    def _new(self, generator: np.random.Generator) -> Any:
        regressor = clone(self.regressor)
        unseeded = [
            name
            for name, value in regressor.get_params(deep=True).items()
            if value is None and name.rpartition("__")[2] == "random_state"
        ]
        if unseeded:
            seeds = generator.integers(_MAX_SEED, size=len(unseeded))
            regressor.set_params(**{n: int(s) for n, s in zip(sorted(unseeded), seeds, strict=True)})
        return regressor

    def get_params(self) -> dict[str, Any]:
        """Return the free parameters of the kernel if the regressor is a Gaussian process, else nothing."""
        if self._kernel is None:
            return {}
        return dict(zip(_kernel_names(self._kernel), np.exp(self._kernel.theta).tolist(), strict=True))

    def set_params(self, param_dict: dict[str, Any]) -> None:
        final = _final_step(self.regressor)
        if not isinstance(final, GaussianProcessRegressor):
            return super().set_params(param_dict)
        if final.kernel is None:  # what stands for it depends on the version of scikit-learn
            kernel = clone(final).set_params(optimizer=None).fit(np.zeros((1, 1)), np.zeros(1)).kernel_
        else:
            kernel = clone(final.kernel)
        names = _kernel_names(kernel)
        if set(param_dict) != set(names):
            raise ValueError(f"param_dict must have the names {names}, got {sorted(param_dict)}")
        kernel.theta = np.log([param_dict[name] for name in names])
        self._kernel = kernel
        return None


class _StdPredictor(SKLearnPredictor):
    """A regressor with ``return_std``."""

    def __init__(self, regressor: Any) -> None:
        self.regressor = regressor

    def predict(self, X: _Array) -> tuple[_Array, _Array]:
        means, stds = self.regressor.predict(X, return_std=True)
        return means, stds


class _MembersPredictor(SKLearnPredictor):
    """A fitted ensemble, perhaps at the end of a pipeline."""

    def __init__(self, regressor: Any) -> None:
        self.regressor = regressor

    def predict(self, X: _Array) -> tuple[_Array, _Array]:
        inputs: Any = X
        final: Any = self.regressor
        while isinstance(final, Pipeline):
            if len(final.steps) > 1:
                inputs = final[:-1].transform(inputs)
            final = final.steps[-1][1]
        if isinstance(final, BaggingRegressor):
            pairs = zip(final.estimators_, final.estimators_features_, strict=True)
            return _mean_and_std([member.predict(inputs[:, columns]) for member, columns in pairs])
        inputs = np.ascontiguousarray(inputs, dtype=np.float32)  # what trees work with: checked once, not by each
        return _mean_and_std([tree.predict(inputs, check_input=False) for tree in final.estimators_])


class _EnsemblePredictor(SKLearnPredictor):
    """Regressors fitted to several data sets."""

    def __init__(self, regressors: Sequence[Any]) -> None:
        self.regressors = list(regressors)

    def predict(self, X: _Array) -> tuple[_Array, _Array]:
        return _mean_and_std([regressor.predict(X) for regressor in self.regressors])


def _mean_and_std(predictions: list[_Array]) -> tuple[_Array, _Array]:
    stacked = np.stack(predictions)  # (members, n)
    return stacked.mean(axis=0), stacked.std(axis=0)


def _final_step(regressor: Any) -> Any:
    while isinstance(regressor, Pipeline):
        regressor = regressor.steps[-1][1]
    return regressor


def _returns_std(final: Any) -> bool:
    return "return_std" in inspect.signature(final.predict).parameters


def _has_members(final: Any) -> bool:
    return isinstance(final, BaggingRegressor | ExtraTreesRegressor | RandomForestRegressor)


def _kernel_names(kernel: Any) -> list[str]:
    """Return names of the entries of ``kernel.theta``."""
    names = []
    for parameter in kernel.hyperparameters:
        if not parameter.fixed:
            several = parameter.n_elements > 1
            names += [f"{parameter.name}{i}" if several else parameter.name for i in range(parameter.n_elements)]
    return names


def plain(value: Any) -> Any:
    """Return a copy made of numbers, texts, ``None``, lists and dicts only.

    Raises:
        TypeError: If there is something else in it.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise TypeError(f"{value!r} is no plain value")
