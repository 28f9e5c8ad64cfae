"""Conformance suites and known-answer problems, for the tests of this library and of its plug-ins."""

from sthyper.testing.backends import BackendConformance
from sthyper.testing.callbacks import CallbackConformance
from sthyper.testing.criteria import CriterionConformance
from sthyper.testing.journals import canonical_journal, replay
from sthyper.testing.schedulers import SchedulerConformance
from sthyper.testing.searchers import SearcherConformance
from sthyper.testing.simulation import SimulatedEvent, TrialSimulation, drive, toy_curve

__all__ = [
    "BackendConformance",
    "CallbackConformance",
    "CriterionConformance",
    "SchedulerConformance",
    "SearcherConformance",
    "SimulatedEvent",
    "TrialSimulation",
    "canonical_journal",
    "drive",
    "replay",
    "toy_curve",
]
