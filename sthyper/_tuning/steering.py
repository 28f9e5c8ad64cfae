"""What users put into an experiment from outside: configurations to try, and results that are known already."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sthyper._space.points import complete_config
from sthyper.config_space import config_to_match_string
from sthyper.errors import ExperimentError, ReportError
from sthyper.journal import ExperimentJournal
from sthyper.report import check_metrics
from sthyper.schedulers.base import TrialScheduler
from sthyper.schedulers.reports import check_result
from sthyper.trial import copied

if TYPE_CHECKING:
    from sthyper._tuning.recorded import AnyJournal, RecordedJournal
    from sthyper._tuning.space_change import SpaceMap

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


@dataclass(slots=True)
class _Counts:
    """How much came from outside.

    Args:
        enqueued: Number of the last configuration to be tried.
        evaluations: Number of evaluations with added results.
        last: Match string of a configuration -> id of its last evaluation, and the largest resource of that.
    """

    enqueued: int = 0
    evaluations: int = 0
    last: dict[str, tuple[int, float]] = field(default_factory=dict)


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
        # What the calls have brought, and how much of that the loop has taken in
        self._given, self._taken = _Counts(), _Counts()
        self._closed = False
        self.queue: deque[EnqueuedConfig] = deque()
        # While a record is followed whose scheduler was another: its stand-in, and the results that were added
        self._past: TrialScheduler | None = None
        self._added: list[AddedResult] = []

    # ---- any thread ----------------------------------------------------------------------------------

    def enqueue(self, config: Mapping[str, Any]) -> None:
        """See :meth:`sthyper.Tuner.enqueue`."""
        tuned = complete_config(config, self._scheduler.config_space, "config")
        with self._lock:
            self._check_open("enqueue")
            self._given.enqueued += 1
            self._inbox.append(EnqueuedConfig(self._given.enqueued, tuned))

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
            for result in results:
                item = AddedResult(self._evaluation(tuned, result), tuned, result)
                self._note(item, self._given)
                self._inbox.append(item)

    def add_evaluation(self, config: dict[str, Any], results: list[dict[str, Any]]) -> None:
        """Take in the results of one evaluation, checked and in the order of their resource."""
        with self._lock:
            trial_id = -(self._given.evaluations + 1)
            for result in results:
                item = AddedResult(trial_id, config, result)
                self._note(item, self._given)
                self._inbox.append(item)

    def _evaluation(self, config: dict[str, Any], result: dict[str, Any]) -> int:
        """Return the id of a result: that of its configuration's last one if it goes on there, else a new one."""
        last = self._given.last.get(config_to_match_string(config, self._scheduler.config_space))
        goes_on = last is not None and _resource(result, self._scheduler) > last[1]
        return last[0] if last is not None and goes_on else -(self._given.evaluations + 1)

    def _note(
        self, item: EnqueuedConfig | AddedResult, counts: _Counts, scheduler: TrialScheduler | None = None
    ) -> None:
        scheduler = scheduler or self._scheduler
        if isinstance(item, EnqueuedConfig):
            counts.enqueued = item.number
            return
        counts.evaluations = max(counts.evaluations, -item.trial_id)
        match = config_to_match_string(item.config, scheduler.config_space)
        counts.last[match] = (item.trial_id, _resource(item.metrics, scheduler))

    def _check_open(self, method: str) -> None:
        if self._closed:
            raise ExperimentError(
                f"{method}: the experiment has ended; warm_start=[...] of a new one takes results over"
            )

    # ---- a resumed experiment ------------------------------------------------------------------------

    def recall(self, record: dict[str, Any], journal: RecordedJournal) -> None:
        """Do once more what a line of the journal says was put in; what comes now waits until :meth:`recalled`."""
        item: EnqueuedConfig | AddedResult
        if record["type"] == "enqueue":
            item = EnqueuedConfig(record["n"], record["config"])
        else:
            item = AddedResult(record["trial_id"], record["config"], record["metrics"])
        self._act(item, journal)

    def follow(self, past: TrialScheduler | None) -> None:
        """Act for a stand-in of earlier schedulers from here on; ``None`` for the one that this was made with."""
        self._past = past
        self._added = []

    def adopt(self, space_map: SpaceMap) -> None:
        """Go over to another configuration space; what has no place there is not started any more."""
        places = [(item, space_map.place(item.config)) for item in self.queue]
        self.queue = deque(EnqueuedConfig(item.number, p.tuned) for item, p in places if p is not None and p.inside)
        self._taken.last = {}
        for item in self._added:
            place = space_map.place(item.config)
            if place is not None:
                self._note(AddedResult(item.trial_id, place.tuned, item.metrics), self._taken, self._past)

    def recalled(self) -> None:
        """Give numbers that follow those of the record to what has come in the meantime."""
        with self._lock:
            waiting, self._inbox = self._inbox, deque()
            taken = self._taken
            self._given = _Counts(taken.enqueued, taken.evaluations, dict(taken.last))
            for item in waiting:
                if isinstance(item, EnqueuedConfig):
                    item = EnqueuedConfig(self._given.enqueued + 1, item.config)
                else:
                    item = AddedResult(self._evaluation(item.config, item.metrics), item.config, item.metrics)
                self._note(item, self._given)
                self._inbox.append(item)

    def state_dict(self) -> dict[str, Any]:
        """Return what was taken in, as plain containers; what still waits in the inbox is not part of it."""
        return {
            "enqueued": self._taken.enqueued,
            "evaluations": self._taken.evaluations,
            "last": {match: list(last) for match, last in self._taken.last.items()},
            "queue": [{"number": item.number, "config": copied(item.config)} for item in self.queue],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; :meth:`recalled` is to follow."""
        last = {match: (trial_id, resource) for match, (trial_id, resource) in state["last"].items()}
        self._taken = _Counts(state["enqueued"], state["evaluations"], last)
        self.queue = deque(EnqueuedConfig(item["number"], copied(item["config"])) for item in state["queue"])

    # ---- the event loop's thread ---------------------------------------------------------------------

    def take_in(self, journal: AnyJournal) -> None:
        """Journal what has come and act on it."""
        while self._inbox:
            self._act(self._inbox.popleft(), journal)

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

    def _act(self, item: EnqueuedConfig | AddedResult, journal: AnyJournal) -> None:
        self._record(item, journal)
        if isinstance(item, AddedResult):
            self._tell(item)

    def _record(self, item: EnqueuedConfig | AddedResult, journal: AnyJournal) -> None:
        self._note(item, self._taken, self._past)
        if self._past is not None and isinstance(item, AddedResult):
            self._added.append(item)
        if isinstance(item, EnqueuedConfig):
            journal.append({"type": "enqueue", "n": item.number, "config": item.config})
            self.queue.append(item)
        else:
            head = {"type": "added_result", "trial_id": item.trial_id, "config": item.config}
            journal.append({**head, "metrics": item.metrics})

    def _tell(self, item: AddedResult) -> None:
        try:
            (self._past or self._scheduler).add_result(item.trial_id, dict(item.config), dict(item.metrics))
        except ReportError as error:
            logger.warning(
                "an added result is passed over, %s cannot use it: %s", type(self._scheduler).__name__, error
            )


def _resource(result: dict[str, Any], scheduler: TrialScheduler) -> float:
    attr = scheduler.resource_attr
    resource: float = math.inf if attr is None else result.get(attr, math.inf)
    return resource


def _plain(report: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(report, Mapping) or not all(isinstance(name, str) for name in report):
        raise TypeError(f"metrics must be a dict such as {{'loss': 0.1}}, got {report!r}")
    return check_metrics(report) if report else {}
