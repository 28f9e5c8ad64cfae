"""Every method by its name, ready to use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sthyper.schedulers.base import TrialScheduler
from sthyper.schedulers.fifo import FIFOScheduler
from sthyper.schedulers.hyperband import HyperbandScheduler, RungSystem
from sthyper.searchers.bayesopt.estimator import create_gaussian_process_estimator
from sthyper.searchers.multifidelity import BracketDistribution
from sthyper.time_keeper import TimeKeeper

__all__ = [
    "ASHA",
    "BayesianOptimization",
    "BoTorch",
    "ConstrainedBayesianOptimization",
    "CostAwareBayesianOptimization",
    "GridSearch",
    "RandomSearch",
    "baselines_dict",
    "create_gaussian_process_estimator",
]


class _SearchToTheEnd(FIFOScheduler):
    """First in, first out with the searcher of one name."""

    _searcher_name: ClassVar[str]

    def __init__(
        self,
        config_space: dict[str, Any],
        metric: str,
        mode: str = "min",
        search_options: Mapping[str, Any] | None = None,
        points_to_evaluate: list[dict[str, Any]] | None = None,
        random_seed: int | None = None,
        max_resource_attr: str | None = None,
        max_t: int | None = None,
        time_keeper: TimeKeeper | None = None,
        progress_attr: str | None = "epoch",
    ) -> None:
        super().__init__(
            config_space,
            metric,
            mode=mode,
            searcher=self._searcher_name,
            search_options=search_options,
            points_to_evaluate=points_to_evaluate,
            random_seed=random_seed,
            max_resource_attr=max_resource_attr,
            max_t=max_t,
            time_keeper=time_keeper,
            progress_attr=progress_attr,
        )


class RandomSearch(_SearchToTheEnd):
    """Random search: configurations are drawn independently, every trial runs to its end.

    Args:
        config_space: Configuration space.
        metric: Name of the reported metric that is optimised.
        mode: ``"min"`` or ``"max"``.
        search_options: Options of :class:`~sthyper.searchers.RandomSearcher` (``allow_duplicates``,
            ``restrict_configurations``, ``debug_log``).
        points_to_evaluate: Configurations to suggest first; partial ones are completed by the mid-point rule.
            ``None`` is one configuration of mid-points, ``[]`` none.
        random_seed: Seed in [0, 2**31 - 1]; drawn from the system if ``None``.
        max_resource_attr: Name of the constant of ``config_space`` that holds the maximum resource.
        max_t: Maximum resource; see :class:`~sthyper.schedulers.FIFOScheduler`.
        time_keeper: The experiment's clock; see :class:`~sthyper.schedulers.TrialSchedulerWithSearcher`.
        progress_attr: Name of a number in reports, such as the epochs done, behind whose last value a trial that is run
            again goes on; see :class:`~sthyper.schedulers.FIFOScheduler`.

    Raises:
        ConfigSpaceError: If the space, or ``max_resource_attr`` in it, cannot be used.
        TypeError: If an argument has the wrong type.
        ValueError: If ``mode`` or an option is unknown.

    References:
        Bergstra and Bengio, "Random Search for Hyper-Parameter Optimization", JMLR 2012
    """

    _searcher_name = "random"


class GridSearch(_SearchToTheEnd):
    """Grid search: all combinations of a few values of every hyperparameter, every trial runs to its end.

    Args:
        config_space: Configuration space.
        metric: Name of the reported metric that is optimised.
        mode: ``"min"`` or ``"max"``.
        search_options: Options of :class:`~sthyper.searchers.GridSearcher` (``num_samples``, ``shuffle_config``,
            ``allow_duplicates``).
        points_to_evaluate: Configurations to suggest first, which the grid then leaves out; partial ones are completed
            by the mid-point rule. ``None`` is one configuration of mid-points, ``[]`` none.
        random_seed: Seed in [0, 2**31 - 1] of the shuffled order; drawn from the system if ``None``.
        max_resource_attr: Name of the constant of ``config_space`` that holds the maximum resource.
        max_t: Maximum resource; see :class:`~sthyper.schedulers.FIFOScheduler`.
        time_keeper: The experiment's clock; see :class:`~sthyper.schedulers.TrialSchedulerWithSearcher`.
        progress_attr: Name of a number in reports, such as the epochs done, behind whose last value a trial that is run
            again goes on; see :class:`~sthyper.schedulers.FIFOScheduler`.

    Raises:
        ConfigSpaceError: If the space, or ``max_resource_attr`` in it, cannot be used.
        TypeError: If an argument has the wrong type.
        ValueError: If ``mode`` or an option is unknown or out of range.
    """

    _searcher_name = "grid"


class BayesianOptimization(_SearchToTheEnd):
    """Bayesian optimisation: a Gaussian process of all results proposes configurations, every trial runs to its end.

    Args:
        config_space: Configuration space.
        metric: Name of the reported metric that is optimised.
        mode: ``"min"`` or ``"max"``.
        search_options: Options of :class:`~sthyper.searchers.bayesopt.BayesOptOptions`.
        points_to_evaluate: Configurations to suggest first; they count to ``num_init_random``. Partial ones are
            completed by the mid-point rule; ``None`` is one configuration of mid-points, ``[]`` none.
        random_seed: Seed in [0, 2**31 - 1]; drawn from the system if ``None``.
        max_resource_attr: Name of the constant of ``config_space`` that holds the maximum resource.
        max_t: Maximum resource; see :class:`~sthyper.schedulers.FIFOScheduler`.
        time_keeper: The experiment's clock; see :class:`~sthyper.schedulers.TrialSchedulerWithSearcher`.
        progress_attr: Name of a number in reports, such as the epochs done, behind whose last value a trial that is run
            again goes on; see :class:`~sthyper.schedulers.FIFOScheduler`.

    Raises:
        ConfigSpaceError: If the space, or ``max_resource_attr`` in it, cannot be used.
        TypeError: If an argument has the wrong type.
        ValueError: If ``mode`` or an option is unknown or out of range.

    References:
        Snoek et al., "Practical Bayesian Optimization of Machine Learning Algorithms", NeurIPS 2012
    """

    _searcher_name = "bayesopt"


class BoTorch(_SearchToTheEnd):
    """Bayesian optimisation by BoTorch's own recipe, to compare with; every trial runs to its end.

    Args:
        config_space: Configuration space.
        metric: Name of the reported metric that is optimised.
        mode: ``"min"`` or ``"max"``.
        search_options: Options of :class:`~sthyper.searchers.bayesopt.botorch.BoTorchOptions`.
        points_to_evaluate: Configurations to suggest first; they count to ``num_init_random``. Partial ones are
            completed by the mid-point rule; ``None`` is one configuration of mid-points, ``[]`` none.
        random_seed: Seed in [0, 2**31 - 1]; drawn from the system if ``None``.
        max_resource_attr: Name of the constant of ``config_space`` that holds the maximum resource.
        max_t: Maximum resource; see :class:`~sthyper.schedulers.FIFOScheduler`.
        time_keeper: The experiment's clock; see :class:`~sthyper.schedulers.TrialSchedulerWithSearcher`.
        progress_attr: Name of a number in reports, such as the epochs done, behind whose last value a trial that is run
            again goes on; see :class:`~sthyper.schedulers.FIFOScheduler`.

    Raises:
        ConfigSpaceError: If the space, or ``max_resource_attr`` in it, cannot be used.
        TypeError: If an argument has the wrong type.
        ValueError: If ``mode`` or an option is unknown or out of range.

    References:
        Balandat et al., "BoTorch: A Framework for Efficient Monte-Carlo Bayesian Optimization", NeurIPS 2020
    """

    _searcher_name = "botorch"


def _with_name(search_options: Mapping[str, Any] | None, option: str, name: str) -> dict[str, Any]:
    """Return ``search_options`` with the name of a metric that is an argument of the method."""
    if search_options is not None and not isinstance(search_options, Mapping):
        raise TypeError(f"search_options must be a dict, got {search_options!r}")
    options = {} if search_options is None else dict(search_options)
    if options.setdefault(option, name) != name:
        raise ValueError(f"search_options has {option}={options[option]!r}, but the argument is {name!r}")
    return options


class ConstrainedBayesianOptimization(_SearchToTheEnd):
    """Bayesian optimisation under a constraint: the best configuration whose reported ``constraint_attr`` is up to 0.

    The constraint is modelled by a Gaussian process of its own; configurations are suggested by constrained expected
    improvement. Until one is known that keeps the constraint, the search is for one.

    Args:
        config_space: Configuration space.
        metric: Name of the reported metric that is optimised.
        constraint_attr: Name of the reported metric whose values up to 0 are feasible. Every report must have it. For
            other constraints use ``outcome_constraints`` in ``search_options``, of this or any other method.
        mode: ``"min"`` or ``"max"``, of the metric.
        search_options: Options of :class:`~sthyper.searchers.bayesopt.BayesOptOptions`.
        points_to_evaluate: Configurations to suggest first; they count to ``num_init_random``. Partial ones are
            completed by the mid-point rule; ``None`` is one configuration of mid-points, ``[]`` none.
        random_seed: Seed in [0, 2**31 - 1]; drawn from the system if ``None``.
        max_resource_attr: Name of the constant of ``config_space`` that holds the maximum resource.
        max_t: Maximum resource; see :class:`~sthyper.schedulers.FIFOScheduler`.
        time_keeper: The experiment's clock; see :class:`~sthyper.schedulers.TrialSchedulerWithSearcher`.
        progress_attr: Name of a number in reports, such as the epochs done, behind whose last value a trial that is run
            again goes on; see :class:`~sthyper.schedulers.FIFOScheduler`.

    Raises:
        ConfigSpaceError: If the space, or ``max_resource_attr`` in it, cannot be used.
        TypeError: If an argument has the wrong type.
        ValueError: If ``mode`` or an option is unknown or out of range, or ``search_options`` names another constraint.

    References:
        Gardner et al., "Bayesian Optimization with Inequality Constraints", ICML 2014
    """

    _searcher_name = "bayesopt_constrained"

    def __init__(
        self,
        config_space: dict[str, Any],
        metric: str,
        constraint_attr: str,
        mode: str = "min",
        search_options: Mapping[str, Any] | None = None,
        points_to_evaluate: list[dict[str, Any]] | None = None,
        random_seed: int | None = None,
        max_resource_attr: str | None = None,
        max_t: int | None = None,
        time_keeper: TimeKeeper | None = None,
        progress_attr: str | None = "epoch",
    ) -> None:
        super().__init__(
            config_space,
            metric,
            mode,
            _with_name(search_options, "constraint_attr", constraint_attr),
            points_to_evaluate,
            random_seed,
            max_resource_attr,
            max_t,
            time_keeper,
            progress_attr,
        )


class CostAwareBayesianOptimization(_SearchToTheEnd):
    """Bayesian optimisation of what is found for the same total cost: expected improvement per unit of cost.

    The cost of a trial is what its last report says, and is modelled by a Gaussian process of its own; with
    ``cost_model`` in ``search_options`` the costs of all reports are used. Every trial runs to its end. ::

        scheduler = CostAwareBayesianOptimization(config_space, "loss", cost_attr="elapsed_time")

    Args:
        config_space: Configuration space.
        metric: Name of the reported metric that is optimised.
        cost_attr: Name of the reported cost: a positive number that says what the trial has cost since its start.
            ``"st_worker_time"``, seconds, is in each report by itself.
        mode: ``"min"`` or ``"max"``, of the metric.
        search_options: Options of :class:`~sthyper.searchers.bayesopt.cost.CostAwareOptions`, such as
            ``exponent_cost``.
        points_to_evaluate: Configurations to suggest first; they count to ``num_init_random``. Partial ones are
            completed by the mid-point rule; ``None`` is one configuration of mid-points, ``[]`` none.
        random_seed: Seed in [0, 2**31 - 1]; drawn from the system if ``None``.
        max_resource_attr: Name of the constant of ``config_space`` that holds the maximum resource.
        max_t: Maximum resource, at which a ``cost_model`` predicts; see :class:`~sthyper.schedulers.FIFOScheduler`.
        time_keeper: The experiment's clock; see :class:`~sthyper.schedulers.TrialSchedulerWithSearcher`.
        progress_attr: Name of a number in reports, such as the epochs done, behind whose last value a trial that is run
            again goes on; see :class:`~sthyper.schedulers.FIFOScheduler`.

    Raises:
        ConfigSpaceError: If the space, or ``max_resource_attr`` in it, cannot be used.
        TypeError: If an argument has the wrong type.
        ValueError: If ``mode`` or an option is unknown or out of range, or ``search_options`` names another cost.

    References:
        Snoek et al., "Practical Bayesian Optimization of Machine Learning Algorithms", NeurIPS 2012
    """

    _searcher_name = "bayesopt_cost"

    def __init__(
        self,
        config_space: dict[str, Any],
        metric: str,
        cost_attr: str,
        mode: str = "min",
        search_options: Mapping[str, Any] | None = None,
        points_to_evaluate: list[dict[str, Any]] | None = None,
        random_seed: int | None = None,
        max_resource_attr: str | None = None,
        max_t: int | None = None,
        time_keeper: TimeKeeper | None = None,
        progress_attr: str | None = "epoch",
    ) -> None:
        super().__init__(
            config_space,
            metric,
            mode,
            _with_name(search_options, "cost_attr", cost_attr),
            points_to_evaluate,
            random_seed,
            max_resource_attr,
            max_t,
            time_keeper,
            progress_attr,
        )


class ASHA(HyperbandScheduler):
    r"""Asynchronous successive halving over random configurations.

    Args:
        config_space: Configuration space.
        metric: Name of the reported metric that is optimised.
        resource_attr: Name of the resource in reports: a positive integer that counts from 1.
        mode: ``"min"`` or ``"max"``.
        search_options: Options of :class:`~sthyper.searchers.RandomSearcher`.
        points_to_evaluate: Configurations to suggest first; partial ones are completed by the mid-point rule.
            ``None`` is one configuration of mid-points, ``[]`` none.
        random_seed: Seed in [0, 2**31 - 1]; drawn from the system if ``None``.
        max_resource_attr: Name of the constant of ``config_space`` that holds the maximum resource; preferred to
            ``max_t``.
        max_t: Maximum resource. By default ``config_space[max_resource_attr]``, else the constant ``epochs``,
            ``max_t`` or ``max_epochs`` of the space.
        type: ``"stopping"`` (default): trials stop at rungs unless among the best; ``"promotion"``: they pause at
            every rung and the best are resumed.
        rung_system: A rung system in place of ``type`` and the spacing of levels.
        grace_period: Lowest rung level; default 1.
        reduction_factor: Ratio :math:`\eta \ge 2` of neighbouring rung levels; default 3 unless ``rung_increment`` is
            given.
        rung_increment: Difference of neighbouring rung levels, for linear spacing.
        rung_levels: Explicit rung levels, two or more.
        brackets: Number of brackets, which differ in their lowest rung: asynchronous Hyperband if there are several.
        rung_system_per_bracket: Whether every bracket has rungs of its own.
        bracket_distribution: Probabilities of the brackets.
        cost_attr: Name of a reported cost of a trial's current run; for ``type="promotion"`` the results have the
            cost over all runs as ``total_<cost_attr>``.
        time_keeper: The experiment's clock; see :class:`~sthyper.schedulers.TrialSchedulerWithSearcher`.

    Raises:
        ConfigSpaceError: If the space, or ``max_resource_attr`` in it, cannot be used.
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range or unknown, contradicts another, or if the maximum resource is
            not known.

    References:
        Li et al., "A System for Massively Parallel Hyperparameter Tuning", https://arxiv.org/abs/1810.05934
    """

    def __init__(
        self,
        config_space: dict[str, Any],
        metric: str,
        resource_attr: str = "epoch",
        mode: str = "min",
        search_options: Mapping[str, Any] | None = None,
        points_to_evaluate: list[dict[str, Any]] | None = None,
        random_seed: int | None = None,
        max_resource_attr: str | None = None,
        max_t: int | None = None,
        type: str | None = None,
        rung_system: RungSystem | None = None,
        grace_period: int | None = None,
        reduction_factor: float | None = None,
        rung_increment: int | None = None,
        rung_levels: Sequence[int] | None = None,
        brackets: int = 1,
        rung_system_per_bracket: bool = False,
        bracket_distribution: BracketDistribution | None = None,
        cost_attr: str | None = None,
        time_keeper: TimeKeeper | None = None,
    ) -> None:
        super().__init__(
            config_space,
            metric,
            mode=mode,
            searcher="random",
            search_options=search_options,
            points_to_evaluate=points_to_evaluate,
            random_seed=random_seed,
            resource_attr=resource_attr,
            max_resource_attr=max_resource_attr,
            max_t=max_t,
            type=type,
            rung_system=rung_system,
            grace_period=grace_period,
            reduction_factor=reduction_factor,
            rung_increment=rung_increment,
            rung_levels=rung_levels,
            brackets=brackets,
            rung_system_per_bracket=rung_system_per_bracket,
            bracket_distribution=bracket_distribution,
            cost_attr=cost_attr,
            time_keeper=time_keeper,
        )


baselines_dict: dict[str, type[TrialScheduler]] = {
    "Random Search": RandomSearch,
    "RandomSearch": RandomSearch,
    "Grid Search": GridSearch,
    "GridSearch": GridSearch,
    "ASHA": ASHA,
    "BO": BayesianOptimization,
    "BayesianOptimization": BayesianOptimization,
    "BoTorch": BoTorch,
    "ConstrainedBayesianOptimization": ConstrainedBayesianOptimization,
    "CostAwareBayesianOptimization": CostAwareBayesianOptimization,
}
"""Methods by the names that tables and the command line use; class names are accepted too."""
