"""How biased a gradient estimator is: its mean against the exact gradient, on problems that can be enumerated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sthyper.errors import closest
from sthyper.straight_through.family import check_floating
from sthyper.straight_through.relaxed import gumbel_softmax, hard_concrete
from sthyper.straight_through.sampler import bernoulli_sample
from sthyper.straight_through.schedules import check_temperature
from sthyper.straight_through.unbiased import arm, bernoulli_log_prob, reinforce

__all__ = ["ESTIMATORS", "PROBLEMS", "BiasProblem", "EstimatorBias", "Surrogate", "estimator_bias", "exact_gradient"]

Loss = Callable[[Tensor], Tensor]
Surrogate = Callable[[Loss, Tensor, torch.Generator | None], Tensor]
"""A function of the loss, the logits and a generator; the gradient of what it returns (0-d) is the estimate."""

# 65 536 combinations.
_MOST_GATES = 16
_AT_ONCE = 8192
_TEMPERATURE = 2 / 3


@dataclass(frozen=True)
class EstimatorBias:
    """The mean of a gradient estimator beside the exact gradient.

    Attributes:
        estimator: Its name.
        exact: Gradient of the expected loss with respect to the logits, by enumeration, of their shape, float64.
        mean: Mean of the estimates.
        standard_error: Standard error of that mean, by element.
        n_samples: Number of estimates.
    """

    estimator: str
    exact: Tensor
    mean: Tensor
    standard_error: Tensor
    n_samples: int

    @property
    def bias(self) -> Tensor:
        """Mean minus exact gradient."""
        return self.mean - self.exact

    @property
    def relative_bias(self) -> float:
        """Length of the bias, divided by that of the exact gradient; infinite, or NaN without bias, if that is 0."""
        return float(self.bias.norm() / self.exact.norm())

    @property
    def relative_error(self) -> float:
        """Length of the standard errors, divided by that of the exact gradient: what chance alone makes of the bias.

        Infinite, or NaN without spread, if the exact gradient is 0.
        """
        return float(self.standard_error.norm() / self.exact.norm())

    @property
    def cosine(self) -> float:
        """Cosine of the angle between mean and exact gradient: 1 if only the length is wrong, NaN if one is 0."""
        return float((self.mean * self.exact).sum() / (self.mean.norm() * self.exact.norm()))

    @property
    def largest_z(self) -> float:
        """Largest bias of an element in standard errors; infinite if an estimate is not finite."""
        if not bool((self.bias.isfinite() & self.standard_error.isfinite()).all()):
            return float("inf")
        # Estimates without any spread differ by rounding only.
        rounding = 1e-12 * (self.exact.abs() + self.mean.abs()).max()
        errors = self.standard_error.clamp(min=float(rounding))
        return float(torch.where(errors > 0, self.bias.abs() / errors, 0.0).max())

    @property
    def variance(self) -> float:
        """Variance of an estimate, summed over the elements."""
        return float(self.standard_error.square().sum() * self.n_samples)

    def is_zero(self, standard_errors: float = 4.5) -> bool:
        """Return whether the bias is 0 within sampling error.

        Args:
            standard_errors: How far each element may be off, in standard errors.
        """
        return self.largest_z <= standard_errors


@dataclass(frozen=True)
class BiasProblem:
    """A small problem for :func:`estimator_bias`.

    Attributes:
        name: Its name.
        about: What it is, in a line.
        loss: Takes gates from 0 to 1, ``(n, gates)``, and returns a loss for each, ``(n,)``.
        logits: Where the gradient is taken, ``(gates,)``, float64.
    """

    name: str
    about: str
    loss: Loss
    logits: Tensor


def separable_problem() -> BiasProblem:
    """Return the usual toy problem: squared distances of four gates from numbers between 0 and 1."""
    target = torch.tensor([0.45, 0.1, 0.7, 0.499], dtype=torch.float64)
    logits = torch.tensor([-1.0, 0.5, 1.5, 0.0], dtype=torch.float64)
    return BiasProblem(
        "separable", "4 gates, sum of (gate - target)^2", lambda gates: (gates - target).square().sum(-1), logits
    )


def parity_problem() -> BiasProblem:
    """Return the parity of four gates, which is linear in each of them: the identity estimator is unbiased there."""
    logits = torch.tensor([-1.5, 1.8, 1.2, 2.0], dtype=torch.float64)
    return BiasProblem("parity", "4 gates, product of (1 - 2 gate)", lambda gates: (1 - 2 * gates).prod(-1), logits)


def network_problem() -> BiasProblem:
    """Return six gates on the inputs of a fixed network with one hidden layer, and its squared error."""
    generator = torch.Generator().manual_seed(7)
    x, hidden, out = (
        torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((12, 6), (6, 8), (8,))
    )
    y = (x[:, 0] - x[:, 1] * x[:, 2]).tanh()

    def loss(gates: Tensor) -> Tensor:
        prediction = ((gates.unsqueeze(-2) * x) @ hidden).tanh() @ out / 2
        return (prediction - y).square().mean(-1)

    logits = torch.tensor([0.5, -0.5, 1.0, 0.0, -1.0, 1.5], dtype=torch.float64)
    return BiasProblem("network", "6 gates on the inputs of a tanh network, squared error", loss, logits)


PROBLEMS: dict[str, Callable[[], BiasProblem]] = {
    "separable": separable_problem,
    "parity": parity_problem,
    "network": network_problem,
}


def exact_gradient(loss: Loss, logits: Tensor) -> Tensor:
    """Return the gradient of the expected loss of independent gates, by enumeration.

    Args:
        loss: Takes gates ``(n, *shape)`` of 0 and 1 and returns a loss for each, ``(n,)``.
        logits: Scores of a 1, floating, of at most 16 elements.

    Returns:
        The gradient, of shape, dtype and device of ``logits``.

    Raises:
        TypeError: If ``logits`` is not a floating tensor.
        ValueError: If there are too many gates, or none, or ``loss`` does not return one loss for each sample.
    """
    _check_logits(logits)
    size = logits.numel()
    bits = torch.arange(size, device=logits.device)
    states = (torch.arange(2**size, device=logits.device).unsqueeze(-1) >> bits) & 1
    states = states.to(logits.dtype).view(-1, *logits.shape)
    with torch.enable_grad():
        at = logits.detach().requires_grad_()
        log_prob = bernoulli_log_prob(states, at)
        losses = loss(states)
        if not isinstance(losses, Tensor) or losses.shape != log_prob.shape:
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(f"loss must return a loss for each of {len(states)} samples; it returned {got}")
        (gradient,) = torch.autograd.grad((log_prob.exp() * losses.detach()).sum(), at)
    return gradient


def estimator_bias(
    loss: Loss,
    logits: Tensor,
    estimator: str | Surrogate,
    n_samples: int = 20_000,
    *,
    samples_per_estimate: int = 2,
    temperature: float | None = None,
    generator: torch.Generator | None = None,
) -> EstimatorBias:
    """Compare the mean of a gradient estimator with the exact gradient of the expected loss.

    Example:
        >>> import torch
        >>> problem = parity_problem()
        >>> result = estimator_bias(problem.loss, problem.logits, "arm", generator=torch.Generator().manual_seed(0))
        >>> result.is_zero()
        True

    Args:
        loss: Takes gates ``(n, *shape)``, whose values are 0 and 1 (between them with ``"hard_concrete"``), and returns
            a loss for each, ``(n,)``. It is called under ``torch.vmap`` in double precision.
        logits: Scores of a 1: the probabilities are ``sigmoid(logits)``. At most 16 elements.
        estimator: ``"probs"``, ``"identity"``, ``"gumbel"``, ``"hard_concrete"`` (whose gates are above one half with
            the given probabilities), ``"reinforce"``, ``"reinforce_baseline"`` (leave one out) or ``"arm"``; or a
            :data:`Surrogate`.
        n_samples: Number of independent estimates.
        samples_per_estimate: Of how many samples each of them is the mean (pairs of samples with ``"arm"``); a
            surrogate of your own takes what it likes.
        temperature: Of ``"gumbel"`` and ``"hard_concrete"``; default 2/3.
        generator: Of the device of ``logits``; default torch's own.

    Returns:
        Exact gradient, mean, standard error and bias.

    Raises:
        TypeError: If ``logits`` is not a floating tensor, or the estimator neither a name nor a function.
        ValueError: If the estimator is unknown or has no temperature, there are too many gates, or a number is out of
            range.
    """
    _check_logits(logits)
    if n_samples < 2:
        raise ValueError(f"n_samples must be at least 2, for a standard error; it is {n_samples}")
    least = 2 if estimator == "reinforce_baseline" else 1
    if samples_per_estimate < least:
        raise ValueError(f"samples_per_estimate must be at least {least}; it is {samples_per_estimate}")
    name, surrogate = _surrogate_of(estimator, samples_per_estimate, temperature)
    logits = logits.detach().double()
    exact = exact_gradient(loss, logits)

    def estimate(at: Tensor) -> Tensor:
        return surrogate(loss, at, generator)

    gradients = torch.vmap(torch.func.grad(estimate), randomness="different")
    mean, squares = torch.zeros_like(logits), torch.zeros_like(logits)
    for done in range(0, n_samples, _AT_ONCE):
        n = min(_AT_ONCE, n_samples - done)
        estimates = gradients(logits.expand(n, *logits.shape))
        # Squares around the mean of each piece keep the digits of small variances.
        change = estimates.mean(0) - mean
        squares += (estimates - estimates.mean(0)).square().sum(0) + change.square() * (done * n / (done + n))
        mean += change * (n / (done + n))
    variance = squares / (n_samples - 1)
    return EstimatorBias(name, exact, mean, (variance / n_samples).sqrt(), n_samples)


def _of_sample(draw: Callable[[Tensor, float, torch.Generator | None], Tensor]) -> Callable[[int, float], Surrogate]:
    """Make a surrogate of a function that draws gates through which gradients pass."""

    def make(n: int, temperature: float) -> Surrogate:
        def surrogate(loss: Loss, logits: Tensor, generator: torch.Generator | None) -> Tensor:
            return loss(draw(logits.expand(n, *logits.shape), temperature, generator)).mean()

        return surrogate

    return make


def _gumbel(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    two = torch.stack([logits, torch.zeros_like(logits)], -1)
    return gumbel_softmax(two, temperature, generator=generator)[..., 0]


def _reinforce(baseline: bool) -> Callable[[int, float], Surrogate]:
    def make(n: int, _: float) -> Surrogate:
        def surrogate(loss: Loss, logits: Tensor, generator: torch.Generator | None) -> Tensor:
            sample = bernoulli_sample(logits.detach().sigmoid().expand(n, *logits.shape), generator=generator)
            log_prob = bernoulli_log_prob(sample, logits)
            return reinforce(loss(sample), log_prob, "leave_one_out" if baseline else "none")

        return surrogate

    return make


def _arm(n: int, _: float) -> Surrogate:
    return lambda loss, logits, generator: arm(loss, logits, n, generator)


ESTIMATORS: dict[str, Callable[[int, float], Surrogate]] = {
    "probs": _of_sample(lambda logits, _, generator: bernoulli_sample(logits.sigmoid(), "probs", generator)),
    "identity": _of_sample(lambda logits, _, generator: bernoulli_sample(logits.sigmoid(), "identity", generator)),
    "gumbel": _of_sample(_gumbel),
    "hard_concrete": _of_sample(lambda logits, t, generator: hard_concrete(logits, t, generator=generator)),
    "reinforce": _reinforce(False),
    "reinforce_baseline": _reinforce(True),
    "arm": _arm,
}
"""By name: what makes a surrogate of the number of samples and the temperature."""

_WITH_TEMPERATURE = ("gumbel", "hard_concrete")


def _surrogate_of(
    estimator: str | Surrogate, samples_per_estimate: int, temperature: float | None
) -> tuple[str, Surrogate]:
    if temperature is not None:
        check_temperature(temperature)
        if estimator not in _WITH_TEMPERATURE:
            raise ValueError(f"temperature is for the estimators {list(_WITH_TEMPERATURE)}; it is {temperature!r}")
    if callable(estimator):
        return getattr(estimator, "__name__", type(estimator).__name__), estimator
    if not isinstance(estimator, str):
        raise TypeError(f"estimator must be a name or a function; it is {estimator!r}")
    if estimator not in ESTIMATORS:
        raise ValueError(
            f"estimator must be one of {list(ESTIMATORS)}, or a function; it is {estimator!r}"
            f"{closest(estimator, ESTIMATORS)}"
        )
    return estimator, ESTIMATORS[estimator](samples_per_estimate, temperature or _TEMPERATURE)


def _check_logits(logits: Tensor) -> None:
    check_floating(logits, "logits")
    if not 1 <= logits.numel() <= _MOST_GATES:
        raise ValueError(
            f"logits must have 1 to {_MOST_GATES} elements, all of whose combinations are tried; they have "
            f"{logits.numel()}"
        )
