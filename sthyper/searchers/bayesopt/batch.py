"""Several suggestions at once, without a trace in the searcher."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sthyper.searchers.bayesopt.searcher import BayesianOptimizationSearcher

__all__ = ["batch_configs"]

logger = logging.getLogger(__name__)

_MAX_RETRIES = 20
"""Draws of a configuration that is already part of the batch, which ``allow_duplicates`` makes possible."""


def batch_configs(
    searcher: BayesianOptimizationSearcher, batch_size: int, num_init_candidates_for_batch: int | None = None
) -> list[dict[str, Any]]:
    """Return a batch of suggestions.

    They are chosen one after the other as :meth:`get_config` chooses them, each with the ones before as pending
    evaluations; the parameters of the model are fitted once. The state of the searcher stays as it is.

    Args:
        searcher: The searcher.
        batch_size: Number of suggestions, at least 1.
        num_init_candidates_for_batch: In place of ``num_init_candidates`` for all suggestions of the model but the
            first one, at least 2; ``None`` for no difference.

    Returns:
        Different configurations; fewer, with a warning in the log, if no more are left.

    Raises:
        TypeError: If an argument is no int.
        ValueError: If an argument is too small.
    """
    _check("batch_size", batch_size, 1)
    if num_init_candidates_for_batch is not None:
        _check("num_init_candidates_for_batch", num_init_candidates_for_batch, 2)
    found: list[dict[str, Any]] = []
    matches: set[str] = set()
    with _unchanged(searcher):
        number = _first_free_id(searcher)
        for _ in range(batch_size):
            config = None
            for _ in range(_MAX_RETRIES):
                config = searcher.get_config(number)
                if config is None or searcher._match(config) not in matches:
                    break
                config = None
            if config is None:
                logger.warning("a batch of %d configurations was asked for, only %d are left", batch_size, len(found))
                break
            found.append(config)
            matches.add(searcher._match(config))
            searcher.register_pending(number, config)
            number += 1
            if num_init_candidates_for_batch is not None and searcher._suggester is not None:
                search = searcher._suggester._search
                searcher._suggester._search = replace(search, num_candidates=num_init_candidates_for_batch)
    return found


@contextmanager
def _unchanged(searcher: BayesianOptimizationSearcher) -> Iterator[None]:
    """Set the searcher back to its state at the end."""
    state = copy.deepcopy(searcher.state_dict())
    random = searcher._random
    known, exhausted, reason = set(random._known_trials), random._exhausted, searcher.last_reason
    suggester = searcher._suggester
    if suggester is not None:  # a user's surrogate may know more than its state tells
        searcher._suggester = searcher._copied_suggester()
    try:
        yield
    finally:
        searcher.load_state_dict(state)
        if suggester is not None:
            searcher._suggester, searcher._saved_suggester = suggester, None
        random._known_trials, random._exhausted, searcher.last_reason = known, exhausted, reason


def _first_free_id(searcher: BayesianOptimizationSearcher) -> int:
    observations = searcher._observations
    return max([-1, *observations.trials, *observations.pending, *searcher._random._known_trials]) + 1


def _check(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int of at least {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
