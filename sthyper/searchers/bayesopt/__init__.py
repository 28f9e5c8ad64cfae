"""Bayesian optimisation and its relatives."""

from sthyper.searchers.bayesopt.botorch import BoTorchOptions, BoTorchSearcher
from sthyper.searchers.bayesopt.constrained import ConstrainedBayesOptOptions
from sthyper.searchers.bayesopt.constraints import OutcomeConstraint
from sthyper.searchers.bayesopt.cost import CostAwareBayesianOptimizationSearcher, CostAwareOptions
from sthyper.searchers.bayesopt.estimator import create_gaussian_process_estimator
from sthyper.searchers.bayesopt.options import BayesOptOptions
from sthyper.searchers.bayesopt.reasons import SuggestionReason
from sthyper.searchers.bayesopt.searcher import BayesianOptimizationSearcher

__all__ = [
    "BayesOptOptions",
    "BayesianOptimizationSearcher",
    "BoTorchOptions",
    "BoTorchSearcher",
    "ConstrainedBayesOptOptions",
    "CostAwareBayesianOptimizationSearcher",
    "CostAwareOptions",
    "OutcomeConstraint",
    "SuggestionReason",
    "create_gaussian_process_estimator",
]
