"""Discrete hyperparameters that are tuned during a training run: gates and choices, by straight-through samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sthyper.errors import closest
from sthyper.selftuning.declarations import Discrete, Hyperparameter
from sthyper.selftuning.maps import Unbounded
from sthyper.straight_through.choices import Choice, mix
from sthyper.straight_through.gates import Gate
from sthyper.straight_through.penalties import check_costs, check_weight, penalty

__all__ = ["DiscreteHyperparameters"]

_SURE = 0.99
_ROUNDING = 1e-5  # of a floor, in the type of logits: what is there stays as it is


class DiscreteHyperparameters(nn.Module):
    """The gates and choices among the hyperparameters of a run, as ``Hyperparameters.discrete``.

    Their logits move with the hyper steps: down the gradient of the validation loss at a sample, through the sample.
    That is biased (:func:`~sthyper.straight_through.estimator_bias` measures it), and direct: weights do not respond to
    gates and choices, but are trained under samples of them.

    Args:
        l0: Cost of an open gate, and of a unit of the ``costs`` of choices, in hyper steps.
        entropy: Cost of a nat of entropy, in hyper steps.

    Raises:
        ValueError: If a cost is below 0; see :meth:`check_costs`, too.
    """

    def __init__(self, l0: float = 0.0, entropy: float = 0.0) -> None:
        super().__init__()
        check_weight("l0", l0)
        check_weight("entropy", entropy)
        self.l0, self.entropy = l0, entropy
        self._names: list[str] = []
        self._starts: list[float] = []  # how far out each began, see clamp_
        # By position: names may hold dots.
        self.parts = nn.ModuleList()

    def register(self, name: str, part: Discrete) -> None:
        """Add a gate or a choice.

        Args:
            name: Its name.
            part: The gate or choice.

        Raises:
            ValueError: If it is held under another name already, has an option without effect, or its samples pass no
                gradient.
        """
        if any(part is other for other in self.parts):
            raise ValueError(f"hyperparameter {name!r}: the same {type(part).__name__} is there under another name")
        idle: dict[str, tuple[Any, Any]] = {"seed": (part.seed, None), "evaluation": (part.evaluation, "threshold")}
        if isinstance(part, Gate):
            idle["dim"] = (part.dim, -1)
        for argument, (value, default) in idle.items():
            if value != default:
                raise ValueError(
                    f"hyperparameter {name!r}: {argument}={value!r} has no effect here: the generator is that of "
                    "Hyperparameters(seed=...), the most probable value counts in evaluation, and the model says what "
                    "it multiplies"
                )
        if part.estimator == "reinforce":
            raise ValueError(
                f"hyperparameter {name!r}: estimator 'reinforce' passes no gradient to hyper steps; take 'identity', "
                "'probs', 'gumbel' or 'hard_concrete'"
            )
        self._names.append(name)
        self._starts.append(_reach(part))
        self.parts.append(part)

    def check_costs(self) -> None:
        """Raise unless each cost is one of something; to be called when all are registered.

        Raises:
            ValueError: If there is a cost ``l0`` but no gate and no choice with costs, or a cost of entropy but neither
                gate nor choice.
        """
        check_costs([part for _, part in self.items()], self.l0, self.entropy)

    @property
    def names(self) -> list[str]:
        """The names, in the order of registration."""
        return list(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Discrete:
        """Return a gate or a choice.

        Raises:
            KeyError: If there is none of this name.
        """
        if name not in self._names:
            raise KeyError(f"there is no choice {name!r}{closest(name, self._names)}; known are {self._names}")
        part = self.parts[self._names.index(name)]
        assert isinstance(part, Gate | Choice)
        return part

    def items(self) -> list[tuple[str, Discrete]]:
        """Return gates and choices by name."""
        return [(name, self[name]) for name in self._names]

    def logits(self) -> list[nn.Parameter]:
        """Return the logits of each, which hyper steps move."""
        return [part.logits for _, part in self.items()]

    # ---- samples -------------------------------------------------------------------------------------

    def draw(
        self,
        batch_size: int | None,
        tracks: bool,
        generator: torch.Generator,
        shared_generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Draw a sample of each.

        Args:
            batch_size: Number of examples; ``None`` if these are to share a sample.
            tracks: Whether gradients to the logits are wanted.
            generator: A generator of the CPU.
            shared_generator: That of what the whole batch shares; default is the same.

        Returns:
            Samples by name, for each example or for all of them.
        """
        samples = {}
        for name, part in self.items():
            size = batch_size if part.per_example else None
            source = generator if part.per_example or shared_generator is None else shared_generator
            device = part.logits.device
            if device.type != "cpu":
                seed = int(torch.randint(2**62, (), generator=source))
                source = torch.Generator(device).manual_seed(seed)
            sample = part.sample(size, source)
            samples[name] = sample if tracks else sample.detach()
        return samples

    def weights(self, name: str, samples: Mapping[str, Tensor]) -> Tensor:
        """Return which options of a choice count: those of a sample, or the most probable one.

        Raises:
            KeyError: If there is no choice of this name.
        """
        part = self[name]
        if not isinstance(part, Choice):
            raise KeyError(f"hyperparameter {name!r} is a gate, which has no options; its value is 0 or 1")
        return samples[name] if name in samples else part.most_probable()

    def strength(self, name: str, samples: Mapping[str, Tensor]) -> Tensor:
        """Return what ``hyperparameters[name]`` is: a number, the weights of options, or zeros and ones of gates."""
        part = self[name]
        if isinstance(part, Choice):
            weights = self.weights(name, samples)
            return part.number(weights) if part.numeric else weights
        return samples[name] if name in samples else part.decisions().to(part.logits.dtype)

    def mixed(self, name: str, outputs: Sequence[Tensor] | Tensor, samples: Mapping[str, Tensor]) -> Tensor:
        """Return what the option that counts gives, from what all options give."""
        return mix(outputs, self.weights(name, samples), f"hyperparameter {name!r}")

    def option(self, name: str, samples: Mapping[str, Tensor]) -> Any:
        """Return the value that the whole batch shares, in the terms of the configuration space.

        Raises:
            ValueError: If each example has its own.
        """
        part = self[name]
        if name not in samples:
            return self.values()[name]
        sample = samples[name].detach()
        if sample.dim() > part.logits.dim():
            raise ValueError(
                f"hyperparameter {name!r} is sampled for each example; read its weights, or declare it as shared by "
                f"the batch (shared=[{name!r}], or per_example=False)"
            )
        if isinstance(part, Choice):
            return part.options[int(sample.argmax())]
        return (sample > 0).tolist()

    # ---- read-out ------------------------------------------------------------------------------------

    def values(self) -> dict[str, Any]:
        """Return the most probable values by name: options of domains, ``True`` and ``False`` for gates."""
        return {
            name: part.value() if isinstance(part, Choice) else part.decisions().tolist() for name, part in self.items()
        }

    def probabilities(self) -> dict[str, Any]:
        """Return probabilities by name: of each option of a choice, of being on for gates (a list if several)."""
        return {
            name: part.by_option() if isinstance(part, Choice) else part.probabilities().tolist()
            for name, part in self.items()
        }

    def columns(self) -> list[str]:
        """Return names for the numbers of a record: ``name=option``, ``name`` of a gate, ``name.size`` of several."""
        result: list[str] = []
        for name, part in self.items():
            if isinstance(part, Choice):
                result += [f"{name}={option}" for option in part.options]
            else:
                result.append(f"{name}.size" if part.size else name)
        return result

    def numbers(self) -> Tensor:
        """Return the numbers of :meth:`columns` without waiting for a device: probabilities, or how many are on."""
        parts = [
            part.probabilities().detach() if isinstance(part, Choice) else part.expected_size().detach().reshape(1)
            for _, part in self.items()
        ]
        return torch.cat(parts) if parts else torch.zeros(0)

    def declarations(self) -> list[Hyperparameter]:
        """Return what a record takes each of :meth:`columns` for: a number that is what it is."""
        return [Hyperparameter(column, Unbounded(), 0.0) for column in self.columns()]

    def gradients(self, gradients: Sequence[Tensor]) -> dict[str, float]:
        """Return hypergradients by column, for several gates their norm.

        Args:
            gradients: Those of :meth:`logits`.
        """
        numbers: list[float] = []
        for (_, part), gradient in zip(self.items(), gradients, strict=True):
            one = isinstance(part, Choice) or not part.size
            numbers += (gradient.reshape(-1) if one else gradient.norm().reshape(1)).tolist()
        return dict(zip(self.columns(), numbers, strict=True))

    def read_out(self, numbers: Mapping[str, float]) -> dict[str, Any]:
        """Return the values that numbers by column mean; what they do not name is left out.

        Args:
            numbers: Probabilities by column, as in a schedule.
        """
        result: dict[str, Any] = {}
        for name, part in self.items():
            if isinstance(part, Choice):
                known = {o: numbers[f"{name}={o}"] for o in part.options if f"{name}={o}" in numbers}
                if known:
                    result[name] = max(known, key=lambda option: known[option])
            elif not part.size and name in numbers:
                result[name] = numbers[name] > 0.5
        return result

    # ---- between steps -------------------------------------------------------------------------------

    def check_value(self, name: str, value: Any) -> None:
        """Raise unless a value can be set.

        Args:
            name: The name.
            value: See :meth:`set_value`.

        Raises:
            ValueError: If a choice has no such option, or gates are not as many.
        """
        part = self[name]
        if isinstance(part, Choice):
            if value not in part.options:
                raise ValueError(
                    f"hyperparameter {name!r} must be one of {list(part.options)}, got {value!r}"
                    f"{closest(value, part.options)}"
                )
            return
        on = torch.as_tensor(value)
        if on.dtype != torch.bool or on.shape != part.logits.shape:
            raise ValueError(
                f"hyperparameter {name!r} must be True or False for each of its gates, of the shape {part.size}, got "
                f"{value!r}"
            )

    @torch.no_grad()
    def set_value(self, name: str, value: Any) -> None:
        """Make a value all but certain, at a probability of 0.99.

        The next hyper step brings it within the bound of probabilities, see :meth:`clamp_`, if that is closer.

        Args:
            name: The name.
            value: An option; for a gate whether it is on, for several a list.

        Raises:
            ValueError: If a choice has no such option, or gates are not as many.
        """
        self.check_value(name, value)
        part = self[name]
        if isinstance(part, Choice):
            part.set_value(value)
        else:
            part.set_probabilities(torch.where(torch.as_tensor(value), _SURE, 1 - _SURE))

    def cost_gradients(self) -> list[Tensor]:
        """Return the gradients of the costs with respect to :meth:`logits`."""
        logits = self.logits()
        if not logits or not (self.l0 or self.entropy):
            return [torch.zeros_like(one) for one in logits]
        with torch.enable_grad():
            cost = penalty([part for _, part in self.items()], self.l0, self.entropy)
        if not cost.requires_grad:
            return [torch.zeros_like(one) for one in logits]
        found = torch.autograd.grad(cost, logits, allow_unused=True)
        return [torch.zeros_like(one) if g is None else g for one, g in zip(logits, found, strict=True)]

    def set_progress(self, progress: float) -> None:
        """Say how much of the run is over (0 to 1), which moves scheduled temperatures."""
        for _, part in self.items():
            part.set_progress(progress)

    @torch.no_grad()
    def clamp_(self, limit: float | None) -> None:
        """Keep probabilities where samples still try other options.

        Args:
            limit: Largest log odds of one option against all others, of a choice as of a gate: 4 keeps 1.8 % for the
                others, however many there are, and at least an equal share of these for each. What began further out
                may stay there. ``None`` for none.
        """
        for (_, part), start in zip(self.items(), self._starts, strict=True):
            if isinstance(part, Choice):
                if limit is not None:
                    part.logits.copy_(_with_floor(part.logits, max(limit, start)))
                part.logits.sub_(part.logits.mean())  # which changes no probability
            elif limit is not None:
                # Of hard concrete gates logits are not the log odds of their probability.
                shift, reach = part._shift(), max(limit, start)
                part.logits.clamp_(shift - reach, shift + reach)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.values().items())


def _reach(part: Discrete) -> float:
    """Return the limit of log odds (see ``clamp_``) that the probabilities of a gate or choice just keep."""
    if isinstance(part, Gate):
        return float((part.logits.detach() - part._shift()).abs().max())
    others = len(part.options) - 1
    rest = float(part.probabilities().detach().double().min()) * others
    return math.log1p(-rest) - math.log(rest)


def _with_floor(logits: Tensor, limit: float) -> Tensor:
    """Return the logits of the closest probabilities (in relative entropy) that leave each option a smallest share.

    Args:
        logits: Those of ``k`` options.
        limit: Log odds against all others of an option when these have no more than that share each.
    """
    k = len(logits)
    floor = 1 / (math.exp(min(limit, 700.0)) + 1) / (k - 1)
    logs = logits.detach().cpu().double().log_softmax(0)
    descending = logs.exp().sort(descending=True).values
    kept = torch.arange(1, k + 1)
    # The largest of these stay in proportion, the others are at the floor.
    factors = (1 - (k - kept) * floor) / descending.cumsum(0)
    n = int((factors * descending >= floor * (1 - _ROUNDING)).sum())
    return logits if n == k else (logs + factors[n - 1].log()).clamp(min=math.log(floor)).to(logits)
