"""Choices: one of several operations or numbers, with probabilities that are trained along with the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sthyper.config_space import Categorical, Domain, FiniteRange, choice
from sthyper.errors import closest
from sthyper.straight_through._sampled import Evaluation, SampledModule, check_bool, check_option, weighted
from sthyper.straight_through.family import straight_through
from sthyper.straight_through.relaxed import gumbel_softmax
from sthyper.straight_through.schedules import TemperatureSchedule

__all__ = ["Choice", "ChoiceEstimator"]

ChoiceEstimator = Literal["identity", "gumbel"]

_SURE = 0.99


class Choice(SampledModule):
    """One of ``k`` options with trained probabilities.

    In training an option is sampled and gradients reach the probabilities through the sample; in evaluation it is the
    most probable one.

    Example:
        >>> import torch
        >>> activation = Choice(["relu", "tanh"], probabilities=[0.9, 0.1], seed=0)
        >>> x = torch.tensor([-1.0, 1.0])
        >>> activation.eval()([x.relu(), x.tanh()])
        tensor([0., 1.])
        >>> activation.value()
        'relu'

    Args:
        options: A finite domain of a configuration space (``choice``, ``ordinal``, ``logordinal``, ``finrange``,
            ``logfinrange``), a list of values of one type, or their number: 0, 1, ...
        probabilities: Those to begin with, one for each option, of a sum of 1; default is the same for all.
        estimator: How gradients pass the sample. ``"identity"`` takes those of the probabilities; ``"gumbel"`` those of
            the softmax of noisy logits at a temperature. The sample has the same distribution with both, and both
            gradients are biased.
        temperature: Of ``"gumbel"``: a positive number, or a schedule that is called with the :attr:`progress` of the
            run. Default is 2/3.
        evaluation: What counts in evaluation mode: the most probable option (``"threshold"``), a mixture of all with
            their probabilities (``"expected"``), or samples as in training (``"sample"``).
        per_example: Whether each example of a batch is sampled for itself; else the batch shares a sample.
        costs: What each option costs, at least 0: see :meth:`expected_size`.
        seed: Seed of a generator of its own, whose state is in ``state_dict()``; ``None`` for torch's own, the only
            one that goes with ``torch.utils.checkpoint``.
        name: What messages call it.
        dtype: Type of the logits; default is torch's default.
        device: Device of the logits.

    Attributes:
        domain: The options as a domain.
        options: The options.
        numeric: Whether these are numbers (or truth values), so that :meth:`number` makes sense.
        logits: The only parameter (``k``).

    Raises:
        TypeError: If ``options`` is nothing of the above, probabilities are no numbers, or ``per_example`` is not
            ``True`` or ``False``.
        ValueError: For fewer than two options, probabilities that are not between 0 and 1 or do not sum to 1, a
            temperature that is not positive or has no effect, costs below 0, and unknown names of options.

    Source: Y. Bengio, N. Leonard, A. Courville, 2013 (arXiv 1308.3432); E. Jang, S. Gu, B. Poole, 2017
    (arXiv 1611.01144).
    """

    numbers: Tensor

    def __init__(
        self,
        options: Domain | Sequence[Any] | int,
        probabilities: Sequence[float] | None = None,
        *,
        estimator: ChoiceEstimator = "identity",
        temperature: float | TemperatureSchedule | None = None,
        evaluation: Evaluation = "threshold",
        per_example: bool = True,
        costs: Sequence[float] | None = None,
        seed: int | None = None,
        name: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        check_option("estimator", estimator, get_args(ChoiceEstimator))
        super().__init__(estimator, ("gumbel",), temperature, evaluation, seed, name)
        self.domain = _domain(options)
        self.options: tuple[Any, ...] = _options(self.domain)
        if len(self.options) < 2:
            raise ValueError(f"options must be at least two; there is {list(self.options)} only: leave it constant")
        self.numeric = all(isinstance(option, int | float) for option in self.options)
        check_bool("per_example", per_example)
        self.per_example = per_example
        self.costs = None if costs is None else _costs(costs, len(self.options))
        dtype = dtype or torch.get_default_dtype()
        start = _probabilities(probabilities, self.options).log()
        self.logits = nn.Parameter((start - start.mean()).to(dtype=dtype, device=device))
        numbers = [float(option) for option in self.options] if self.numeric else []
        self.register_buffer("numbers", torch.tensor(numbers, dtype=dtype, device=device), persistent=False)

    # ---- probabilities -------------------------------------------------------------------------------

    def probabilities(self) -> Tensor:
        """Return the probabilities of the options (``k``), with gradients to :attr:`logits`."""
        return self.logits.softmax(0)

    def by_option(self) -> dict[Any, float]:
        """Return the probabilities by option."""
        return dict(zip(self.options, self.probabilities().tolist(), strict=True))

    def value(self) -> Any:
        """Return the most probable option, in the terms of :attr:`domain`; the first one of several."""
        return self.options[int(self.logits.detach().argmax())]

    @torch.no_grad()
    def set_value(self, value: Any) -> None:
        """Make an option all but certain, at a probability of 0.99.

        Args:
            value: The option.

        Raises:
            ValueError: If there is no such option.
        """
        if value not in self.options:
            raise ValueError(
                f"{self._called()}: value must be one of {list(self.options)}; it is {value!r}"
                f"{closest(value, self.options)}"
            )
        rest = (1 - _SURE) / (len(self.options) - 1)
        index = self.options.index(value)
        p = torch.tensor([_SURE if i == index else rest for i in range(len(self.options))]).log()
        self.logits.copy_(p - p.mean())

    def entropy(self) -> Tensor:
        """Return the entropy of the choice, in nats: 0-d, with gradients."""
        return -(self.logits.softmax(0) * self.logits.log_softmax(0)).sum()

    def expected_size(self) -> Tensor:
        """Return the expected cost of the option: 0-d, with gradients.

        Raises:
            ValueError: If the options were given no ``costs``.
        """
        if self.costs is None:
            raise ValueError(f"{self._called()} has no costs; give each option one with costs=[...]")
        p = self.probabilities()
        return (p * torch.tensor(self.costs, dtype=p.dtype, device=p.device)).sum()

    # ---- samples -------------------------------------------------------------------------------------

    def sample(self, batch_size: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw options.

        Args:
            batch_size: How many draws; ``None`` for one without a batch axis.
            generator: Of the device of the logits; default is the choice's own.

        Returns:
            A 1 at the option and else 0 (``k``, or ``batch_size x k``), with gradients to :attr:`logits`.
        """
        if self._fixed is not None:
            return self._fixed
        generator = self.generator() if generator is None else generator
        logits = self.logits if batch_size is None else self.logits.expand(batch_size, -1)
        if self.estimator == "gumbel":
            return gumbel_softmax(logits, self.temperature, hard=True, dim=-1, generator=generator)
        drawn = gumbel_softmax(logits.detach(), hard=True, dim=-1, generator=generator)
        return straight_through(drawn, logits.softmax(-1))

    def most_probable(self) -> Tensor:
        """Return a 1 at the most probable option and else 0 (``k``), without gradients."""
        logits = self.logits.detach()
        return nn.functional.one_hot(logits.argmax(), len(self.options)).to(logits.dtype)

    def weights(self, batch_size: int | None = None) -> Tensor:
        """Return the weights of the options that count now: a sample in training, by ``evaluation`` otherwise.

        Args:
            batch_size: Number of examples, which counts if each is sampled for itself.

        Returns:
            Weights of a sum of 1 (``batch_size x k``, or ``k`` for all examples).
        """
        if self._fixed is not None or self.training or self.evaluation == "sample":
            return self.sample(batch_size if self.per_example else None)
        return self.probabilities() if self.evaluation == "expected" else self.most_probable()

    def number(self, weights: Tensor) -> Tensor:
        """Return the number that weights mean, for numeric options.

        Args:
            weights: What :meth:`weights` or :meth:`sample` returned (``... x k``).

        Returns:
            The number of each (``...``), with gradients.

        Raises:
            TypeError: If the options are no numbers.
        """
        if not self.numeric:
            raise TypeError(f"{self._called()}: options {list(self.options)} are no numbers; mix operations by weights")
        # Not a product of matrices, which rounds on some devices.
        return (weights * self.numbers.to(weights.dtype)).sum(-1)

    def forward(self, outputs: Sequence[Tensor] | Tensor) -> Tensor:
        """Return the output of the option that counts.

        Args:
            outputs: Those of all options: ``k`` tensors of the same shape (``batch x ...``), or one that has the
                options along its first axis.

        Returns:
            A tensor of the shape of one of them. With weights for each example the first axis is the batch.

        Raises:
            ValueError: If there are more or fewer than ``k``, or a :meth:`fixed` sample is one for another batch.
        """
        first = outputs[0]
        return mix(outputs, self.weights(first.shape[0] if first.dim() else None), self._called())

    def extra_repr(self) -> str:
        return f"{list(self.options)}, estimator={self.estimator!r}, evaluation={self.evaluation!r}"


