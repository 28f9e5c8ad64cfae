"""Expected improvements that have no closed form: with noise, and together with pending evaluations."""

from __future__ import annotations

import math
import warnings

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.acquisition.logei import qLogExpectedImprovement, qLogNoisyExpectedImprovement
from botorch.acquisition.objective import ScalarizedPosteriorTransform
from botorch.models.model import Model
from botorch.sampling.normal import IIDNormalSampler, NormalMCSampler, SobolQMCNormalSampler
from botorch.utils.transforms import t_batch_mode_transform
from linear_operator.utils.warnings import NumericalWarning  # type: ignore[import-untyped]
from torch import Tensor
from torch.quasirandom import SobolEngine

from sthyper.acquisition.base import MeanStdAcquisition, log_expected_improvement, per_batch
from sthyper.surrogates.custom import own_draws
from sthyper.surrogates.gp_model import GPModel

__all__ = ["JointExpectedImprovement", "NoisyExpectedImprovement", "SampledNoisyExpectedImprovement", "seeded_sampler"]

_NUGGET = 1e-6
"""Variance, as a part of the prior's, of values that count as free of noise."""


class NoisyExpectedImprovement(MeanStdAcquisition):
    """The expected improvement on the least of the noise-free values at observed points, which are not known either.

    It is the average of the expected improvement over joint draws of these values; given a draw, the process is the one
    without noise that takes them.

    Args:
        model: The process. With a batch of parameters each set gets one draw.
        X_baseline: Observed and pending points, shape (m, d).
        generator: Source of the draws.
        num_fantasies: Number of draws.
        log: Whether the logarithm is returned.

    References:
        Letham et al., "Constrained Bayesian Optimization with Noisy Experiments", Bayesian Analysis 2019
    """

    def __init__(
        self,
        model: GPModel,
        X_baseline: Tensor,
        generator: torch.Generator,
        num_fantasies: int = 20,
        log: bool = True,
    ) -> None:
        X = torch.unique(X_baseline, dim=0)
        batched = len(model.batch_shape) > 0
        with torch.no_grad():
            draws = model.sample_at(X, 1 if batched else num_fantasies, generator)
            if batched:
                draws = draws.squeeze(-2)
            values = model.values
            nugget = torch.minimum(values["noise"], _NUGGET * values["outputscale"])
            fantasies = model.with_data(X, draws, nugget)
        super().__init__(fantasies)
        self.register_buffer("best_f", draws.amin(-1))
        self.averages_logs = log

    def head(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return the expected improvement of each draw, or its logarithm."""
        assert isinstance(self.best_f, Tensor)
        u = (per_batch(self.best_f, mean) - mean) / std
        value = log_expected_improvement(u) + std.log()
        return value if self.averages_logs else value.exp()


class JointExpectedImprovement(AcquisitionFunction):
    """The expected improvement of the best one of a new point and all pending ones, by quasi-Monte-Carlo.

    Args:
        model: Model of targets of which low ones are good. The values are averaged over its leading batch.
        best_f: Target to improve on, 0-d.
        X_pending: Pending points, shape (m, d).
        generator: Source of the seed of the draws.
        num_samples: Number of draws, best a power of two.
        jitter: Improvement, in the model's units, that is needed at least.
        log: Whether the logarithm is returned.

    References:
        Ginsbourger et al., "Kriging is Well-Suited to Parallelize Optimization", 2010; Ament et al., "Unexpected
        Improvements to Expected Improvement for Bayesian Optimization", NeurIPS 2023
    """

    def __init__(
        self,
        model: Model,
        best_f: Tensor | float,
        X_pending: Tensor,
        generator: torch.Generator,
        num_samples: int = 128,
        jitter: float = 0.0,
        log: bool = True,
    ) -> None:
        super().__init__(model=model)
        self._log = bool(log)  # BoTorch's name
        batched = isinstance(model, GPModel) and len(model.batch_shape) > 0
        members = [model.member(i) for i in range(model.batch_shape[0])] if batched else [model]  # type: ignore[operator]
        best = torch.as_tensor(best_f).to(X_pending).expand(len(members))
        sampler = seeded_sampler(num_samples, len(X_pending) + 1, generator)
        self.parts = torch.nn.ModuleList(
            qLogExpectedImprovement(
                member,
                best_f=-(own - jitter),
                sampler=sampler,
                posterior_transform=_minus(X_pending),
                X_pending=X_pending,
            )
            for member, own in zip(members, best, strict=True)
        )

    @t_batch_mode_transform(expected_q=1)  # type: ignore[arg-type]
    def forward(self, X: Tensor) -> Tensor:
        """Return the acquisition function at points.

        Args:
            X: Shape ``batch x 1 x d``.

        Returns:
            Shape ``batch``.
        """
        with warnings.catch_warnings():
            # New points next to pending ones make the covariance singular; a jitter is then added.
            warnings.simplefilter("ignore", NumericalWarning)
            values = torch.stack([part(X) for part in self.parts])
        value = values.logsumexp(0) - math.log(len(values))
        return value if self._log else value.exp()


class SampledNoisyExpectedImprovement(AcquisitionFunction):
    """The noisy expected improvement of any BoTorch model that draws jointly, by quasi-Monte-Carlo.

    Args:
        model: Model of targets of which low ones are good.
        X_baseline: Observed and pending points, shape (m, d).
        generator: Source of the seed of the draws.
        num_samples: Number of draws, best a power of two.
        log: Whether the logarithm is returned.

    References:
        Balandat et al., "BoTorch: A Framework for Efficient Monte-Carlo Bayesian Optimization", NeurIPS 2020
    """

    def __init__(
        self,
        model: Model,
        X_baseline: Tensor,
        generator: torch.Generator,
        num_samples: int = 128,
        log: bool = True,
    ) -> None:
        super().__init__(model=model)
        self._log = bool(log)  # BoTorch's name
        X = torch.unique(X_baseline, dim=0)
        with own_draws(generator):  # BoTorch draws a seed from the global generator
            self.part = qLogNoisyExpectedImprovement(
                model,
                X_baseline=X,
                sampler=seeded_sampler(num_samples, len(X) + 1, generator),
                posterior_transform=_minus(X),
                cache_root=False,
            )

    @t_batch_mode_transform(expected_q=1)  # type: ignore[arg-type]
    def forward(self, X: Tensor) -> Tensor:
        """Return the acquisition function at points.

        Args:
            X: Shape ``batch x 1 x d``.

        Returns:
            Shape ``batch``.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NumericalWarning)
            value = self.part(X)
        return value if self._log else value.exp()


def seeded_sampler(num_samples: int, q: int, generator: torch.Generator) -> NormalMCSampler:
    """Return a sampler of q values with a seed of its own, by Sobol points where there are not too many dimensions."""
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    kind = SobolQMCNormalSampler if q <= SobolEngine.MAXDIM else IIDNormalSampler
    return kind(torch.Size([num_samples]), seed=seed)


def _minus(like: Tensor) -> ScalarizedPosteriorTransform:
    """Return the transform that turns low targets into high ones."""
    return ScalarizedPosteriorTransform(weights=-torch.ones(1).to(like))
