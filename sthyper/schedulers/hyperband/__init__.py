"""Asynchronous successive halving and Hyperband."""

from sthyper.schedulers.hyperband.brackets import DefaultHyperbandBracketDistribution, HyperbandBracketManager
from sthyper.schedulers.hyperband.levels import (
    geometric_rung_levels,
    linear_rung_levels,
    promotion_quantiles,
    successive_halving_rung_levels,
)
from sthyper.schedulers.hyperband.promotion import PromotionRungSystem
from sthyper.schedulers.hyperband.rungs import PausedTrial, Promotion, Rung, RungSystem
from sthyper.schedulers.hyperband.scheduler import HyperbandScheduler
from sthyper.schedulers.hyperband.stopping import StoppingRungSystem

__all__ = [
    "DefaultHyperbandBracketDistribution",
    "HyperbandBracketManager",
    "HyperbandScheduler",
    "PausedTrial",
    "Promotion",
    "PromotionRungSystem",
    "Rung",
    "RungSystem",
    "StoppingRungSystem",
    "geometric_rung_levels",
    "linear_rung_levels",
    "promotion_quantiles",
    "successive_halving_rung_levels",
]
