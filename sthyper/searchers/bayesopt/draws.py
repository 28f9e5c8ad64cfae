"""Random search as a part of a model-based searcher."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from sthyper.searchers.random import RandomSearcher

__all__ = ["RandomDraws"]


class RandomDraws(RandomSearcher):
    """Random search that knows which configurations count as the same, and which are pending.

    Its draws are those of :class:`~sthyper.searchers.RandomSearcher`, but for configurations that must not come.

    Args:
        match: Returns a text that is equal for configurations that count as the same.
        pending: Returns the texts of pending evaluations.
        config_space: As for random search, and so are all others.
        metric: Name of the metric.
        mode: ``"min"`` or ``"max"``.
        points_to_evaluate: Configurations to suggest first.
        random_seed: Non-negative seed; the scheduler's if ``None``.
        allow_duplicates: Whether a configuration may be suggested twice. A pending one comes again only if no other
            one of a finite space, or of ``restrict_configurations``, is left.
        restrict_configurations: Suggest from this list only.

    Raises:
        ConfigSpaceError: If a configuration lies outside the space, lacks a hyperparameter or has an unknown one.
        TypeError: If an argument has the wrong type.
        ValueError: If ``mode`` is unknown, the seed is negative or ``restrict_configurations`` is empty.
    """

    def __init__(
        self,
        match: Callable[[dict[str, Any]], str],
        pending: Callable[[], Collection[str]],
        config_space: dict[str, Any],
        metric: str | None = None,
        mode: str = "min",
        points_to_evaluate: list[dict[str, Any]] | None = None,
        random_seed: int | None = None,
        allow_duplicates: bool = False,
        restrict_configurations: list[dict[str, Any]] | None = None,
    ) -> None:
        self._match_of = match
        self._pending = pending
        super().__init__(
            config_space, metric, mode, points_to_evaluate, random_seed, allow_duplicates, restrict_configurations
        )

    def _match(self, config: dict[str, Any]) -> str:
        return self._match_of(config)

    def _blocked(self) -> Collection[str]:
        return self._pending() if self.allow_duplicates else ()
