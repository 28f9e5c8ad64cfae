"""Bayesian optimisation with estimators in the style of scikit-learn."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sthyper.searchers.base import SearcherContext
from sthyper.searchers.bayesopt.options import BayesOptOptions
from sthyper.searchers.bayesopt.searcher import BayesianOptimizationSearcher

if TYPE_CHECKING:
    from botorch.acquisition.acquisition import AcquisitionFunction

    from sthyper.searchers.bayesopt.suggest import SurrogateData, Wrapper

__all__ = ["SKLearnSurrogateSearcher"]


class SKLearnSurrogateSearcher(BayesianOptimizationSearcher):
    """Suggests the best of many random configurations by an acquisition function of an estimator's predictions.

    There is no local search, and pending trials do not change the predictions; their configurations are not suggested
    again. What is to be improved on is the least predicted mean of all observed and pending configurations.

    Args:
        config_space: Configuration space.
        metric: Name of the metric; a scheduler sets it if it is ``None``.
        estimator: A :class:`~sthyper.surrogates.SKLearnEstimator`, or any scikit-learn regressor, which gets
            standardised targets and is cloned for every fit.
        mode: ``"min"`` or ``"max"``.
        points_to_evaluate: Configurations to suggest first; partial ones are completed by the mid-point rule.
            ``None`` is one configuration of mid-points, ``[]`` none.
        scoring_class: Makes the acquisition function, whose high values are good: called with a model of targets of
            which low ones are good, and with ``best_f=`` and ``maximize=False`` if it has arguments of these names.
            The log expected improvement if ``None``. ``functools.partial`` sets other arguments.
        num_initial_candidates: Number of random configurations that are scored, at least 2.
        num_initial_random_choices: So many configurations come from ``points_to_evaluate`` and random search.
        allow_duplicates: Whether a configuration may be suggested again. Pending and failed ones are not.
        restrict_configurations: Suggest from this list only.
        random_seed: Non-negative seed of the search and of regressors whose ``random_state`` is ``None``; the
            scheduler's if ``None``.
        outcome_constraints: Conditions on reported metrics, such as ``["memory <= 8e9"]``: the acquisition function is
            weighted with the probability that they hold, and improves on the best feasible target. The estimator
            models the target only.
        learn_feasibility: Whether configurations that resemble failed ones are avoided, in the same way.

    Raises:
        ConfigSpaceError: If the space, or a configuration that is given, cannot be used.
        TypeError: If ``estimator`` is no estimator, or another argument has the wrong type.
        ValueError: If an argument is out of range, or ``scoring_class`` needs arguments that it does not get.
    """

    def __init__(
        self,
        config_space: dict[str, Any],
        metric: str | None,
        estimator: Any,
        mode: str = "min",
        points_to_evaluate: list[dict[str, Any]] | None = None,
        scoring_class: Callable[..., AcquisitionFunction] | None = None,
        num_initial_candidates: int = 250,
        num_initial_random_choices: int = 3,
        allow_duplicates: bool = False,
        restrict_configurations: list[dict[str, Any]] | None = None,
        random_seed: int | None = None,
        outcome_constraints: list[str] | None = None,
        learn_feasibility: bool = False,
    ) -> None:
        from sthyper.surrogates.sklearn import SKLearnSurrogate

        self._surrogate = SKLearnSurrogate(estimator)
        self._scoring_class = scoring_class
        self._scoring_arguments = set() if scoring_class is None else _arguments(scoring_class)
        _check_count("num_initial_candidates", num_initial_candidates, 2)
        _check_count("num_initial_random_choices", num_initial_random_choices, 0)
        options = BayesOptOptions(
            num_init_random=num_initial_random_choices,
            num_init_candidates=num_initial_candidates,
            num_local_candidates=0,
            initial_scoring="acq_func",
            skip_local_optimization=True,
            acq_function="logei",
            incumbent="model",
            allow_duplicates=allow_duplicates,
            restrict_configurations=restrict_configurations,
            surrogate=self._surrogate,
            random_seed=random_seed,
            outcome_constraints=outcome_constraints,
            learn_feasibility=learn_feasibility,
        )
        super().__init__(config_space, metric, mode, points_to_evaluate, options)
        self._seed_surrogate()

    def configure(self, context: SearcherContext) -> None:
        super().configure(context)
        self._seed_surrogate()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._seed_surrogate()

    def _seed_surrogate(self) -> None:
        if self.random_seed is not None:
            self._surrogate.seed(self.random_seed)

    def _wrapper(self, data: SurrogateData) -> Wrapper | None:
        make, names = self._scoring_class, self._scoring_arguments
        if make is None:
            return None

        def wrapped(acquisition: Any) -> AcquisitionFunction:
            given = {"best_f": acquisition.best_f, "maximize": False}
            return make(acquisition.model, **{name: value for name, value in given.items() if name in names})

        return wrapped


def _arguments(scoring_class: Any) -> set[str]:
    """Return which of the arguments that a scoring class may get it has."""
    if not callable(scoring_class):
        raise TypeError(f"scoring_class must be a class of acquisition functions, got {scoring_class!r}")
    _, *others = inspect.signature(scoring_class).parameters.values()
    named = [p for p in others if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    missing = [p.name for p in named if p.default is p.empty and p.name not in ("best_f", "maximize")]
    if missing:
        raise ValueError(f"scoring_class needs the arguments {missing}; set them with functools.partial")
    return {p.name for p in named}


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int of at least {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
