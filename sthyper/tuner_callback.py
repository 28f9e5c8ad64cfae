"""Hooks into the tuner's loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sthyper._describe import Described
from sthyper.trial import Status, Trial

if TYPE_CHECKING:
    from sthyper.tuner import Tuner

__all__ = ["TunerCallback"]


class TunerCallback(Described):
    """Base class of callbacks of the tuner; every hook does nothing by default."""

    def on_tuning_start(self, tuner: Tuner) -> None:
        """The experiment starts; its folder and metadata exist."""

    def on_tuning_end(self) -> None:
        """The experiment has ended, also by an error or the first Ctrl-C; no trial runs any more."""

    def on_loop_start(self) -> None:
        """A round of the event loop starts, before events are fetched."""

    def on_loop_end(self) -> None:
        """A round of the event loop ends, before the stop criterion is looked at."""

    def on_fetch_status_results(
        self,
        trial_status_dict: dict[int, tuple[Trial, Status]],
        new_results: list[tuple[int, dict[str, Any]]],
    ) -> None:
        """News arrived: trials with their status, and the counted reports as ``(trial_id, result)``."""

    def on_trial_complete(self, trial: Trial, result: dict[str, Any]) -> None:
        """A trial completed; the scheduler has been told. ``result`` is its last report."""

    def on_trial_result(self, trial: Trial, status: Status, result: dict[str, Any], decision: str) -> None:
        """A trial reported.

        Args:
            trial: The trial.
            status: Its status before the decision.
            result: The report, with ``st_*`` columns of the tuner added.
            decision: The answer that the trial gets.
        """

    def on_tuning_sleep(self, sleep_time: float) -> None:
        """The tuner waited ``sleep_time`` seconds over a backend that must be polled."""

    def on_start_trial(self, trial: Trial) -> None:
        """A new trial was started."""

    def on_resume_trial(self, trial: Trial) -> None:
        """A paused trial was resumed."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed experiment must not lose, as plain containers and tensors; nothing by default.

        It is saved with the snapshots, so that it may be somewhat older than the record of the experiment. Callbacks
        are not told of what was recorded after that.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; called before ``on_tuning_start`` of a resumed experiment."""
