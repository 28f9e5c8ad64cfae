"""What a model-based searcher knows of trials: results, pending evaluations, failures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Observations", "TrialData"]


@dataclass
class TrialData:
    """One trial.

    Args:
        config: Its configuration.
        values: Targets by resource, low is good; the resource is 0 for schedulers without one.
        metrics: Other reported numbers that models need, by name, then by resource.
        failed: Whether it failed by itself.
    """

    config: dict[str, Any]
    values: dict[int, float] = field(default_factory=dict)
    metrics: dict[str, dict[int, float]] = field(default_factory=dict)
    failed: bool = False


class Observations:
    """All trials that a searcher has heard of, in the order in which it has.

    Args:
        match: Returns a text that is equal for configurations that count as the same.
        counts: Whether a configuration could be suggested; the others are no part of what was. All by default.
    """

    def __init__(
        self, match: Callable[[dict[str, Any]], str], counts: Callable[[dict[str, Any]], bool] | None = None
    ) -> None:
        self._match = match
        self._counts = counts
        self.trials: dict[int, TrialData] = {}
        self.pending: dict[int, dict[str, Any]] = {}
        self.failed: dict[str, None] = {}  # match strings
        self._suggested: dict[str, None] = {}

    # ---- events --------------------------------------------------------------------------------------

    def add(self, trial_id: int, config: dict[str, Any]) -> TrialData:
        """Return what is known of a trial, which is entered if it is new."""
        if trial_id not in self.trials:
            self.trials[trial_id] = TrialData(dict(config))
        return self.trials[trial_id]

    def exclude(self, config: dict[str, Any]) -> None:
        """Have a configuration not suggested again."""
        if self._counts is None or self._counts(config):
            self._suggested[self._match(config)] = None

    def set_pending(self, trial_id: int, config: dict[str, Any]) -> None:
        """Enter a pending evaluation."""
        self.pending[trial_id] = dict(config)
        self.exclude(config)

    def drop_pending(self, trial_id: int) -> None:
        """Forget the pending evaluation of a trial, if there is one."""
        self.pending.pop(trial_id, None)

    def set_failed(self, trial_id: int, config: dict[str, Any], blacklist: bool) -> None:
        """Enter a failure; with ``blacklist`` the configuration must not come again."""
        self.drop_pending(trial_id)
        if blacklist:
            self.add(trial_id, config).failed = True
            self.failed[self._match(config)] = None

    def forget(self, trial_id: int, resource: int | None) -> None:
        """Forget a result of a trial, or all of them."""
        trial = self.trials.get(trial_id)
        if trial is None:
            return
        for values in (trial.values, *trial.metrics.values()):
            if resource is None:
                values.clear()
            else:
                values.pop(resource, None)

    # ---- queries -------------------------------------------------------------------------------------

    def excluded(self, allow_duplicates: bool) -> Callable[[dict[str, Any]], bool]:
        """Return a function that tells whether a configuration must not be suggested."""
        if not allow_duplicates:
            return lambda config: (match := self._match(config)) in self._suggested or match in self.failed
        pending = self.pending_matches()
        return lambda config: (match := self._match(config)) in self.failed or match in pending

    def pending_matches(self) -> set[str]:
        """Return the texts of the configurations whose evaluations are pending."""
        return {self._match(config) for config in self.pending.values()}

    def num_configs(self) -> int:
        """Return the number of different configurations that were suggested, reported or failed."""
        return len(self._suggested.keys() | self.failed.keys())

    def num_values(self) -> int:
        """Return the number of targets."""
        return sum(len(trial.values) for trial in self.trials.values())

    def level(self, least: int) -> int | None:
        """Return the highest resource with at least so many targets; that with most if there is none.

        ``None`` if there are no targets at all.
        """
        counts: dict[int, int] = {}
        for trial in self.trials.values():
            for resource in trial.values:
                counts[resource] = counts.get(resource, 0) + 1
        if not counts:
            return None
        enough = [resource for resource, count in counts.items() if count >= least]
        return max(enough) if enough else max(counts, key=lambda r: (counts[r], r))

    def at_level(self, resource: int | None) -> Iterator[tuple[int, TrialData, float]]:
        """Yield (trial id, trial, target) at a resource."""
        for trial_id, trial in self.trials.items():
            if resource in trial.values:
                yield trial_id, trial, trial.values[resource]

    # ---- state ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything, as plain containers."""
        return {
            "trials": [
                [
                    trial_id,
                    dict(trial.config),
                    [list(item) for item in trial.values.items()],
                    [[name, [list(item) for item in values.items()]] for name, values in trial.metrics.items()],
                    trial.failed,
                ]
                for trial_id, trial in self.trials.items()
            ],
            "pending": [[trial_id, dict(config)] for trial_id, config in self.pending.items()],
            "failed": list(self.failed),
            "suggested": list(self._suggested),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.trials = {
            int(trial_id): TrialData(
                dict(config),
                {int(r): float(v) for r, v in values},
                {name: {int(r): float(v) for r, v in by_resource} for name, by_resource in metrics},
                bool(failed),
            )
            for trial_id, config, values, metrics, failed in state["trials"]
        }
        self.pending = {int(trial_id): dict(config) for trial_id, config in state["pending"]}
        self.failed = dict.fromkeys(state["failed"])
        self._suggested = dict.fromkeys(state["suggested"])
