"""Deletes the checkpoints of trials that have ended for good, except those of the best."""

from __future__ import annotations

from typing import Any

from sthyper._experiment_plots import is_finite
from sthyper.backend.base import TrialBackend
from sthyper.schedulers.base import TrialScheduler

__all__ = ["FinalCheckpoints"]


class FinalCheckpoints:
    """Keeps the disk free where the backend says ``delete_checkpoints``; does nothing over others.

    Checkpoints stay while their trial runs or is paused, if the tuner itself ended it, and as long as it is the best
    so far in one of the metrics: the first trial with the best finite value, as in the results.

    Args:
        backend: Deletes.
        scheduler: Names the metrics.
    """

    def __init__(self, backend: TrialBackend, scheduler: TrialScheduler) -> None:
        self._backend = backend
        self._signs: dict[str, float] = {}
        if backend.delete_checkpoints:
            names, mode = scheduler.metric_names(), scheduler.metric_mode()
            modes = [mode] * len(names) if isinstance(mode, str) else mode
            self._signs = {name: 1.0 if m == "min" else -1.0 for name, m in zip(names, modes, strict=True)}
        self._best: dict[str, tuple[float, int]] = {}
        self._final: set[int] = set()
        self._late: set[int] = set()

    def state_dict(self) -> dict[str, Any]:
        """Return what changes, as plain containers."""
        return {"best": {name: list(best) for name, best in self._best.items()}, "final": sorted(self._final)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._best = {name: (value, trial_id) for name, (value, trial_id) in state["best"].items()}
        self._final = set(state["final"])

    def on_report(self, trial_id: int, result: dict[str, Any]) -> None:
        """Take in a counted report; a former best trial that has ended loses its checkpoints."""
        for name, sign in self._signs.items():
            value = result.get(name)
            if value is None or not is_finite(value):
                continue
            before = self._best.get(name)
            if before is None or sign * value < before[0]:
                self._best[name] = (sign * value, trial_id)
                if before is not None and before[1] in self._final:
                    self.on_final_end(before[1])

    def on_final_end(self, trial_id: int) -> None:
        """Delete the checkpoints of a trial that has ended for good, unless it is the best."""
        if not self._signs:
            return
        if any(trial_id == best for _, best in self._best.values()):
            self._final.add(trial_id)
        else:
            self._final.discard(trial_id)
            if self._backend.recalling:
                self._late.add(trial_id)
            else:
                self._backend.delete_checkpoint(trial_id)

    def catch_up(self) -> None:
        """Delete what the record says was deleted: a tuner that was killed may not have come to it."""
        for trial_id in sorted(self._late):
            self._backend.delete_checkpoint(trial_id)
        self._late.clear()
