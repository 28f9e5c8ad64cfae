"""Hyperparameters that are tuned during a training run: their maps, scales, perturbations and read-out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sthyper.config_space import Domain
from sthyper.errors import closest
from sthyper.selftuning.maps import ValueMap, inverse_softplus, map_between, map_of_domain
from sthyper.selftuning.perturbation import Perturbation

__all__ = ["Hyperparameter", "Hyperparameters", "bounded"]

ResponseInput = Literal["raw", "sigmoid", "softplus"]
ScaleMap = Literal["softplus", "exp"]

_RESPONSE_INPUTS = {"raw": lambda raw: raw, "sigmoid": torch.sigmoid, "softplus": F.softplus}
_START = 0.1
_REACH = 2.0
_IDLE = 1e-4


@dataclass(frozen=True)
class Hyperparameter:
    """One hyperparameter that is tuned during training.

    Three maps belong to it: from the unconstrained number to its value, to what the best responses see, and from the
    unconstrained scale to the standard deviation of its perturbations.

    Args:
        name: Its name.
        value_map: Maps the unconstrained number to the value.
        start: Value to begin with, between the bounds of the map.
        scale: Standard deviation of the perturbations of the unconstrained number, to begin with.
        response_input: What responses see: the unconstrained number itself, or its ``"sigmoid"`` or ``"softplus"``.
        scale_map: Maps the unconstrained scale to the standard deviation: ``"softplus"`` or ``"exp"``.
        per_example: Whether each example of a batch (or each group) gets its own perturbation. ``False`` for what the
            whole batch shares: DropConnect, word dropout, penalties of activations.
        discrete: Whether and how the value becomes a whole number: ``"floor"``, ``"round"``, or ``False``.
        straight_through: Whether the gradient passes the rounding unchanged; otherwise it is zero there. It matters
            with ``direct_gradient`` only.
        direct_gradient: Whether values carry gradients, for those that appear in the validation loss itself.

    Raises:
        ValueError: If ``start`` is not between the bounds, ``scale`` not positive, or an option unknown.
    """

    name: str
    value_map: ValueMap
    start: float
    scale: float = 1.0
    response_input: ResponseInput = "raw"
    scale_map: ScaleMap = "softplus"
    per_example: bool = True
    discrete: Literal["floor", "round", False] = False
    straight_through: bool = False
    direct_gradient: bool = False

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise ValueError(f"name must be a text, got {self.name!r}")
        if not isinstance(self.value_map, ValueMap):
            raise TypeError(f"hyperparameter {self.name!r}: value_map must be a ValueMap, got {self.value_map!r}")
        if not self.value_map.lower < self.start < self.value_map.upper:
            raise ValueError(
                f"hyperparameter {self.name!r}: start must be larger than {self.value_map.lower} and smaller than "
                f"{self.value_map.upper}, got {self.start!r}; see robustify"
            )
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"hyperparameter {self.name!r}: scale must be a positive number, got {self.scale!r}")
        if self.discrete not in ("floor", "round", False):
            raise ValueError(
                f"hyperparameter {self.name!r}: discrete must be 'floor', 'round' or False, got {self.discrete!r}"
            )
        for option, value, allowed in (
            ("response_input", self.response_input, get_args(ResponseInput)),
            ("scale_map", self.scale_map, get_args(ScaleMap)),
        ):
            if value not in allowed:
                raise ValueError(
                    f"hyperparameter {self.name!r}: {option} must be one of {list(allowed)}, got {value!r}"
                    f"{closest(value, allowed)}"
                )
        if self.straight_through and not self.discrete:
            raise ValueError(f"hyperparameter {self.name!r}: straight_through is for discrete ones")

    def value(self, raw: Tensor) -> Tensor:
        """Return values as they are used, of the shape of ``raw``."""
        value = self.value_map(raw)
        if not self.discrete:
            return value
        whole = torch.floor(value if self.discrete == "floor" else value + 0.5)
        # The ends of a map are open in theory only: far out the largest value is its upper bound.
        if math.isfinite(self.value_map.upper):
            whole = whole.clamp(max=math.ceil(self.value_map.upper + (0.5 if self.discrete == "round" else 0.0)) - 1)
        return value + (whole - value).detach() if self.straight_through else whole


def bounded(
    name: str,
    start: float,
    lower: float | None,
    upper: float | None,
    *,
    log: bool = False,
    scale: float = 1.0,
    per_example: bool = True,
    discrete: bool = False,
) -> Hyperparameter:
    """Return a hyperparameter with bounds, either of which may be missing.

    Args:
        name: Its name.
        start: Value to begin with, between the bounds.
        lower: Lower bound; ``None`` or ``-inf`` for none.
        upper: Upper bound; ``None`` or ``inf`` for none.
        log: Whether it lives on a log scale.
        scale: Standard deviation of the perturbations of the unconstrained number.
        per_example: See :class:`Hyperparameter`.
        discrete: Whether values are rounded down.

    Raises:
        ValueError: See :class:`Hyperparameter`.
    """
    value_map = map_between(lower, upper, log)
    return Hyperparameter(
        name, value_map, start, scale, per_example=per_example, discrete="floor" if discrete else False
    )


class Hyperparameters(nn.Module):
    """The hyperparameters of a self-tuning run (MacKay et al. 2019, https://arxiv.org/abs/1903.03088).

    Holds an unconstrained number and an unconstrained scale for each, both as parameters of length ``H``. A context
    says which values count: :meth:`perturbed` around the centre, :meth:`centred`, or :meth:`off`.

    Example:
        >>> from sthyper.config_space import loguniform, uniform
        >>> hyperparameters = Hyperparameters({"dropout": uniform(0, 0.9), "weight_decay": loguniform(1e-6, 1e-2)},
        ...                                   start={"dropout": 0.1}, seed=0)
        >>> with hyperparameters.perturbed(batch_size=4):
        ...     rates = hyperparameters["dropout"]
        >>> rates.shape
        torch.Size([4])

    Args:
        space: A configuration space of ``uniform``, ``loguniform``, ``reverseloguniform``, ``randint`` and
            ``lograndint`` domains, or :class:`Hyperparameter` objects.
        start: Values to begin with; default is a tenth of the way from the lower to the upper bound, on the scale of
            the domain. For domains only.
        scale: Standard deviation of the perturbations of the unconstrained numbers, one for all or by name. For domains
            only.
        shared: Names that the whole batch shares, see ``per_example`` of :class:`Hyperparameter`. For domains only.
        seed: Seed of the perturbations.
        dtype: Type of the parameters; default is torch's default.
        device: Device of the parameters.

    Raises:
        TypeError: If ``space`` holds something else.
        ValueError: For unknown or repeated names, and values outside their domain.
    """

    def __init__(
        self,
        space: Mapping[str, Domain | Hyperparameter] | Iterable[Hyperparameter] = (),
        *,
        start: Mapping[str, float] | None = None,
        scale: float | Mapping[str, float] = 1.0,
        shared: Iterable[str] = (),
        seed: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self._declared: dict[str, Hyperparameter] = {}
        self._current: Perturbation | Literal["off"] | None = None
        self._sealed = False
        self._read: set[str] = set()
        self._generator = torch.Generator().manual_seed(seed)
        self._shared_generator: torch.Generator | None = None
        # Not through attributes of these names, which seal.
        self._parameters["raw"] = nn.Parameter(torch.empty(0, dtype=dtype, device=device))
        self._parameters["raw_scale"] = nn.Parameter(torch.empty(0, dtype=dtype, device=device))
        for declared in _declarations(space, dict(start or {}), scale, tuple(shared)):
            self.register(declared)

    # ---- declarations --------------------------------------------------------------------------------

    def register(self, hyperparameter: Hyperparameter) -> None:
        """Add a hyperparameter.

        Args:
            hyperparameter: The declaration.

        Raises:
            RuntimeError: If the parameters have been handed out, or perturbations drawn: optimisers would not know it.
            ValueError: If there is one of this name.
        """
        if self._sealed:
            raise RuntimeError(
                f"hyperparameter {hyperparameter.name!r} comes too late: optimisers may hold the parameters already; "
                "register all of them first"
            )
        if hyperparameter.name in self._declared:
            raise ValueError(f"there are two hyperparameters of the name {hyperparameter.name!r}")
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
        """The names, in the order of registration."""
        return list(self._declared)

    def __len__(self) -> int:
        return len(self._declared)

    def __bool__(self) -> bool:
        return True

    def __contains__(self, name: object) -> bool:
        return name in self._declared

    def declaration(self, name: str) -> Hyperparameter:
        """Return what was declared under a name.

        Raises:
            KeyError: If there is none.
        """
        self._index(name)
        return self._declared[name]

    @property
    def raw(self) -> nn.Parameter:
        """The unconstrained numbers (``H``)."""
        self._sealed = True
        return self._raw_and_scale()[0]

    @property
    def raw_scale(self) -> nn.Parameter:
        """The unconstrained scales (``H``)."""
        self._sealed = True
        return self._raw_and_scale()[1]

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Return the parameters by name; no hyperparameter can be registered after that."""
        self._sealed = True
        return super().named_parameters(prefix, recurse, remove_duplicate)

    # ---- values --------------------------------------------------------------------------------------

    def sigma(self) -> Tensor:
        """Return the standard deviations of the perturbations (``H``), with gradients to :attr:`raw_scale`."""
        raw_scale = self._raw_and_scale()[1]
        maps = [h.scale_map == "exp" for h in self._declared.values()]
        if not any(maps):
            return F.softplus(raw_scale)
        return torch.where(torch.tensor(maps, device=raw_scale.device), torch.exp(raw_scale), F.softplus(raw_scale))

    def __getitem__(self, name: str) -> Tensor:
        """Return the strength of a hyperparameter as the current context has it.

        Returns:
            One value for each example (``batch``) while it is perturbed; 0-d if the batch shares it, at the centre and
            off. Without gradients unless it was declared with ``direct_gradient``.

        Raises:
            KeyError: If there is none of this name.
        """
        index = self._index(name)
        self._read.add(name)
        declared, current = self._declared[name], self.current
        if current is None:
            raw: Tensor = self._raw_and_scale()[0][index]
        elif current.batch_size is None or not declared.per_example:
            raw = current.raw[0, index]
        else:
            raw = current.expand(current.raw[:, index])
        value = declared.value(raw)
        return value if declared.direct_gradient else value.detach()

    @property
    def read(self) -> frozenset[str]:
        """The names whose strength something has asked for; others cannot make a difference."""
        return frozenset(self._read)

    def values(self) -> dict[str, float]:
        """Return the values at the centre by name; those of discrete ones before they are rounded."""
        raw = self._raw_and_scale()[0].detach().double().cpu()
        return {name: float(h.value_map(raw[i])) for i, (name, h) in enumerate(self._declared.items())}

    def config(self) -> dict[str, float | int]:
        """Return the values at the centre as a plain run would use them: discrete ones as whole numbers."""
        raw = self._raw_and_scale()[0].detach().double().cpu()
        values = {name: h.value(raw[i]).item() for i, (name, h) in enumerate(self._declared.items())}
        return {name: int(value) if self._declared[name].discrete else value for name, value in values.items()}

    def scales(self) -> dict[str, float]:
        """Return the standard deviations of the perturbations by name."""
        return dict(zip(self._declared, self.sigma().detach().tolist(), strict=True))

    def summary(self, scales: bool = False) -> dict[str, float]:
        """Return values by name, in the order of registration.

        Args:
            scales: Whether standard deviations follow, as ``<name>_scale``.
        """
        result = self.values()
        if scales:
            result |= {f"{name}_scale": value for name, value in self.scales().items()}
        return result

    @torch.no_grad()
    def set_values(self, values: Mapping[str, float]) -> None:
        """Set values at the centre, as a schedule or a user says; the others stay.

        Args:
            values: Values by name, between the bounds of their maps.

        Raises:
            KeyError: If there is none of a name.
            ValueError: If a value is on a bound or outside.
        """
        raw = self._raw_and_scale()[0]
        news = [(self._index(name), self._declared[name].value_map.inverse(float(v))) for name, v in values.items()]
        for index, u in news:
            raw[index] = u.to(raw)

    def entropy(self) -> Tensor:
        """Return the entropy of the perturbations, ``sum log(sigma sqrt(2 pi e))``: 0-d, with gradients."""
        return (torch.log(self.sigma()) + 0.5 * math.log(2 * math.pi * math.e)).sum()

    # ---- contexts ------------------------------------------------------------------------------------

    @property
    def current(self) -> Perturbation | None:
        """What counts now: ``None`` if responses are off, the centre outside of all contexts."""
        if self._current == "off":
            return None
        return self.centre() if self._current is None else self._current

    def centre(self, tracks: bool = False) -> Perturbation:
        """Return the unperturbed hyperparameters.

        Args:
            tracks: Whether gradients to :attr:`raw` are wanted.
        """
        parameter = self._raw_and_scale()[0]
        raw = (parameter if tracks else parameter.detach()).unsqueeze(0)
        inputs = self._response_inputs(raw)
        delta = inputs - inputs.detach() if tracks else torch.zeros_like(inputs)
        return Perturbation("centred", raw, inputs, delta, tracks=tracks)

    def draw(
        self, batch_size: int, groups: int | None = None, same: bool = False, tracks: bool = False
    ) -> Perturbation:
        """Draw a perturbation, ``raw + sigma * epsilon`` with standard normal ``epsilon``.

        Args:
            batch_size: Number of examples.
            groups: Number of groups of examples that share one; default is one for each example. At most
                ``batch_size`` are made.
            same: Whether the whole batch shares one.
            tracks: Whether gradients to :attr:`raw` and :attr:`raw_scale` are wanted.

        Raises:
            ValueError: If ``batch_size`` or ``groups`` is below 1, or there are no hyperparameters.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if groups is not None and groups < 1:
            raise ValueError(f"groups must be at least 1, got {groups}")
        if not self._declared:
            raise ValueError("there are no hyperparameters to perturb")
        self._sealed = True
        raw, _ = self._raw_and_scale()
        n = 1 if same else min(batch_size, groups or batch_size)
        # Drawn on the CPU, so that every device sees the same.
        noise = torch.randn(n, len(self), generator=self._generator, dtype=raw.dtype).to(raw.device, non_blocking=True)
        shared = [i for i, h in enumerate(self._declared.values()) if not h.per_example]
        if shared:
            common = noise[:1, shared]
            if self._shared_generator is not None:
                drawn = torch.randn(1, len(shared), generator=self._shared_generator, dtype=raw.dtype)
                common = drawn.to(raw.device, non_blocking=True)
            noise[:, shared] = common
        sigma = self.sigma()
        centre = raw.unsqueeze(0)
        if not tracks:
            centre, sigma = centre.detach(), sigma.detach()
        perturbed = centre + sigma * noise
        inputs = self._response_inputs(perturbed)
        delta = inputs - self._response_inputs(centre).detach()
        return Perturbation("perturbed", perturbed, inputs, delta, batch_size, tracks)

    @contextmanager
    def use(self, perturbation: Perturbation | None) -> Iterator[Perturbation | None]:
        """Let a perturbation count for a while.

        Args:
            perturbation: What :meth:`draw` or :meth:`centre` returned; ``None`` switches all responses off.
        """
        before = self._current
        self._current = "off" if perturbation is None else perturbation
        try:
            yield perturbation
        finally:
            self._current = before

    @contextmanager
    def perturbed(
        self, batch_size: int, groups: int | None = None, same: bool = False, tracks: bool = False
    ) -> Iterator[Perturbation]:
        """Perturb the hyperparameters for a while; the arguments are those of :meth:`draw`."""
        perturbation = self.draw(batch_size, groups, same, tracks)
        with self.use(perturbation):
            yield perturbation

    @contextmanager
    def centred(self, tracks: bool = False) -> Iterator[Perturbation]:
        """Have the hyperparameters at their centre for a while.

        Args:
            tracks: Whether gradients to :attr:`raw` are wanted.
        """
        centre = self.centre(tracks)
        with self.use(centre):
            yield centre

    @contextmanager
    def off(self) -> Iterator[None]:
        """Switch perturbations and responses off for a while: the network is the plain one."""
        with self.use(None):
            yield

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
    def clamp_(self, limit: float | None = 3.0, scales: tuple[float, float] | None = None) -> None:
        """Keep unconstrained numbers and scales where gradients can be trusted.

        Args:
            limit: Largest distance from the middle, for maps with two ends: 3 keeps values within 5 to 95 % of their
                range. One that began further out may stay there. ``None`` for none.
            scales: Smallest and largest standard deviation.

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

    # ---- state ---------------------------------------------------------------------------------------

    def reseed(self, seed: int, shared_seed: int | None = None) -> None:
        """Let perturbations begin anew, for example with another seed on each rank.

        Args:
            seed: The seed.
            shared_seed: Seed of those that the whole batch shares, which ranks may have in common. Default is one
                generator for all.
        """
        self._generator.manual_seed(seed)
        self._shared_generator = None if shared_seed is None else torch.Generator().manual_seed(shared_seed)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the names and the state of the generator, for ``state_dict()``."""
        return {"names": self.names, "generator": self._generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the generator.

        Raises:
            ValueError: If the state is that of other hyperparameters.
        """
        if list(state["names"]) != self.names:
            raise ValueError(f"the state is that of hyperparameters {list(state['names'])}, these are {self.names}")
        self._generator.set_state(state["generator"].cpu())

    def __getstate__(self) -> dict[str, Any]:
        # As bytes: the memory of a generator's state would be gone before a spawned process opens it.
        own = {"_generator": bytes(self._generator.get_state().tolist()), "_shared_generator": None}
        return {**self.__dict__, **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        generator = torch.Generator()
        generator.set_state(torch.tensor(list(state["_generator"]), dtype=torch.uint8))
        restore: Any = super().__setstate__
        restore({**state, "_generator": generator})

    def __deepcopy__(self, memo: dict[int, Any]) -> Hyperparameters:
        copied = Hyperparameters(self._declared.values())
        memo[id(self)] = copied
        raw, raw_scale = self._raw_and_scale()
        for name, parameter in (("raw", raw), ("raw_scale", raw_scale)):
            twin = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            memo[id(parameter)] = twin
            copied._parameters[name] = twin
        copied._sealed = self._sealed
        copied._generator.set_state(self._generator.get_state())
        return copied.train(self.training)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value:.4g}" for name, value in self.values().items())

    # ---- helpers -------------------------------------------------------------------------------------

    def _raw_and_scale(self) -> tuple[nn.Parameter, nn.Parameter]:
        raw, raw_scale = self._parameters["raw"], self._parameters["raw_scale"]
        assert raw is not None
        assert raw_scale is not None
        return raw, raw_scale

    def _index(self, name: str) -> int:
        for i, known in enumerate(self._declared):
            if known == name:
                return i
        raise KeyError(f"there is no hyperparameter {name!r}{closest(name, self._declared)}; known are {self.names}")

    def _response_inputs(self, raw: Tensor) -> Tensor:
        if all(h.response_input == "raw" for h in self._declared.values()):
            return raw
        columns = [_RESPONSE_INPUTS[h.response_input](raw[:, i]) for i, h in enumerate(self._declared.values())]
        return torch.stack(columns, dim=1)


def _declarations(
    space: Mapping[str, Domain | Hyperparameter] | Iterable[Hyperparameter],
    start: dict[str, float],
    scale: float | Mapping[str, float],
    shared: tuple[str, ...],
) -> Iterator[Hyperparameter]:
    if not isinstance(space, Mapping):
        space = _by_name(space)
    domains = {name for name, entry in space.items() if isinstance(entry, Domain)}
    scales = dict(scale) if isinstance(scale, Mapping) else {}
    for argument, names in (("start", start), ("scale", scales), ("shared", shared)):
        for name in names:
            if name not in domains:
                raise ValueError(
                    f"{argument}: there is no domain {name!r}{closest(name, domains)}; known are {sorted(domains)}"
                )
    default = 1.0 if isinstance(scale, Mapping) else scale
    for name, entry in space.items():
        if isinstance(entry, Hyperparameter):
            yield entry if entry.name == name else replace(entry, name=name)
            continue
        if not isinstance(entry, Domain):
            raise TypeError(f"hyperparameter {name!r} must be a domain or a Hyperparameter, got {entry!r}")
        value_map, integer = map_of_domain(entry, name)
        tenth = float(value_map(torch.logit(torch.tensor(_START, dtype=torch.float64))))
        yield Hyperparameter(
            name,
            value_map,
            float(start.get(name, tenth)),
            float(scales.get(name, default)),
            per_example=name not in shared,
            discrete="round" if integer else False,
        )


def _by_name(hyperparameters: Iterable[Hyperparameter]) -> dict[str, Domain | Hyperparameter]:
    result: dict[str, Domain | Hyperparameter] = {}
    for entry in hyperparameters:
        if not isinstance(entry, Hyperparameter):
            raise TypeError(f"space must hold domains by name, or Hyperparameter objects, got {entry!r}")
        if entry.name in result:
            raise ValueError(f"there are two hyperparameters of the name {entry.name!r}")
        result[entry.name] = entry
    return result
