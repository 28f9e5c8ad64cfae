"""What hyperparameters are declared, and where their centre and their scales are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sthyper.errors import closest
from sthyper.selftuning._choosing import Choosing
from sthyper.selftuning.declarations import Discrete, Hyperparameter
from sthyper.selftuning.discrete import DiscreteHyperparameters
from sthyper.selftuning.maps import inverse_softplus

__all__ = ["Declared"]

_REACH = 2.0
_IDLE = 1e-4


class Declared(Choosing):
    """The part of :class:`~sthyper.selftuning.Hyperparameters` that is about declarations and central values.

    Args:
        l0: Cost of an open gate, and of a unit of the ``costs`` of choices, in hyper steps.
        entropy: Cost of a nat of entropy of gates and choices in hyper steps.
        dtype: Type of the parameters; default is torch's default.
        device: Device of the parameters.

    Raises:
        ValueError: If a cost is below 0.
    """

    def __init__(self, l0: float, entropy: float, dtype: torch.dtype | None, device: torch.device | str | None) -> None:
        super().__init__()
        self._declared: dict[str, Hyperparameter] = {}
        self._sealed = False
        # Not through attributes of these names, which seal.
        self._parameters["raw"] = nn.Parameter(torch.empty(0, dtype=dtype, device=device))
        self._parameters["raw_scale"] = nn.Parameter(torch.empty(0, dtype=dtype, device=device))
        self.discrete = DiscreteHyperparameters(l0, entropy)

    # ---- declarations --------------------------------------------------------------------------------

    def register(self, hyperparameter: Hyperparameter | Discrete, name: str | None = None) -> None:
        """Add a hyperparameter.

        Args:
            hyperparameter: The declaration, a gate or a choice.
            name: Its name; default is its own.

        Raises:
            RuntimeError: If the parameters have been handed out, or perturbations drawn: optimisers would not know it.
            ValueError: If there is one of this name, or it has none.
        """
        name = name or hyperparameter.name
        if self._sealed:
            raise RuntimeError(
                f"hyperparameter {name!r} comes too late: optimisers may hold the parameters already; register all of "
                "them first"
            )
        if name is None:
            raise ValueError("name must be given for gates and choices that have none")
        if name in self:
            raise ValueError(f"there are two hyperparameters of the name {name!r}")
        if not isinstance(hyperparameter, Hyperparameter):
            self.discrete.register(name, hyperparameter)
            return
        self._declared[hyperparameter.name] = hyperparameter
        raw, raw_scale = self._raw_and_scale()
        u = hyperparameter.value_map.inverse(hyperparameter.start)
        stored = float(hyperparameter.value_map(u.to(raw.dtype)))
        if not hyperparameter.value_map.lower < stored < hyperparameter.value_map.upper:
            raise ValueError(
                f"hyperparameter {hyperparameter.name!r}: start {hyperparameter.start!r} is on a bound in {raw.dtype}"
            )
        sigma = torch.tensor(hyperparameter.scale, dtype=torch.float64)
        s = inverse_softplus(sigma) if hyperparameter.scale_map == "softplus" else torch.log(sigma)
        raw.data = torch.cat([raw.data, u.reshape(1).to(raw)])
        raw_scale.data = torch.cat([raw_scale.data, s.reshape(1).to(raw_scale)])

    @property
    def names(self) -> list[str]:
        """The names: continuous ones in the order of registration, then gates and choices."""
        return [*self._declared, *self.discrete.names]

    @property
    def continuous(self) -> list[str]:
        """The names of those that responses see, all but gates and choices (``H``)."""
        return list(self._declared)

    def __len__(self) -> int:
        return len(self._declared) + len(self.discrete)

    def __bool__(self) -> bool:
        return True

    def __contains__(self, name: object) -> bool:
        return name in self._declared or name in self.discrete

    def declaration(self, name: str) -> Hyperparameter:
        """Return what was declared under a name; gates and choices are in :attr:`discrete`.

        Raises:
            KeyError: If there is none.
        """
        self._index(name)
        return self._declared[name]

    @property
    def raw(self) -> nn.Parameter:
        """The unconstrained numbers (``H``)."""
        self._seal()
        return self._raw_and_scale()[0]

    @property
    def raw_scale(self) -> nn.Parameter:
        """The unconstrained scales (``H``)."""
        self._seal()
        return self._raw_and_scale()[1]

    def tuned(self) -> list[nn.Parameter]:
        """Return what the optimiser of the hyperparameters holds: :attr:`raw`, and the logits of gates and choices."""
        return [self.raw, *self.discrete.logits()]

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Return the parameters by name; no hyperparameter can be registered after that."""
        self._seal()
        return super().named_parameters(prefix, recurse, remove_duplicate)

    # ---- values --------------------------------------------------------------------------------------

    def sigma(self) -> Tensor:
        """Return the standard deviations of the perturbations (``H``), with gradients to :attr:`raw_scale`."""
        raw_scale = self._raw_and_scale()[1]
        maps = [h.scale_map == "exp" for h in self._declared.values()]
        if not any(maps):
            return F.softplus(raw_scale)
        return torch.where(torch.tensor(maps, device=raw_scale.device), torch.exp(raw_scale), F.softplus(raw_scale))

    def values(self) -> dict[str, Any]:
        """Return the values at the centre by name.

        Those of whole numbers are given before they are rounded, those of gates and choices are the most probable ones.
        """
        raw = self._raw_and_scale()[0].detach().double().cpu()
        found = {name: float(h.value_map(raw[i])) for i, (name, h) in enumerate(self._declared.items())}
        return {**found, **self.discrete.values()}

    def numbers(self) -> dict[str, float]:
        """Return values as numbers by name, for logs: of choices the probability of each ``name=option``."""
        found = self.values()
        result = {name: float(found[name]) for name in self._declared}
        return result | dict(zip(self.discrete.columns(), self.discrete.numbers().tolist(), strict=True))

    def config(self) -> dict[str, Any]:
        """Return the values at the centre as a plain run would use them: in the terms of the configuration space."""
        raw = self._raw_and_scale()[0].detach().double().cpu()
        values = {name: h.value(raw[i]).item() for i, (name, h) in enumerate(self._declared.items())}
        whole = {name: int(value) if self._declared[name].discrete else value for name, value in values.items()}
        return {**whole, **self.discrete.values()}

    def scales(self) -> dict[str, float]:
        """Return the standard deviations of the perturbations by name."""
        return dict(zip(self._declared, self.sigma().detach().tolist(), strict=True))

    def summary(self, scales: bool = False) -> dict[str, Any]:
        """Return values by name, in the order of registration.

        Args:
            scales: Whether standard deviations follow, as ``<name>_scale``.
        """
        result = self.values()
        if scales:
            result |= {f"{name}_scale": value for name, value in self.scales().items()}
        return result

    @torch.no_grad()
    def set_values(self, values: Mapping[str, Any]) -> None:
        """Set values at the centre, as a schedule or a user says; the others stay.

        Args:
            values: Values by name, between the bounds of their maps; options of choices and states of gates, which
                become all but certain.

        Raises:
            KeyError: If there is none of a name.
            ValueError: If a value is on a bound or outside.
        """
        raw = self._raw_and_scale()[0]
        numbers = {name: value for name, value in values.items() if name not in self.discrete}
        news = [(self._index(name), self._declared[name].value_map.inverse(float(v))) for name, v in numbers.items()]
        for index, u in news:
            raw[index] = u.to(raw)
        for name in values:
            if name in self.discrete:
                self.discrete.set_value(name, values[name])

    def entropy(self) -> Tensor:
        """Return the entropy of the perturbations, ``sum log(sigma sqrt(2 pi e))``: 0-d, with gradients."""
        return (torch.log(self.sigma()) + 0.5 * math.log(2 * math.pi * math.e)).sum()

    # ---- between steps -------------------------------------------------------------------------------

    @torch.no_grad()
    def idle(self) -> Tensor:
        """Return which hyperparameters hardly change their value when they are perturbed (``H``, bool).

        That is so where all values within two standard deviations are rounded to the same number, or differ by less
        than a ten-thousandth of the range: a hypergradient is noise there.
        """
        raw = self._raw_and_scale()[0].detach()
        reach = _REACH * self.sigma().detach()
        still = []
        for i, h in enumerate(self._declared.values()):
            low, high = h.value(raw[i] - reach[i]), h.value(raw[i] + reach[i])
            span = h.value_map.upper - h.value_map.lower
            if h.discrete or not math.isfinite(span):
                still.append(low == high)
            elif h.value_map.lower > 0:
                # The range may span orders of magnitude.
                still.append(high - low < _IDLE * torch.maximum(low.abs(), high.abs()))
            else:
                still.append(high - low < _IDLE * span)
        return torch.stack(still) if still else torch.zeros(0, dtype=torch.bool, device=raw.device)

    @torch.no_grad()
    def clamp_(self, limit: float | None = 4.0, scales: tuple[float, float] | None = None) -> None:
        """Keep unconstrained numbers and scales where gradients can be trusted.

        Args:
            limit: Largest distance from the middle, for maps with two ends: 4 keeps values within 2 to 98 % of their
                range. One that began further out may stay there. ``None`` for none.
            scales: Smallest and largest standard deviation.

        The limit is also that of the log odds of gates, and of the options of choices against all others: 4 keeps the
        most probable option below 98.2 %, however many there are.

        Raises:
            ValueError: If ``limit`` is not positive, or the scales are not positive and in order.
        """
        if limit is not None and not limit > 0:
            raise ValueError(f"limit must be positive, got {limit!r}")
        if scales is not None and not 0 < scales[0] <= scales[1]:
            raise ValueError(f"scales must be positive, the smaller one first, got {scales!r}")
        raw, raw_scale = self._raw_and_scale()
        for i, h in enumerate(self._declared.values()):
            if limit is not None and h.value_map.saturates:
                reach = max(limit, abs(float(h.value_map.inverse(h.start))))
                raw[i].clamp_(-reach, reach)
            if scales is not None:
                ends = torch.tensor(scales, dtype=torch.float64)
                low, high = (inverse_softplus(ends) if h.scale_map == "softplus" else torch.log(ends)).tolist()
                raw_scale[i].clamp_(low, high)
        self.discrete.clamp_(limit)

    # ---- helpers -------------------------------------------------------------------------------------

    def _seal(self) -> None:
        """Register nothing from now on."""
        if not self._sealed:
            # Where all have been registered one by one, this is the first time that costs of nothing can be told.
            self.discrete.check_costs()
        self._sealed = True

    def _raw_and_scale(self) -> tuple[nn.Parameter, nn.Parameter]:
        raw, raw_scale = self._parameters["raw"], self._parameters["raw_scale"]
        assert raw is not None
        assert raw_scale is not None
        return raw, raw_scale

    def _index(self, name: str) -> int:
        for i, known in enumerate(self._declared):
            if known == name:
                return i
        if name in self.discrete:
            raise KeyError(f"hyperparameter {name!r} is a {type(self.discrete[name]).__name__}; see discrete[{name!r}]")
        raise KeyError(f"there is no hyperparameter {name!r}{closest(name, self.names)}; known are {self.names}")
