"""Models of the user's in place of the Gaussian process."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from botorch import settings
from botorch.exceptions.errors import BotorchError, ModelFittingError
from botorch.fit import fit_gpytorch_mll
from botorch.models.model import Model
from gpytorch.mlls import ExactMarginalLogLikelihood  # type: ignore[import-untyped]
from gpytorch.models import ExactGP  # type: ignore[import-untyped]
from torch import Tensor

from sthyper.surrogates.base import Surrogate
from sthyper.surrogates.inputs import InputStructure

__all__ = ["BoTorchSurrogate", "CallableSurrogate", "as_surrogate", "own_draws"]

_T = TypeVar("_T")

_CATEGORICAL_COLUMNS = "cat_dims"
"""Argument of BoTorch's models for mixed inputs."""


class BoTorchSurrogate(Surrogate):
    """An exact Gaussian process of BoTorch, fitted by its ``fit_gpytorch_mll``.

    A fit starts from the model's own initial values; a model that is only conditioned gets the parameters of the last
    fit.

    Args:
        model: Makes the model of points, shape (n, d), and targets, shape (n, 1); mostly its class.
        seed: Seed of the draws of fits that are tried again.
    """

    def __init__(self, model: Callable[[Tensor, Tensor], Model], seed: int = 0) -> None:
        super().__init__()
        self._make = model
        self._generator = torch.Generator().manual_seed(seed)
        self._fitted: dict[str, Tensor] | None = None
        self._values: dict[str, float] = {}

    def build(self, X: Tensor, Z: Tensor, refit: bool) -> Model:
        """Return the model of transformed targets; see :meth:`Surrogate.build`.

        Raises:
            RuntimeError: If BoTorch can neither make nor fit the model.
        """
        try:
            # Few observations have another deviation than BoTorch expects.
            with settings.validate_input_scaling(False):
                model = self._make(X, Z.unsqueeze(-1))
            _check_model(model)
            if refit or self._fitted is None:
                with own_draws(self._generator):
                    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
                self._fitted = {name: p.detach().clone() for name, p in model.named_parameters()}
                self._values = _natural_values(model)
            else:
                parameters = dict(model.named_parameters())
                with torch.no_grad():
                    for name, value in self._fitted.items():
                        parameters[name].copy_(value)
        except (BotorchError, ModelFittingError) as error:
            raise RuntimeError(f"BoTorch cannot fit the model: {error}") from error
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        return model.eval()

    def parameters(self) -> dict[str, float]:
        """Return the parameters of the last fit, in their natural units."""
        return dict(self._values)

    def state_dict(self) -> dict[str, Any]:
        """Return the parameters of the last fit, generator and transform."""
        fitted = None if self._fitted is None else {name: value.clone() for name, value in self._fitted.items()}
        return super().state_dict() | {
            "fitted": fitted,
            "values": dict(self._values),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        fitted = state["fitted"]
        self._fitted = None if fitted is None else {name: value.clone() for name, value in fitted.items()}
        self._values = dict(state["values"])
        self._generator.set_state(state["generator"].cpu())


class CallableSurrogate(Surrogate):
    """A function that makes a fitted model of the data; it is called for every suggestion.

    Args:
        function: Gets points, shape (n, d), and standardised targets of which low ones are good, shape (n, 1), both
            float64; returns a BoTorch model whose posterior is in the units of these targets.
        seed: Seed of torch's global generator while it runs; the generator then goes on as if nothing had been drawn.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Model], seed: int = 0) -> None:
        super().__init__()
        self._function = function
        self._generator = torch.Generator().manual_seed(seed)

    def build(self, X: Tensor, Z: Tensor, refit: bool) -> Model:
        """Return what the function returns; see :meth:`Surrogate.build`.

        Raises:
            RuntimeError: If BoTorch can neither make nor fit the model.
            TypeError: If it is no model.
        """
        try:
            with own_draws(self._generator), settings.validate_input_scaling(False):
                model = self._function(X, Z.unsqueeze(-1))
        except (BotorchError, ModelFittingError) as error:
            raise RuntimeError(f"BoTorch cannot fit the model: {error}") from error
        _check_model(model)
        return model

    def state_dict(self) -> dict[str, Any]:
        """Return generator and transform."""
        return super().state_dict() | {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._generator.set_state(state["generator"].cpu())


def as_surrogate(obj: Any, structure: InputStructure | int, seed: int = 0) -> Surrogate:
    """Return the surrogate that a user means by the option ``surrogate``.

    A class of one's own needs one method::

        class MySurrogate(Surrogate):
            def build(self, X, Z, refit):
                model = SingleTaskGP(X, Z.unsqueeze(-1), covar_module=ScaleKernel(RBFKernel()))
                if refit:
                    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
                    self.fitted = dict(model.named_parameters())
                model.load_state_dict(self.fitted, strict=False)
                return model

        BayesianOptimization(space, metric="loss", search_options={"surrogate": MySurrogate()})
        BayesianOptimization(space, metric="loss", search_options={"surrogate": SingleTaskGP})

    Args:
        obj: A :class:`Surrogate`, of which a copy is used, so that several searchers can be given the same one; a class
            of exact Gaussian processes of BoTorch, such as ``SingleTaskGP`` (``MixedSingleTaskGP`` is told the columns
            of categories); a callable ``(X, Y) -> Model``, see :class:`CallableSurrogate`; a scikit-learn regressor or
            :class:`~sthyper.surrogates.sklearn_estimators.SKLearnEstimator`, of which a copy is used as well.
        structure: What the columns of the inputs are; d plain numbers if an int.
        seed: Seed of its draws; a :class:`Surrogate` has its own.

    Raises:
        TypeError: If ``obj`` is none of these, or cannot be copied.
        ValueError: If it is a model for categories and the inputs have none.
    """
    if isinstance(structure, int):
        structure = InputStructure.plain(structure)
    if isinstance(obj, Surrogate):
        return _own_copy(obj)
    if isinstance(obj, type):
        return _of_class(obj, structure, seed)
    if isinstance(obj, Model):
        raise TypeError(
            f"surrogate must make a model of new data, got the model of old ones {type(obj).__name__}(...); give its "
            "class or a callable (X, Y) -> Model"
        )
    if hasattr(obj, "fit"):
        from sklearn.base import BaseEstimator, is_regressor  # type: ignore[import-untyped]

        from sthyper.surrogates.sklearn import SKLearnSurrogate
        from sthyper.surrogates.sklearn_estimators import SKLearnEstimator

        if isinstance(obj, SKLearnEstimator) or (isinstance(obj, BaseEstimator) and is_regressor(obj)):
            return SKLearnSurrogate(_own_copy(obj), seed)
    elif callable(obj):
        return CallableSurrogate(obj, seed)
    raise TypeError(_expected(repr(obj)))


def _own_copy(obj: _T) -> _T:
    """Return a copy of a user's object, which several searchers may have been given."""
    try:
        return copy.deepcopy(obj)
    except Exception as error:  # of any kind, from classes of the user
        raise TypeError(f"surrogate must be an object that copy.deepcopy can copy, got {obj!r}: {error}") from error


def _of_class(cls: type, structure: InputStructure, seed: int) -> Surrogate:
    name = cls.__name__
    if issubclass(cls, Surrogate):
        raise TypeError(f"surrogate must be an object, got the class {name}; give {name}(...)")
    if not issubclass(cls, Model):
        hint = f"give {name}(...)" if hasattr(cls, "fit") else "it has no posterior"
        raise TypeError(f"{_expected(f'the class {name}')}; {hint}")
    needed = _required(cls)[2:]
    if not issubclass(cls, ExactGP) or any(argument != _CATEGORICAL_COLUMNS for argument in needed):
        why = f"needs {', '.join(needed)}" if issubclass(cls, ExactGP) else "is no exact Gaussian process"
        raise TypeError(
            f"surrogate={name} cannot be made and fitted without further knowledge, it {why}; give a callable "
            f"(X, Y) -> Model that returns the fitted {name}"
        )
    if not needed:
        return BoTorchSurrogate(cls, seed)
    columns = [column for column in range(structure.dim) if structure.categorical[structure.groups[column]]]
    if not columns:
        raise ValueError(f"surrogate={name} is for categorical hyperparameters, the configuration space has none")
    return BoTorchSurrogate(lambda X, Y: cls(X, Y, **{_CATEGORICAL_COLUMNS: columns}), seed)


def _required(cls: type) -> Sequence[str]:
    parameters = inspect.signature(cls).parameters.values()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in kinds]


