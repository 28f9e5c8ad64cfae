"""The exact Gaussian process of Bayesian optimisation."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sthyper.surrogates.base import Surrogate
from sthyper.surrogates.fit import minimize_bounded
from sthyper.surrogates.gp_model import GPModel
from sthyper.surrogates.inputs import InputStructure
from sthyper.surrogates.kernels import KernelForm
from sthyper.surrogates.likelihood import NegativeLogLikelihood
from sthyper.surrogates.parameters import ParameterLayout, Preset, preset
from sthyper.surrogates.transforms import BoxCox, box_cox, target_transform

__all__ = ["GPOptions", "GaussianProcess"]

logger = logging.getLogger(__name__)

_STD_FLOOR = 1e-9
_LEAST_FOR_BOXCOX = 5
"""With fewer targets the power stays where it starts."""
_MANY_OBSERVATIONS = 150
_GROWTH = 1.5
"""A warm start is checked against a full fit when the data have grown by this factor since the last one."""


@dataclass(frozen=True)
class GPOptions:
    """How a Gaussian process is made and fitted.

    Args:
        preset: Starts, bounds and priors: ``"default"``, ``"syne-tune"`` or a
            :class:`~sthyper.surrogates.parameters.Preset`.
        kernel: ``"matern52-ard"``, ``"matern52-noard"``, ``"rbf-ard"`` or ``"rbf-noard"``.
        categorical_kernel: ``"one-hot"`` or ``"exchangeable"``; see
            :class:`~sthyper.surrogates.kernels.KernelForm`.
        transfer_kernel: ``"matern52_product"`` or ``"matern52_same"``, for inputs with a task.
        input_warping: Whether numeric inputs are warped.
        target_transform: ``"taillog"``, ``"halflog"``, ``"standardize"``, ``"boxcox"`` or ``"identity"``.
        num_starts: Number of starts of a full fit.
        max_iterations: L-BFGS iterations of each start of a full fit.
        warm_start: Whether a fit starts from the last optimum; a full one is made as well whenever the data have grown
            by half.
        warm_iterations: L-BFGS iterations of a warm start; two fifths of them from 150 observations on.
        tolerance: Largest component of the gradient at which a fit ends.
        max_fit_points: With more observations the parameters are fitted to the best half of as many and random others;
            the process itself is conditioned on all. ``None`` for all.
        verbose: Whether to log each fit at level INFO.

    Raises:
        ValueError: If a value is out of range.
    """

    preset: str | Preset = "default"
    kernel: str = "matern52-ard"
    categorical_kernel: str = "one-hot"
    transfer_kernel: str = "matern52_product"
    input_warping: bool = True
    target_transform: str = "taillog"
    num_starts: int = 2
    max_iterations: int = 100
    warm_start: bool = True
    warm_iterations: int = 10
    tolerance: float = 1e-6
    max_fit_points: int | None = 256
    verbose: bool = False

    def __post_init__(self) -> None:
        preset(self.preset)
        target_transform(self.target_transform)
        for name in ("num_starts", "max_iterations", "warm_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        if self.max_fit_points is not None and self.max_fit_points < 2:
            raise ValueError(f"max_fit_points must be at least 2, or None, got {self.max_fit_points!r}")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be positive, got {self.tolerance!r}")


class GaussianProcess(Surrogate):
    """A Gaussian process with constant mean and Gaussian noise, fitted by maximum a posteriori.

    Args:
        structure: What the columns of the inputs are; d plain numbers if an int.
        options: How it is made and fitted.
        seed: Seed of restarts and subsets.

    References:
        Rasmussen and Williams, "Gaussian Processes for Machine Learning", MIT Press 2006;
        Snoek et al., "Practical Bayesian Optimization of Machine Learning Algorithms", NeurIPS 2012
    """

    def __init__(self, structure: InputStructure | int, options: GPOptions | None = None, seed: int = 0) -> None:
        self.options = GPOptions() if options is None else options
        super().__init__(target_transform(self.options.target_transform))
        self.structure = InputStructure.plain(structure) if isinstance(structure, int) else structure
        chosen = preset(self.options.preset)
        self._inverse = chosen.inverse_lengthscales
        self.form = KernelForm(
            self.structure,
            kernel=self.options.kernel,
            categorical=self.options.categorical_kernel,
            transfer=self.options.transfer_kernel,
            warping=self.options.input_warping,
            per_column=chosen.inverse_lengthscales,
        )
        blocks = self.form.blocks(chosen) | {"noise": (chosen.noise, 1), "mean": (chosen.mean, 1)}
        if isinstance(self.transform, BoxCox):
            blocks["boxcox"] = (chosen.boxcox, 1)
        self.layout = ParameterLayout(blocks)
        self._generator = torch.Generator().manual_seed(seed)
        self._theta: Tensor | None = None
        self._size_of_full_fit = 0

    # ---- fit -----------------------------------------------------------------------------------------

    def fit(self, X: Tensor, Y: Tensor, refit: bool = True) -> GPModel:
        """Return the process of the data, in double precision; see :meth:`Surrogate.fit`."""
        X, Y = X.double(), Y.double()
        if isinstance(self.transform, BoxCox):
            if refit or self._theta is None:
                self.transform.fit(Y)  # raises at once if a target is not positive
                self._fit_parameters(X, Y)
                assert self._theta is not None
                self.transform.power = float(self.layout.unpack(self._theta)["boxcox"])
            self.transform.fit(Y)
            return self.build(X, self.transform.forward(Y), refit=False)
        return super().fit(X, Y, refit)  # type: ignore[return-value]

    def build(self, X: Tensor, Z: Tensor, refit: bool) -> GPModel:
        """Return the process of transformed targets; see :meth:`Surrogate.build`."""
        if refit or self._theta is None:
            self._fit_parameters(X, Z)
        assert self._theta is not None
        values = self.layout.unpack(self._theta)
        values.pop("boxcox", None)
        return GPModel(X, Z, self.form, {k: v.to(X) for k, v in values.items()}, self._inverse)

    def negative_log_posterior(self, theta: Tensor, X: Tensor, targets: Tensor) -> Tensor:
        """Return what a fit minimises: negative log likelihood plus negative log priors, a 0-d tensor.

        Args:
            theta: Parameters in the optimised form, shape (p,); see :attr:`layout`.
            X: Inputs, shape (n, d).
            targets: Transformed targets, shape (n,); raw ones for Box-Cox, whose likelihood is that of raw targets.
        """
        values = self.layout.unpack(theta)
        prior = self.layout.negative_log_prior(values)
        jacobian: Tensor | float = 0.0
        if "boxcox" in values:
            power = values["boxcox"].squeeze(-1)
            z = box_cox(targets, power)
            std = z.std(correction=0).clamp_min(_STD_FLOOR)
            jacobian = len(targets) * std.log() + (1.0 - power) * targets.log().sum()
            targets = (z - z.mean()) / std
        where = self.layout.slices
        residual = targets - values["mean"]
        Z = self.form.scaled(X, values, self._inverse)
        likelihood = NegativeLogLikelihood.apply(  # type: ignore[no-untyped-call]
            theta[where["outputscale"]].squeeze(-1), theta[where["noise"]].squeeze(-1), residual, self.form, *Z
        )
        result: Tensor = likelihood + prior + jacobian
        return result

    def _fit_parameters(self, X: Tensor, targets: Tensor) -> None:
        options, layout = self.options, self.layout
        X, targets = X.detach().cpu(), targets.detach().cpu()
        n = len(targets)
        if options.max_fit_points is not None and n > options.max_fit_points:
            kept = self._subset(targets, options.max_fit_points)
            X, targets = X[kept], targets[kept]
        lower, upper = layout.lower, layout.upper
        if "boxcox" in layout.slices and n < _LEAST_FOR_BOXCOX:
            lower, upper = lower.clone(), upper.clone()
            lower[layout.slices["boxcox"]] = upper[layout.slices["boxcox"]] = layout.init[layout.slices["boxcox"]]
        starts: list[Tensor] = []
        iterations: list[int] = []
        if options.warm_start and self._theta is not None:
            starts.append(torch.minimum(torch.maximum(self._theta, lower), upper))
            # Of many observations one more changes little.
            few = n < _MANY_OBSERVATIONS
            iterations.append(options.warm_iterations if few else max(options.warm_iterations * 2 // 5, 1))
        if not starts or n >= _GROWTH * self._size_of_full_fit:
            self._size_of_full_fit = n
            full = [layout.init, *(layout.random_start(self._generator) for _ in range(options.num_starts - 1))]
            starts += [torch.minimum(torch.maximum(start, lower), upper) for start in full]
            iterations += [options.max_iterations] * len(full)
        result = minimize_bounded(
            lambda theta: self.negative_log_posterior(theta, X, targets),
            starts,
            lower,
            upper,
            iterations,
            options.tolerance,
            options.verbose,
        )
        if result is not None:
            self._theta = result.theta
        elif self._theta is None:
            logger.warning("the parameters of the Gaussian process could not be fitted; they stay at their start")
            self._theta = layout.init.clone()

    def _subset(self, targets: Tensor, size: int) -> Tensor:
        order = torch.argsort(targets, stable=True)
        best, rest = order[: size // 2], order[size // 2 :]
        chosen = rest[torch.randperm(len(rest), generator=self._generator)[: size - len(best)]]
        return torch.cat([best, chosen]).sort().values

    # ---- description and state -----------------------------------------------------------------------

    def parameters(self) -> dict[str, float]:
        """Return the parameters of the last fit: lengthscales and warping exponents by hyperparameter."""
        theta = self._theta
        return {} if theta is None else self._by_name(theta)

    def _by_name(self, theta: Tensor) -> dict[str, float]:
        """Return parameters of shape (p,) by name; nothing of the object changes, a fit may run at the same time."""
        values = self.layout.unpack(theta)
        result: dict[str, float] = {}
        name = "inverse_lengthscale" if self._inverse else "lengthscale"
        for hyperparameter, value in zip(self.form.lengthscale_names, values["lengthscale"].tolist(), strict=True):
            result[f"{name}_{hyperparameter}"] = value
        for exponent in ("warping_a", "warping_b"):
            for column, value in zip(self.form.warped, values[exponent].tolist(), strict=True):
                result[f"{exponent}_{self.structure.names[self.structure.groups[column]]}"] = value
        for other in ("outputscale", "noise", "mean", "boxcox"):
            if other in values:
                result[other] = float(values[other])
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return parameters of the last fit, generator and transform."""
        return super().state_dict() | {
            "theta": None if self._theta is None else self._theta.clone(),
            "size_of_full_fit": self._size_of_full_fit,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._theta = None if state["theta"] is None else state["theta"].clone()
        self._size_of_full_fit = state["size_of_full_fit"]
        self._generator.set_state(state["generator"].cpu())
