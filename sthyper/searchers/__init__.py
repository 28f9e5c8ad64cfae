"""Searchers: which configuration a new trial gets."""

from sthyper.searchers.base import BaseSearcher, SearcherContext
from sthyper.searchers.random import RandomSearcher

__all__ = ["BaseSearcher", "RandomSearcher", "SearcherContext"]
