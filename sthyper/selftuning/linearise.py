"""Predictions that are linear in the perturbation of the hyperparameters, for the response update of Delta-STN."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from sthyper.selftuning._dual import make_dual, tangent_of, unpack_dual
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.perturbation import Perturbation

__all__ = ["LOSSES", "collapse", "linearised", "response_loss"]

T = TypeVar("T")

_EPS = 1e-7
# In what torch says of an operation without a forward-mode derivative.
_NO_FORWARD_MODE = ("forward AD", "forward mode", "jvp", "functorch transforms")


def collapse(value: Tensor) -> Tensor:
    """Return a tensor moved along its tangent: ``f + J delta`` for a dual one, itself for any other.

    Losses and penalties of one's own call it on what the model predicts, so that :func:`response_loss` minimises them
    at the linearised prediction.

    Args:
        value: Any tensor.
    """
    primal, tangent = unpack_dual(value)
    if tangent is None:
        return value
    for mode in _running:
        mode.met = True
    return primal + tangent


def linearised(function: Callable[[], T], hyperparameters: Hyperparameters, perturbation: Perturbation) -> T:
    """Return ``f + J delta``: what a function of the hyperparameters predicts, linearised at their centre.

    One forward pass with :func:`torch.func.jvp`, so that random masks are the same for the value and its derivative.
    Strengths of regularisers are those of the perturbation. Gradients reach all parameters through the result, those
    of general weights in best-response layers excepted, which count as constants (Bae & Grosse 2020,
    https://arxiv.org/abs/2010.13514, section 3.3).

    Args:
        function: Returns a prediction, or a nested structure of tensors and other things.
        hyperparameters: What the model in it responds to.
        perturbation: What :meth:`Hyperparameters.draw` returned.

    Returns:
        What ``function`` returns, tensors of real or complex numbers linearised.

    Raises:
        NotImplementedError: If an operation of the model has no forward-mode derivative.
        ValueError: If the model is of kind ``"stn"``.
    """
    structure: Any = None
    leaves: list[Any] = []
    moves: list[bool] = []

    def at(delta: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        nonlocal structure, leaves, moves
        with hyperparameters.use(perturbation.along(delta)):
            leaves, structure = tree_flatten(function())
        moves = [isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()) for leaf in leaves]
        pairs = list(zip(leaves, moves, strict=True))
        still = tuple(leaf for leaf, m in pairs if isinstance(leaf, Tensor) and not m)
        return tuple(leaf for leaf, m in pairs if m), still

    delta = perturbation.delta
    with _forward_mode(delta):
        result: Any = torch.func.jvp(at, (torch.zeros_like(delta),), (delta,), has_aux=True)
    values, tangents, others = result
    moved, still = iter(map(torch.add, values, tangents)), iter(others)
    news = [
        next(moved if m else still) if isinstance(leaf, Tensor) else leaf for leaf, m in zip(leaves, moves, strict=True)
    ]
    linear: T = tree_unflatten(news, structure)
    return linear


def response_loss(
    closure: Callable[[], Tensor], hyperparameters: Hyperparameters, perturbation: Perturbation
) -> Tensor:
    """Return the loss of the linearised prediction, from a closure that computes prediction and loss at once.

    The closure is run once in forward mode. Where the prediction enters a loss function of
    :mod:`torch.nn.functional` (:data:`LOSSES`, also through the modules of :mod:`torch.nn`), it is replaced by
    ``f + J delta``: log-probabilities and probabilities through their logits, variances and rates through their
    logarithm. A linearised *loss* would have no minimum.

    Args:
        closure: Returns the training loss (0-d).
        hyperparameters: What the model in it responds to.
        perturbation: What :meth:`Hyperparameters.draw` returned.

    Raises:
        NotImplementedError: If an operation of the model has no forward-mode derivative.
        ValueError: If a part of the loss that depends on the perturbation went through none of these functions.
    """
    delta = perturbation.delta
    mode = _LossesOfLinearised()
    with _forward_mode(delta), forward_ad.dual_level():
        dual = make_dual(torch.zeros_like(delta), delta)
        _running.append(mode)
        try:
            with hyperparameters.use(perturbation.along(dual)), mode:
                loss = closure()
        finally:
            _running.remove(mode)
        left = unpack_dual(loss)[1] is not None
    if left or not mode.met:
        part = "a part of the loss" if mode.met else "the loss"
        raise ValueError(
            f"{part} depends on the perturbed hyperparameters "
            + ("without" if left else "through no prediction, or without")
            + " a loss function of torch.nn.functional that could see the linearised prediction; pass predict and "
            "criterion apart (PredictionLoss), call sthyper.selftuning.collapse(...) on predictions in losses and "
            "penalties of your own, or use update='nonlinear' or 'joint'"
        )
    return loss


# ---- loss functions ----------------------------------------------------------------------------------------


def _log_probabilities(value: Tensor, axis: int) -> Tensor:
    # Linear in the logits: log-probabilities are logits minus what all classes share.
    return torch.log_softmax(collapse(value), axis)


def _probabilities(value: Tensor) -> Tensor:
    inside = unpack_dual(value)[0].clamp(_EPS, 1 - _EPS)
    return torch.sigmoid(torch.logit(inside) + tangent_of(value) / (inside * (1 - inside)))


def _positive(value: Tensor) -> Tensor:
    inside = unpack_dual(value)[0].clamp(min=_EPS)
    return inside * torch.exp(tangent_of(value) / inside)


def _class_axis(value: Tensor) -> int:
    return 0 if value.dim() == 1 else 1


def _normal_axis(value: Tensor) -> int:
    """Return along which axis probabilities sum to one."""
    if value.dim() <= 2:
        return -1
    total = unpack_dual(value)[0].detach().exp()
    for axis in (-1, 1):
        if torch.allclose(total.sum(axis), torch.ones((), dtype=total.dtype, device=total.device), atol=1e-3):
            return axis
    raise ValueError("kl_div: the input must hold log-probabilities along its last or its second axis")


_Rule = Callable[[Tensor, Mapping[str, Any]], Tensor]

_PLAIN = (
    "cosine_embedding_loss",
    "cross_entropy",
    "hinge_embedding_loss",
    "huber_loss",
    "l1_loss",
    "margin_ranking_loss",
    "mse_loss",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "multilabel_soft_margin_loss",
    "smooth_l1_loss",
    "soft_margin_loss",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
    "binary_cross_entropy_with_logits",
)
_RULES: dict[str, dict[str, _Rule]] = {
    "nll_loss": {"input": lambda value, _: _log_probabilities(value, _class_axis(value))},
    "ctc_loss": {"log_probs": lambda value, _: _log_probabilities(value, -1)},
    "kl_div": {"input": lambda value, _: _log_probabilities(value, _normal_axis(value))},
    "binary_cross_entropy": {"input": lambda value, _: _probabilities(value)},
    "gaussian_nll_loss": {"var": lambda value, _: _positive(value)},
    "poisson_nll_loss": {
        "input": lambda value, arguments: collapse(value) if arguments["log_input"] else _positive(value)
    },
}

LOSSES: tuple[str, ...] = tuple(sorted({*_PLAIN, *_RULES}))
"""The loss functions of :mod:`torch.nn.functional` that see the linearised prediction in :func:`response_loss`."""

_NAMES = {getattr(F, name): name for name in LOSSES}


# Which closures run now, to be told that a prediction was linearised.
_running: list[_LossesOfLinearised] = []


class _LossesOfLinearised(TorchFunctionMode):
    """Gives loss functions the linearised prediction; ``met`` says whether one has seen it."""

    def __init__(self) -> None:
        super().__init__()
        self.met = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = _NAMES.get(func) if inspect.isfunction(func) else None
        if name is None:
            return func(*args, **kwargs)
        bound = inspect.signature(func).bind(*args, **kwargs)
        bound.apply_defaults()
        rules = _RULES.get(name, {})
        moved = {
            argument: tree_map_only(Tensor, partial(self._move, rules.get(argument), bound.arguments), value)
            for argument, value in bound.arguments.items()
        }
        return func(**moved)

    def _move(self, rule: _Rule | None, arguments: Mapping[str, Any], value: Tensor) -> Tensor:
        if unpack_dual(value)[1] is None:
            return value
        self.met = True
        return collapse(value) if rule is None else rule(value, arguments)


# ---- forward mode ------------------------------------------------------------------------------------------


@contextmanager
def _forward_mode(delta: Tensor) -> Iterator[None]:
    """Choose kernels that have forward-mode derivatives, and say what to do where there is none."""
    if delta.is_cuda:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        kernels: Any = sdpa_kernel(SDPBackend.MATH)
    else:
        kernels = nullcontext()
    try:
        with kernels:
            yield
    except RuntimeError as error:  # NotImplementedError is one
        if not any(sign in str(error) for sign in _NO_FORWARD_MODE):
            raise
        raise NotImplementedError(
            f"the model cannot be linearised: {error}; use update='nonlinear' or update='joint'"
        ) from error
