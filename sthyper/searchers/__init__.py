"""Searchers: which configuration a new trial gets."""

from sthyper.searchers.base import BaseSearcher, SearcherContext
from sthyper.searchers.bayesopt import (
    BayesianOptimizationSearcher,
    BayesOptOptions,
    BoTorchSearcher,
    CostAwareBayesianOptimizationSearcher,
)
from sthyper.searchers.feasible import FeasibilitySearcher
from sthyper.searchers.grid import GridSearcher
from sthyper.searchers.multifidelity import BracketDistribution, BracketScheduler, RungSnapshot, RunningTrial
from sthyper.searchers.random import RandomSearcher
from sthyper.searchers.sklearn import SKLearnSurrogateSearcher

__all__ = [
    "BaseSearcher",
    "BayesOptOptions",
    "BayesianOptimizationSearcher",
    "BoTorchSearcher",
    "BracketDistribution",
    "BracketScheduler",
    "CostAwareBayesianOptimizationSearcher",
    "FeasibilitySearcher",
    "GridSearcher",
    "RandomSearcher",
    "RungSnapshot",
    "RunningTrial",
    "SKLearnSurrogateSearcher",
    "SearcherContext",
]
