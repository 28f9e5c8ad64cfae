"""What every stopping criterion has to do, as tests that the author of a criterion runs on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, ClassVar

from sthyper.constants import ST_WORKER_COST, ST_WORKER_TIME
from sthyper.testing._checks import copies_of_state, global_generators_untouched
from sthyper.testing.simulation import toy_fraction
from sthyper.trial import Status, Trial
from sthyper.tuning_status import TuningStatus

__all__ = ["CriterionConformance"]


class CriterionConformance(ABC):
    """Tests of stopping criteria: functions of :class:`~sthyper.tuning_status.TuningStatus`.

    Derive a class whose name starts with ``Test``, implement :meth:`make_criterion`, and let pytest collect it. The
    criterion is asked after each event of an experiment whose trials report ``loss``, about 100 times. One that
    keeps something from call to call has ``state_dict`` and ``load_state_dict``.

    Attributes:
        is_reached: Whether the criterion is met at some point of that experiment: its ``loss`` comes down from 2
            towards 0 in 16 trials of 5 reports each; a report costs 0.01 and everything takes a second.
    """

    is_reached: ClassVar[bool] = True

    @abstractmethod
    def make_criterion(self) -> Callable[[TuningStatus], bool]:
        """Return a new criterion; two calls must make equal ones."""

    def test_answers_are_bools_and_it_is_reached(self) -> None:
        answers = self._answers()
        assert all(type(answer) is bool for answer in answers), f"a criterion must return a bool, got {answers}"
        assert answers[0] is False, "the experiment ends before anything has happened"
        if self.is_reached:
            assert any(answers), "the criterion is never met; see `is_reached`"

    def test_same_events_same_answers(self) -> None:
        with global_generators_untouched():
            assert self._answers() == self._answers(), "two criteria that were made alike answer differently"

    def test_state_continues_where_it_was_taken(self) -> None:
        expected = self._answers()
        experiment, criterion = _Experiment(), self.make_criterion()
        for position, answer in enumerate(expected):
            again = criterion(experiment.status)
            assert again == answer, f"event {position}: the answer is {again}, not {answer}"
            for name, state in self._states(criterion):
                twin = self.make_criterion()
                if state is not None:
                    twin.load_state_dict(state)  # type: ignore[attr-defined]
                rest = self._answers(experiment.copy(), twin)
                assert rest == expected[position + 1 :], (
                    f"after loading the state ({name}) taken at event {position} the criterion answers otherwise; "
                    "what it keeps from call to call belongs into its state_dict()"
                )
            experiment.step()

    def _states(self, criterion: Callable[[TuningStatus], bool]) -> Iterator[tuple[str, dict[str, Any] | None]]:
        get = getattr(criterion, "state_dict", None)
        if get is None:
            yield "it has none", None
        else:
            yield from copies_of_state(get())

    def _answers(
        self, experiment: _Experiment | None = None, criterion: Callable[[TuningStatus], bool] | None = None
    ) -> list[bool]:
        """Return the answers after all events of an experiment, or after those that are left of one."""
        criterion = self.make_criterion() if criterion is None else criterion
        answers = []
        if experiment is None:
            experiment = _Experiment()
            answers.append(criterion(experiment.status))
        while experiment.step():
            answers.append(criterion(experiment.status))
        return answers


class _Experiment:
    """16 trials of 5 reports each, two at a time, seen through the status of a tuner."""

    def __init__(self, position: int = 0) -> None:
        self.position = 0
        self.status = TuningStatus(["loss"], clock=lambda: float(self.position))
        while self.position < position:
            self.step()

    def copy(self) -> _Experiment:
        twin = _Experiment()
        trials = {trial_id: self.status.trial(trial_id) for trial_id in range(self.status.num_trials_started)}
        twin.position = self.position
        for _, state in copies_of_state(self.status.state_dict()):
            twin.status.load_state_dict(state, trials)
        return twin

    def step(self) -> bool:
        """Let the next thing happen; ``False`` if everything has."""
        pair, step = divmod(self.position, 14)
        if pair == 8:
            return False
        self.position += 1
        trial_id, kind = 2 * pair + step % 2, step // 2
        if kind == 0:
            self.status.add_trial(Trial(trial_id, {"x": trial_id}, datetime(2020, 1, 1)))
        elif kind == 6:
            failed = trial_id % 5 == 4
            self.status.set_status(trial_id, Status.failed if failed else Status.completed)
        else:
            loss = max(0.0, 1 - trial_id / 16) + toy_fraction([trial_id, kind]) / kind
            result = {"epoch": kind, "loss": loss, ST_WORKER_TIME: float(kind), ST_WORKER_COST: 0.01 * kind}
            self.status.add_result(trial_id, result)
        return True