def _expected(got: str) -> str:
    return (
        "surrogate must be a Surrogate, a class of BoTorch models, a callable (X, Y) -> Model or a scikit-learn "
        f"regressor, got {got}"
    )


def _check_model(model: Any) -> None:
    if not callable(getattr(model, "posterior", None)):
        raise TypeError(f"surrogate must give a BoTorch model; what it gave has no posterior: {model!r}")


def _natural_values(model: Any) -> dict[str, float]:
    """Return the parameters as users know them: ``raw_`` values go through their constraints."""
    result: dict[str, float] = {}
    for name, parameter, constraint in model.named_parameters_and_constraints():
        value = parameter if constraint is None else constraint.transform(parameter)
        *path, last = name.split(".")
        label = ".".join([*path, last.removeprefix("raw_")])
        numbers = value.detach().reshape(-1).tolist()
        for position, number in enumerate(numbers):
            result[label if len(numbers) == 1 else f"{label}_{position}"] = number
    return result


@contextmanager
def own_draws(generator: torch.Generator) -> Iterator[None]:
    """Have torch's global CPU generator seeded by a draw of ``generator``, and restore it: for code that uses it."""
    before = torch.get_rng_state()
    # Not torch.manual_seed, which seeds all accelerators, too.
    torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
    try:
        yield
    finally:
        torch.set_rng_state(before)