def mix(outputs: Sequence[Tensor] | Tensor, weights: Tensor, called: str) -> Tensor:
    """Return a weighted sum, to which outputs of the weight 0 add nothing, NaN and infinity neither.

    Args:
        outputs: ``k`` tensors of the same shape.
        weights: Weights of these (``k``), or for each example (``batch x k``).
        called: Whose they are, for the message.

    Raises:
        ValueError: If there are more or fewer than weights, or these are of another batch.
    """
    if len(outputs) != weights.shape[-1]:
        raise ValueError(f"{called} has {weights.shape[-1]} options; outputs of {len(outputs)} were given")
    rank = outputs[0].dim()
    if weights.dim() > 1 and (not rank or outputs[0].shape[0] != weights.shape[0]):
        raise ValueError(
            f"{called} has weights for a batch of {weights.shape[0]}; an output has the shape {tuple(outputs[0].shape)}"
        )
    parts = []
    for i, output in enumerate(outputs):
        weight = weights[..., i].to(output.dtype)
        parts.append(weighted(output, weight.reshape(-1, *[1] * (rank - 1)) if weight.dim() else weight))
    return torch.stack(parts).sum(0)


def _domain(options: Any) -> Domain:
    if isinstance(options, Domain):
        if not isinstance(options, Categorical | FiniteRange):
            raise TypeError(
                f"options must be a finite domain (choice, ordinal, finrange, logfinrange), a list of values or their "
                f"number; it is {options!r}"
            )
        return options
    if isinstance(options, bool | str) or not isinstance(options, int | Sequence):
        raise TypeError(f"options must be a finite domain, a list of values or their number; it is {options!r}")
    if isinstance(options, int):
        if options < 2:
            raise ValueError(f"options must be at least two; it is {options}")
        return choice(list(range(options)))
    return choice(list(options))


