"""Covariance functions: products of radial functions of scaled, warped inputs.

k(x, x') = s * prod_i f_i(|z_i - z_i'|^2), where z_i are some columns of the input, warped and divided by their
lengthscales. Each factor has the form Matern-5/2, Gaussian (RBF) or exponential. The same code serves the likelihood
in closed form, the posterior, and GPyTorch, for which :class:`RadialKernel` wraps it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gpytorch.kernels import Kernel  # type: ignore[import-untyped]
from torch import Tensor

from sthyper.errors import closest
from sthyper.surrogates.inputs import InputStructure
from sthyper.surrogates.parameters import ParameterSpec, Preset
from sthyper.surrogates.scaling import Columns, scaled_columns

__all__ = ["KERNELS", "KernelForm", "RadialKernel", "squared_distances"]

_SQRT5 = math.sqrt(5.0)
_TINY = 1e-15
"""Squared distances are at least this where autograd passes: the derivative of the root is infinite at 0."""

_BLOCK = 256
"""Rows of a large matrix that are computed at once."""

KERNELS = ("matern52-ard", "matern52-noard", "rbf-ard", "rbf-noard")
CATEGORICAL_KERNELS = ("one-hot", "exchangeable")
TRANSFER_KERNELS = ("matern52_product", "matern52_same")


def _matern52(r2: Tensor) -> Tensor:
    if not (torch.is_grad_enabled() and r2.requires_grad):  # the same without copies
        r = r2.sqrt().mul_(_SQRT5)
        e = torch.neg(r).exp_()
        return r.mul(1.0 / 3.0).add_(1.0).mul_(r).add_(1.0).mul_(e)
    r = _SQRT5 * r2.clamp_min(_TINY).sqrt()
    return (1.0 + r + r * r / 3.0) * torch.exp(-r)


def _matern52_slope(r2: Tensor) -> tuple[Tensor, Tensor]:
    r = r2.sqrt_().mul_(_SQRT5)
    e = torch.neg(r).exp_()
    one = r + 1.0
    value = r.square_().div_(3.0).add_(one).mul_(e)
    return value, one.mul_(e).mul_(-5.0 / 6.0)


def _rbf(r2: Tensor) -> Tensor:
    return torch.exp(-0.5 * r2)


def _rbf_slope(r2: Tensor) -> tuple[Tensor, Tensor]:
    value = _rbf(r2)
    return value, -0.5 * value


def _exponential(r2: Tensor) -> Tensor:
    return torch.exp(-r2)


def _exponential_slope(r2: Tensor) -> tuple[Tensor, Tensor]:
    value = _exponential(r2)
    return value, -value


@dataclass(frozen=True)
class Radial:
    """A radial function.

    Args:
        value: f(r^2).
        slope: f(r^2) and its derivative by r^2; its argument may be overwritten.
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], tuple[Tensor, Tensor]]


_RADIALS = {
    "matern52": Radial(_matern52, _matern52_slope),
    "rbf": Radial(_rbf, _rbf_slope),
    "exponential": Radial(_exponential, _exponential_slope),
}


def squared_distances(Z1: Tensor, Z2: Tensor) -> Tensor:
    """Return |z - z'|^2 >= 0, shape ``batch x n x m``, of points of shapes ``batch x n x d`` and ``batch x m x d``."""
    sq1, sq2 = Z1.square().sum(-1, keepdim=True), Z2.square().sum(-1, keepdim=True)
    if not (torch.is_grad_enabled() and (Z1.requires_grad or Z2.requires_grad)):
        return (Z1 @ Z2.mT).mul_(-2.0).add_(sq1).add_(sq2.mT).clamp_min_(0.0)
    return (sq1 + sq2.mT - 2.0 * (Z1 @ Z2.mT)).clamp_min(0.0)


class _Rows(torch.autograd.Function):
    """Radial function of points that move, shape (n, d), and points that stay, (m, d): the inner loop of a search.

    One step for autograd in place of fifteen, with the derivative in closed form.
    """

    @staticmethod
    def forward(ctx: Any, Z1: Tensor, Z2: Tensor, radial: str) -> Tensor:
        value, slope = _RADIALS[radial].slope(squared_distances(Z1.detach(), Z2))
        ctx.save_for_backward(Z1, Z2, slope)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        Z1, Z2, slope = ctx.saved_tensors
        W = slope * grad
        return 2.0 * (W.sum(1, keepdim=True) * Z1 - W @ Z2), None, None


