"""Asynchronous successive halving and Hyperband."""

from sthyper.schedulers.hyperband.levels import geometric_rung_levels, promotion_quantiles
from sthyper.schedulers.hyperband.promotion import PromotionRungSystem
from sthyper.schedulers.hyperband.rungs import Promotion, Rung, RungSystem
from sthyper.schedulers.hyperband.scheduler import HyperbandScheduler
from sthyper.schedulers.hyperband.stopping import StoppingRungSystem

__all__ = [
    "HyperbandScheduler",
    "Promotion",
    "PromotionRungSystem",
    "Rung",
    "RungSystem",
    "StoppingRungSystem",
    "geometric_rung_levels",
    "promotion_quantiles",
]
