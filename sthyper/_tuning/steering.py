"""What users put into an experiment from outside: configurations to try, and results that are known already."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sthyper._space.points import complete_config
from sthyper.config_space import config_to_match_string
from sthyper.errors import ExperimentError, ReportError
from sthyper.journal import ExperimentJournal
from sthyper.report import check_metrics
from sthyper.schedulers.base import TrialScheduler
from sthyper.schedulers.reports import check_result

if TYPE_CHECKING:
    from sthyper._tuning.recorded import RecordedJournal

__all__ = ["AddedResult", "EnqueuedConfig", "Steering", "check_result"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EnqueuedConfig:
    """A configuration that the user wants tried.

    Args:
        number: 1, 2, ... in the order of the calls.
        config: All hyperparameters, without constants.
    """

    number: int
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class AddedResult:
    """A result of a configuration that no trial of the experiment ran.

    Args:
        trial_id: -1, -2, ...; one for each evaluation of a configuration.
        config: All hyperparameters, without constants.
        metrics: The report.
    """

    trial_id: int
    config: dict[str, Any]
    metrics: dict[str, Any]


class Steering:
    """Takes configurations and results from any thread, and hands them over in the thread of the event loop.

    What is given is checked in the call, in the caller's thread. The loop then takes it in between two events, writes
    it to the journal and acts on it, so that a replay knows the order.

    Args:
        scheduler: The scheduler of the experiment.

    Attributes:
        queue: Configurations that were taken in and have not started yet; for the loop's thread only.
    """

    def __init__(self, scheduler: TrialScheduler) -> None:
        self._scheduler = scheduler
        self._lock = threading.Lock()
        self._inbox: deque[EnqueuedConfig | AddedResult] = deque()
        self._enqueued = 0
        self._evaluations = 0
        # Match string of a configuration -> id of its last evaluation, and the largest resource of that
        self._last: dict[str, tuple[int, float]] = {}
        self._closed = False
        self.queue: deque[EnqueuedConfig] = deque()

    # ---- any thread ----------------------------------------------------------------------------------

    def enqueue(self, config: Mapping[str, Any]) -> None:
        """See :meth:`sthyper.Tuner.enqueue`."""
        tuned = complete_config(config, self._scheduler.config_space, "config")
        with self._lock:
            self._check_open("enqueue")
            self._enqueued += 1
            self._inbox.append(EnqueuedConfig(self._enqueued, tuned))

    def add_result(self, config: Mapping[str, Any], metrics: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """See :meth:`sthyper.Tuner.add_result`."""
        tuned = complete_config(config, self._scheduler.config_space, "config", partial=False)
        reports = [metrics] if isinstance(metrics, Mapping) else metrics
        if isinstance(reports, str) or not isinstance(reports, Sequence):
            raise TypeError(f"metrics must be a dict such as {{'loss': 0.1}}, or a list of them, got {metrics!r}")
        if not reports:
            raise ValueError("metrics must hold at least one report such as {'loss': 0.1}, got []")
        results = [check_result(_plain(report), self._scheduler) for report in reports]
        with self._lock:
            self._check_open("add_result")
            self._inbox += [AddedResult(self._evaluation(tuned, result), tuned, result) for result in results]

    def add_evaluation(self, config: dict[str, Any], results: list[dict[str, Any]]) -> None:
        """Take in the results of one evaluation, checked and in the order of their resource."""
        with self._lock:
            self._evaluations += 1
            self._inbox += [AddedResult(-self._evaluations, config, result) for result in results]

    def _evaluation(self, config: dict[str, Any], result: dict[str, Any]) -> int:
        """Return the id of a result: that of its configuration's last one if it goes on there, else a new one."""
        match = config_to_match_string(config, self._scheduler.config_space)
        resource = math.inf
        if self._scheduler.resource_attr is not None:
            resource = result[self._scheduler.resource_attr]
        if match not in self._last or resource <= self._last[match][1]:
            self._evaluations += 1
            self._last[match] = (-self._evaluations, resource)
        else:
            self._last[match] = (self._last[match][0], resource)
        return self._last[match][0]

    def _check_open(self, method: str) -> None:
        if self._closed:
            raise ExperimentError(
                f"{method}: the experiment has ended; warm_start=[...] of a new one takes results over"
            )

    # ---- a resumed experiment ------------------------------------------------------------------------

    def recall(self, record: dict[str, Any]) -> None:
        """Put in once more what a line of the journal says was put in."""
        if record["type"] == "enqueue":
            self._enqueued = record["n"]
            self._inbox.append(EnqueuedConfig(record["n"], record["config"]))
            return
        trial_id, config, metrics = record["trial_id"], record["config"], record["metrics"]
        self._evaluations = max(self._evaluations, -trial_id)
        resource = math.inf if self._scheduler.resource_attr is None else metrics[self._scheduler.resource_attr]
        self._last[config_to_match_string(config, self._scheduler.config_space)] = (trial_id, resource)
        self._inbox.append(AddedResult(trial_id, config, metrics))

    # ---- the event loop's thread ---------------------------------------------------------------------

    def take_in(self, journal: ExperimentJournal | RecordedJournal) -> None:
        """Journal what has come and act on it."""
        while self._inbox:
            item = self._inbox.popleft()
            self._record(item, journal)
            if isinstance(item, AddedResult):
                self._tell(item)

    def close_unless_enqueued(self) -> bool:
        """Take nothing any more, unless a configuration has just come; return whether it is closed."""
        with self._lock:
            self._closed = self._closed or not any(isinstance(item, EnqueuedConfig) for item in self._inbox)
            return self._closed

    def close(self, journal: ExperimentJournal | None) -> None:
        """Take nothing any more; what has come is journaled, and configurations that never started are warned of."""
        with self._lock:
            self._closed = True
        if journal is None:
            return
        while self._inbox:
            self._record(self._inbox.popleft(), journal)
        if self.queue:
            logger.warning(
                "%d enqueued configurations were not started, the experiment ended before; the first one is %s",
                len(self.queue),
                self.queue[0].config,
            )

    def _record(self, item: EnqueuedConfig | AddedResult, journal: ExperimentJournal | RecordedJournal) -> None:
        if isinstance(item, EnqueuedConfig):
            journal.append({"type": "enqueue", "n": item.number, "config": item.config})
            self.queue.append(item)
        else:
            head = {"type": "added_result", "trial_id": item.trial_id, "config": item.config}
            journal.append({**head, "metrics": item.metrics})

    def _tell(self, item: AddedResult) -> None:
        try:
            self._scheduler.add_result(item.trial_id, dict(item.config), dict(item.metrics))
        except ReportError as error:
            logger.warning(
                "an added result is passed over, %s cannot use it: %s", type(self._scheduler).__name__, error
            )


def _plain(report: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(report, Mapping) or not all(isinstance(name, str) for name in report):
        raise TypeError(f"metrics must be a dict such as {{'loss': 0.1}}, got {report!r}")
    return check_metrics(report) if report else {}