@dataclass(frozen=True)
class Factor:
    """One factor of the product.

    Args:
        radial: ``"matern52"``, ``"rbf"`` or ``"exponential"``.
        columns: Columns of the input.
        scales: For each column the position of its lengthscale among all.
        weights: Factor of each column before it is divided by its lengthscale.
        root: Whether columns are divided by the root of the lengthscale.
    """

    radial: str
    columns: tuple[int, ...]
    scales: tuple[int, ...]
    weights: tuple[float, ...]
    root: bool = False


class KernelForm:
    """The covariance function of a structure of inputs, without values of its parameters.

    Args:
        structure: What the columns are.
        kernel: ``"matern52-ard"``, ``"matern52-noard"`` (one lengthscale), ``"rbf-ard"`` or ``"rbf-noard"``.
        categorical: ``"one-hot"``: categorical hyperparameters count in the distance as numbers do, two categories at
            a distance of 1; ``"exchangeable"``: a factor exp(-1/l) for each categorical hyperparameter that differs.
        transfer: With a task in ``structure``: ``"matern52_product"`` (a Matern factor of the task) or
            ``"matern52_same"`` (the task makes no difference). Without effect otherwise.
        warping: Whether numeric columns are warped. Not with a task.
        per_column: Whether each column has a lengthscale, also those of one categorical hyperparameter; their distance
            is then that of the columns as they are. The task, and the exchangeable form, have one in any case.

    Raises:
        ValueError: If a name is unknown.
    """

    def __init__(
        self,
        structure: InputStructure,
        kernel: str = "matern52-ard",
        categorical: str = "one-hot",
        transfer: str = "matern52_product",
        warping: bool = True,
        per_column: bool = False,
    ) -> None:
        for argument, name, known in (
            ("gp_base_kernel", kernel, KERNELS),
            ("categorical_kernel", categorical, CATEGORICAL_KERNELS),
            ("transfer_learning_model", transfer, TRANSFER_KERNELS),
        ):
            if name not in known:
                raise ValueError(f"{argument}={name!r} is unknown{closest(name, known)}; known are {list(known)}")
        self.structure = structure
        self.warped = structure.numeric_columns() if warping and structure.task is None else []
        radial, ard = kernel.split("-")
        self.lengthscale_names: list[str] = []
        self.factors: list[Factor] = []
        groups = range(len(structure.names))
        exchangeable = [g for g in groups if structure.categorical[g] and g != structure.task]
        if categorical == "one-hot":
            exchangeable = []
        usual = [g for g in groups if g != structure.task and g not in exchangeable]
        self._add(radial, usual, shared=ard == "noard", per_column=per_column)
        self._add("exponential", exchangeable)
        if structure.task is not None and transfer == "matern52_product":
            self._add("matern52", [structure.task])
        self._parts = [
            Columns.of(factor.columns, factor.scales, factor.weights, self.warped, factor.root)
            for factor in self.factors
        ]

    def _add(self, radial: str, groups: list[int], shared: bool = False, per_column: bool = False) -> None:
        if not groups:
            return
        columns: list[int] = []
        scales: list[int] = []
        weights: list[float] = []
        if shared:
            self.lengthscale_names.append("all")
        for group in groups:
            own = self.structure.columns(group)
            if not shared and not per_column:
                self.lengthscale_names.append(self.structure.names[group])
            for number, column in enumerate(own):
                if per_column and not shared:
                    suffix = f"[{number}]" if len(own) > 1 else ""
                    self.lengthscale_names.append(self.structure.names[group] + suffix)
                columns.append(column)
                scales.append(len(self.lengthscale_names) - 1)
                # Two categories are one unit apart, like the ends of a number's range: two one-hot columns differ
                # by 1, a single column by 1/2.
                apart = 2.0 if len(own) == 1 else math.sqrt(0.5)
                weights.append(apart if self.structure.categorical[group] and not per_column else 1.0)
        self.factors.append(Factor(radial, tuple(columns), tuple(scales), tuple(weights), radial == "exponential"))

    def blocks(self, preset: Preset) -> dict[str, tuple[ParameterSpec, int]]:
        """Return the parameters of the kernel; see :class:`~sthyper.surrogates.parameters.ParameterLayout`."""
        return {
            "lengthscale": (preset.lengthscale, len(self.lengthscale_names)),
            "outputscale": (preset.outputscale, 1),
            "warping_a": (preset.warping_a, len(self.warped)),
            "warping_b": (preset.warping_b, len(self.warped)),
        }

    def scaled(self, X: Tensor, values: Mapping[str, Tensor], inverse: bool = False) -> list[Tensor]:
        """Return the warped and scaled inputs of each factor, shapes ``batch x n x d_i``.

        Args:
            X: Shape ``batch x n x d``.
            values: Parameters by name, shapes ``batch' x size``; the batches are broadcast.
            inverse: Whether the lengthscales are given as their inverses.
        """
        lengthscale = values["lengthscale"]
        none = lengthscale.new_empty(0)
        a, b = (values[name] if self.warped else none for name in ("warping_a", "warping_b"))
        return [scaled_columns(X, lengthscale, a, b, part.to(X.device), inverse) for part in self._parts]

    def correlation(self, Z1: Sequence[Tensor], Z2: Sequence[Tensor]) -> Tensor:
        """Return the product of all factors, shape ``batch x n x m``, of what :meth:`scaled` returned."""
        result: Tensor | None = None
        for factor, a, b in zip(self.factors, Z1, Z2, strict=True):
            if torch.is_grad_enabled() and a.requires_grad and a.dim() == b.dim() == 2 and not b.requires_grad:
                value = _Rows.apply(a, b, factor.radial)  # type: ignore[no-untyped-call]
            else:
                value = _RADIALS[factor.radial].value(squared_distances(a, b))
            result = value if result is None else result * value
        if result is None:  # every column is the task, which makes no difference
            raise ValueError("the kernel has no column that makes a difference")
        return result

    def lower_covariance(self, Z: Sequence[Tensor], outputscale: Tensor) -> Tensor:
        """Return the lower triangle of the covariance matrix of points, shape (n, n); above it may be zeros.

        Block by block, so that what is in between stays in the cache: of thousands of points most of the time would be
        that of the memory.

        Args:
            Z: What :meth:`scaled` returned, shapes (n, d_i), without gradients.
            outputscale: Variance of the function, shape (1,) or 0-d.
        """
        n = len(Z[0])
        result = Z[0].new_zeros(n, n)
        for start in range(0, n, _BLOCK):
            stop = min(start + _BLOCK, n)
            rows, columns = [part[start:stop] for part in Z], [part[:stop] for part in Z]
            torch.mul(self.correlation(rows, columns), outputscale, out=result[start:stop, :stop])
        return result

    def slopes(self, Z1: Sequence[Tensor], Z2: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return correlations and their derivatives by each factor's r^2, none of them with a gradient of their own.

        Args:
            Z1: What :meth:`scaled` returned, shapes (m, d_i).
            Z2: The same of other points, shapes (n, d_i); the points themselves by default.

        Returns:
            The correlation matrix (m, n), and one matrix (m, n) a factor.
        """
        values, slopes = [], []
        for factor, a, b in zip(self.factors, Z1, Z1 if Z2 is None else Z2, strict=True):
            r2 = squared_distances(a.detach(), b.detach())
            if Z2 is None:
                r2.fill_diagonal_(0.0)
            value, slope = _RADIALS[factor.radial].slope(r2)
            values.append(value)
            slopes.append(slope)
        if len(values) == 1:
            return values[0], slopes
        total = torch.stack(values).prod(0)
        for i, slope in enumerate(slopes):
            for j, value in enumerate(values):
                if i != j:
                    slope.mul_(value)
        return total, slopes


class RadialKernel(Kernel):  # type: ignore[misc]
    """A :class:`KernelForm` with values, as a GPyTorch kernel.

    Args:
        form: The covariance function.
        values: Parameters by name, shapes ``batch x size``; they become ``nn.Parameter`` of the same names.
        inverse: Whether the lengthscales are given as their inverses.
    """

    has_lengthscale = False

    def __init__(self, form: KernelForm, values: Mapping[str, Tensor], inverse: bool = False) -> None:
        outputscale = values["outputscale"]
        super().__init__(batch_shape=outputscale.shape[:-1])
        self.form = form
        self.inverse = inverse
        self.names = ("lengthscales", "outputscale", "warping_a", "warping_b")
        for name in self.names:
            value = values["lengthscale" if name == "lengthscales" else name]
            self.register_parameter(name, torch.nn.Parameter(value.detach().clone()))

    def values(self) -> dict[str, Tensor]:
        """Return the parameters by their names in a :class:`KernelForm`."""
        values = {name: getattr(self, name) for name in self.names}
        values["lengthscale"] = values.pop("lengthscales")
        return values

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False) -> Tensor:
        """Return covariances, shape ``batch x n x m``, or with ``diag`` their diagonal."""
        values = self.values()
        s = values["outputscale"]
        if diag:
            return s + torch.zeros_like(x1[..., 0])
        Z1, Z2 = self.form.scaled(x1, values, self.inverse), self.form.scaled(x2, values, self.inverse)
        return s.unsqueeze(-1) * self.form.correlation(Z1, Z2)
