"""Parameters of a Gaussian process: names, starts, bounds and priors, and their flat vector.

The vector that an optimiser moves holds the logarithms of positive parameters. A preset is one choice of starts, bounds
and priors for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from sthyper.errors import closest
from sthyper.surrogates.priors import (
    Gamma,
    LogNormal,
    Normal,
    Prior,
    PriorOfTerms,
    Reciprocal,
    Terms,
    Uniform,
    sum_of_terms,
)

__all__ = ["PRESETS", "ParameterLayout", "ParameterSpec", "Preset", "preset"]


@dataclass(frozen=True)
class ParameterSpec:
    """Start, bounds and prior of a kind of parameter.

    Args:
        init: Where a first fit starts.
        lower: Lower bound.
        upper: Upper bound.
        prior: Its prior.
        log: Whether its logarithm is optimised.
        spread: Standard deviation, in the optimised form, of random starts around ``init``.
    """

    init: float
    lower: float
    upper: float
    prior: Prior
    log: bool = True
    spread: float = 1.0

    def internal(self, value: float) -> float:
        """Return the optimised form of a value."""
        return math.log(value) if self.log else value


@dataclass(frozen=True)
class Preset:
    """Starts, bounds and priors of all parameters of a Gaussian process.

    Args:
        lengthscale: Of the kernel; ``inverse_lengthscales`` says of what form.
        outputscale: Variance of the function.
        noise: Variance of the noise.
        mean: The constant mean.
        warping_a: Exponent a of the input warping.
        warping_b: Exponent b of the input warping.
        boxcox: Power of the Box-Cox transform.
        inverse_lengthscales: Whether ``lengthscale`` describes the inverse lengthscales.
    """

    lengthscale: ParameterSpec
    outputscale: ParameterSpec
    noise: ParameterSpec
    mean: ParameterSpec
    warping_a: ParameterSpec
    warping_b: ParameterSpec
    boxcox: ParameterSpec = field(
        default_factory=lambda: ParameterSpec(0.5, -1.0, 2.0, Normal(0.5, 0.75), log=False, spread=0.5)
    )
    inverse_lengthscales: bool = False


PRESETS: dict[str, Preset] = {
    "default": Preset(
        lengthscale=ParameterSpec(1.0, 3e-3, 1e3, Reciprocal(0.1, 0.1)),
        outputscale=ParameterSpec(1.0, 1e-2, 1e2, Gamma(2.0, 2.0), spread=0.5),
        noise=ParameterSpec(math.exp(-5.0), 1e-6, 1.0, Gamma(1.1 / 30.0, 1.1), spread=2.0),
        mean=ParameterSpec(0.0, -2.0, 2.0, Normal(0.0, 1.0), log=False, spread=0.1),
        warping_a=ParameterSpec(1.0, 0.25, 4.0, LogNormal(0.25, 0.5), spread=0.3),
        warping_b=ParameterSpec(1.0, 0.25, 4.0, LogNormal(0.25, 0.5), spread=0.3),
    ),
    "syne-tune": Preset(
        lengthscale=ParameterSpec(1.0, 1e-4, 1e2, Uniform(1e-4, 1e2)),
        outputscale=ParameterSpec(1.0, 1e-3, 1e3, LogNormal(0.0, 1.0)),
        noise=ParameterSpec(1e-3, 1e-9, 1e6, Gamma(0.1, 0.1)),
        mean=ParameterSpec(0.0, -math.inf, math.inf, Normal(0.0, 1.0), log=False),
        warping_a=ParameterSpec(1.0, 0.25, 4.0, LogNormal(0.0, 0.75)),
        warping_b=ParameterSpec(1.0, 0.25, 4.0, LogNormal(0.0, 0.75)),
        inverse_lengthscales=True,
    ),
}
"""The default preset; and kernel, priors and bounds of Syne Tune's Gaussian process.

