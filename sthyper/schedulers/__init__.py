"""Schedulers: which trial runs next, and whether a running one goes on."""

from sthyper.schedulers.base import (
    PendingSuggestion,
    SchedulerDecision,
    TrialScheduler,
    TrialSchedulerWithSearcher,
    TrialSuggestion,
    report_value,
)
from sthyper.schedulers.fifo import FIFOScheduler
from sthyper.schedulers.hyperband import (
    HyperbandScheduler,
    PromotionRungSystem,
    RungSystem,
    StoppingRungSystem,
)

__all__ = [
    "FIFOScheduler",
    "HyperbandScheduler",
    "PendingSuggestion",
    "PromotionRungSystem",
    "RungSystem",
    "SchedulerDecision",
    "StoppingRungSystem",
    "TrialScheduler",
    "TrialSchedulerWithSearcher",
    "TrialSuggestion",
    "report_value",
]
