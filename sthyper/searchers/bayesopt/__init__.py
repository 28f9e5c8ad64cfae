"""Bayesian optimisation."""

from sthyper.searchers.bayesopt.options import BayesOptOptions
from sthyper.searchers.bayesopt.reasons import SuggestionReason
from sthyper.searchers.bayesopt.searcher import BayesianOptimizationSearcher

__all__ = ["BayesOptOptions", "BayesianOptimizationSearcher", "SuggestionReason"]
