"""Searchers: which configuration a new trial gets."""

from sthyper.searchers.base import BaseSearcher, SearcherContext
from sthyper.searchers.grid import GridSearcher
from sthyper.searchers.multifidelity import BracketDistribution, BracketScheduler, RungSnapshot, RunningTrial
from sthyper.searchers.random import RandomSearcher

__all__ = [
    "BaseSearcher",
    "BracketDistribution",
    "BracketScheduler",
    "GridSearcher",
    "RandomSearcher",
    "RungSnapshot",
    "RunningTrial",
    "SearcherContext",
]
