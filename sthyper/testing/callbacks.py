"""What every callback of the tuner has to do, as tests that the author of a callback runs on it."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from sthyper.baselines import ASHA
from sthyper.config_space import uniform
from sthyper.constants import STHYPER_ENV_FOLDER
from sthyper.stopping_criterion import StoppingCriterion
from sthyper.testing._checks import check_plain, global_generators_untouched
from sthyper.testing._simulated_backend import SimulatedTrials
from sthyper.tuner import Tuner
from sthyper.tuner_callback import TunerCallback

__all__ = ["CallbackConformance"]


class CallbackConformance(ABC):
    """Tests of the contract of :class:`~sthyper.tuner_callback.TunerCallback`.

    Derive a class whose name starts with ``Test``, implement :meth:`make_callback` and :meth:`observe`, and let pytest
    collect it. Each test runs an experiment of a few trials with ``loss`` and ``epoch``, one after another.

    Attributes:
        n_trials: Number of trials of the experiment.
    """

    n_trials: ClassVar[int] = 5

    @abstractmethod
    def make_callback(self) -> TunerCallback:
        """Return a new callback; two calls must make equal ones."""

    @abstractmethod
    def observe(self, callback: TunerCallback, tuner: Tuner) -> Any:
        """Return what the callback has gathered or done in an experiment, without times.

        Args:
            callback: The callback.
            tuner: The tuner, whose experiment has ended.
        """

    def test_same_events_same_outcome(self) -> None:
        with _folder():
            with global_generators_untouched():
                first, second = self._run(), self._run()
        assert first == second, "two callbacks that were made alike end differently"

    def test_state_continues_where_it_was_taken(self) -> None:
        """The experiment is broken off after each of its reports, and a new callback goes on with the state."""
        with _folder():
            expected = self._run()
            reports = 0
            while True:
                reports += 1
                tuner = self._make(self._criterion(reports))
                callback = self.make_callback()
                tuner.callbacks.append(callback)
                tuner.run()
                if tuner.tuning_status.num_results < reports:
                    break
                check_plain(callback.state_dict(), f"{type(callback).__name__}.state_dict()")
                twin = self.make_callback()
                resumed = Tuner.resume(
                    tuner.tuner_path,
                    trial_backend=SimulatedTrials(),
                    stop_criterion=self._criterion(),
                    callbacks=[twin],
                )
                resumed.run()
                outcome = self.observe(twin, resumed)
                assert outcome == expected, (
                    f"broken off after {reports} reports and resumed, the callback ends with {outcome}, not with "
                    f"{expected}; what it must not lose belongs into its state_dict()"
                )
        assert reports > self.n_trials

    def _criterion(self, reports: int | None = None) -> StoppingCriterion:
        return StoppingCriterion(max_num_trials_started=self.n_trials, max_num_evaluations=reports)

    def _make(self, criterion: StoppingCriterion) -> Tuner:
        space = {"x": uniform(0, 1), "epochs": 4}
        scheduler = ASHA(space, metric="loss", max_resource_attr="epochs", reduction_factor=2, random_seed=3)
        return Tuner(SimulatedTrials(epochs=4), scheduler, criterion, n_workers=1, tuner_name="conformance")

    def _run(self) -> Any:
        tuner, callback = self._make(self._criterion()), self.make_callback()
        tuner.callbacks.append(callback)
        tuner.run()
        return self.observe(callback, tuner)


@contextmanager
def _folder() -> Iterator[None]:
    """Let experiments live in a temporary folder."""
    before = os.environ.get(STHYPER_ENV_FOLDER)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[STHYPER_ENV_FOLDER] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[STHYPER_ENV_FOLDER]
            else:
                os.environ[STHYPER_ENV_FOLDER] = before
