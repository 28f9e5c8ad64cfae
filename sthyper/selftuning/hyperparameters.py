"""Hyperparameters that are tuned during a training run: their perturbations, and the strengths that come of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sthyper.selftuning._declared import Declared
from sthyper.selftuning.declarations import Hyperparameter, Space, bounded, declarations
from sthyper.selftuning.perturbation import Perturbation

__all__ = ["Hyperparameter", "Hyperparameters", "bounded"]

_RESPONSE_INPUTS = {"raw": lambda raw: raw, "sigmoid": torch.sigmoid, "softplus": F.softplus}


class Hyperparameters(Declared):
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
        super().__init__(l0, entropy, dtype, device)
        self._current: Perturbation | Literal["off"] | None = None
        self._read: set[str] = set()
        self._generator = torch.Generator().manual_seed(seed)
        self._shared_generator: torch.Generator | None = None
        for name, declared in declarations(space, dict(start or {}), scale, tuple(shared)):
            self.register(declared, name)
        if len(self):
            self.discrete.check_costs()
        self.discrete.to(dtype=dtype, device=device)

    # ---- strengths -----------------------------------------------------------------------------------

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

    def _response_inputs(self, raw: Tensor) -> Tensor:
        if all(h.response_input == "raw" for h in self._declared.values()):
            return raw
        columns = [_RESPONSE_INPUTS[h.response_input](raw[:, i]) for i, h in enumerate(self._declared.values())]
        return torch.stack(columns, dim=1)