def _options(domain: Domain) -> tuple[Any, ...]:
    assert isinstance(domain, Categorical | FiniteRange)
    return tuple(domain.values if isinstance(domain, FiniteRange) else domain.categories)


def _probabilities(given: Sequence[float] | None, options: tuple[Any, ...]) -> Tensor:
    k = len(options)
    if given is None:
        return torch.full((k,), 1 / k, dtype=torch.float64)
    try:
        p = torch.tensor([float(x) for x in given], dtype=torch.float64)
    except (TypeError, ValueError):
        raise TypeError(f"probabilities must be numbers, one for each option; they are {given!r}") from None
    if len(p) != k:
        raise ValueError(f"probabilities must be {k} for the options {list(options)}; there are {len(p)}")
    if not bool(((p > 0) & (p < 1)).all()) or abs(float(p.sum()) - 1) > 1e-6:
        raise ValueError(
            f"probabilities must be larger than 0, smaller than 1 and sum to 1; they are {p.tolist()}: an option of "
            "probability 0 could never be found"
        )
    return p


def _costs(given: Sequence[float], k: int) -> tuple[float, ...]:
    costs = tuple(float(cost) for cost in given)
    if len(costs) != k:
        raise ValueError(f"costs must be {k}, one for each option; there are {len(costs)}")
    if not all(0 <= cost < float("inf") for cost in costs):
        raise ValueError(f"costs must be finite and at least 0; they are {list(costs)}")
    return costs
