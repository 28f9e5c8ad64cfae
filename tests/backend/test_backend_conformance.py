"""The conformance suite on our backends, and on broken ones, where it must find the fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sthyper.backend import EndEvent, LocalBackend, ReportEvent, TrialBackend
from sthyper.testing import BackendConformance
from sthyper.trial import Status


class TestInline(BackendConformance):
    ends_from_outside = False

    def make_backend(self, entry_point: Path) -> TrialBackend:
        return LocalBackend(entry_point, launch="inline")


class TestFork(BackendConformance):
    def make_backend(self, entry_point: Path) -> TrialBackend:
        return LocalBackend(entry_point, launch="fork")


class TestForkTcp(BackendConformance):
    def make_backend(self, entry_point: Path) -> TrialBackend:
        return LocalBackend(entry_point, channel="tcp")


class TestExec(BackendConformance):
    def make_backend(self, entry_point: Path) -> TrialBackend:
        return LocalBackend(entry_point, launch="exec")


class LosesReports(LocalBackend):
    def events(self, timeout: float | None) -> list[Any]:
        kept = []
        for event in super().events(timeout):
            if isinstance(event, ReportEvent) and event.metrics["step"] == 2:
                self.answer(event, "CONTINUE")
            else:
                kept.append(event)
        return kept


class GoesOnAfterStop(LocalBackend):
    def answer(self, event: ReportEvent, decision: str) -> None:
        super().answer(event, "CONTINUE")

    def _end(self, trial_id: int, status: Status, **how: Any) -> None:
        pass


class KeepsTheWorker(LocalBackend):
    def _mark_ended(self, event: EndEvent) -> None:
        self._status[event.trial_id] = event.status


class ForgetsCheckpoints(LocalBackend):
    def _schedule(self, trial: Any, run: int) -> None:
        self.delete_checkpoint(trial.trial_id)
        super()._schedule(trial, run)


@pytest.mark.parametrize(
    ("broken", "test", "words"),
    [
        (LosesReports, "test_reports_arrive_in_order_and_the_trial_completes", "reports lost"),
        (GoesOnAfterStop, "test_a_stopped_trial_reports_nothing_more", "went on after STOP"),
        (KeepsTheWorker, "test_reports_arrive_in_order_and_the_trial_completes", "must be free"),
        (ForgetsCheckpoints, "test_a_paused_trial_goes_on_where_it_was", "found no checkpoint"),
    ],
)
def test_broken_backends_are_caught(broken: type[LocalBackend], test: str, words: str, tmp_path: Path) -> None:
    class Suite(BackendConformance):
        ends_from_outside = False

        def make_backend(self, entry_point: Path) -> TrialBackend:
            return broken(entry_point, launch="inline")

    with pytest.raises(AssertionError, match=words):
        getattr(Suite(), test)(tmp_path)
