"""Transforms of observed targets: what a surrogate models in place of the raw values.

All are increasing maps, so that low stays good. They are fitted to the data and then fixed until the next fit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sthyper.errors import closest

__all__ = ["BoxCox", "HalfLog", "Identity", "Standardize", "TailLog", "TargetTransform", "target_transform"]

_STD_FLOOR = 1e-9
_POSITIVE_FLOOR = 1e-10
_LARGEST = 1e300
_NEAR_ZERO = 1e-7
"""Powers that are nearer to 0 are computed by a series."""


class TargetTransform(ABC):
    """An increasing map from raw targets to those of a model.

    Subclasses keep what :meth:`fit` learns in attributes that :attr:`fitted` names, all floats.
    """

    fitted: tuple[str, ...] = ()

    @abstractmethod
    def fit(self, Y: Tensor) -> None:
        """Learn from raw targets, shape (n,), n at least 1."""

    @abstractmethod
    def forward(self, Y: Tensor) -> Tensor:
        """Return the model's targets of raw ones, of any shape."""

    @abstractmethod
    def inverse(self, Z: Tensor) -> Tensor:
        """Return the raw targets of the model's, of any shape."""

    def state_dict(self) -> dict[str, float]:
        """Return what :meth:`fit` has learned."""
        return {name: getattr(self, name) for name in self.fitted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for name in self.fitted:
            setattr(self, name, float(state[name]))


def _floor(Y: Tensor) -> float:
    """Return the least deviation that counts: 1e-9, and the same part of the targets where all of them are tiny."""
    return _STD_FLOOR * (min(float(Y.abs().max()), 1.0) or 1.0)


class Identity(TargetTransform):
    """Leaves targets as they are."""

    def fit(self, Y: Tensor) -> None:
        pass

    def forward(self, Y: Tensor) -> Tensor:
        return Y

    def inverse(self, Z: Tensor) -> Tensor:
        return Z


class Standardize(TargetTransform):
    """Mean 0 and (population) standard deviation 1; the deviation is at least 1e-9."""

    fitted = ("mean", "std")

    def __init__(self) -> None:
        self.mean, self.std = 0.0, 1.0

    def fit(self, Y: Tensor) -> None:
        # Scaled first: squares of very large targets would overflow, those of tiny ones vanish.
        scale = float(Y.abs().max()) or 1.0
        y = Y / scale
        self.mean = float(y.mean()) * scale
        self.std = max(float(y.std(correction=0)) * scale, _floor(Y))

    def forward(self, Y: Tensor) -> Tensor:
        return (Y - self.mean) / self.std

    def inverse(self, Z: Tensor) -> Tensor:
        return Z * self.std + self.mean


class TailLog(TargetTransform):
    """Keeps the distances among good and middling targets and takes logarithms of the bad tail.

    With the median q and the least target m, u = (y - q) / (q - m) stays as it is up to a knee k and becomes
    k + log(1 + u - k) beyond it; then the result is standardised. Diverged or hopeless configurations then do not set
    the scale of the model. With k = 1 as much is kept above the median as the good half spans below it.

    """

    knee = 1.0
    """k, in spreads of the good half above the median."""
    fitted = ("median", "spread", "mean", "std")

    def __init__(self) -> None:
        self.median, self.spread = 0.0, 1.0
        self._standardize = Standardize()

    @property
    def mean(self) -> float:
        """Mean before the standardisation."""
        return self._standardize.mean

    @mean.setter
    def mean(self, value: float) -> None:
        self._standardize.mean = value

    @property
    def std(self) -> float:
        """Deviation before the standardisation."""
        return self._standardize.std

    @std.setter
    def std(self, value: float) -> None:
        self._standardize.std = value

    def fit(self, Y: Tensor) -> None:
        least = float(Y.min())
        self.median = float(Y.quantile(0.5))
        self.spread = self.median - least
        if not self.spread > _floor(Y):
            # More than half of the targets are the least one: the others say what is a small difference.
            others = Y[least < Y]
            self.spread = max(float(others.min()) - least if len(others) else 1.0, _floor(Y))
        self._standardize.fit(self._compress(Y))

    def _compress(self, Y: Tensor) -> Tensor:
        u = ((Y - self.median) / self.spread).clamp_max(_LARGEST)
        return torch.where(u > self.knee, self.knee + torch.log1p((u - self.knee).clamp_min(0.0)), u)

    def forward(self, Y: Tensor) -> Tensor:
        return self._standardize.forward(self._compress(Y))

    def inverse(self, Z: Tensor) -> Tensor:
        v = self._standardize.inverse(Z)
        # Predictions far above all data would overflow.
        tail = torch.expm1((v - self.knee).clamp(0.0, 300.0)) + self.knee
        return torch.where(v > self.knee, tail, v) * self.spread + self.median


class HalfLog(TailLog):
    """:class:`TailLog` whose knee is at the median: logarithms of the whole worse half."""

    knee = 0.0


class BoxCox(TargetTransform):
    """The power transform (y^p - 1) / p of positive targets (log y for p = 0), then standardised.

    The power is a parameter of the surrogate, which fits it together with its own and sets it here.

    Raises:
        ValueError: From :meth:`fit`, if a target is not positive.

    References:
        Box and Cox, "An Analysis of Transformations", JRSS B 1964
    """

    fitted = ("power", "mean", "std")

    def __init__(self, power: float = 0.5) -> None:
        self.power, self.mean, self.std = power, 0.0, 1.0

    def fit(self, Y: Tensor) -> None:
        if not bool((Y > 0).all()):
            raise ValueError(
                f"boxcox_transform needs positive targets, the least one is {float(Y.min()):g}; report a positive "
                "metric or choose another target transform"
            )
        z = box_cox(Y, torch.as_tensor(self.power, dtype=Y.dtype))
        self.mean, self.std = float(z.mean()), max(float(z.std(correction=0)), _STD_FLOOR)

    def forward(self, Y: Tensor) -> Tensor:
        z = box_cox(Y, torch.as_tensor(self.power, dtype=Y.dtype))
        return (z - self.mean) / self.std

    def inverse(self, Z: Tensor) -> Tensor:
        z, power = Z * self.std + self.mean, self.power
        if abs(power) < _NEAR_ZERO:
            return torch.exp((z * (1.0 - 0.5 * power * z)).clamp_max(300.0))
        return torch.exp((torch.log1p((z * power).clamp_min(-1.0 + 1e-10)) / power).clamp_max(300.0))


def box_cox(Y: Tensor, power: Tensor) -> Tensor:
    """Return (y^p - 1) / p, shape of ``Y``, differentiable in the 0-d power; ``Y`` is floored at 1e-10."""
    u = torch.log(Y.clamp_min(_POSITIVE_FLOOR))
    if abs(float(power.detach())) < _NEAR_ZERO:
        return u + 0.5 * power * u * u
    return torch.expm1(power * u) / power


_TRANSFORMS: dict[str, Callable[[], TargetTransform]] = {
    "standardize": Standardize,
    "taillog": TailLog,
    "halflog": HalfLog,
    "boxcox": BoxCox,
    "identity": Identity,
}


def target_transform(name: str) -> TargetTransform:
    """Return a new transform: ``"standardize"``, ``"taillog"``, ``"halflog"``, ``"boxcox"`` or ``"identity"``.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in _TRANSFORMS:
        raise ValueError(
            f"target_transform={name!r} is unknown{closest(name, _TRANSFORMS)}; known are {sorted(_TRANSFORMS)}"
        )
    return _TRANSFORMS[name]()
