"""What every backend must do; authors of backends subclass :class:`BackendConformance` in their tests."""

from __future__ import annotations

import textwrap
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sthyper.backend.base import EndEvent, ExperimentContext, ReportEvent, TrialBackend
from sthyper.trial import SchedulerDecision, Status

__all__ = ["BackendConformance"]

_SCRIPT = """
    import argparse, os, time
    from sthyper import Reporter
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int)
    parser.add_argument("--fail", type=int)
    parser.add_argument("--wait", type=float)
    args, _ = parser.parse_known_args()
    report = Reporter()
    folder = report.checkpoint_dir
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "step")
    done = 0
    if os.path.exists(path):
        with open(path) as file:
            done = int(file.read())
    for step in range(done + 1, args.steps + 1):
        with open(path, "w") as file:
            file.write(str(step))
        report(step=step, value=step / 2)
    if args.fail:
        raise RuntimeError("failed as it was told to")
    time.sleep(args.wait)
"""


class BackendConformance(ABC):
    """Tests of the contract between tuner and backend; pytest collects the subclasses.

    Example::

        class TestMyBackend(BackendConformance):
            def make_backend(self, entry_point):
                return MyBackend(entry_point)
    """

    patience: float = 30.0
    """Seconds to wait for something that has to happen."""
    ends_from_outside: bool = True
    """Whether the backend can end a trial that does not report (a process can be killed, a thread cannot)."""

    @abstractmethod
    def make_backend(self, entry_point: Path) -> TrialBackend:
        """Return a new backend that runs the Python script ``entry_point``."""

    # ---- tests ---------------------------------------------------------------------------------------

    def test_reports_arrive_in_order_and_the_trial_completes(self, tmp_path: Path) -> None:
        """All reports with their values, then one end; the worker is free afterwards."""

        def body(backend: TrialBackend) -> None:
            assert backend.new_trial_id() == backend.new_trial_id() == 0, "new_trial_id must not reserve the id"
            trial = backend.start_trial(_config(steps=3))
            assert (trial.trial_id, trial.config["steps"]) == (0, 3)
            assert backend.busy_trial_ids() == [(0, Status.in_progress)]
            reports, end = self._follow(backend, 0)
            assert [r.metrics["step"] for r in reports] == [1, 2, 3], "reports lost, doubled or out of order"
            assert [r.metrics["value"] for r in reports] == [0.5, 1.0, 1.5]
            assert {(r.trial_id, r.run) for r in reports} == {(0, 0)}
            assert (end.status, end.reason) == (Status.completed, None)
            assert backend.busy_trial_ids() == [], "the worker of an ended trial must be free"

        self._run(tmp_path, body)

    def test_a_failure_has_a_reason_and_the_tail_of_stderr(self, tmp_path: Path) -> None:
        """A script that raises is failed, with its exit code."""

        def body(backend: TrialBackend) -> None:
            backend.start_trial(_config(steps=1, fail=1))
            _, end = self._follow(backend, 0)
            assert (end.status, end.reason, end.exit_code) == (Status.failed, "exit 1", 1)
            assert "failed as it was told to" in end.stderr_tail
            assert "failed as it was told to" in "".join(backend.stderr(0))
            assert backend.trial(0).end_reason == "exit 1"

        self._run(tmp_path, body)

    def test_a_stopped_trial_reports_nothing_more(self, tmp_path: Path) -> None:
        """STOP at the second report: no third one, status Stopped."""

        def body(backend: TrialBackend) -> None:
            backend.start_trial(_config(steps=50))
            reports, end = self._follow(backend, 0, {2: SchedulerDecision.STOP})
            assert [r.metrics["step"] for r in reports] == [1, 2], "a trial went on after STOP"
            assert end.status == Status.stopped

        self._run(tmp_path, body)

    def test_a_paused_trial_goes_on_where_it_was(self, tmp_path: Path) -> None:
        """PAUSE, then resume from the checkpoint, as a new run of the same trial."""

        def body(backend: TrialBackend) -> None:
            backend.start_trial(_config(steps=5))
            _raises(ValueError, lambda: backend.resume_trial(0))
            reports, end = self._follow(backend, 0, {2: SchedulerDecision.PAUSE})
            assert end.status == Status.paused
            assert backend.new_trial_id() == 1, "a paused trial keeps its id"
            resumed = backend.resume_trial(0)
            assert (resumed.trial_id, resumed.config["steps"]) == (0, 5)
            later, end = self._follow(backend, 0)
            steps = [r.metrics["step"] for r in reports + later]
            assert steps == [1, 2, 3, 4, 5], f"after the resume the script found no checkpoint: {steps}"
            assert {r.run for r in later} == {1}, "a resume is a new run"
            assert end.status == Status.completed
            _raises(ValueError, lambda: backend.resume_trial(0))
            _raises(ValueError, lambda: backend.resume_trial(99))

        self._run(tmp_path, body)

    def test_a_resume_may_change_the_configuration(self, tmp_path: Path) -> None:
        """The new configuration reaches the script and the trial."""

        def body(backend: TrialBackend) -> None:
            backend.start_trial(_config(steps=5))
            self._follow(backend, 0, {1: SchedulerDecision.PAUSE})
            trial = backend.resume_trial(0, _config(steps=2))
            assert trial.config["steps"] == 2
            reports, _ = self._follow(backend, 0)
            assert [r.metrics["step"] for r in reports] == [2]

        self._run(tmp_path, body)

    def test_checkpoints_are_copied_and_deleted(self, tmp_path: Path) -> None:
        """A trial may start from another one's checkpoint."""

        def body(backend: TrialBackend) -> None:
            backend.start_trial(_config(steps=2))
            self._follow(backend, 0)
            backend.start_trial(_config(steps=3), checkpoint_trial_id=0)
            reports, _ = self._follow(backend, 1)
            assert [r.metrics["step"] for r in reports] == [3]
            backend.delete_checkpoint(0)
            backend.delete_checkpoint(0)
            assert not backend.checkpoint_trial_path(0).exists()
            assert backend.checkpoint_trial_path(1).exists()

        self._run(tmp_path, body)

    def test_a_restart_from_scratch_finds_no_checkpoint(self, tmp_path: Path) -> None:
        """``restart_trial(from_scratch=True)`` sets the old checkpoint aside and does not lose it."""

        def body(backend: TrialBackend) -> None:
            backend.start_trial(_config(steps=2))
            self._follow(backend, 0)
            backend.restart_trial(0)
            assert self._follow(backend, 0)[0] == []
            backend.restart_trial(0, from_scratch=True)
            reports, _ = self._follow(backend, 0)
            assert [(r.run, r.metrics["step"]) for r in reports] == [(2, 1), (2, 2)]
            assert len(list(backend.trial_path(0).glob("checkpoints*/step"))) == 2

        self._run(tmp_path, body)

    def test_trials_have_different_seeds(self, tmp_path: Path) -> None:
        """Seeds come from the experiment's seed and the trial's id alone."""

        def body(backend: TrialBackend) -> None:
            seeds = []
            for trial_id in range(3):
                seeds.append(backend.start_trial(_config(steps=1)).seed)
                self._follow(backend, trial_id)
            assert len(set(seeds)) == 3
            from sthyper.backend.base import trial_seed

            assert seeds == [trial_seed(7, trial_id) for trial_id in range(3)]

        self._run(tmp_path, body)

    def test_polling_sees_reports_too(self, tmp_path: Path) -> None:
        """``fetch_status_results`` without a timeout brings every report once, and the status."""

        def body(backend: TrialBackend) -> None:
            backend.start_trial(_config(steps=3))
            steps: list[int] = []
            deadline = time.monotonic() + self.patience
            while backend.busy_trial_ids() and time.monotonic() < deadline:
                status, results = backend.fetch_status_results([0])
                steps += [result["step"] for trial_id, result in results if trial_id == 0]
                time.sleep(0.01)
            assert steps == [1, 2, 3], f"polling saw the steps {steps}"
            assert status[0][1] == Status.completed

        self._run(tmp_path, body)

    def test_events_wait_no_longer_than_asked(self, tmp_path: Path) -> None:
        """With nothing running ``events`` returns after its timeout."""

        def body(backend: TrialBackend) -> None:
            start = time.monotonic()
            assert not any(isinstance(e, ReportEvent | EndEvent) for e in backend.events(0.2))
            assert time.monotonic() - start < 5.0

        self._run(tmp_path, body)

    def test_everything_running_can_be_ended(self, tmp_path: Path) -> None:
        """``stop_all`` ends trials that do not report."""
        if not self.ends_from_outside:
            return

        def body(backend: TrialBackend) -> None:
            backend.start_trial(_config(steps=1, wait=600.0))
            ended = False
            deadline = time.monotonic() + self.patience
            while backend.busy_trial_ids() and time.monotonic() < deadline:
                for event in backend.events(0.5):
                    if isinstance(event, ReportEvent):
                        backend.answer(event, SchedulerDecision.CONTINUE)
                        backend.stop_all(grace=1.0)
                    elif isinstance(event, EndEvent):
                        ended = event.status == Status.stopped
            assert ended, "stop_all did not end the trial"

        self._run(tmp_path, body)

    # ---- helpers -------------------------------------------------------------------------------------

    def _run(self, folder: Path, body: Callable[[TrialBackend], None]) -> None:
        script = folder / "conformance_script.py"
        script.write_text(textwrap.dedent(_SCRIPT))
        backend = self.make_backend(script)
        backend.set_path(folder / "experiment", "conformance")
        backend.open(ExperimentContext(n_workers=1, seed=7))
        try:
            backend.run_loop(lambda: body(backend))
        finally:
            backend.close()
            backend.close()

    def _follow(
        self, backend: TrialBackend, trial_id: int, answers: dict[int, str] | None = None
    ) -> tuple[list[ReportEvent], EndEvent]:
        """Answer a trial's reports (by step) until it ends."""
        reports: list[ReportEvent] = []
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            for event in backend.events(1.0):
                if isinstance(event, ReportEvent):
                    reports.append(event)
                    answer = (answers or {}).get(event.metrics["step"], SchedulerDecision.CONTINUE)
                    backend.answer(event, answer)
                    if answer == SchedulerDecision.STOP:
                        backend.stop_trial(trial_id, event.metrics)
                    elif answer == SchedulerDecision.PAUSE:
                        backend.pause_trial(trial_id, event.metrics)
                elif isinstance(event, EndEvent):
                    return reports, event
        raise AssertionError(f"trial {trial_id} did not end within {self.patience:.0f} s; {len(reports)} reports came")


def _config(steps: int, fail: int = 0, wait: float = 0.0) -> dict[str, Any]:
    return {"steps": steps, "fail": fail, "wait": wait}


def _raises(kind: type[Exception], call: Callable[[], Any]) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError(f"expected a {kind.__name__}")
