"""Schedulers: which trial runs next, and whether a running one goes on."""

from sthyper.schedulers.ask_tell import AskTellScheduler
from sthyper.schedulers.asked_trials import AskedTrial
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
    DefaultHyperbandBracketDistribution,
    HyperbandBracketManager,
    HyperbandScheduler,
    PromotionRungSystem,
    RungSystem,
    StoppingRungSystem,
)
from sthyper.searchers.multifidelity import BracketDistribution

__all__ = [
    "AskTellScheduler",
    "AskedTrial",
    "BracketDistribution",
    "DefaultHyperbandBracketDistribution",
    "FIFOScheduler",
    "HyperbandBracketManager",
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
