"""Hyperparameters that are tuned during a training run: their maps, scales, perturbations and read-out."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sthyper.errors import closest
from sthyper.selftuning._choosing import Choosing
from sthyper.selftuning.declarations import Discrete, Hyperparameter, Space, bounded, declarations
from sthyper.selftuning.discrete import DiscreteHyperparameters
from sthyper.selftuning.maps import inverse_softplus
from sthyper.selftuning.perturbation import Perturbation

__all__ = ["Hyperparameter", "Hyperparameters", "bounded"]

_RESPONSE_INPUTS = {"raw": lambda raw: raw, "sigmoid": torch.sigmoid, "softplus": F.softplus}
_REACH = 2.0
_IDLE = 1e-4


class Hyperparameters(Choosing):
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
            ``lograndint`` domains, or :class:`Hyperparameter` objects. Finite domains (``choice``, ``ordinal``,
            ``logordinal``, ``finrange``, ``logfinrange``), :class:`~sthyper.straight_through.Choice` and
            :class:`~sthyper.straight_through.Gate` become discrete ones: they are sampled, and hyper steps move their
            probabilities by straight-through gradients of the validation loss. Only what the model or the loss reads
            in validation, too, can be found this way.
        start: Values to begin with; default is a tenth of the way from the lower to the upper bound, on the scale of
            the domain. An option of a finite domain begins at a probability of 0.8; default is the same for all. For
            domains only.
        scale: Standard deviation of the perturbations of the unconstrained numbers, one for all or by name. For domains
            only.
        shared: Names that the whole batch shares, see ``per_example`` of :class:`Hyperparameter`. For domains only.
        l0: Cost of an open gate, and of a unit of the ``costs`` of choices, in hyper steps, see
            :func:`~sthyper.straight_through.penalty`.
        entropy: Cost of a nat of entropy of gates and choices in hyper steps, which makes them decide.
        seed: Seed of the perturbations and samples.
        dtype: Type of the parameters; default is torch's default.
        device: Device of the parameters.

    Attributes:
        discrete: The gates and choices, a :class:`~sthyper.selftuning.discrete.DiscreteHyperparameters`.

    Raises:
        TypeError: If ``space`` holds something else.
        ValueError: For unknown or repeated names, values outside their domain, and costs that are below 0 or of
            nothing (where ``space`` is empty, the latter when parameters are handed out or perturbations drawn).
    """

    def __init__(
        self,
        space: Space = (),
        *,
        start: Mapping[str, Any] | None = None,
        scale: float | Mapping[str, float] = 1.0,
        shared: Iterable[str] = (),
        l0: float = 0.0,
        entropy: float = 0.0,
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
        self.discrete = DiscreteHyperparameters(l0, entropy)
        for name, declared in declarations(space, dict(start or {}), scale, tuple(shared)):
            self.register(declared, name)
        if len(self):
            self.discrete.check_costs()
        self.discrete.to(dtype=dtype, device=device)

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

    def __getitem__(self, name: str) -> Tensor:
        """Return the strength of a hyperparameter as the current context has it.

        Returns:
            One value for each example (``batch``) while it is perturbed; 0-d if the batch shares it, at the centre and
            off. Without gradients unless it was declared with ``direct_gradient``. Gates give zeros and ones, choices
            of numbers the number, others the weights of their options (``... x k``): for each example
            while they are sampled, with gradients in hyper steps.

        Raises:
            KeyError: If there is none of this name.
        """
        if name in self.discrete:
            return self.discrete.strength(name, self._samples(name))
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

    # ---- contexts ------------------------------------------------------------------------------------

    @property
    def current(self) -> Perturbation | None:
        """What counts now: ``None`` if responses are off, the centre outside of all contexts."""
        if self._current == "off":
            return None
        return self.centre() if self._current is None else self._current

    def centre(self, tracks: bool = False, batch_size: int | None = None) -> Perturbation:
        """Return the unperturbed hyperparameters.

        Args:
            tracks: Whether gradients to :attr:`raw` and to logits are wanted; then gates and choices are sampled.
            batch_size: Number of examples for which gates and choices are sampled. Default is no sample but the most
                probable values, with ``tracks`` one sample for all.
        """
        parameter = self._raw_and_scale()[0]
        raw = (parameter if tracks else parameter.detach()).unsqueeze(0)
        inputs = self._response_inputs(raw)
        delta = inputs - inputs.detach() if tracks else torch.zeros_like(inputs)
        choices = self._drawn_choices(batch_size, tracks) if tracks or batch_size is not None else {}
        return Perturbation("centred", raw, inputs, delta, tracks=tracks, choices=choices)

    def _drawn_choices(self, batch_size: int | None, tracks: bool) -> dict[str, Tensor]:
        if not len(self.discrete):
            return {}
        self._seal()
        return self.discrete.draw(batch_size, tracks, self._generator, self._shared_generator)

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
        if not len(self):
            raise ValueError("there are no hyperparameters to perturb")
        self._seal()
        raw, _ = self._raw_and_scale()
        n = 1 if same else min(batch_size, groups or batch_size)
        # Drawn on the CPU, so that every device sees the same.
        noise = torch.randn(n, len(self._declared), generator=self._generator, dtype=raw.dtype).to(
            raw.device, non_blocking=True
        )
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
        choices = self._drawn_choices(None if same else batch_size, tracks)
        return Perturbation("perturbed", perturbed, inputs, delta, batch_size, tracks, choices=choices)

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
    def centred(self, tracks: bool = False, batch_size: int | None = None) -> Iterator[Perturbation]:
        """Have the hyperparameters at their centre for a while; the arguments are those of :meth:`centre`."""
        centre = self.centre(tracks, batch_size)
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

        The limit is also that of the log odds of gates, and of the options of choices against all others: 3 keeps the
        most probable option below 95 %, however many there are.

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
        copied.discrete = copy.deepcopy(self.discrete, memo)
        copied._sealed = self._sealed
        copied._generator.set_state(self._generator.get_state())
        return copied.train(self.training)

    def extra_repr(self) -> str:
        values = self.values()
        return ", ".join(f"{name}={values[name]:.4g}" for name in self._declared)

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

    def _response_inputs(self, raw: Tensor) -> Tensor:
        if all(h.response_input == "raw" for h in self._declared.values()):
            return raw
        columns = [_RESPONSE_INPUTS[h.response_input](raw[:, i]) for i, h in enumerate(self._declared.values())]
        return torch.stack(columns, dim=1)
