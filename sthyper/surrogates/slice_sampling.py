"""Slice sampling of many chains at once."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite, isinf

import torch
from torch import Tensor

__all__ = ["SliceException", "SliceSampler"]

_MAX_STEPS_OUT = 200
_MAX_SHRINKS = 200


class SliceException(RuntimeError):
    """A slice could not be found or hit: the density is unbounded, has no finite scale, or is not a function."""


class SliceSampler:
    """Draws from an unnormalised density by slice sampling along random directions.

    A step of a chain draws a direction uniformly from the unit sphere, a level uniformly below the density, an
    interval of length ``scale`` around the chain's point, which grows by ``scale`` at either end until both ends are
    below the level (at most 200 times each), and a point of the interval, which shrinks towards the chain's point
    until the draw is above the level (at most 200 times). All chains take a step together: every evaluation of the
    density is one batch of those chains that still need it.

    Args:
        log_density: Maps parameters of shape (m, p) to log densities up to a constant, shape (m,), for any m, each
            row by itself. Outside the bounds it is -inf; NaN (a density that cannot be computed) counts as -inf.
        scale: Length of the first interval, in units of the parameters.

    Raises:
        TypeError: If ``log_density`` cannot be called.
        ValueError: If ``scale`` is not positive and finite.

    References:
        Neal, "Slice sampling", Annals of Statistics 2003
    """

    def __init__(self, log_density: Callable[[Tensor], Tensor], scale: float = 1.0) -> None:
        if not callable(log_density):
            raise TypeError(f"log_density must be a function of a tensor, got {log_density!r}")
        if not (isfinite(scale) and scale > 0):
            raise ValueError(f"scale must be positive and finite, got {scale!r}")
        self.log_density = log_density
        self.scale = float(scale)

    @torch.no_grad()
    def sample(self, init: Tensor, num_samples: int, burn: int, thin: int, generator: torch.Generator) -> Tensor:
        """Run the chains and return what is left of their samples after burn-in and thinning.

        Args:
            init: First points of c chains, shape (c, p), of positive density; they are no samples themselves.
            num_samples: Number of steps of every chain.
            burn: Number of first samples to drop, less than ``num_samples``.
            thin: One of so many of the rest is kept, the first of them included.
            generator: Source of all draws; it may live on another device than ``init``.

        Returns:
            ``samples[burn::thin]``, shape (number kept, c, p), dtype and device of ``init``.

        Raises:
            SliceException: If a step does not come to an end.
            ValueError: If a count is out of range, or ``init`` has the wrong shape or dtype or a density that is not
                finite.
        """
        _check_counts(num_samples, burn, thin)
        if init.ndim != 2 or init.numel() == 0 or not init.is_floating_point():
            raise ValueError(f"init must be floating-point of shape (chains, p), got {init.dtype}, {tuple(init.shape)}")
        points = init.clone()
        values = self._evaluate(points)
        if not bool(torch.isfinite(values).all()):
            chain = int(torch.nonzero(~torch.isfinite(values))[0])
            raise ValueError(f"init must have a finite log density, chain {chain} has {float(values[chain])}")
        kept = []
        for number in range(num_samples):
            points, values = self._step(points, values, generator)
            if number >= burn and (number - burn) % thin == 0:
                kept.append(points)
        return torch.stack(kept)

    def _step(self, points: Tensor, values: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        num_chains, dimension = points.shape

        def draw(shape: tuple[int, ...], normal: bool = False) -> Tensor:
            function = torch.randn if normal else torch.rand
            drawn: Tensor = function(shape, generator=generator, dtype=points.dtype, device=generator.device)
            return drawn.to(points.device)

        directions = draw((num_chains, dimension), normal=True)
        directions = directions / directions.norm(dim=1, keepdim=True)
        levels = values + torch.log1p(-draw((num_chains,)))  # 1 - U lies in (0, 1]
        lower = -self.scale * draw((num_chains,))
        ends = self._step_out(points, directions, levels, torch.stack([lower, lower + self.scale]))
        new_points, new_values = points.clone(), values.clone()
        left = torch.arange(num_chains, device=points.device)  # chains without a new point
        for _ in range(_MAX_SHRINKS):
            low, high = ends[:, left]
            offsets = low + (high - low) * draw((len(left),))
            tried = points[left] + offsets[:, None] * directions[left]
            found_values = self._evaluate(tried)
            hit = found_values > levels[left]
            new_points[left[hit]], new_values[left[hit]] = tried[hit], found_values[hit]
            left, offsets = left[~hit], offsets[~hit]
            if len(left) == 0:
                return new_points, new_values
            if bool((offsets == 0).any()):
                raise SliceException("the interval shrank to the chain's own point, which should be in the slice")
            below = offsets < 0
            ends[0, left[below]] = offsets[below]
            ends[1, left[~below]] = offsets[~below]
        raise SliceException(
            f"no point of the slice after {_MAX_SHRINKS} shrinks in {len(left)} of {num_chains} chains; the density is "
            f"concentrated far below scale={self.scale!r}, or it does not return the same value twice"
        )

    def _step_out(self, points: Tensor, directions: Tensor, levels: Tensor, ends: Tensor) -> Tensor:
        """Return both ends of the intervals, shape (2, c), each below the level."""
        side, chain = torch.nonzero(torch.ones_like(ends), as_tuple=True)  # ends that may be above the level
        for _ in range(_MAX_STEPS_OUT):
            tried = points[chain] + ends[side, chain][:, None] * directions[chain]
            above = self._evaluate(tried) > levels[chain]
            side, chain = side[above], chain[above]
            if len(chain) == 0:
                return ends
            ends[side, chain] += self.scale * (2 * side - 1).to(ends.dtype)
        raise SliceException(
            f"no end of the slice after {_MAX_STEPS_OUT} steps of scale={self.scale!r} in "
            f"{len(set(chain.tolist()))} of {len(points)} chains; the density has no bounds, or scale is far too small"
        )

    def _evaluate(self, points: Tensor) -> Tensor:
        values = self.log_density(points)
        if values.shape != points.shape[:1]:
            raise ValueError(f"log_density must return the shape ({len(points)},), got {tuple(values.shape)}")
        values = values.to(points).masked_fill(torch.isnan(values), -torch.inf)
        largest = float(values.max())
        if isinf(largest) and largest > 0:
            raise SliceException("log_density returned inf: the density is unbounded")
        return values


def _check_counts(num_samples: int, burn: int, thin: int) -> None:
    for name, value, least in (("num_samples", num_samples, 1), ("burn", burn, 0), ("thin", thin, 1)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value!r}")
    if burn >= num_samples:
        raise ValueError(f"burn must be less than num_samples={num_samples!r}, got {burn!r}")
