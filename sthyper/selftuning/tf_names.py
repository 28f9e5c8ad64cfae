"""The names of the TensorFlow port of self-tuning networks, as thin aliases of this package's own.

Loss functions are called in PyTorch's order, ``loss(prediction, target)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sthyper.selftuning._batches import first_size
from sthyper.selftuning._gradients import apply_gradients, check_optimizers, evaluating, gradients_of
from sthyper.selftuning.hyperparameters import Hyperparameter, Hyperparameters, bounded
from sthyper.selftuning.maps import ValueMap
from sthyper.selftuning.regularisers import dropout_2d
from sthyper.selftuning.steps import hyper_step, stn_step

__all__ = [
    "HyperParam",
    "HyperParameters",
    "dropout2d_layer",
    "get_training_step_functions",
    "hyper_param_from_bounds",
]

Data = Callable[[], tuple[Any, Any]]
Loss = Callable[[Any, Any], Tensor]
WeightsStep = Callable[[nn.Module, "HyperParameters", Data, Loss, Optimizer, bool], Tensor]
HyperStep = Callable[[nn.Module, "HyperParameters", Data, Loss, Optimizer, "Optimizer | None"], Tensor]

_FAR = 60.0
_HALVINGS = 200


def dropout2d_layer(x: Tensor, p: Tensor) -> Tensor:
    """Drop channels with a rate for each example; see :func:`sthyper.selftuning.regularisers.dropout_2d`.

    Args:
        x: A tensor of ``B x C x ...``.
        p: Rates (``B x 1`` as of :meth:`HyperParameters.param_con_batch`, or ``B``).
    """
    return dropout_2d(x, p.reshape(-1))


@dataclass(frozen=True)
class _Function(ValueMap):
    """A map that is known by its function only, which must be increasing."""

    function: Callable[[Tensor], Tensor]

    def __call__(self, raw: Tensor) -> Tensor:
        return self.function(raw)

    def _inverse(self, value: Tensor) -> Tensor:
        low, high = torch.full_like(value, -_FAR), torch.full_like(value, _FAR)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            below = self.function(middle) < value
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


@dataclass(frozen=True)
class HyperParam:
    """A hyperparameter.

    Args:
        name: Its name.
        unc_init: Returns the unconstrained number to begin with.
        unc_to_con: Maps unconstrained numbers to values; increasing, on tensors.
        scale_init_val: Standard deviation of the perturbations of the unconstrained number, to begin with.
    """

    name: str
    unc_init: Callable[[], Tensor | float]
    unc_to_con: Callable[[Tensor], Tensor]
    scale_init_val: float = 0.5

    def declaration(self) -> Hyperparameter:
        """Return it as :class:`~sthyper.selftuning.Hyperparameter`."""
        start = torch.as_tensor(self.unc_init(), dtype=torch.float64)
        value_map = self.unc_to_con if isinstance(self.unc_to_con, ValueMap) else _Function(self.unc_to_con)
        return Hyperparameter(self.name, value_map, float(self.unc_to_con(start)), float(self.scale_init_val))


def hyper_param_from_bounds(name: str, init_val: float, min_val: float, max_val: float) -> HyperParam:
    """Return a hyperparameter with two bounds.

    Args:
        name: Its name.
        init_val: Value to begin with, between the bounds.
        min_val: Lower bound.
        max_val: Upper bound.

    Raises:
        ValueError: If ``init_val`` is on a bound or outside.
    """
    declared = bounded(name, init_val, min_val, max_val)
    return HyperParam(name, lambda: declared.value_map.inverse(init_val), declared.value_map)


class HyperParameters(Hyperparameters):
    """Hyperparameters of batches of a fixed size, perturbed by the training steps.

    Args:
        hyper_params: The declarations; :class:`~sthyper.selftuning.Hyperparameter` objects are taken too.
        batch_size: Number of examples of a batch.
        generator: Draws the perturbations; a seed, or a CPU generator, which is shared.
        dtype: Type of the parameters; default is float64, as in the port.
        device: Device of the parameters.

    Raises:
        ValueError: If ``batch_size`` is below 1.
    """

    def __init__(
        self,
        hyper_params: Iterable[HyperParam | Hyperparameter],
        batch_size: int,
        generator: torch.Generator | int = 0,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        declared = [h.declaration() if isinstance(h, HyperParam) else h for h in hyper_params]
        super().__init__(declared, dtype=dtype, device=device)
        if isinstance(generator, torch.Generator):
            self._generator = generator
        else:
            self.reseed(int(generator))
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size

    def __deepcopy__(self, memo: dict[int, Any]) -> Hyperparameters:
        copied = super().__deepcopy__(memo)
        copied.__class__ = type(self)
        copied.__dict__["batch_size"] = self.batch_size
        return copied

    def param_con_batch(self, name: str) -> Tensor:
        """Return the value for each example of the batch (``batch_size x 1``), detached.

        In a training step it is perturbed, elsewhere all are alike unless :meth:`enable_perturbation` was called.

        Raises:
            KeyError: If there is none of this name.
        """
        values = self[name]
        size = self.current.batch_size if self.current is not None else None
        return values.reshape(-1, 1).expand(size or self.batch_size, 1)

    def enable_perturbation(self) -> None:
        """Draw a perturbation for a batch, which counts until :meth:`disable_perturbation`.

        Training steps draw their own and need no such call.
        """
        self._current = self.draw(self.batch_size)

    def disable_perturbation(self) -> None:
        """Have the hyperparameters at their centre, for evaluations."""
        self._current = None

    @property
    def hyper_param_vars(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The unconstrained value and the unconstrained scale by name (0-d each)."""
        return {name: (self.raw[i], self.raw_scale[i]) for i, name in enumerate(self.names)}


