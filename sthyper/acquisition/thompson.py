"""Thompson sampling: a draw of the function is optimised."""

from __future__ import annotations

import math

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.models.model import Model
from botorch.utils.transforms import t_batch_mode_transform
from torch import Tensor

from sthyper.acquisition.base import MeanStdAcquisition
from sthyper.surrogates.gp_model import GPModel
from sthyper.surrogates.marginals import marginals

__all__ = ["IndependentThompsonSampling", "ThompsonSampling"]

_MATERN_FREEDOM = 5
"""The spectral density of the Matern-5/2 kernel is a multivariate t with so many degrees of freedom."""


class ThompsonSampling(AcquisitionFunction):
    """Minus one function drawn from the posterior. High values are good, low targets too.

    The function is fixed when the object is made, defined everywhere and differentiable: a draw of the prior by random
    Fourier features, plus the update by the data (Matheron's rule), which is exact. Of a model with several samples of
    parameters, or fantasies, one is drawn.

    For models other than :class:`~sthyper.surrogates.gp_model.GPModel` it is mean(x) + deviation(x) g(x), where g is a
    smooth random function of variance 1: the marginal distributions are the model's, the correlations are those of g.

    Args:
        model: Model of targets of which low ones are good.
        generator: Source of the draw.
        num_features: Number of Fourier features, an even number.

    Raises:
        ValueError: If ``num_features`` is not even and positive.

    References:
        Thompson, "On the Likelihood that One Unknown Probability Exceeds Another", Biometrika 1933; Wilson et al.,
        "Efficiently Sampling Functions from Gaussian Process Posteriors", ICML 2020; Rahimi and Recht, "Random
        Features for Large-Scale Kernel Machines", NeurIPS 2007
    """

    def __init__(self, model: Model, generator: torch.Generator, num_features: int = 1024) -> None:
        if num_features < 2 or num_features % 2:
            raise ValueError(f"num_features must be even and positive, got {num_features!r}")
        super().__init__(model=model)
        self._draws = _Draws(generator)
        self._num_features = num_features
        self._path = _GPPath(model, self._draws, num_features) if isinstance(model, GPModel) else None
        self._smooth: _SmoothFunction | None = None
        self._member: int | None = None

    @t_batch_mode_transform(expected_q=1)  # type: ignore[arg-type]
    def forward(self, X: Tensor) -> Tensor:
        """Return minus the function at points.

        Args:
            X: Shape ``batch x 1 x d``.

        Returns:
            Shape ``batch``.
        """
        flat = X.reshape(-1, X.shape[-1])
        if self._path is not None:
            return -self._path(flat).reshape(X.shape[:-2])
        mean, variance = marginals(self.model, flat)
        if mean.dim() > 1:
            if self._member is None:
                self._member = self._draws.index(len(mean))
            mean, variance = mean[self._member], variance[self._member]
        if self._smooth is None:
            # A length of a fifth of the cube's diagonal.
            scale = 5.0 / math.sqrt(flat.shape[-1])
            frequencies = scale * self._draws.normal(flat.shape[-1], self._num_features // 2)
            self._smooth = _SmoothFunction(frequencies, self._draws)
        return -(mean + variance.sqrt() * self._smooth(flat)).reshape(X.shape[:-2])


class IndependentThompsonSampling(MeanStdAcquisition):
    """Minus a draw from the marginal posterior of each point, independent of all others.

    The draw at a point is always the same one. As the function is as rough as white noise, its maximum over many
    points is increasingly one by chance; :class:`ThompsonSampling` has the posterior's correlations. Fantasies and
    samples of parameters share the noise, and are averaged.

    Args:
        model: Model of targets of which low ones are good.
        generator: Source of the draws.
    """

    def __init__(self, model: Model, generator: torch.Generator) -> None:
        super().__init__(model)
        self._keys = torch.randint(-(2**62), 2**62, (2,), generator=generator)

    def head(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return minus the mean: the noise depends on the point and is added by :meth:`forward`."""
        return -mean

    @t_batch_mode_transform(expected_q=1)  # type: ignore[arg-type]
    def forward(self, X: Tensor) -> Tensor:
        """Return minus the draws at points.

        Args:
            X: Shape ``batch x 1 x d``.

        Returns:
            Shape ``batch``.
        """
        flat = X.squeeze(-2)
        mean, variance = marginals(self.model, flat)
        return self.average(-(mean + variance.clamp_min(0.0).sqrt() * self._noise(flat)), flat.dim() - 1)

    def _noise(self, X: Tensor) -> Tensor:
        """Return standard normal numbers, shape ``batch``, that are a function of the points' digits."""
        bits = (X.detach().double() + 0.0).contiguous().view(torch.int64)  # -0 becomes 0
        keys = self._keys.to(X.device)
        columns = torch.arange(1, X.shape[-1] + 1, device=X.device)
        h = (_mixed(bits ^ _mixed(columns * keys[0])) * (2 * columns + 1)).sum(-1)
        u = _mixed(h ^ keys[1]) & (2**52 - 1)
        return torch.special.ndtri((u.double() + 0.5) / 2.0**52).to(X)


def _mixed(h: Tensor) -> Tensor:
    """Return integers of which each bit depends on all bits of the given ones (the finaliser of splitmix64)."""
    h = (h ^ ((h >> 30) & (2**34 - 1))) * -4658895280553007687
    h = (h ^ ((h >> 27) & (2**37 - 1))) * -7723592293110705685
    return h ^ ((h >> 31) & (2**33 - 1))


class _Draws:
    """Draws in float64 from a generator of its own, so that late ones do not depend on other uses of the given one."""

    def __init__(self, generator: torch.Generator) -> None:
        seed = int(torch.randint(2**62, (), generator=generator))
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def index(self, n: int) -> int:
        return int(torch.randint(n, (), generator=self.generator))


class _SmoothFunction:
    """A draw of a stationary process of variance 1, as a sum of waves.

    Args:
        frequencies: Draws of the spectral density, shape (d, m).
        draws: Source of the weights.
    """

    def __init__(self, frequencies: Tensor, draws: _Draws) -> None:
        m = frequencies.shape[-1]
        self.frequencies = frequencies
        self.weights = draws.normal(2 * m) / math.sqrt(m)

    def __call__(self, X: Tensor) -> Tensor:
        phase = X @ self.frequencies.to(X)
        return torch.cat([phase.cos(), phase.sin()], dim=-1) @ self.weights.to(X)


class _GPPath:
    """A draw of a Gaussian process given its data."""

    def __init__(self, model: GPModel, draws: _Draws, num_features: int) -> None:
        if len(model.batch_shape):
            model = model.member(draws.index(len(model.targets if model.targets.dim() > 1 else model.noise)))
        self.model = model
        values = model.values
        self.mean, self.deviation = values["mean"], values["outputscale"].sqrt()
        X = model.scaled(model.inputs)
        frequencies = []
        for factor, part in zip(model.form.factors, X, strict=True):
            w = draws.normal(part.shape[-1], num_features // 2)
            if factor.radial == "matern52":
                chi2 = draws.normal(_MATERN_FREEDOM, num_features // 2).square().sum(0)
                w = w * (_MATERN_FREEDOM / chi2).sqrt()
            elif factor.radial == "exponential":  # exp(-r^2)
                w = w * math.sqrt(2.0)
            frequencies.append(w)
        self.prior = _SmoothFunction(torch.cat(frequencies), draws)
        noise = draws.normal(model.num_data).to(self.mean) * values["noise"].sqrt()
        residual = model.targets - self.mean - self.deviation * self.prior(torch.cat(X, dim=-1)) - noise
        self.weights = model.solve(residual)

    def __call__(self, X: Tensor) -> Tensor:
        prior = self.deviation * self.prior(torch.cat(self.model.scaled(X), dim=-1))
        return self.mean + prior + self.model.covariance_with_data(X) @ self.weights
