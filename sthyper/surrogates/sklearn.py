"""Estimators in the style of scikit-learn as surrogates."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import Model
from botorch.posteriors.gpytorch import GPyTorchPosterior
from botorch.posteriors.posterior import Posterior
from gpytorch.distributions import MultivariateNormal  # type: ignore[import-untyped]
from gpytorch.settings import min_variance  # type: ignore[import-untyped]
from linear_operator.operators import DiagLinearOperator  # type: ignore[import-untyped]
from numpy.typing import NDArray
from sklearn.base import BaseEstimator  # type: ignore[import-untyped]
from torch import Tensor
from torch.autograd.function import once_differentiable

from sthyper.surrogates.base import Surrogate
from sthyper.surrogates.sklearn_estimators import RegressorEstimator, SKLearnEstimator, SKLearnPredictor, plain
from sthyper.surrogates.transforms import Identity, Standardize

__all__ = ["SKLearnModel", "SKLearnSurrogate"]


class SKLearnModel(Model):
    """A fitted predictor as a BoTorch model; different points are independent.

    Args:
        predictor: What predicts.
        X: Points it was fitted to, shape (n, d).
        Z: Their targets, shape (n,).

    Attributes:
        differentiable: Whether the predictor gives gradients; if not, those of the posterior are 0.
        train_inputs: ``(X,)``.
        train_targets: ``Z``.
    """

    def __init__(self, predictor: SKLearnPredictor, X: Tensor, Z: Tensor) -> None:
        super().__init__()
        self.predictor = predictor
        self.train_inputs = (X,)
        self.train_targets = Z
        self.differentiable = type(predictor).backward_gradient is not SKLearnPredictor.backward_gradient

    @property
    def num_outputs(self) -> int:
        return 1

    @property
    def batch_shape(self) -> torch.Size:
        return torch.Size([])

    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> Posterior:
        """Return the predictions as independent normal distributions.

        Args:
            X: Points, shape (..., q, d).
            output_indices: ``None`` or ``[0]``: there is one output.
            observation_noise: Variance of noise to add, a tensor that broadcasts to (..., q, 1); the predictor has no
                estimate of its own.
            posterior_transform: Applied to the result.

        Returns:
            Posterior with mean and variance of shape (..., q, 1); the variance is at least
            ``gpytorch.settings.min_variance`` (1e-10 in float64).

        Raises:
            ValueError: If another output or the predictor's own noise is asked for, or its predictions are not finite
                or have the wrong shape.
        """
        if output_indices is not None and output_indices != [0]:
            raise ValueError(f"output_indices must be None or [0], got {output_indices!r}")
        if observation_noise is True:
            raise ValueError("observation_noise=True is not possible: the predictor has no estimate of the noise")
        mean, std = _Predict.apply(X, self.predictor)  # type: ignore[no-untyped-call]
        # GPyTorch warns of smaller ones: trees that agree have a variance of 0.
        variance = std.square().clamp_min(min_variance.value(std.dtype))
        if isinstance(observation_noise, Tensor):
            variance = variance + observation_noise.to(variance).expand(*variance.shape, 1).squeeze(-1)
        posterior = GPyTorchPosterior(MultivariateNormal(mean, DiagLinearOperator(variance)))
        return posterior if posterior_transform is None else posterior_transform(posterior)


class _Predict(torch.autograd.Function):
    """Means and deviations of points of shape (..., d), gradients by the predictor, which takes point by point."""

    @staticmethod
    def forward(ctx: Any, X: Tensor, predictor: SKLearnPredictor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(X)
        ctx.predictor = predictor
        points = _to_numpy(X.reshape(-1, X.shape[-1]))
        means, stds = predictor.predict(points)
        return _checked(means, "means", X), _checked(stds, "standard deviations", X)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mean: Tensor, grad_std: Tensor) -> tuple[Tensor, None]:
        (X,) = ctx.saved_tensors
        if type(ctx.predictor).backward_gradient is SKLearnPredictor.backward_gradient:
            return torch.zeros_like(X), None
        points = _to_numpy(X.reshape(-1, X.shape[-1]))
        heads = zip(points, _to_numpy(grad_mean.reshape(-1, 1)), _to_numpy(grad_std.reshape(-1, 1)), strict=True)
        rows = [ctx.predictor.backward_gradient(x, {"mean": mean, "std": std}) for x, mean, std in heads]
        return torch.as_tensor(np.reshape(rows, points.shape)).to(X).reshape(X.shape), None


def _to_numpy(values: Tensor) -> NDArray[np.float64]:
    return values.detach().to("cpu", torch.float64).contiguous().numpy()


def _checked(values: Any, what: str, X: Tensor) -> Tensor:
    """Return what a predictor gave for ``X`` as a tensor of shape (...)."""
    array = np.array(values, dtype=np.float64)
    number = X.shape[:-1].numel()
    if array.shape not in ((number,), (number, 1)):
        raise ValueError(f"predict must return {what} of shape ({number},), got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"predict must return finite {what}, got {array[~np.isfinite(array)].flat[0]}")
    if what == "standard deviations" and (array < 0).any():
        raise ValueError(f"predict must return {what} that are not negative, got {array.min()}")
    return torch.from_numpy(array).to(X).reshape(X.shape[:-1])


class SKLearnSurrogate(Surrogate):
    """A :class:`SKLearnEstimator`, or any scikit-learn regressor, as a surrogate.

    Args:
        estimator: Its ``fit`` is called for every new data set; a regressor is wrapped in a
            :class:`RegressorEstimator`.
        random_seed: Non-negative seed of regressors; see :class:`RegressorEstimator`. Estimators of one's own have
            their own.
        num_bootstrap: Number of copies of a regressor that gives no deviations; see :class:`RegressorEstimator`.
        normalize_targets: Whether targets are standardised before the fit. ``None`` asks the estimator; regressors get
            standardised targets.

    Raises:
        TypeError: If ``estimator`` is neither.
        ValueError: If ``random_seed`` is negative, or ``num_bootstrap`` is too small or has no meaning here.
    """

    def __init__(
        self,
        estimator: SKLearnEstimator | BaseEstimator,
        random_seed: int = 0,
        num_bootstrap: int | None = None,
        normalize_targets: bool | None = None,
    ) -> None:
        if not isinstance(estimator, SKLearnEstimator):
            self.estimator: SKLearnEstimator = RegressorEstimator(estimator, random_seed, num_bootstrap)
            normalize = True if normalize_targets is None else normalize_targets
        else:
            if num_bootstrap is not None:
                raise ValueError(f"num_bootstrap={num_bootstrap!r} is for scikit-learn regressors, got {estimator!r}")
            self.estimator = estimator
            normalize = estimator.normalize_targets if normalize_targets is None else normalize_targets
        super().__init__(Standardize() if normalize else Identity())

    def seed(self, random_seed: int) -> None:
        """Set the seed of a regressor; estimators of one's own have their own."""
        if isinstance(self.estimator, RegressorEstimator):
            self.estimator.random_seed = random_seed

    def build(self, X: Tensor, Z: Tensor, refit: bool) -> SKLearnModel:
        predictor = self.estimator.fit(_to_numpy(X), _to_numpy(Z), refit)
        if not isinstance(predictor, SKLearnPredictor):
            raise TypeError(f"fit of {type(self.estimator).__name__} must return a SKLearnPredictor, got {predictor!r}")
        return SKLearnModel(predictor, X, Z)

    def parameters(self) -> dict[str, float]:
        params = self.estimator.get_params()
        return {name: float(v) for name, v in params.items() if isinstance(v, Real) and not isinstance(v, bool)}

    def state_dict(self) -> dict[str, Any]:
        """Return the transform's state and the parameters of the estimator, these only if they are plain values."""
        try:
            params = plain(self.estimator.get_params())
        except TypeError:
            params = {}
        return super().state_dict() | {"params": params}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if state["params"]:
            self.estimator.set_params(state["params"])