``LogNormal(s^2, s)`` has the density of a normal log up to a constant: its mode in the logarithm is at 0.
"""


def preset(name: str | Preset) -> Preset:
    """Return a preset by its name; a :class:`Preset` is returned as it is.

    Raises:
        ValueError: If the name is unknown.
    """
    if isinstance(name, Preset):
        return name
    if name not in PRESETS:
        raise ValueError(f"preset={name!r} is unknown{closest(name, PRESETS)}; known are {sorted(PRESETS)}")
    return PRESETS[name]


class ParameterLayout:
    """Blocks of parameters in one flat vector.

    Args:
        blocks: Name -> (specification, number of parameters), in the order of the vector.
    """

    def __init__(self, blocks: Mapping[str, tuple[ParameterSpec, int]]) -> None:
        self.specs = {name: spec for name, (spec, _) in blocks.items()}
        self.slices: dict[str, slice] = {}
        start = 0
        for name, (_, size) in blocks.items():
            self.slices[name] = slice(start, start + size)
            start += size
        self.size = start

        def row(attribute: str) -> list[float]:
            values: list[float] = []
            for name, spec in self.specs.items():
                value = getattr(spec, attribute)
                width = self.slices[name].stop - self.slices[name].start
                values += [value if attribute == "spread" else _internal(spec, value)] * width
            return values

        self.init = torch.tensor(row("init"), dtype=torch.float64)
        self.lower = torch.tensor(row("lower"), dtype=torch.float64)
        self.upper = torch.tensor(row("upper"), dtype=torch.float64)
        self.spread = torch.tensor(row("spread"), dtype=torch.float64)
        widths = {name: _width(where) for name, where in self.slices.items()}
        self._widths = list(widths.values())
        # Neighbours that are both logarithms, or both not, are mapped together.
        self._runs = [
            (log, sum(widths[name] for name in names))
            for log, names in groupby(self.specs, key=lambda name: self.specs[name].log)
        ]
        terms: list[tuple[float, ...]] = []
        self._other_priors: list[str] = []
        for name, spec in self.specs.items():
            if isinstance(spec.prior, PriorOfTerms):
                terms += [spec.prior.terms().row()] * widths[name]
            else:
                terms += [Terms().row()] * widths[name]
                self._other_priors.append(name)
        self._terms = torch.tensor(terms, dtype=torch.float64).reshape(self.size, -1).T.contiguous()

    def unpack(self, theta: Tensor) -> dict[str, Tensor]:
        """Return the parameters themselves by name, shape ``batch x size``, of vectors of shape ``batch x p``."""
        runs = torch.split(theta, [width for _, width in self._runs], -1)
        parts = [part.exp() if log else part for part, (log, _) in zip(runs, self._runs, strict=True)]
        return dict(zip(self.slices, torch.split(torch.cat(parts, -1), self._widths, -1), strict=True))

    def negative_log_prior(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of all negative log densities, shape ``batch``, of what :meth:`unpack` returned."""
        x = torch.cat([values[name] for name in self.specs], -1)
        result = sum_of_terms(x, self._terms.to(x)).sum(-1)
        for name in self._other_priors:
            result = result + self.specs[name].prior.negative_log_density(values[name]).sum(-1)
        return result

    def random_start(self, generator: torch.Generator) -> Tensor:
        """Return the start of a restart: the usual one with normal noise, within the bounds; shape (p,)."""
        noise = torch.randn(self.size, generator=generator, dtype=torch.float64)
        return torch.minimum(torch.maximum(self.init + self.spread * noise, self.lower), self.upper)

    def log_jacobian(self, theta: Tensor) -> Tensor:
        """Return the sum of the logs of d value / d theta, shape ``batch``: for densities over the vector."""
        logs = torch.tensor([self.specs[n].log for n in self.specs for _ in range(_width(self.slices[n]))])
        return (theta * logs.to(theta)).sum(-1)


def _width(where: slice) -> int:
    return int(where.stop - where.start)


def _internal(spec: ParameterSpec, value: float) -> float:
    return spec.internal(value) if math.isfinite(value) else value
