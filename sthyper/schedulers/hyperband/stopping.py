"""Successive halving that stops: a trial goes on at a rung if it is among the best there so far."""

from __future__ import annotations

from sthyper.schedulers.hyperband.rungs import RungSystem, is_as_good

__all__ = ["StoppingRungSystem", "goes_on"]


class StoppingRungSystem(RungSystem):
    r"""Stops a trial for good at a rung unless its value is within the rung's quantile.

    The value is inserted first. With two or more entries the trial goes on iff
    :math:`f \le Q_{q_j}(\text{rung}_j)`, :math:`q_j = r_j / r_{j+1}`; the first one always goes on. No trial is
    ever paused, so no checkpoint is needed.

    Args:
        rung_levels: Strictly increasing positive levels up to ``max_t``.
        max_t: Maximum resource.

    References:
        Li et al., "A System for Massively Parallel Hyperparameter Tuning", https://arxiv.org/abs/1810.05934 (the
        variant of Ray Tune's ``ASHAScheduler``).
    """

    pauses = False

    def register(self, trial_id: int, level: int, value: float, cost: float | None = None) -> bool:
        rung = self.rung(level)
        rung.add(trial_id, value)
        return goes_on(value, rung.cutoff())


def goes_on(value: float, cutoff: float | None) -> bool:
    """Whether a trial goes on: there is no cutoff yet, or its value is finite and within it."""
    return cutoff is None or is_as_good(value, cutoff)
