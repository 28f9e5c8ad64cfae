"""Bernoulli samples that gradients pass: the straight-through estimators of Bengio et al. (2013)."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sthyper.errors import closest
from sthyper.straight_through.family import same_device, straight_through

__all__ = ["BernoulliEstimator", "BernoulliIdentity", "BernoulliSample", "bernoulli_sample"]

BernoulliEstimator = Literal["probs", "identity"]


class BernoulliSample(torch.autograd.Function):
    """Draw 0 or 1 for each probability; the gradient is ``p * grad_output``.

    The derivative of the sample is taken to be the probability itself, so where ``p`` is 0 no gradient arrives and a
    unit stays off. The gradient is biased; see :func:`~sthyper.straight_through.estimator_bias`. It is made of the
    saved ``p``, so a second derivative sees ``p`` once more: for ``y ** 2`` it is ``2 * y + 2 * p ** 2``.

    :func:`bernoulli_sample` checks its arguments and is what to call; ``BernoulliSample.apply(p)`` is the plain
    function of one input. (PyTorch takes the derivative of a custom function's ``jvp`` in forward mode to be 0, and
    draws once for all where ``p`` is not batched in ``vmap``: with nested transforms call :func:`bernoulli_sample`.)

    Source: Y. Bengio, N. Leonard, A. Courville: Estimating or Propagating Gradients Through Stochastic Neurons for
    Conditional Computation, 2013, section 4 (arXiv 1308.3432).
    """

    @staticmethod
    def forward(probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return a sample of the shape and dtype of ``probs`` (any shape), with the strides of ``empty_like``."""
        return _draw(probs, generator)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the probabilities for both modes of differentiation."""
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        """Return ``p * grad_output``."""
        (probs,) = ctx.saved_tensors
        return probs * grad_outputs[0], None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Tensor:
        """Return ``p * tangent``."""
        (probs,) = ctx.saved_tensors
        return probs * grad_inputs[0]

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int | None]:
        """Draw for a batch as ``randomness`` says, also with a generator."""
        probs, generator = inputs[0], inputs[1] if len(inputs) > 1 else None
        dim = in_dims[0]
        if info.randomness == "error":
            raise RuntimeError(
                'a Bernoulli sample is drawn inside torch.vmap: say vmap(..., randomness="different") for a draw of '
                'its own for each member of the batch, or randomness="same"'
            )
        assert dim is not None  # the only tensor
        if info.randomness == "different":
            return cls.apply(probs, generator), dim  # type: ignore[no-untyped-call]
        probs = probs.movedim(dim, 0)
        # All members of the batch are compared with the same numbers.
        return straight_through(_compare(probs, probs.shape[1:], generator), cls.antiderivative(probs)), 0

    @staticmethod
    def antiderivative(probs: Tensor) -> Tensor:
        """Return what has the estimator's derivative."""
        return probs.square() / 2


class BernoulliIdentity(BernoulliSample):
    """Draw 0 or 1 for each probability; the gradient passes unchanged: the classic straight-through estimator."""

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        """Return ``grad_output``."""
        return grad_outputs[0], None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Tensor:
        """Return the tangent."""
        return grad_inputs[0].clone()

    @staticmethod
    def antiderivative(probs: Tensor) -> Tensor:
        """Return what has the estimator's derivative."""
        return probs


_FUNCTIONS: dict[str, type[BernoulliSample]] = {"probs": BernoulliSample, "identity": BernoulliIdentity}


def _draw(probs: Tensor, generator: torch.Generator | None) -> Tensor:
    if not torch.compiler.is_compiling() and _in_vmap():
        return _compare(probs, probs.shape, generator)
    if probs.device.type == "cuda":  # what is no probability would end the process by a device assertion
        probs = probs.nan_to_num(nan=0.0).clamp(0, 1)
    # torch.bernoulli draws the same numbers into a contiguous tensor.
    return torch.empty_like(probs).bernoulli_(probs, generator=generator)