def get_training_step_functions() -> tuple[WeightsStep, HyperStep]:
    """Return ``weights_training_step`` and ``hyperparameters_training_step``.

    ``weights_training_step(model, hyper_parameters, weights_data_func, weights_loss_obj, opt_weights,
    WITH_HYPER_TRAINING)`` returns the training loss; without hyper training the plain network is trained. The data
    function is called with the perturbed strengths in :meth:`HyperParameters.param_con_batch`. ``opt_weights`` holds
    the weights and the responses of a model that :func:`~sthyper.selftuning.self_tune` made.

    ``hyperparameters_training_step(model, hyper_parameters, hyper_data_func, hyperparam_loss_obj, opt_hyper,
    opt_scale)`` returns the validation loss; with ``opt_scale=None`` scales stay.
    """
    return weights_training_step, hyperparameters_training_step


def weights_training_step(
    model: nn.Module,
    hyper_parameters: HyperParameters,
    weights_data_func: Data,
    weights_loss_obj: Loss,
    opt_weights: Optimizer,
    WITH_HYPER_TRAINING: bool = True,
) -> Tensor:
    """Do one step of the weights; see :func:`get_training_step_functions`."""

    def loss() -> Tensor:
        inputs, targets = weights_data_func()
        size = first_size(inputs, 0)
        if WITH_HYPER_TRAINING and size != hyper_parameters.batch_size:
            raise ValueError(f"weights_data_func must give batches of {hyper_parameters.batch_size}, got {size}")
        return weights_loss_obj(model(inputs), targets)

    if not model.training:
        model.train()
    if WITH_HYPER_TRAINING:
        return stn_step(loss, hyper_parameters, opt_weights, hyper_parameters.batch_size).loss
    parameters = check_optimizers(hyper_parameters, {"opt_weights": opt_weights})
    with hyper_parameters.off():
        value = loss()
    apply_gradients([opt_weights], parameters, gradients_of(value, parameters))
    return value.detach()


def hyperparameters_training_step(
    model: nn.Module,
    hyper_parameters: HyperParameters,
    hyper_data_func: Data,
    hyperparam_loss_obj: Loss,
    opt_hyper: Optimizer,
    opt_scale: Optimizer | None = None,
) -> Tensor:
    """Do one step of the hyperparameters; see :func:`get_training_step_functions`."""
    inputs, targets = hyper_data_func()
    with evaluating(model):
        result = hyper_step(
            lambda: hyperparam_loss_obj(model(inputs), targets),
            hyper_parameters,
            opt_hyper,
            opt_scale,
            batch_size=None if opt_scale is None else first_size(inputs, 0),
        )
    return result.loss
