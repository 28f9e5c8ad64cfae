"""Gates: on/off choices whose probabilities are trained along with the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sthyper.straight_through._sampled import (
    Evaluation,
    SampledModule,
    check_bool,
    check_option,
    in_backward,
    weighted,
)
from sthyper.straight_through.relaxed import gumbel_softmax, hard_concrete, hard_concrete_l0, hard_concrete_mean
from sthyper.straight_through.sampler import bernoulli_sample
from sthyper.straight_through.schedules import TemperatureSchedule
from sthyper.straight_through.unbiased import Baseline, bernoulli_log_prob, reinforce

__all__ = ["Gate", "GateEstimator", "reinforce_gates"]

GateEstimator = Literal["identity", "probs", "gumbel", "hard_concrete", "reinforce"]

_RELAXED = ("gumbel", "hard_concrete")
_STRETCH = (-0.1, 1.1)


class Gate(SampledModule):
    """On/off choices with trained probabilities, which multiply what passes.

    In training each choice is sampled and gradients reach its probability through the sample; in evaluation it is on or
    off as its probability says.

    Example:
        >>> import torch
        >>> gate = Gate(3, probability=0.9, seed=0)
        >>> gate(torch.ones(4, 3)).shape
        torch.Size([4, 3])
        >>> gate.eval()(torch.ones(1, 3))
        tensor([[1., 1., 1.]])

    Args:
        size: Number of choices, or their shape; ``()`` is one choice for all that passes.
        probability: Probability of being on to begin with, between 0 and 1, one for all or a tensor that broadcasts
            to ``size``.
        dim: Axis of the input that the choices belong to: 1 for channels, -1 for features. Where ``size`` has several
            axes these end there.
        estimator: How gradients pass the sample. ``"identity"`` and ``"probs"`` are those of
            :func:`~sthyper.straight_through.bernoulli_sample`; ``"gumbel"`` is the hard sample of a binary concrete
            variable with the gradient of the soft one; ``"hard_concrete"`` lets values between 0 and 1 pass (Louizos
            et al. 2018), with a probability that is that of not being 0. These are biased. With ``"reinforce"`` no
            gradient passes, and :meth:`surrogate` makes a loss with an unbiased one. For ARM give
            :func:`~sthyper.straight_through.arm` a loss that is computed within :meth:`fixed`.
            By ``"threshold"`` a hard concrete gate passes all of what enters or nothing, though in training it passed
            parts: the output jumps where it did; ``"expected"`` does not.
        temperature: Of ``"gumbel"`` and ``"hard_concrete"``: a positive number, or a schedule that is called with the
            :attr:`progress` of the run. Default is 2/3.
        evaluation: What passes in evaluation mode: on where the probability is above one half (``"threshold"``), the
            expected value (``"expected"``), or samples as in training (``"sample"``).
        per_example: Whether each example of a batch, its first axis, is sampled for itself; else the batch shares a
            sample.
        seed: Seed of a generator of its own, whose state is in ``state_dict()``; ``None`` for torch's own, the only
            one that goes with ``torch.utils.checkpoint``.
        name: What messages call it.
        dtype: Type of the logits; default is torch's default.
        device: Device of the logits.

    Attributes:
        logits: The only parameter, of the shape ``size``.

    Raises:
        ValueError: For a probability that is not between 0 and 1, sizes below 1, a temperature that is not positive or
            has no effect, and unknown options.
        TypeError: If ``size`` is no shape, ``dim`` no axis, ``probability`` no number, or ``per_example`` not ``True``
            or ``False``.

    Source: Y. Bengio, N. Leonard, A. Courville, 2013 (arXiv 1308.3432); C. Louizos, M. Welling, D. P. Kingma, 2018
    (arXiv 1712.01312).
    """

    def __init__(
        self,
        size: int | tuple[int, ...] = (),
        probability: float | Tensor = 0.5,
        *,
        dim: int = -1,
        estimator: GateEstimator = "identity",
        temperature: float | TemperatureSchedule | None = None,
        evaluation: Evaluation = "threshold",
        per_example: bool = True,
        seed: int | None = None,
        name: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        check_option("estimator", estimator, get_args(GateEstimator))
        super().__init__(estimator, _RELAXED, temperature, evaluation, seed, name)
        if not isinstance(size, int | tuple | list):
            raise TypeError(
                f"size must be a whole number or a tuple of them; it is {size!r}: a probability is given as "
                "Gate(probability=...)"
            )
        sizes = (size,) if isinstance(size, int) else tuple(size)
        if not all(isinstance(n, int) and not isinstance(n, bool) for n in sizes):
            raise TypeError(f"size must be a whole number or a tuple of them; it is {size!r}")
        if any(n < 1 for n in sizes):
            raise ValueError(f"size must be at least 1; it is {size!r}")
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise TypeError(f"dim must be a whole number, an axis of the input; it is {dim!r}")
        check_bool("per_example", per_example)
        start = _start(probability, sizes)
        self.size = sizes
        self.dim = dim
        self.per_example = per_example
        self._drawn: list[Tensor] = []
        logits = torch.logit(start) + self._shift()
        self.logits = nn.Parameter(logits.clone().to(dtype=dtype or torch.get_default_dtype(), device=device))

    # ---- probabilities -------------------------------------------------------------------------------

    def probabilities(self) -> Tensor:
        """Return the probabilities of being on, of the shape ``size``, with gradients to :attr:`logits`."""
        if self.estimator == "hard_concrete":
            return hard_concrete_l0(self.logits, self.temperature, _STRETCH)
        return torch.sigmoid(self.logits)

    def expected(self) -> Tensor:
        """Return the expected value, of the shape ``size``: the probability, or what hard concrete gates pass."""
        if self.estimator == "hard_concrete":
            return hard_concrete_mean(self.logits, self.temperature, _STRETCH)
        return torch.sigmoid(self.logits)

    def decisions(self) -> Tensor:
        """Return which gates are on: those whose probability is above one half (bool, of the shape ``size``)."""
        return self.probabilities().detach() > 0.5

    def expected_size(self) -> Tensor:
        """Return the expected number of open gates: 0-d, with gradients; the L0 cost."""
        return self.probabilities().sum()

    def entropy(self) -> Tensor:
        """Return the sum of the entropies of the choices, in nats: 0-d, with gradients."""
        odds = self.logits - self._shift()
        # p log p + (1 - p) log(1 - p) without the logarithm of 0.
        return (F.softplus(odds) - odds * torch.sigmoid(odds)).sum()

    @torch.no_grad()
    def set_probabilities(self, probability: float | Tensor) -> None:
        """Set the probabilities of being on.

        Args:
            probability: Larger than 0 and smaller than 1, one for all or a tensor that broadcasts to ``size``.

        Raises:
            ValueError: If it is not, or does not broadcast.
        """
        self.logits.copy_(torch.logit(_start(probability, self.size)) + self._shift())

    # ---- samples -------------------------------------------------------------------------------------

    def sample(self, batch_size: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw zeros and ones, between them with ``"hard_concrete"``.

        Args:
            batch_size: How many draws; ``None`` for one without a batch axis.
            generator: Of the device of the logits; default is the gate's own.

        Returns:
            Samples (``size``, or ``batch_size`` and ``size``), with gradients to :attr:`logits` unless the estimator is
            ``"reinforce"``.
        """
        if self._fixed is not None:
            return self._fixed
        generator = self.generator() if generator is None else generator
        logits = self.logits if batch_size is None else self.logits.expand(batch_size, *self.size)
        if self.estimator == "hard_concrete":
            return hard_concrete(logits, self.temperature, _STRETCH, generator)
        if self.estimator == "gumbel":
            two = torch.stack([logits, torch.zeros_like(logits)], dim=-1)
            return gumbel_softmax(two, self.temperature, hard=True, dim=-1, generator=generator)[..., 0]
        p = torch.sigmoid(logits)
        # Looking at values makes a GPU wait.
        looks = p.device.type == "cpu"
        if self.estimator == "reinforce":
            drawn = bernoulli_sample(p.detach(), "identity", generator, validate=looks)
            # Activation checkpointing draws the same once more.
            if self.training and torch.is_grad_enabled() and not in_backward():
                self._drawn.append(drawn)
            return drawn
        estimator: Literal["identity", "probs"] = "probs" if self.estimator == "probs" else "identity"
        return bernoulli_sample(p, estimator, generator, validate=looks)

    def forward(self, x: Tensor) -> Tensor:
        """Return what passes.

        Args:
            x: Values, with the choices along ``dim``.

        Returns:
            A tensor of the shape and dtype of ``x``. Through a closed gate nothing passes, NaN and infinity neither.

        Raises:
            ValueError: If the axis of ``x`` has another size, or is the batch's own while examples are sampled for
                themselves; or if a :meth:`fixed` sample is one for another batch.
        """
        axis = self._first_axis(x)
        factor, batched = self._factor(x, axis)
        shape = [1] * x.dim()
        shape[axis : axis + len(self.size)] = self.size
        if batched:
            shape[0] = x.shape[0]
        return weighted(x, factor.reshape(shape).to(x.dtype))

    def surrogate(self, losses: Tensor, baseline: Baseline | float | Tensor | None = None) -> Tensor:
        """Return a loss with an unbiased gradient, see :func:`reinforce_gates`, which takes several gates together."""
        return reinforce_gates(losses, [self], baseline)

    def take_log_probability(self) -> Tensor:
        """Return the log probability of what ``"reinforce"`` has sampled in training since the last call.

        Returns:
            One for each example (``batch``); 0-d if the batch shared a sample.

        Raises:
            ValueError: If the estimator is another one.
            RuntimeError: If nothing has been sampled, or batches of several sizes.
        """
        if self.estimator != "reinforce":
            raise ValueError(f"{self._called()}: estimator must be 'reinforce'; it is {self.estimator!r}")
        if not self._drawn:
            raise RuntimeError(f"{self._called()} has sampled nothing in training since its last surrogate")
        drawn, self._drawn = self._drawn, []
        if any(sample.shape != drawn[0].shape for sample in drawn):
            raise RuntimeError(f"{self._called()} has sampled batches of several sizes since its last surrogate")
        parts = [bernoulli_log_prob(sample, self.logits, sample.dim() - len(self.size)) for sample in drawn]
        return torch.stack(parts).sum(0)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Keep the gate fully open for a while: what enters passes unchanged, and logits get no gradient."""
        with self.fixed(torch.ones_like(self.logits.detach())):
            yield

    # ---- helpers -------------------------------------------------------------------------------------

    def _factor(self, x: Tensor, axis: int) -> tuple[Tensor, bool]:
        if self._fixed is not None:
            batched = self._fixed.dim() > len(self.size)
            if batched and (not x.dim() or x.shape[0] != self._fixed.shape[0] or (self.size and axis == 0)):
                raise ValueError(
                    f"{self._called()} has a fixed sample of the shape {tuple(self._fixed.shape)}, whose first axis is "
                    f"the batch; the input has the shape {tuple(x.shape)}"
                )
            return self._fixed, batched
        if self.training or self.evaluation == "sample":
            batched = self.per_example and x.dim() > 0
            if batched and self.size and axis == 0:
                raise ValueError(
                    f"{self._called()}: dim {self.dim} is the first axis of an input of the shape {tuple(x.shape)}, "
                    "which is the batch while per_example; say per_example=False or add a batch axis"
                )
            return self.sample(x.shape[0] if batched else None), batched
        if self.evaluation == "expected":
            return self.expected(), False
        return self.decisions(), False

    def _first_axis(self, x: Tensor) -> int:
        if not self.size:
            return 0
        last = self.dim if self.dim >= 0 else x.dim() + self.dim
        first = last - len(self.size) + 1
        if first < 0 or last >= x.dim() or tuple(x.shape[first : last + 1]) != self.size:
            raise ValueError(
                f"{self._called()} has {self.size} choices at dim {self.dim}; the input has the shape {tuple(x.shape)}"
            )
        return first

    def _shift(self) -> float:
        # The probability of a hard concrete gate is that of not being 0.
        return self.temperature * math.log(-_STRETCH[0] / _STRETCH[1]) if self.estimator == "hard_concrete" else 0.0

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.dim}, estimator={self.estimator!r}, evaluation={self.evaluation!r}"


def reinforce_gates(losses: Tensor, gates: Iterable[Gate], baseline: Baseline | float | Tensor | None = None) -> Tensor:
    """Return a loss whose gradient with respect to the probabilities of gates is unbiased.

    Counts what the gates have sampled in training since the last call, all of which must have had a part in the losses,
    and no other gates.

    Args:
        losses: Loss of each example (``batch``), if the gates are sampled for each; else they are averaged.
        gates: Gates with ``estimator="reinforce"``.
        baseline: See :func:`~sthyper.straight_through.reinforce`. Default is the mean of the other examples; nothing if
            the batch shares samples, where a ``MovingBaseline`` helps.

    Returns:
        A 0-d surrogate of the value of the mean loss, which is to be made smaller.

    Raises:
        ValueError: If a gate has another estimator, there is none, or the numbers of losses and samples differ.
        RuntimeError: If a gate has sampled nothing.
    """
    parts = [gate.take_log_probability() for gate in gates]
    if not parts:
        raise ValueError("gates must be at least one; there is none")
    if not losses.dim() or any(not part.dim() for part in parts):
        total = torch.stack([part.sum() for part in parts]).sum()
        return reinforce(losses.mean().reshape(1), total.reshape(1), "none" if baseline is None else baseline)
    return reinforce(losses, torch.stack(parts).sum(0), "leave_one_out" if baseline is None else baseline)


def _start(probability: float | Tensor, size: tuple[int, ...]) -> Tensor:
    try:
        start = torch.as_tensor(probability, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"probability must be a number or a tensor; it is {probability!r}") from None
    if not bool(((start > 0) & (start < 1)).all()):
        raise ValueError(
            f"probability must be larger than 0 and smaller than 1; it is {probability!r}: at its ends no gradient "
            "would move a gate, begin with for example 0.99"
        )
    try:
        return start.expand(size)
    except RuntimeError:
        raise ValueError(f"probability must broadcast to size {size}; it has the shape {tuple(start.shape)}") from None