def _compare(probs: Tensor, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
    """Compare with uniform numbers of the given shape, for which vmap knows what each randomness means."""
    # Those of half precision are too coarse for small probabilities.
    dtype = torch.promote_types(probs.dtype, torch.float32)
    uniform = torch.rand(shape, dtype=dtype, device=probs.device, generator=generator)
    return (uniform < probs).to(probs.dtype)


def _in_vmap() -> bool:
    functorch = torch._C._functorch
    stack = functorch.get_interpreter_stack() or []
    return any(interpreter.key() == functorch.TransformType.Vmap for interpreter in stack)


def is_batched(x: Tensor) -> bool:
    """Return whether a tensor is seen from inside ``vmap``, where its values cannot be looked at."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False


def check_probabilities(p: Tensor, clamp: bool = False) -> None:
    """Raise if probabilities are NaN or, without ``clamp``, outside [0, 1]."""
    p = p.detach()
    good = ~p.isnan() if clamp else (p >= 0) & (p <= 1)
    if bool(good.all()):
        return
    n_nan = int(p.isnan().sum())
    if n_nan:
        raise ValueError(f"p must hold probabilities; {n_nan} of {p.numel()} are NaN")
    raise ValueError(
        f"p must hold probabilities from 0 to 1; {int((~good).sum())} of {p.numel()} lie outside (smallest "
        f"{float(p.min()):g}, largest {float(p.max()):g}): take a sigmoid of scores, or say clamp=True"
    )


def bernoulli_sample(
    p: Tensor,
    estimator: BernoulliEstimator = "probs",
    generator: torch.Generator | None = None,
    validate: bool = True,
    clamp: bool = False,
) -> Tensor:
    """Draw 0 or 1 with the given probabilities; gradients pass.

    Works under ``torch.func`` transforms (``vmap`` needs ``randomness="different"`` or ``"same"``), in forward mode,
    under ``torch.compile`` and autocast, and can be differentiated again.

    Args:
        p: Probabilities of a 1, from 0 to 1, of any shape, floating dtype and device.
        estimator: What the sample's derivative is taken to be: ``"probs"`` is ``p`` itself, compatible with FL4Health,
            ``"identity"`` is 1, the classic straight-through estimator. Both are biased. With ``"probs"`` no gradient
            arrives where ``p`` is 0.
        generator: Of the device of ``p``; default torch's own. In compiled code one breaks the graph.
        validate: Whether to refuse probabilities outside [0, 1] and NaN. On a GPU this waits for the device. While
            compiling, inside ``vmap`` and on the meta device, where values cannot be looked at, nothing is refused.
            Without it NaN counts as 0 and others as the nearest of 0 and 1, with no gradient there: no device assertion
            is ever met.
        clamp: Whether probabilities outside [0, 1] count as the nearest of 0 and 1, with no gradient there. NaN is
            refused still.

    Returns:
        Zeros and ones of the shape and dtype of ``p``, with the strides of ``torch.empty_like(p)``.

    Raises:
        TypeError: If ``p`` is not a floating tensor.
        ValueError: If probabilities are outside [0, 1] or NaN, the estimator is unknown, or the generator belongs to
            another device.
    """
    if not isinstance(p, Tensor):
        raise TypeError(f"p must be a tensor of probabilities; it is {type(p).__name__}")
    if not p.is_floating_point():
        raise TypeError(f"p must be floating point; it is {p.dtype}: convert it with p.float()")
    if estimator not in _FUNCTIONS:
        raise ValueError(
            f"estimator must be one of {list(get_args(BernoulliEstimator))}; it is {estimator!r}"
            f"{closest(str(estimator), _FUNCTIONS)}"
        )
    if generator is not None and not same_device(generator.device, p.device):
        raise ValueError(f"generator is on {generator.device}, p on {p.device}; both must be on one device")
    seen = validate and not torch.compiler.is_compiling() and not p.is_meta and not is_batched(p)
    if seen:
        check_probabilities(p, clamp)
    else:
        p = p.nan_to_num(nan=0.0)
    if clamp or not seen:
        p = p.clamp(0, 1)
    function = _FUNCTIONS[estimator]
    # Dynamo does not know functions with a jvp; in forward mode the derivative of a jvp would be 0, and vmap would not
    # see that a draw of unbatched probabilities is random.
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return straight_through(_draw(p.detach(), generator), function.antiderivative(p))
    return function.apply(p, generator)  # type: ignore[no-untyped-call]
